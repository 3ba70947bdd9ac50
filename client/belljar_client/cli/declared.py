"""The packages that a file says it needs: inline script metadata (PEP 723), or package.json beside a Node file."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from belljar_client.cli.arguments import refuse

_BLOCK = re.compile(r"^# /// script$\s(?P<content>(?:^#(?:| .*)$\s)+)^# ///$", re.MULTILINE)
"""As PEP 723 defines it."""


def of(code_file: str) -> list[str]:
    """What `--with` would have to say for this file; nothing for stdin."""
    path = Path(code_file)
    if code_file == "-":
        return []
    return _inline(path) if path.suffix == ".py" else _beside(path.parent / "package.json")


def _inline(path: Path) -> list[str]:
    blocks = [match["content"] for match in _BLOCK.finditer(path.read_text(errors="replace"))]
    if not blocks:
        return []
    if len(blocks) > 1:
        refuse(f"{path} has more than one block of inline script metadata")
    try:
        text = "".join(line.removeprefix("# ").removeprefix("#") for line in blocks[0].splitlines(keepends=True))
        return [str(each) for each in tomllib.loads(text).get("dependencies", [])]
    except tomllib.TOMLDecodeError as error:
        refuse(f"the inline script metadata of {path} is not TOML: {error}")


def _beside(package: Path) -> list[str]:
    if not package.is_file():
        return []
    try:
        wanted = json.loads(package.read_text()).get("dependencies", {})
        return [f"{name}@{version}" for name, version in wanted.items()]
    except (ValueError, AttributeError) as error:
        refuse(f"{package} cannot be read: {error}")
