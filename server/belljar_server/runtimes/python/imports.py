"""What Python code seems to import: a guess from its text, to choose the snapshot that has it loaded already."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator

MOST_CHARACTERS = 256 * 1024
"""So much of the code is looked at."""
MOST_STATEMENTS = 40
_IMPORT = re.compile(
    r"^[ \t]*(?:import[ \t]+([\w., \t]{1,300})"
    r"|from[ \t]+(\w[\w.]{0,199})[ \t]+import\b[ \t]*\(?([\w, \t]{0,300}))",
    re.MULTILINE,
)


def imported_modules(code: str) -> frozenset[str]:
    """Top-level names after `import` and `from` at the beginnings of lines; linear in what is looked at."""
    return frozenset(module.partition(".")[0] for module, _ in _imports(code))


def import_statements(code: str) -> tuple[str, ...]:
    """The imports of what is not Python's own, each as a statement that imports no more than the code does.

    A class is not a module, so names that begin with a capital are left to the code: it may change which it takes.
    """
    found: dict[str, None] = {}
    for module, names in _imports(code):
        if module.partition(".")[0] in sys.stdlib_module_names or not all(map(_is_name, module.split("."))):
            continue
        found[f"import {module}"] = None
        for name in names:
            if _is_name(name) and not name[0].isupper():
                found[f"from {module} import {name}"] = None
    return tuple(found)[:MOST_STATEMENTS]


def _imports(code: str) -> Iterator[tuple[str, list[str]]]:
    """Modules with the names that are taken from them."""
    for match in _IMPORT.finditer(code[:MOST_CHARACTERS]):
        listed = [name.strip().split(" ")[0] for name in (match[1] or match[3] or "").split(",")]
        if match[2]:
            yield match[2], listed
        else:
            yield from ((module, []) for module in listed)


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)
