"""Judges `inputs_json`: JSON by the letter, since three languages read it and must see the same."""

from __future__ import annotations

import json
import re

from belljar_server.errors import shown

MAX_BYTES = 16 << 20
MAX_DEPTH = 200
MAX_INTEGER_DIGITS = 4300
"""Longer ones Python does not read (sys.int_info)."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.|\\\Z)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)  # linear also for broken strings


class _NotStrict(ValueError):
    """What json.loads would take."""


def problem(text: str) -> str | None:
    """What is wrong with it, in words that follow the field's name; None when it is an object that all can read."""
    if not text:
        return None
    size = len(text.encode())
    if size > MAX_BYTES:
        return f"has {size} bytes; at most {MAX_BYTES} are allowed"
    if nesting(text, MAX_DEPTH) > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH}"
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _NotStrict as error:
        return str(error)
    except json.JSONDecodeError as error:
        return f"is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
    except ValueError:
        return f"has an integer of more than {MAX_INTEGER_DIGITS} digits"
    if not isinstance(value, dict):
        return f"is a JSON {_kind(value)}; an object with the inputs by name is wanted"
    return None


def nesting(text: str, enough: int) -> int:
    """How deep JSON text is nested; stops to count above `enough`."""
    if text.count("{") + text.count("[") <= enough:
        return 0
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        bracket = match[0]
        if bracket in "{[":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > enough:
                break
        elif bracket in "}]":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _NotStrict(f"has the key {shown(key)} twice in one object")
            seen.add(key)
    return found


def _no_constant(name: str) -> object:
    raise _NotStrict(f"has {name}, which JSON does not know")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array"
