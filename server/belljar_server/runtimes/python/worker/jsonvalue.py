"""Values as JSON text, and back. What JSON cannot carry is refused with its path.

The fast way is one pass of the standard library's encoder in C, then a look at the value's shape. Only when one of them
objects does the slow way walk the value in Python: it decides what is allowed, and says where what is not. The answers:

- None, booleans, strings, finite floats, integers of any size, dicts in order, lists and tuples; subclasses of these by
  what they hold, whatever methods they override.
- Keys that are numbers, booleans or None become strings as `json` does it, unless two become the same.
- A string that holds a JSON object or array is taken as that document, its text untouched.
- A surrogate without its other half becomes its escape, so that the text is always valid UTF-8.
"""

from __future__ import annotations

import builtins
import math
import re
import sys
from _json import encode_basestring, make_encoder, make_scanner
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from json.decoder import JSONDecoder
from typing import Any, NoReturn, cast

from hints import for_value, type_name

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

DEEPEST = 500
"""So many lists and dicts may be nested in each other."""
PIECE = 128 * 1024
"""Characters that are encoded at a time; at most 6 bytes each, so that a piece fits a frame."""
LONGEST_PATH = 300
LONE = re.compile("[\ud800-\udfff]")
DOCUMENT = re.compile(r"\s*[\[{]")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
PLAIN_ITEMS = (dict.items, OrderedDict.items)
CONTAINERS = (dict, list, tuple)
SCALARS = frozenset({str, int, float, bool, type(None)})

_is_finite, _is_nan = math.isfinite, math.isnan
quote: Callable[[str], str] = encode_basestring
allow_digits = getattr(sys, "set_int_max_str_digits", lambda _: None)
path_key = re.compile(r"[^\W\d]\w*").fullmatch


class NotSerializable(Exception):
    """The result cannot be JSON. `message` says what is where."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def loads(text: str) -> Any:
    """The value of a JSON text with integers of any size. Raises ValueError, RecursionError."""
    allow_digits(0)
    start = len(text) - len(text.lstrip())
    try:
        value, end = _scan(text, start)
    except StopIteration:
        raise ValueError("not JSON") from None
    if text[end : end + 1] and not text[end:].isspace():
        raise ValueError("more than one JSON value")
    return value


def dumps(value: Any) -> str:
    """The value as JSON text, which `pieces` makes bytes of. Raises NotSerializable, MemoryError."""
    allow_digits(0)
    if issubclass(type(value), str):
        return _string_or_document(str.__str__(value))
    try:
        text = "".join(_encoder()(value, 0))
    except MemoryError:
        raise
    except BaseException:  # whatever a subclass does: the slow way does not ask it
        return _Writer().text(value)
    return text if _is_plain(value) else _Writer().text(value)


def pieces(text: str) -> Iterator[bytes]:
    """The text as UTF-8 in pieces of at most 768 KiB."""
    for start in range(0, len(text), PIECE):
        yield encode(text[start : start + PIECE])


def encode(text: str) -> bytes:
    """UTF-8, with the escapes of JSON for surrogates that stand alone, which can only be inside of strings."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return LONE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(cast(Any, JSONDecoder(parse_constant=_refuse_constant)))


def _refuse_type(_: object) -> NoReturn:
    raise TypeError


def _encoder() -> Any:
    """A new one each time: it remembers the containers it is in, to find cycles."""
    return make_encoder({}, _refuse_type, encode_basestring, None, ":", ",", False, False, False)


def _string_or_document(text: str) -> str:
    if not DOCUMENT.match(text):
        return quote(text)
    try:
        value = loads(text)
    except RecursionError:
        if not _is_balanced(text):
            return quote(text)
        raise NotSerializable(f"result is a JSON document that is nested deeper than {DEEPEST}") from None
    except MemoryError:
        raise
    except Exception:
        return quote(text)
    if not _is_plain(value):
        raise NotSerializable(f"result is a JSON document that is nested deeper than {DEEPEST}")
    return text.strip()


def _is_balanced(text: str) -> bool:
    """Whether brackets outside of strings match: tells a document that is too deep to parse from another text."""
    closing = []
    for token in TOKEN.finditer(text):
        sign = token[0]
        if sign in "[{":
            closing.append("]" if sign == "[" else "}")
        elif sign in "]}" and (not closing or closing.pop() != sign):
            return False
    return not closing


