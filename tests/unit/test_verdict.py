"""What evidence means for the user."""

from __future__ import annotations

import json
import signal

import pytest

from belljar_server.config import LimitSettings
from belljar_server.models import ErrorKind, Outcome
from belljar_server.sandbox import Ending, Stop
from belljar_server.verdict import judge

LIMITS = LimitSettings().default.as_limits()
OK = b'{"ok": true}'


def report(kind: str, **more: object) -> bytes:
    """A worker's report of a failure."""
    return json.dumps({"ok": False, "error": {"kind": kind, "message": "m", **more}}).encode()


@pytest.mark.parametrize("code", [1, 124, 137, 139, 143, 255])
def test_exit_code_of_the_code_is_told_as_what_it_was(code: int) -> None:
    """No exit code makes a timeout, a memory limit or a signal."""
    verdict = judge(Ending(code << 8), LIMITS, "main.py")
    assert (verdict.outcome, verdict.exit_code, verdict.signal) == (Outcome.FAILED, code, 0)
    assert verdict.failure is not None
    assert verdict.failure.kind is ErrorKind.EXITED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGTERM])
def test_signal_that_the_server_did_not_send_is_signaled(number: int) -> None:
    """Also SIGKILL, when it was the code's own."""
    verdict = judge(Ending(int(number)), LIMITS, "main.py")
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.exit_code, verdict.signal) == (ErrorKind.SIGNALED, 128 + number, number)


@pytest.mark.parametrize(
    ("stop", "kind", "outcome"),
    [
        (Stop.TIMEOUT, ErrorKind.TIMEOUT, Outcome.FAILED),
        (Stop.CPU_TIME, ErrorKind.TIMEOUT, Outcome.FAILED),
        (Stop.OUTPUT, ErrorKind.OUTPUT_LIMIT, Outcome.FAILED),
        (Stop.CANCELLED, ErrorKind.CANCELLED, Outcome.CANCELLED),
        (Stop.SHUTDOWN, ErrorKind.CANCELLED, Outcome.CANCELLED),
    ],
)
@pytest.mark.parametrize("status", [None, 9, 15, 0])
def test_what_the_server_stopped_is_told_by_its_reason(
    stop: Stop, kind: ErrorKind, outcome: Outcome, status: int | None
) -> None:
    """The server knows best what it did itself."""
    verdict = judge(Ending(status, stop=stop), LIMITS, "main.py")
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.outcome) == (kind, outcome)


def test_code_that_was_done_before_the_stop_took_effect_succeeded() -> None:
    """A result that is there is not thrown away."""
    assert judge(Ending(0, report=OK, stop=Stop.TIMEOUT), LIMITS, "main.py").outcome is Outcome.SUCCEEDED


def test_memory_kill_needs_the_kernels_counter() -> None:
    """The same end without the counter is a failed sandbox."""
    killed = judge(Ending(None, oom_kills=1, started=True), LIMITS, "main.py")
    died = judge(Ending(None, started=True), LIMITS, "main.py")
    assert killed.failure is not None
    assert died.failure is not None
    assert (killed.failure.kind, died.failure.kind) == (ErrorKind.MEMORY_LIMIT, ErrorKind.SANDBOX_FAILED)


def test_surviving_the_kill_of_a_child_is_no_memory_failure() -> None:
    """The kernel killed something, but the code went on to its result."""
    assert judge(Ending(0, report=OK, oom_kills=1), LIMITS, "main.py").outcome is Outcome.SUCCEEDED


def test_process_limit_needs_the_agents_count() -> None:
    """A report alone can claim anything."""
    claim = report("EXCEPTION", errno="EAGAIN")
    with_count = judge(Ending(256, report=claim, tasks=LIMITS.processes), LIMITS, "main.py")
    without = judge(Ending(256, report=claim, tasks=3), LIMITS, "main.py")
    assert with_count.failure is not None
    assert without.failure is not None
    assert (with_count.failure.kind, without.failure.kind) == (ErrorKind.PROCESS_LIMIT, ErrorKind.EXCEPTION)


@pytest.mark.parametrize("claimed", ["TIMEOUT", "MEMORY_LIMIT", "SANDBOX_FAILED", "CANCELLED", "", "x" * 100])
def test_report_cannot_claim_what_takes_evidence(claimed: str) -> None:
    """Forged kinds are exceptions of the code."""
    verdict = judge(Ending(256, report=report(claimed)), LIMITS, "main.py")
    assert verdict.failure is not None
    assert verdict.failure.kind is ErrorKind.EXCEPTION


@pytest.mark.parametrize(
    "forged",
    [
        b"", b"null", b"[]", b"{", b'{"ok": 1}', b'{"ok": "true"}', b'{"error": 1}', b'{"error": []}', b"\xff",
        b"[" * 5000,
    ],
)  # fmt: skip
def test_forged_report_is_as_good_as_none(forged: bytes) -> None:
    """What remains is the wait status."""
    verdict = judge(Ending(7 << 8, report=forged), LIMITS, "main.py")
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.exit_code) == (ErrorKind.EXITED, 7)


def test_fields_of_a_report_are_typed_and_cut() -> None:
    """Numbers that are none, endless texts and lone surrogates do not get through."""
    forged = report("EXCEPTION", message="m" * 10**6, line="5", column=-1, file=7, traceback="\ud800")
    failure = judge(Ending(256, report=forged), LIMITS, "main.py").failure
    assert failure is not None
    assert len(failure.message) <= 16 * 1024
    assert (failure.line, failure.column, failure.file) == (0, 0, "")
    assert failure.traceback.encode() == b"\\ud800"


@pytest.mark.parametrize(
    ("left", "named"),
    [
        (["thread"], "(thread)"),
        (["Timeout", "TCPSocketWrap", "Timeout"], "(Timeout, TCPSocketWrap)"),
        (["a", "b", "c", "d", "e", "f"], "(a, b, c, d, e)"),
        (["x"] * 10_000 + ["y"], "(x, y)"),
        ([None, 1, ["z"], {"z": 1}, "two words", "line\n", "x" * 41, "", "\ud800", "good"], "(good)"),
    ],
)
def test_work_that_was_left_is_a_warning_beside_the_result(left: object, named: str) -> None:
    """Each kind once, five at most, and nothing but names."""
    verdict = judge(Ending(0, report=json.dumps({"ok": True, "left": left}).encode()), LIMITS, "main.js")
    assert verdict.outcome is Outcome.SUCCEEDED
    (warning,) = verdict.warnings
    assert named in warning
    assert len(warning) < 400


@pytest.mark.parametrize("left", [None, True, 7, "Timeout", {"Timeout": 1}, [], ["<b>"], [[]], [["x"] * 10_000]])
def test_forged_word_of_work_that_was_left_is_ignored(left: object) -> None:
    """The result counts all the same."""
    verdict = judge(Ending(0, report=json.dumps({"ok": True, "left": left}).encode()), LIMITS, "main.js")
    assert (verdict.outcome, verdict.warnings) == (Outcome.SUCCEEDED, ())


def test_exit_with_zero_before_a_result_is_success() -> None:
    """sys.exit() is an early end, not a failure; os._exit(0) cannot be told from it."""
    assert judge(Ending(0), LIMITS, "main.py").outcome is Outcome.SUCCEEDED


def test_files_that_do_not_fit_are_a_disk_limit() -> None:
    """The agent could not place them; nothing ran."""
    failure = judge(Ending(None, fault="x", fault_errno="ENOSPC"), LIMITS, "main.py").failure
    assert failure is not None
    assert failure.kind is ErrorKind.DISK_LIMIT
