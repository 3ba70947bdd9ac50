"""What Python code seems to import: a guess from its text, to choose the snapshot that has it loaded already."""

from __future__ import annotations

import re

MOST_CHARACTERS = 256 * 1024
"""So much of the code is looked at."""
_IMPORT = re.compile(
    r"^[ \t]*(?:import[ \t]+([\w., \t]{1,300})|from[ \t]+(\w{1,100})[\w.]*[ \t]+import\b)", re.MULTILINE
)


def imported_modules(code: str) -> frozenset[str]:
    """Top-level names after `import` and `from` at the beginnings of lines; linear in what is looked at."""
    found = set()
    for match in _IMPORT.finditer(code[:MOST_CHARACTERS]):
        names = [match[2]] if match[2] else match[1].split(",")
        found |= {name.strip().split(" ")[0].partition(".")[0] for name in names}
    return frozenset(found)
