"""Decides what an ending means for the user: a pure function from evidence to outcome, exit code and failure.

The order of the questions is the point: who stopped it, what the kernel counted, whether the sandbox itself failed,
and only then what the wait status and the worker's report say. An exit code alone decides nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, replace

from belljar_server.models import DeniedConnection, ErrorKind, Failure, Limits, Outcome
from belljar_server.sandbox import Ending, Stop

REPORTED_KINDS = frozenset(
    {
        ErrorKind.SYNTAX_ERROR,
        ErrorKind.EXCEPTION,
        ErrorKind.ENTRY_NOT_FOUND,
        ErrorKind.RESULT_NOT_SERIALIZABLE,
    }
)
"""The only kinds that a worker's report may claim; everything else takes evidence of the host."""
MAX_MESSAGE = 16 * 1024
MAX_TRACEBACK = 64 * 1024
MAX_HINT = 1024
MAX_NAME = 1024
MOST_LEFT = 5
LEFT_NAME = re.compile(r"[A-Za-z]{1,40}")
LEFT_EARLY = "the code ended its process itself, with exit code 0, before it gave a result"
NETWORK_WORDS = re.compile(
    r"gaierror|ConnectionResetError|ConnectionRefusedError|BrokenPipeError|RemoteDisconnected|RemoteProtocolError"
    r"|Connection reset by peer|ConnectError|ReadError|access.denied|Blocked by Belljar|Blocked By Network Policy"
    r"|ECONNRESET|ECONNREFUSED|ENOTFOUND|EPIPE|EAI_AGAIN|fetch failed|socket hang up|other side closed"
)
"""What exceptions say whose cause is a name that does not exist or a connection that was cut."""
TASKS_NEAR_LIMIT = 8
"""So few tasks below the limit still count as at it: some end between the failure and the count."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an execution ended, without what it left."""

    outcome: Outcome
    exit_code: int = 0
    signal: int = 0
    failure: Failure | None = None
    warnings: tuple[str, ...] = ()


def judge(ending: Ending, limits: Limits, main_file: str) -> Verdict:
    """What the evidence says."""
    given_up = ending.cut_short and ending.stop in (Stop.CANCELLED, Stop.SHUTDOWN)
    if ending.wait_status == 0 and _reported_ok(ending) and not given_up:
        return Verdict(Outcome.SUCCEEDED, warnings=_left(ending))
    stopped = _stopped(ending, limits)
    if stopped:
        return stopped
    if ending.wait_status is None:
        return _sandbox_failed(ending, limits)
    if os.WIFSIGNALED(ending.wait_status):
        return _signaled(ending)
    code = os.waitstatus_to_exitcode(ending.wait_status)
    failure = _reported_failure(ending, limits, main_file)
    if failure:
        return Verdict(Outcome.FAILED, code or 1, failure=_blame_network(failure, ending.traffic.denied))
    if code == 0:
        return Verdict(Outcome.SUCCEEDED)
    message = f"the process exited with code {code}"
    return Verdict(Outcome.FAILED, code, failure=Failure(ErrorKind.EXITED, message))


def _blame_network(failure: Failure, denied: tuple[DeniedConnection, ...]) -> Failure:
    """An exception that tells of a host that was denied, or of the network after something was: NETWORK_DENIED.

    That something was denied is the proxy's own record; only whether the code failed by it is read from its words.
    """
    said = f"{failure.message}\n{failure.traceback}"
    if failure.kind is not ErrorKind.EXCEPTION or not denied:
        return failure
    named = [each for each in denied if each.host and re.search(rf"(?<![\w.-]){re.escape(each.host)}(?![\w-])", said)]
    if not named and not NETWORK_WORDS.search(said):
        return failure
    culprit = (named or denied)[-1]
    where = f"{culprit.host}:{culprit.port}" if culprit.port else culprit.host or "The network"
    remedy = f' Add "{culprit.rule}" to network.allow.' if culprit.rule else ""
    return replace(failure, kind=ErrorKind.NETWORK_DENIED, hint=f"{where} was denied: {culprit.reason}.{remedy}")


