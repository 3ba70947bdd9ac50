"""What is said of packages that could not be installed, out of the installer's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar_server.config import Dependencies
from belljar_server.dependencies.installing import InstallFailed, Wanted
from belljar_server.dependencies.reasons import explain, near_here
from belljar_server.dependencies.registry import Registries, Visit
from belljar_server.runtimes import Ecosystem

WANTED = Wanted(Ecosystem.PYTHON, ("numpy<2",), "", (("numpy", "2.5.5"), ("pillow", "12.0.0")))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "numpy has no\n      wheels with a\n      matching Python ABI tag, we can conclude: unsatisfiable",
            "no wheel",
        ),
        ("your requirements are unsatisfiable.\nhint: Wheels are required for `numpy`", "no wheel"),
        ("Because there is no version of\n   numpy==9 your requirements are unsatisfiable", "no such version"),
        ("your requirements are\n   unsatisfiable", "conflict"),
        ("something else", "could not be installed"),
    ],
)
def test_reasons_are_found_wherever_lines_break(said: str, reason: str) -> None:
    """The more exact one first."""
    visit = Visit(Registries(Dependencies(), Path("/nonexistent")), 1)
    message, hint = explain(InstallFailed("", "", said), visit, WANTED, [])
    assert message.startswith("numpy<2")
    assert (reason in message, hint) == (True, "")


def test_a_missing_name_comes_with_near_ones() -> None:
    """What is imported under another name, what is preinstalled, what the registry has."""
    assert [near_here(name, WANTED) for name in ("PIL", "numpi", "x")] == ["pillow", "numpy", ""]
    visit = Visit(Registries(Dependencies(), Path("/nonexistent")), 1)
    visit.missing.append("numbi")
    assert explain(InstallFailed(""), visit, WANTED, ["numba", "numpy"])[1] == "Did you mean numba or numpy?"
