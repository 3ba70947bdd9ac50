"""What to do about an error, for the few cases where there is something true to say."""

from __future__ import annotations

import builtins
import errno
import keyword
import re
import sys
from collections.abc import Iterable
from typing import Any

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

_name_of_type = type.__dict__["__name__"].__get__
_module_of_type = type.__dict__["__module__"].__get__
_mro_of_type = type.__dict__["__mro__"].__get__

LISTABLE = frozenset(
    "generator range map filter zip enumerate reversed dict_keys dict_values dict_items deque array islice chain"  # noqa: SIM905
    " list_iterator tuple_iterator set_iterator dict_keyiterator dict_valueiterator dict_itemiterator".split()
)
BY_TYPE = {
    "datetime.date": "Return its text: value.isoformat().",
    "datetime.time": "Return its text: value.isoformat().",
    "datetime.timedelta": "Return a number: value.total_seconds().",
    "decimal.Decimal": "Return str(value), or float(value) where digits may be lost.",
    "fractions.Fraction": "Return str(value) or float(value).",
    "uuid.UUID": "Return str(value).",
    "pathlib.PurePath": "Return str(value).",
    "builtins.set": "Return a list: sorted(value) or list(value).",
    "builtins.frozenset": "Return a list: sorted(value) or list(value).",
    "builtins.bytes": "Return text: value.decode(), or base64.b64encode(value).decode().",
    "builtins.bytearray": "Return text: value.decode(), or base64.b64encode(value).decode().",
    "builtins.complex": "Return [value.real, value.imag].",
    "builtins.coroutine": "Await it.",
    "builtins.async_generator": "Return a list: [item async for item in value].",
    "builtins.function": "Call it.",
    "builtins.method": "Call it.",
    "builtins.builtin_function_or_method": "Call it.",
    "builtins.mappingproxy": "Return dict(value).",
    "collections.ChainMap": "Return dict(value).",
    "collections.UserDict": "Return dict(value).",
    "numpy.generic": "Return value.item().",
    "numpy.ndarray": "Return value.tolist().",
    "pandas.DataFrame": 'Return value.to_dict("records").',
    "pandas.Series": "Return value.tolist() or value.to_dict().",
    "pandas.Index": "Return value.tolist().",
    "enum.Enum": "Return value.value or value.name.",
    "pydantic.BaseModel": 'Return value.model_dump(mode="json").',
    "builtins.BaseException": "Return str(value), or raise it.",
}
GENERAL = "Return dicts, lists, strings, numbers, booleans and None."
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
NO_NETWORK = "The sandbox has no network: pass what the code needs as inputs or input files."
OTHER_LANGUAGES = {"true": "True", "false": "False", "null": "None", "none": "None", "undefined": "None", "nil": "None"}
FIRST_WORD = re.compile(r"\s*([^\W\d]\w*)")
KEYWORDS = {word.lower(): word for word in keyword.kwlist}


def stored(error: BaseException, kind: type[BaseException], name: str) -> Any:
    """An attribute of a built-in exception class as it is stored, whatever a subclass puts in its place."""
    return vars(kind)[name].__get__(error)


def is_a(error: BaseException, kind: type[BaseException]) -> bool:
    """isinstance() for objects that may lie about their class."""
    return issubclass(type(error), kind)


def type_name(kind: type) -> str:
    """The name of a class, whatever its metaclass says."""
    return str(_name_of_type(kind))


def full_names(kind: type) -> Iterable[str]:
    """The class and those it is made from as `package.name`, the first part of the module only."""
    for base in _mro_of_type(kind):
        try:
            module = str(_module_of_type(base))
        except AttributeError:
            continue
        yield f"{module.partition('.')[0]}.{_name_of_type(base)}"


def for_value(value: object) -> str:
    """How to return what JSON cannot carry."""
    kind = type(value)
    name = type_name(kind)
    if name in LISTABLE:
        return "Return list(value)."
    for full_name in full_names(kind):
        if full_name in BY_TYPE:
            return BY_TYPE[full_name]
        if full_name != "builtins.object" and any("__dataclass_fields__" in vars(base) for base in _mro_of_type(kind)):
            return "Return dataclasses.asdict(value)."
    return GENERAL


def for_syntax(line: str) -> str:
    """For a line that does not parse: a keyword in the wrong case at its start, as in `Return x`."""
    match = FIRST_WORD.match(line)
    word = match[1] if match else ""
    right = KEYWORDS.get(word.lower(), word)
    return f"Python tells upper case from lower: did you mean {right}?" if right != word else ""


def for_exception(
    error: BaseException, linked: list[BaseException], inputs: dict[str, object], known: Iterable[str], *, network: bool
) -> str:
    """For an exception, those it came from, the inputs by name, and the names that the code has defined.

    With a `network` an address that is not reached says nothing; the host tells what it has denied.
    """
    if is_a(error, ModuleNotFoundError):
        return _for_missing_module(stored(error, ImportError, "name"))
    if is_a(error, NameError):
        return _for_missing_name(stored(error, NameError, "name"), inputs, known)
    if is_a(error, EOFError) and stored(error, BaseException, "args") == ("EOF when reading a line",):
        return "Nobody is at the keyboard: inputs come as parameters of main, or as variables of a script."
    if not network and any(_is_network(one) for one in linked):
        return NO_NETWORK
    path = stored(error, OSError, "filename") if is_a(error, OSError) else None
    if type(path) is not str:
        return ""
    if is_a(error, FileNotFoundError) and not path.startswith("/"):
        return "Relative paths start at /home/user, where input files are."
    if stored(error, OSError, "errno") in (errno.EROFS, errno.EACCES):
        return "Code can write below /home/user and /tmp only."
    return ""


def _for_missing_module(name: object) -> str:
    top = name.partition(".")[0] if type(name) is str else ""
    if not top or top in sys.stdlib_module_names:
        return ""
    return f"{top[:100]} is not installed in this runtime: declare it in dependencies, or send it as one of the files."


def _for_missing_name(name: object, inputs: dict[str, object], known: Iterable[str]) -> str:
    if type(name) is not str:
        return ""
    if name in inputs:
        short = name[:100]
        return f"{short} is an input: make it a parameter of main, or take def main(args) and use args[{short!r}]."
    if name in OTHER_LANGUAGES:
        return f"In Python it is {OTHER_LANGUAGES[name]}."
    lower = name.lower()
    candidates = [*keyword.kwlist, *known, *inputs, *vars(builtins)]
    right = next((c for c in candidates if type(c) is str and c != name and c.lower() == lower), "")
    return f"Python tells upper case from lower: did you mean {right[:100]}?" if right else ""


def _is_network(error: BaseException) -> bool:
    if not is_a(error, OSError):
        return False
    return type_name(type(error)) == "gaierror" or stored(error, OSError, "errno") in UNREACHABLE
