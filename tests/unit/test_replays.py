"""What is kept of finished executions, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from belljar_server.execution import Execution
from belljar_server.models import Finished, Outcome, Stream
from belljar_server.replays import Replays
from tests.unit.test_executor import LIMITS, REQUEST


def run(replays: Replays, request_id: str, *, output: int = 0) -> Execution:
    """An execution that has begun and ended."""
    limits = replace(LIMITS, output_bytes=1 << 20)
    execution = Execution(replace(REQUEST, request_id=request_id, limits=limits), lambda _: None)
    replays.add(execution)
    execution.tell_output(Stream.STDOUT, bytes(output))
    execution.tell(Finished(Outcome.SUCCEEDED, 0))
    replays.ended(execution)
    return execution


def test_oldest_finished_ones_go_first() -> None:
    """As many as there is room for, in the order in which they ended."""
    replays = Replays(600, 3000)
    kept = {name: run(replays, name, output=100) for name in "abcd"}
    assert [name for name in kept if replays.find(name)] == ["c", "d"]
    assert replays.find("d") is kept["d"]


def test_what_runs_is_kept_and_takes_no_room() -> None:
    """Nothing accepted is forgotten before it has ended."""
    replays = Replays(0, 0)
    execution = Execution(replace(REQUEST, request_id="a"), lambda _: None)
    replays.add(execution)
    run(replays, "b")
    assert replays.find("a") is execution
    assert replays.find("b") is None


def test_old_ones_go_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to live counts from the end of the execution."""
    replays = Replays(10, 1 << 20)
    execution = run(replays, "a")
    monkeypatch.setattr("belljar_server.replays.time.monotonic", lambda: execution.finished_at + 9)
    assert replays.find("a") is execution
    monkeypatch.setattr("belljar_server.replays.time.monotonic", lambda: execution.finished_at + 11)
    assert replays.find("a") is None


def test_one_without_request_id_is_not_kept() -> None:
    """Nobody can ask for it."""
    replays = Replays(600, 1 << 20)
    execution = Execution(REQUEST, lambda _: None)
    execution.tell(Finished(Outcome.SUCCEEDED, 0))
    replays.ended(execution)
    assert repr(replays) == "<Replays 0 executions, 0 bytes of finished ones>"
