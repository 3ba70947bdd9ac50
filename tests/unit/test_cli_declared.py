"""The packages that a file says it needs."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from belljar_client.cli import declared

PEP_723 = """\
import os
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "polars>=1",
#   "rich",
# ]
# ///
print(1)
"""


def test_inline_script_metadata_of_python_is_read(tmp_path: Path) -> None:
    """As PEP 723 has it."""
    file = tmp_path / "a.py"
    file.write_text(PEP_723)
    assert declared.of(str(file)) == ["polars>=1", "rich"]
    file.write_text("print(1)")
    assert declared.of(str(file)) == []


@pytest.mark.parametrize("text", [PEP_723 + PEP_723, "# /// script\n# dependencies = [\n# ///\n"])
def test_metadata_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Two blocks, or what is no TOML."""
    file = tmp_path / "a.py"
    file.write_text(text)
    with pytest.raises(argparse.ArgumentTypeError):
        declared.of(str(file))


def test_package_json_beside_a_node_file_is_read(tmp_path: Path) -> None:
    """What it wants at run time; development has no place in a sandbox."""
    file = tmp_path / "a.ts"
    file.write_text("")
    assert declared.of(str(file)) == []
    (tmp_path / "package.json").write_text('{"dependencies": {"zod": "^4"}, "devDependencies": {"tsx": "1"}}')
    assert declared.of(str(file)) == ["zod@^4"]
    (tmp_path / "package.json").write_text("{")
    with pytest.raises(argparse.ArgumentTypeError):
        declared.of(str(file))


def test_stdin_declares_nothing() -> None:
    """There is nothing beside it."""
    assert declared.of("-") == []
