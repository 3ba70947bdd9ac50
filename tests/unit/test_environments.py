"""Which sandbox code gets, from its import lines: a guess that may be wrong but never harmful."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from belljar_server.config import LimitSet
from belljar_server.environments import choose, to_load
from belljar_server.models import ExecutionRequest, SourceFile
from belljar_server.runtimes import load
from belljar_server.runtimes.python.imports import import_statements, imported_modules
from belljar_server.sandbox.spec import Environment

PLAIN = Environment(
    load()["python"], Path("/image"), "sha256:0", "3.13.5", modules=frozenset({"numpy", "pandas", "six"})
)
LOADED = replace(PLAIN, preload=PLAIN.runtime.preload)
REQUEST = ExecutionRequest("python", "import pandas", LimitSet().as_limits())


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import pandas", {"pandas"}),
        ("import json, numpy as np\n", {"json", "numpy"}),
        ("import a.b.c", {"a"}),
        ("from PIL import Image", {"PIL"}),
        ("def main():\n    from matplotlib.pyplot import plot\n\timport x", {"matplotlib", "x"}),
        ("x = 'import pandas'", set()),
        ("from . import a", set()),
        ("important = 1\nfromage = 2", set()),
        ("", set()),
    ],
)
def test_import_lines_are_found_anywhere_in_the_code(code: str, names: set[str]) -> None:
    """At the beginning of a line, indented or not."""
    assert imported_modules(code) == names


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["import ", "from a", "\t", "import a, ", "from a.b.c.d ", "import a" + " " * 50])
def test_scan_is_linear(piece: str) -> None:
    """Four megabytes of what looks like imports take no time."""
    imported_modules(piece * (4_000_000 // len(piece)))
    import_statements(piece * (4_000_000 // len(piece)))


@pytest.mark.parametrize(
    ("code", "statements"),
    [
        ("import polars as pl, json", ("import polars",)),
        ("import a.b.c\nimport a.b.c", ("import a.b.c",)),
        (
            "from google.cloud import storage, Client as C",
            ("import google.cloud", "from google.cloud import storage"),
        ),
        ("from a import (b as c,\n    d)", ("import a", "from a import b")),
        ("from a import *", ("import a",)),
        ("from .a import b\nfrom . import c\nfrom __future__ import annotations", ()),
        ("import a.1b\nimport class\nimport a..b\nimport \u00e4", ()),
        ("import json\nfrom os import path", ()),
    ],
)
def test_statements_import_no_more_than_the_code_does(code: str, statements: tuple[str, ...]) -> None:
    """Each on its own, and none of the standard library."""
    assert import_statements(code) == statements


def test_statements_are_bounded() -> None:
    """However many the code has."""
    assert len(import_statements("\n".join(f"import m{n}" for n in range(1000)))) == 40


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, env=(("POLARS_VERBOSE", "1"),)),
        replace(REQUEST, files=(SourceFile("mine.py", b""),)),
        replace(REQUEST, limits=replace(REQUEST.limits, memory_bytes=128 << 20)),
    ],
)
def test_nothing_is_loaded_where_it_could_make_a_difference(request_: ExecutionRequest) -> None:
    """The environment is read at import, sources come before packages, memory is what was asked for."""
    assert to_load(REQUEST, PLAIN) == ("import pandas",)
    assert to_load(request_, PLAIN) == ()


def test_code_that_imports_a_loaded_package_gets_it_loaded() -> None:
    """Also when one of its files does."""
    assert choose(REQUEST, PLAIN, LOADED) is LOADED
    in_file = replace(REQUEST, code="import mine", files=(SourceFile("mine.py", b"import numpy"),))
    assert choose(in_file, PLAIN, LOADED) is LOADED


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, code="import json"),
        replace(REQUEST, files=(SourceFile("pandas.py", b""),)),
        replace(REQUEST, files=(SourceFile("six/__init__.py", b""),)),
        replace(REQUEST, limits=replace(REQUEST.limits, memory_bytes=128 << 20)),
    ],
)
def test_other_code_gets_the_plain_one(request_: ExecutionRequest) -> None:
    """Nothing imported; a name that would be shadowed, also of a dependency; too little memory."""
    assert choose(request_, PLAIN, LOADED) is PLAIN


def test_a_runtime_without_packages_has_one_environment() -> None:
    """Nothing to choose from."""
    assert choose(REQUEST, PLAIN, None) is PLAIN
