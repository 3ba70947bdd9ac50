"""What is kept of finished executions, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from belljar_server.execution import Execution
from belljar_server.models import Accepted, ErrorKind, Finished, Outcome, Stream
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


def test_lost_one_is_found_as_failed_under_its_own_id() -> None:
    """With its fingerprint, so that another request under its request_id is still told from it."""
    replays = Replays(600, 1 << 20)
    replays.lost(Accepted("an-id", "a", b"print"))
    found = replays.find("a")
    assert found is not None
    assert (found.id, found.request.fingerprint) == ("an-id", b"print")
    assert found.finished is not None
    assert found.finished.error is not None
    assert found.finished.error.kind is ErrorKind.SANDBOX_FAILED


def test_lost_ones_take_no_more_room_than_finished_ones() -> None:
    """The oldest go first; two of the same request_id, and those without one, are no trouble."""
    replays = Replays(600, 3000)
    for number in range(100):
        replays.lost(Accepted(f"id-{number}", f"request-{number}"))
    replays.lost(Accepted("other", "request-99"))
    replays.lost(Accepted("nameless"))
    assert replays.find("request-0") is None
    found = replays.find("request-99")
    assert found is not None
    assert found.id == "id-99"
    run(replays, "large", output=2900)
    assert replays.find("request-99") is None
