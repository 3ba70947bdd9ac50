"""Whether a version is in an npm range: enough of node-semver to know what is preinstalled. Pure.

What it does not understand (a tag, a pre-release) it does not call satisfied: then npm is asked.
"""

from __future__ import annotations

import re

Triple = tuple[int, int, int]

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_COMPARATOR = re.compile(r"(\^|~|>=|<=|>|<|=|)v?(\d+|[xX*])(?:\.(\d+|[xX*]))?(?:\.(\d+|[xX*]))?")


def satisfies(version: str, wanted: str) -> bool:
    """Whether an exact version is in the range."""
    match = _VERSION.fullmatch(version)
    if not match:
        return False
    exact = (int(match[1]), int(match[2]), int(match[3]))
    return any(_in_all(exact, part) for part in wanted.split("||"))


def _in_all(version: Triple, text: str) -> bool:
    hyphen = re.fullmatch(r"\s*(\S+)\s+-\s+(\S+)\s*", text)
    words = [f">={hyphen[1]}", f"<={hyphen[2]}"] if hyphen else re.sub(r"([<>=^~])\s+", r"\1", text).split()
    if not words:
        return False
    return all(_in_one(version, word) for word in words)


def _in_one(version: Triple, word: str) -> bool:
    match = _COMPARATOR.fullmatch(word)
    if not match:
        return False
    operator = match[1]
    parts = [int(part) if part and part.isdigit() else None for part in match.groups()[1:]]
    known = parts[: parts.index(None)] if None in parts else parts
    numbers = [part for part in known if part is not None]
    low = _triple(numbers)
    if not numbers:
        return operator in ("", "=", "^", "~", ">=", "<=")
    high = _next(numbers, len(numbers) - 1)
    if operator == "^":
        first = next((at for at, number in enumerate(numbers) if number), len(numbers) - 1)
        return low <= version < _next(numbers, first)
    if operator == "~":
        return low <= version < _next(numbers, min(1, len(numbers) - 1))
    answers = {">=": version >= low, "<": version < low, ">": version >= high, "<=": version < high}
    return answers.get(operator, low <= version < high)


def _triple(numbers: list[int]) -> Triple:
    first, second, third = [*numbers, 0, 0, 0][:3]
    return first, second, third


def _next(numbers: list[int], at: int) -> Triple:
    """The lowest version above all that begin with the first numbers up to this one."""
    return _triple([*numbers[:at], numbers[at] + 1])
