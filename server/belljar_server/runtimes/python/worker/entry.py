"""How inputs reach the code: which way to call it, and with which arguments. The proto's `Entry` specifies it."""

from __future__ import annotations

import builtins
import inspect
import keyword
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

Parameter = inspect.Parameter
signature_of = inspect.signature
MOST_NAMED = 20
LONGEST_NAME = 100


class EntryNotFound(Exception):
    """There is no main, or its parameters do not fit the inputs."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Arguments:
    """What main is called with."""

    positional: tuple[object, ...]
    named: dict[str, object]


def is_script(entry: str, *, returns: bool, calls_main: bool, has_main: bool) -> bool:
    """Whether the code runs as a script rather than by its main."""
    if entry == "detect":
        return returns or calls_main or not has_main
    return entry == "script"


def check_variables(inputs: dict[str, object]) -> None:
    """Checks that all inputs can be variables of a script. Raises EntryNotFound."""
    wrong = [name for name in inputs if not _is_variable(name)]
    if wrong:
        raise EntryNotFound(
            f"{_listed(wrong)} cannot be {'a variable' if len(wrong) == 1 else 'variables'} of a script",
            "Rename the input, or take all inputs as one dict with def main(args).",
        )


def arguments_for(main: object, entry: str, inputs: dict[str, object]) -> Arguments:
    """The arguments that give main its inputs. Raises EntryNotFound."""
    if not callable(main):
        raise EntryNotFound("the code has no function main", "Define def main(args) at the top level.")
    try:
        parameters = list(signature_of(main).parameters.values())
    except (TypeError, ValueError):  # a function in C that does not tell
        return Arguments((inputs,), {}) if entry == "main_args" else Arguments((), inputs)
    if entry == "main_args" or (entry == "detect" and _takes_args(parameters, inputs)):
        return _all_as_one(main, parameters, inputs)
    return _by_name(parameters, inputs)


def _is_variable(name: str) -> bool:
    if not name.isidentifier() or keyword.iskeyword(name):
        return False
    return not (name.startswith("__") and name.endswith("__"))


def _takes_args(parameters: list[Parameter], inputs: dict[str, object]) -> bool:
    if len(parameters) != 1 or parameters[0].kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return False
    return parameters[0].name == "args" and "args" not in inputs


def _all_as_one(main: Callable[..., Any], parameters: list[Parameter], inputs: dict[str, object]) -> Arguments:
    required = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty]
    named: dict[str, object] = {required[0].name: inputs} if len(parameters) == len(required) == 1 else {}
    positional = () if named else (inputs,)
    try:
        signature_of(main).bind(*positional, **named)
    except TypeError as error:
        raise EntryNotFound(
            f"{_described(parameters)} cannot take all inputs as one dict: {error}", "Define def main(args)."
        ) from None
    return Arguments(positional, named)


def _by_name(parameters: list[Parameter], inputs: dict[str, object]) -> Arguments:
    plain = [p for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    known = {p.name for p in plain}
    missing = [p.name for p in plain if p.default is Parameter.empty and p.name not in inputs]
    takes_rest = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    unexpected = [] if takes_rest else [name for name in inputs if name not in known]
    if missing or unexpected:
        parts = [f"missing {_listed(missing)}"] if missing else []
        parts += [f"unexpected {_listed(unexpected)}"] if unexpected else []
        raise EntryNotFound(
            f"{_described(parameters)} does not fit the inputs: {'; '.join(parts)}",
            "Inputs are matched to parameters by name. main(args) takes all of them as one dict.",
        )
    by_position = [p for p in plain if p.kind is Parameter.POSITIONAL_ONLY]
    positional = tuple(inputs.get(p.name, p.default) for p in by_position)
    taken = {p.name for p in by_position}
    return Arguments(positional, {name: value for name, value in inputs.items() if name not in taken})


def _described(parameters: list[Parameter]) -> str:
    """The call of main with its parameters as the user wrote them, without annotations and values of defaults."""
    parts = []
    star = False
    for index, p in enumerate(parameters):
        if p.kind is Parameter.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (Parameter.VAR_POSITIONAL, Parameter.KEYWORD_ONLY)
        prefix = "*" if p.kind is Parameter.VAR_POSITIONAL else "**" if p.kind is Parameter.VAR_KEYWORD else ""
        parts.append(prefix + p.name + ("" if p.default is Parameter.empty else "=…"))
        after = parameters[index + 1].kind if index + 1 < len(parameters) else None
        if p.kind is Parameter.POSITIONAL_ONLY and after is not Parameter.POSITIONAL_ONLY:
            parts.append("/")
    if len(parts) > MOST_NAMED:
        parts[MOST_NAMED:] = ["…"]
    return f"main({', '.join(parts)})"


def _listed(names: Iterable[str]) -> str:
    """Names for a message, cut where there are many or long ones."""
    every = list(names)
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in every[:MOST_NAMED]]
    text = ", ".join(name if name.isidentifier() else encode_basestring_ascii(name) for name in shown)
    return f"{text} and {len(every) - len(shown)} more" if len(every) > len(shown) else text