def _stopped(ending: Ending, limits: Limits) -> Verdict | None:
    """What the server or the kernel's out-of-memory killer ended."""
    killed = int(signal.SIGKILL)

    def verdict(kind: ErrorKind, message: str, hint: str = "") -> Verdict:
        outcome = Outcome.CANCELLED if kind is ErrorKind.CANCELLED else Outcome.FAILED
        return Verdict(outcome, 128 + killed, killed, Failure(kind, message, hint=hint))

    died = ending.wait_status is None or os.WIFSIGNALED(ending.wait_status)
    if ending.stop is Stop.CANCELLED:
        return verdict(ErrorKind.CANCELLED, "the client cancelled the execution or went away")
    if ending.stop is Stop.SHUTDOWN:
        return verdict(ErrorKind.CANCELLED, "the server was told to stop and its grace period is over")
    if ending.oom_kills and died:
        return verdict(
            ErrorKind.MEMORY_LIMIT,
            f"the code used more than its {limits.memory_bytes} bytes of memory",
            "Raise limits.memory_bytes, or work on the data in pieces. Files that the code writes count too.",
        )
    if ending.stop is Stop.TIMEOUT:
        return verdict(
            ErrorKind.TIMEOUT, f"the code ran longer than its {limits.timeout:g} s", "Raise limits.timeout, or do less."
        )
    if ending.stop is Stop.CPU_TIME:
        return verdict(
            ErrorKind.TIMEOUT,
            f"the code used more than its {limits.cpu_time:g} s of CPU time",
            "Raise limits.cpu_time, or do less.",
        )
    if ending.stop is Stop.OUTPUT:
        return verdict(
            ErrorKind.OUTPUT_LIMIT,
            "the code printed so much that it was ended, long after its output was cut",
            "Write large output to a file in /home/user: it comes back as an artifact.",
        )
    return None


def _sandbox_failed(ending: Ending, limits: Limits) -> Verdict:
    if ending.fault_errno == "ENOSPC" and not ending.started:
        message = f"the files do not fit on the disk of {limits.disk_bytes} bytes"
        return Verdict(
            Outcome.FAILED, 1, failure=Failure(ErrorKind.DISK_LIMIT, message, hint="Raise limits.disk_bytes.")
        )
    when = "while the code ran" if ending.started else "before the code ran"
    failure = Failure(
        ErrorKind.SANDBOX_FAILED, f"the sandbox failed {when}", hint="This is not the code's fault; try again."
    )
    return Verdict(Outcome.FAILED, 1, failure=failure)


def _signaled(ending: Ending) -> Verdict:
    assert ending.wait_status is not None  # noqa: S101  the caller has asked
    number = os.WTERMSIG(ending.wait_status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    failure = Failure(ErrorKind.SIGNALED, f"the process was ended by {name}, which the server did not send")
    return Verdict(Outcome.FAILED, 128 + number, number, failure)


def _report(ending: Ending) -> dict[str, object]:
    try:
        report = json.loads(ending.report or b"{}")
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def _reported_ok(ending: Ending) -> bool:
    return _report(ending).get("ok") is True


def _left(ending: Ending) -> tuple[str, ...]:
    """A warning when the report says what was still under way. User code can have forged that: names get through."""
    warnings = []
    left = _report(ending).get("left")
    found = left if isinstance(left, list) else []
    names = dict.fromkeys(name for name in found if isinstance(name, str) and LEFT_NAME.fullmatch(name))
    named = ", ".join(list(names)[:MOST_LEFT])
    if named:
        begun = f"the code had given its result while work that it had begun was still under way ({named})"
        warnings.append(f"{begun}: that gets 1 s at most to end by itself, and was then ended")
    if ending.leaving:
        warnings.append(
            "exit handlers or destructors of the code ran for more than 2 s after its result and were ended"
        )
    return tuple(warnings)


def _reported_failure(ending: Ending, limits: Limits, main_file: str) -> Failure | None:
    """The failure in the worker's report. User code can have forged every field: types and sizes are checked."""
    error = _report(ending).get("error")
    if not isinstance(error, dict):
        return None

    def text(key: str, most: int) -> str:
        value = error.get(key)
        return value.encode("utf-8", "backslashreplace").decode()[:most] if isinstance(value, str) else ""

    def number(key: str) -> int:
        value = error.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else 0

    kind = next((kind for kind in REPORTED_KINDS if kind.value == error.get("kind")), ErrorKind.EXCEPTION)
    failure = Failure(
        kind=kind,
        message=text("message", MAX_MESSAGE),
        traceback=text("traceback", MAX_TRACEBACK),
        file=text("file", MAX_NAME) or (main_file if number("line") else ""),
        line=number("line"),
        column=number("column"),
        hint=text("hint", MAX_HINT),
    )
    if kind is not ErrorKind.EXCEPTION:
        return failure
    code = error.get("errno")
    if code == "ENOSPC":
        hint = "Raise limits.disk_bytes, or write less to /home/user and /tmp."
        return replace(failure, kind=ErrorKind.DISK_LIMIT, hint=hint)
    if code == "EAGAIN" and ending.tasks >= limits.processes - TASKS_NEAR_LIMIT:
        hint = "Raise limits.processes, or start fewer processes and threads at once."
        return replace(failure, kind=ErrorKind.PROCESS_LIMIT, hint=hint)
    return failure
