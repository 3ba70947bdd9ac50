"""Ends: each told apart by what really happened, never by an exit code that code can choose."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belljar_client import Client, ErrorKind, Limits, Outcome, Output, Result
from tests.conftest import Server, running_server, wait_until

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

ALL = pytest.mark.parametrize("runtime", ["python", "javascript", "typescript"])
HARD_EXIT = {
    "python": "import os\nos._exit({})",
    "javascript": "process.exit({})",
    "typescript": "import process from 'node:process';\nprocess.exit({} as number)",
}
FOR_EVER = {
    "sleep": ("python", "import time\nprint('on')\ntime.sleep(600)"),
    "asyncio": ("python", "import asyncio\nasync def main(args):\n    print('on')\n    await asyncio.sleep(600)"),
    "timer": ("javascript", "console.log('on'); await new Promise((done) => setTimeout(done, 600000))"),
    "loop": ("typescript", "console.log('on'); while (true) {}"),
    "deaf loop": (
        "python",
        "from signal import *\nfor n in valid_signals() - {9, 19}: signal(n, SIG_IGN)\nprint('on')\nwhile True: pass",
    ),
    "child": (
        "python",
        "import os, time\nprint('on', flush=True)\nos.fork() or os.setsid() or os.fork()\ntime.sleep(600)",
    ),
    "stopped": ("python", "import os, signal\nprint('on', flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)"),
}


@ALL
@pytest.mark.parametrize("code", [1, 2, 124, 137, 139, 143, 255])
def test_exit_code_is_told_as_what_it_is(run: Run, runtime: str, code: int) -> None:
    """137 and 139 are numbers like others: no kill of ours, no out-of-memory, no signal."""
    result = run(HARD_EXIT[runtime].format(code), runtime=runtime)
    assert result.error is not None
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.FAILED, code, 0)
    assert (result.error.kind, str(code) in result.error.message) == (ErrorKind.EXITED, True)


@pytest.mark.parametrize(
    ("runtime", "code"),
    [*((runtime, code.format(0)) for runtime, code in HARD_EXIT.items()), ("python", "import sys\nsys.exit()\n")],
)
def test_exit_code_zero_before_a_result_is_success_with_a_warning(run: Run, runtime: str, code: str) -> None:
    """Nothing failed, but there is no result: the caller is told."""
    result = run(code, runtime=runtime).check()
    assert (result.exit_code, result.result_json) == (0, None)
    assert ["exit code 0" in warning for warning in result.warnings] == [True]


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("import sys\nsys.exit(7)", 7, b""),
        ("import sys\nsys.exit('told why')", 1, b"told why\n"),
        ("raise SystemExit(300)", 300 % 256, b""),
        ("def main(args):\n    exit(9)", 9, b""),
    ],
)
def test_system_exit_is_an_exit(run: Run, code: str, exit_code: int, stderr: bytes) -> None:
    """As the interpreter itself does it, its last words included."""
    result = run(code)
    assert result.error is not None
    assert (result.error.kind, result.exit_code, result.stderr) == (ErrorKind.EXITED, exit_code, stderr)


@pytest.mark.parametrize(
    ("runtime", "code", "number"),
    [
        ("python", "import os\nos.abort()", signal.SIGABRT),
        ("python", "import os\nos.kill(os.getpid(), 9)", signal.SIGKILL),
        ("python", "import os\nos.kill(os.getpid(), 15)", signal.SIGTERM),
        ("python", "import ctypes\nctypes.string_at(0)", signal.SIGSEGV),
        ("javascript", "process.kill(process.pid, 'SIGKILL'); setTimeout(() => {}, 9000)", signal.SIGKILL),
        ("typescript", "process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 9000)", signal.SIGTERM),
        ("javascript", "process.abort()", signal.SIGABRT),
    ],
)
def test_signal_of_its_own_is_told_as_that(run: Run, runtime: str, code: str, number: signal.Signals) -> None:
    """A process that kills itself was not killed by us; the shell's code is told too."""
    result = run(code, runtime=runtime)
    assert result.error is not None
    assert (result.outcome, result.signal, result.exit_code) == (Outcome.FAILED, number, 128 + number)
    assert (result.error.kind, number.name in result.error.message) == (ErrorKind.SIGNALED, True)


