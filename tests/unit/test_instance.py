"""What a dead server had noted, as the next one reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from belljar_server.models import Accepted
from belljar_server.sandbox.cgroup import Tree
from belljar_server.sandbox.instance import LARGEST_NOTE, Instance, sweep


@pytest.fixture
def dead(tmp_path: Path) -> Instance:
    """The instance of a server whose lock nobody holds any more, without cgroups."""
    directory = tmp_path / "dead"
    (directory / "executions").mkdir(parents=True)
    lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    os.close(lock)
    return Instance(directory, Tree.recorded([]), lock)


async def test_notes_of_executions_without_an_end_are_read_once(dead: Instance, tmp_path: Path) -> None:
    """Whole, and gone with the directory."""
    notes = Accepted("a", "order-1", bytes(range(32))), Accepted("b"), Accepted("c", "order-2", b"c")
    for note in notes:
        dead.accepted(note)
    dead.ended("c")
    (swept,) = await sweep(tmp_path)
    assert swept.lost == notes[:2]
    assert await sweep(tmp_path) == []


async def test_longest_request_id_fits_a_note(dead: Instance, tmp_path: Path) -> None:
    """A note that were too large would be ignored, and its execution run again."""
    note = Accepted("a", "x" * 128, b"\xff" * 32)
    dead.accepted(note)
    (swept,) = await sweep(tmp_path)
    assert swept.lost == (note,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"request_id": "a"}',
        b'{"request_id": "a", "fingerprint": 1}',
        b" " * LARGEST_NOTE + b"{}",
    ],
)
async def test_unreadable_note_still_tells_whose_it_is(dead: Instance, tmp_path: Path, content: bytes) -> None:
    """It was cut short, or is of another release: the execution is lost all the same."""
    (dead.directory / "executions" / "a").write_bytes(content)
    (dead.directory / "executions" / "b").write_text(json.dumps({"request_id": "order", "fingerprint": "00"}))
    (swept,) = await sweep(tmp_path)
    assert swept.lost == (Accepted("a"), Accepted("b", "order", b"\0"))
