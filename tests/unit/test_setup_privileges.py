"""Capabilities, read as the kernel tells them."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar_server.setup import privileges


@pytest.mark.parametrize(
    ("held", "network", "expected"),
    [
        ("000001ffffffffff", True, set()),
        # Docker's default set.
        ("00000000a80425fb", True, {"NET_ADMIN", "SYS_ADMIN"}),
        ("00000000a80425fb", False, set()),
        ("0000000000000000", False, {"SETUID", "SETGID", "KILL"}),
        ("0000000000000000", True, set(privileges.NEEDED)),
    ],
)
def test_missing_capabilities_are_named(tmp_path: Path, held: str, network: bool, expected: set[str]) -> None:
    """Those for networks only where requests may have one."""
    status = tmp_path / "status"
    status.write_text(f"Name:\tbelljar\nCapPrm:\t{held}\nCapEff:\t{held}\n")
    assert set(privileges.missing(network=network, status=status)) == expected