def _is_plain(value: Any) -> bool:
    """Whether the encoder in C was right to accept this: not too deep, keys distinct as strings, no method asked.

    Goes level by level, and ends since the encoder has found no cycle.
    """
    level = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if issubclass(kind, list):
                children: Iterable[Any] = list.copy(node)
            elif issubclass(kind, tuple):
                children = tuple.__getitem__(node, slice(None))
            elif issubclass(kind, dict):
                if kind.items not in PLAIN_ITEMS or not _has_distinct_keys(node):
                    return False
                children = dict.values(node)
            else:
                continue
            below += [child for child in children if type(child) not in SCALARS]
        if not below:
            return True
        level = below
    return not any(issubclass(type(node), CONTAINERS) for node in level)


def _has_distinct_keys(node: dict[Any, object]) -> bool:
    if set(map(type, dict.keys(node))) <= {str}:
        return True
    keys = [_key_text(key) for key in dict.keys(node)]
    return len(set(keys)) == len(keys)


def _key_text(key: Any) -> str | None:
    """The key as `json` writes it; None for one that cannot be a key."""
    kind = type(key)
    if issubclass(kind, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if key is True or key is False:
        return "true" if key else "false"
    if issubclass(kind, int):
        return int.__repr__(key)
    if issubclass(kind, float) and _is_finite(key):
        return float.__repr__(key)
    return None


class _Writer:
    """Writes one value. Its state is the text so far, and the way from the result to where it is."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._path: list[str | int] = []
        self._parents: dict[int, int] = {}
        """Containers that are being written -> the length of the path to each."""

    def text(self, value: object) -> str:
        """The JSON text. Raises NotSerializable."""
        self._write(value)
        return "".join(self._parts)

    def _write(self, value: Any) -> None:
        kind = type(value)
        if value is None:
            self._parts.append("null")
        elif value is True or value is False:
            self._parts.append("true" if value else "false")
        elif issubclass(kind, str):
            self._parts.append(quote(str.__str__(value)))
        elif issubclass(kind, int):
            self._parts.append(int.__repr__(value))
        elif issubclass(kind, float):
            self._write_float(float.__float__(value))
        elif issubclass(kind, CONTAINERS):
            self._write_container(value, kind)
        else:
            self._refuse(f" is {type_name(kind)}", for_value(value))

    def _write_float(self, value: float) -> None:
        if _is_nan(value):
            self._refuse(" is NaN", "JSON has no NaN: return None instead.")
        if not _is_finite(value):
            name = "Infinity" if value > 0 else "-Infinity"
            self._refuse(f" is {name}", "JSON has no infinity: return None or a string instead.")
        self._parts.append(float.__repr__(value))

    def _write_container(self, value: Any, kind: type) -> None:
        if id(value) in self._parents:
            there = _shown(self._path[: self._parents[id(value)]])
            self._refuse(f" refers back to {there}", "JSON has no references: leave the way back out.")
        if len(self._parents) == DEEPEST:
            self._refuse(f" is nested deeper than {DEEPEST}", "Return a flatter value.")
        self._parents[id(value)] = len(self._path)
        if issubclass(kind, dict):
            self._write_dict(dict.copy(value))
        elif issubclass(kind, list):
            self._write_items(list.copy(value))
        else:
            self._write_items(tuple.__getitem__(value, slice(None)))
        del self._parents[id(value)]

    def _write_dict(self, value: dict[object, object]) -> None:
        sign = "{"
        seen = set()
        for key, item in value.items():
            name = _key_text(key)
            if name is None:
                self._refuse(f" has a key that is {type_name(type(key))}", "Keys are strings in JSON.")
            if name in seen:
                self._refuse(f" has two keys that become {quote(name)}", "Keys are strings in JSON.")
            seen.add(name)
            self._parts += (sign, quote(name), ":")
            self._path.append(name)
            self._write(item)
            self._path.pop()
            sign = ","
        self._parts.append("}" if value else "{}")

    def _write_items(self, items: list[object] | tuple[object, ...]) -> None:
        sign = "["
        for index, item in enumerate(items):
            self._parts.append(sign)
            self._path.append(index)
            self._write(item)
            self._path.pop()
            sign = ","
        self._parts.append("]" if items else "[]")

    def _refuse(self, reason: str, hint: str) -> NoReturn:
        raise NotSerializable(_shown(self._path) + reason, hint)


def _shown(path: list[str | int]) -> str:
    """The way from the result as Python and people write it, with its middle left out when it is long."""
    steps = []
    for step in path if len(path) <= 40 else [*path[:20], "…", *path[-20:]]:
        if isinstance(step, int):
            steps.append(f"[{step}]")
        elif step == "…":
            steps.append(".…")
        else:
            short = step if len(step) <= 60 else f"{step[:60]}…"
            steps.append(f".{short}" if path_key(short) else f"[{quote(short)}]")
    shown = "result" + "".join(steps)
    if len(shown) <= 2 * LONGEST_PATH:
        return shown
    return f"{shown[:LONGEST_PATH]}…{shown[-LONGEST_PATH:]}"