@pytest.mark.parametrize("name", FOR_EVER)
def test_time_limit_ends_everything_and_keeps_what_was_printed(run: Run, name: str) -> None:
    """Code that sleeps, loops, is deaf to signals, has left its session or stopped itself ends as TIMEOUT."""
    runtime, code = FOR_EVER[name]
    began = time.monotonic()
    result = run(code, runtime=runtime, limits=Limits(timeout=1))
    assert time.monotonic() - began < 15
    assert result.error is not None
    assert (result.error.kind, result.exit_code, result.signal) == (ErrorKind.TIMEOUT, 137, 9)
    assert "1 s" in result.error.message
    assert result.error.hint
    assert result.stdout == b"on\n"
    assert 1 <= result.usage.run_time < 5


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "while True: pass"),
        ("python", "import threading\nfor _ in range(3): threading.Thread(target=lambda: sum(range(10**10))).start()"),
        ("javascript", "for (;;);"),
    ],
)
def test_cpu_time_limit_is_told_apart_from_wall_time(run: Run, runtime: str, code: str) -> None:
    """CPU time of all threads and processes together; sleeping costs none."""
    result = run(code, runtime=runtime, limits=Limits(timeout=60, cpu_time=1))
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    assert "CPU time" in result.error.message
    assert 1 <= result.usage.cpu_time < 3


def test_sleeping_costs_no_cpu_time(run: Run) -> None:
    """Two seconds of sleep under half a second of CPU time."""
    result = run("import time\ntime.sleep(2)\nreturn 1", limits=Limits(cpu_time=0.5)).check()
    assert result.usage.cpu_time < 0.5
    assert 2 <= result.usage.run_time < 10


@pytest.mark.parametrize("imports", ["", "import pandas\n"], ids=["plain", "with packages"])
def test_files_that_were_not_closed_are_whole(run: Run, imports: str) -> None:
    """As after `python3 main.py`: in globals, in cycles, in archives, by threads, exit handlers and destructors."""
    code = """
import atexit, gzip, threading, time
class Last:
    def __del__(self):
        open("destructor", "w").write("x" * 1000)
last = Last()
last.itself = last
plain, zipped = open("plain", "w"), gzip.open("zipped.gz", "wt")
plain.write("x" * 1000)
zipped.write("x" * 1000)
atexit.register(lambda: open("handler", "w").write("x" * 1000))
threading.Thread(target=lambda: (time.sleep(0.1), open("thread", "w").write("x" * 1000))).start()
'result'
"""
    result = run(imports + code).check()
    assert result.value == "result"
    sizes = {artifact.name: artifact.size_bytes for artifact in result.artifacts}
    assert {sizes.pop("zipped.gz") > 20, *sizes.values()} == {True, 1000}
    assert sizes.keys() == {"plain", "thread", "handler", "destructor"}
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import threading\nthreading.Thread(target=threading.Event().wait).start()\n1", "(thread)"),
        ("import atexit, time\natexit.register(time.sleep, 60)\n1", "exit handlers"),
        ("import time\nclass C:\n    def __del__(self): time.sleep(60)\nc = C()\n1", "destructors"),
    ],
)
def test_what_goes_on_after_the_result_is_ended_and_told(run: Run, code: str, words: str) -> None:
    """The result counts, and does not wait for long."""
    result = run(code).check()
    assert result.value == 1
    assert [words in warning for warning in result.warnings] == [True]
    assert result.usage.run_time < 15


@ALL
def test_exit_does_not_wait_for_what_is_still_running(run: Run, runtime: str) -> None:
    """A returned result ends the execution soon, and threads, timers and children with it."""
    code = (
        "import subprocess, threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "subprocess.Popen(['sleep', '60'])\nreturn 'over'"
        if runtime == "python"
        else "require('child_process').spawn('sleep', ['60']); setTimeout(() => {}, 60000); return 'over'"
    )
    result = run(code, runtime=runtime).check()
    assert result.value == "over"
    assert result.usage.run_time < 15


