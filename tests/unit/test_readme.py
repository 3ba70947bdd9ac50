"""README.md says what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from belljar_server.config import Settings

README = Path(__file__).parents[2] / "README.md"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All settings by their dotted names."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_settings_table_lists_every_setting_and_no_other() -> None:
    """What can be set is what is documented."""
    section = README.read_text().split("## Settings")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE) == list(keys(Settings))
