"""Unit tests take their settings from what they say, never from the environment of whoever runs them."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment wins over arguments: with BELLJAR_DATA_DIR set, a test of set-up wrote its fake runsc there."""
    for name in os.environ:
        if name.startswith("BELLJAR_"):
            monkeypatch.delenv(name)