@pytest.mark.parametrize("runtime", ["javascript", "typescript"])
def test_what_node_code_has_begun_is_finished_behind_its_result(run: Run, runtime: str) -> None:
    """A stream nobody waited for is an artifact in full, a timer prints; nothing is left, so nothing is said."""
    code = (
        "import fs from 'fs'\nexport function main() {\n  const file = fs.createWriteStream('r.csv')\n"
        "  for (let i = 0; i < 3; i++) file.write('row\\n')\n  file.end()\n"
        "  setTimeout(() => console.log('late'), 50)\n  return { rows: 3 }\n}"
    )
    result = run(code, runtime=runtime).check()
    assert (result.value, result.stdout, result.warnings) == ({"rows": 3}, b"late\n", ())
    assert [(artifact.name, artifact.size_bytes) for artifact in result.artifacts] == [("r.csv", 12)]


@pytest.mark.parametrize("timeout", [1, 30])
def test_what_node_code_leaves_is_ended_with_a_warning(run: Run, timeout: float) -> None:
    """The result counts, also where the time limit is over before that second is."""
    code = "setInterval(() => {}, 100); require('net').createServer().listen(0); return 5"
    result = run(code, runtime="javascript", limits=Limits(timeout=timeout)).check()
    assert result.value == 5
    (warning,) = result.warnings
    assert "Timeout" in warning
    assert "TCPServerWrap" in warning


def test_cancelled_execution_says_so(server: Server) -> None:
    """Closing the stream ends the code; who asks again with the same request_id learns how it ended."""
    with Client(server.address) as client:
        code = "import time\nprint('on')\ntime.sleep(600)"
        stream = client.stream(code, request_id="test-ends-cancelled")
        for event in stream:
            if isinstance(event, Output):
                break
        stream.close()
        result = client.execute(code, request_id="test-ends-cancelled", deadline=30)
    assert result.error is not None
    assert (result.outcome, result.error.kind, result.stdout) == (Outcome.CANCELLED, ErrorKind.CANCELLED, b"on\n")
    assert result.usage.run_time < 30


def test_continued_execution_outlives_its_client(server: Server) -> None:
    """With CONTINUE the code goes on, and its result and output wait for the same request_id."""
    with Client(server.address) as client:
        code = "import time\nprint('on')\ntime.sleep(1)\nopen('left.txt', 'w').write('x')\nreturn 'to the end'"
        options: Any = {"request_id": "test-ends-continued", "disconnect_policy": "continue"}
        stream = client.stream(code, **options)
        for event in stream:
            if isinstance(event, Output):
                break
        stream.close()
        result = client.execute(code, **options, deadline=60).check()
    assert (result.value, result.stdout, [a.name for a in result.artifacts]) == ("to the end", b"on\n", ["left.txt"])


def test_sandbox_that_dies_is_not_the_fault_of_the_code() -> None:
    """When gVisor itself is killed on the host, it is SANDBOX_FAILED with what was printed, and the next one works."""
    with running_server(POOL__MAX="0") as server, Client(server.address) as client:
        stream = client.stream("import time\nprint('on')\ntime.sleep(60)")
        finished = None
        printed = b""
        for event in stream:
            if isinstance(event, Output):
                printed += event.content
                for pid in sentries(server):
                    os.kill(pid, signal.SIGKILL)
            finished = event
        error = getattr(finished, "error", None)
        assert error is not None
        assert (error.kind, printed) == (ErrorKind.SANDBOX_FAILED, b"on\n")
        assert "while the code ran" in error.message
        assert client.execute("1").check().value == 1


def sentries(server: Server) -> set[int]:
    """The processes of the server that are gVisor kernels."""
    found: set[int] = set()
    for pid in server.children():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"boot" in command:
            found.add(pid)
    return found


def test_nothing_is_left_after_each_kind_of_end(server: Server, run: Run) -> None:
    """No sandbox process stays behind."""
    run("import os\nos._exit(3)")
    run("import time\ntime.sleep(60)", limits=Limits(timeout=0.2))
    with running_server(POOL__MAX="0") as own, Client(own.address) as client:
        client.execute("import os\nos.abort()")
        client.execute("while True: pass", limits=Limits(timeout=0.2))
        wait_until(lambda: not sentries(own), "no sandbox is left")
