"""Code that will not end, ends itself, or dies in its own ways (HOSTILE.md 11, 12, 17)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from belljar_client import Client, ErrorKind, Finished, Limits, Outcome, PhaseChange, Result
from tests.conftest import Server, wait_until
from tests.hostile.conftest import metric

Hit = Callable[..., Result]


def kind_of(result: Result) -> ErrorKind | None:
    """Why it failed."""
    return result.error.kind if result.error else None


NOT_COLLECTED = "some artifacts are missing: the sandbox ended before they were collected"
"""What is said when a sandbox did not answer in time, which a busy machine may bring about."""
DEAF = """
import signal
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
"""
BUSY = {
    "deaf loop": ("python", f"{DEAF}print('on it', flush=True)\nwhile True:\n    pass\n"),
    "child that left the session": (
        "python",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\nprint('on it', flush=True)\nos.wait()\n",
    ),
    "holding the lock": (
        "python",
        "import ctypes\nprint('on it', flush=True)\nctypes.PyDLL(None).usleep(20_000_000)\n",
    ),
    "regular expression": ("python", "import re\nprint('on it', flush=True)\nre.match('(a+)+$', 'a' * 60 + 'b')\n"),
    "big number": ("python", "print('on it', flush=True)\n9 ** 9 ** 9\n"),
    "microtasks": (
        "javascript",
        "require('fs').writeSync(1, 'on it\\n'); const again = () => Promise.resolve().then(again); again();",
    ),
    "regular expression in node": ("javascript", "console.log('on it'); /^(a+)+$/.test('a'.repeat(60) + 'b')"),
    "sleep in node": (
        "javascript",
        "console.log('on it'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)",
    ),
    "timer in node": ("typescript", "console.log('on it'); await new Promise(() => setInterval(() => {}, 1000));"),
    "stopped": (
        "python",
        "import os\nprint('on it', flush=True)\nopen('kept', 'w').write('k')\nos.kill(os.getpid(), 19)\n",
    ),
    "stopped in node": ("javascript", "console.log('on it'); process.kill(process.pid, 'SIGSTOP')"),
    "endless str of an exception": (
        "python",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nprint('on it', flush=True)\nraise E\n",
    ),
}


@pytest.mark.parametrize("how", BUSY)
def test_code_that_will_not_end_is_a_timeout(hit: Hit, how: str) -> None:
    """Whatever keeps it busy, it ends when its time is up, and what it printed is there."""
    runtime, code = BUSY[how]
    result = hit(code, runtime, limits=Limits(timeout=1.5, cpu_time=30))
    assert kind_of(result) is ErrorKind.TIMEOUT
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.FAILED, 137, 9)
    assert result.stdout == b"on it\n"
    assert result.usage.run_time < 10
    if how == "stopped":
        assert [artifact.name for artifact in result.artifacts] == ["kept"] or NOT_COLLECTED in result.warnings


def test_cpu_time_of_all_processes_together_is_bounded(hit: Hit) -> None:
    """Children that left the session count too, and the message says that it was CPU time."""
    code = (
        "import os\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        break\nwhile True: pass\n"
    )
    result = hit(code, limits=Limits(timeout=60, cpu_time=0.5))
    assert kind_of(result) is ErrorKind.TIMEOUT
    assert result.error
    assert "CPU time" in result.error.message


ENDS = {
    "exit 137": ("python", "import os; os._exit(137)", ErrorKind.EXITED, 137, 0),
    "exit 143": ("python", "raise SystemExit(143)", ErrorKind.EXITED, 143, 0),
    "exit 139": ("javascript", "process.exit(139)", ErrorKind.EXITED, 139, 0),
    "exit 124": ("javascript", "process.exitCode = 124; 1", ErrorKind.EXITED, 124, 0),
    "exit 255": ("python", "import sys\nsys.exit(-1)", ErrorKind.EXITED, 255, 0),
    "another program": (
        "python",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'exit 5'])",
        ErrorKind.EXITED,
        5,
        0,
    ),
    "abort": ("python", "import os\nos.abort()", ErrorKind.SIGNALED, 134, 6),
    "abort in node": ("javascript", "process.abort()", ErrorKind.SIGNALED, 134, 6),
    "kill": ("python", "import os\nos.kill(os.getpid(), 9)", ErrorKind.SIGNALED, 137, 9),
    "kill in node": ("javascript", "process.kill(process.pid, 'SIGKILL')", ErrorKind.SIGNALED, 137, 9),
    "null pointer": ("python", "import ctypes\nctypes.string_at(0)", ErrorKind.SIGNALED, 139, 11),
    "real-time signal": ("python", "import os\nos.kill(os.getpid(), 34)", ErrorKind.SIGNALED, 162, 34),
    "terminated": ("python", "import os\nos.kill(os.getpid(), 15)", ErrorKind.SIGNALED, 143, 15),
    "kill its group": ("python", "import os\nos.killpg(0, 9)", ErrorKind.SIGNALED, 137, 9),
}


@pytest.mark.parametrize("how", ENDS)
def test_own_end_is_told_as_what_it_was(hit: Hit, how: str) -> None:
    """Exit codes that look like our kill, and signals that are not ours, are never TIMEOUT or MEMORY_LIMIT."""
    runtime, code, kind, exit_code, number = ENDS[how]
    result = hit(f"{code}\n", runtime)
    assert (kind_of(result), result.exit_code, result.signal) == (kind, exit_code, number)


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "raise SystemExit"),
        ("python", "import os\nos._exit(0)"),
        ("python", "import os\nif os.fork():\n    os._exit(0)\nraise ValueError"),
        ("javascript", "process.exit()"),
    ],
    ids=["SystemExit", "_exit", "child goes on", "node"],
)
def test_leaving_early_is_success_without_result_and_says_so(hit: Hit, runtime: str, code: str) -> None:
    """Nothing failed, but whoever waits for a result learns why there is none."""
    result = hit(code, runtime).check()
    assert result.result_json is None
    assert any("before it gave a result" in warning for warning in result.warnings)


def test_closing_stdout_and_stderr_ends_the_logs_only(hit: Hit) -> None:
    """Code may close its streams and go on to its result."""
    code = "import os, time\nprint('before', flush=True)\nos.close(1)\nos.close(2)\ntime.sleep(0.1)\n5\n"
    result = hit(code).check()
    assert (result.value, result.stdout) == (5, b"before\n")
    node = hit("console.log('before'); require('fs').closeSync(1); console.log('after'); 5", "javascript").check()
    assert (node.value, node.stdout) == (5, b"before\n")


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import os\nos.closerange(0, 2000)\n5"),
        ("python", "import os\nos.closerange(3, 2000)\n5"),
        ("javascript", "const fs = require('fs'); fs.closeSync(3); 5"),
        ("javascript", "const fs = require('fs'); fs.closeSync(3); fs.openSync('/dev/null', 'r+'); 5"),
    ],
    ids=["python, logs too", "python", "node", "node, replaced"],
)
def test_closing_the_channel_is_no_success(hit: Hit, runtime: str, code: str) -> None:
    """A result that cannot be told is not a success without one."""
    result = hit(code, runtime)
    assert (result.outcome, kind_of(result)) == (Outcome.FAILED, ErrorKind.EXITED)
    assert (b"could not be delivered" in result.stderr) == ("(0," not in code)


def test_grandchildren_that_hold_the_pipes_end_with_the_code(hit: Hit) -> None:
    """The execution ends with its process; what it left behind is killed, and nothing it would write later comes."""
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("grandchild", flush=True)
        time.sleep(3)
        print("too late", flush=True)
        open("late", "w").write("x")
    os._exit(0)
os.wait()
time.sleep(0.3)
"parent"
"""
    result = hit(code, limits=Limits(timeout=20)).check()
    assert (result.value, result.stdout, result.artifacts) == ("parent", b"grandchild\n", ())
    assert result.usage.run_time < 3


def test_threads_that_print_at_the_end_do_not_keep_it(hit: Hit) -> None:
    """Non-daemon threads in an endless loop do not hold the result back."""
    code = """
import threading
def shout():
    while True:
        print("y" * 100)
for _ in range(4):
    threading.Thread(target=shout).start()
7
"""
    result = hit(code, limits=Limits(timeout=20)).check()
    assert result.value == 7
    assert set(result.stdout) <= set(b"y\n")


def test_client_that_leaves_while_files_are_collected_frees_the_place(client: Client, server: Server, run: Hit) -> None:
    """Also after the code has ended, nobody works on for a client that has gone."""
    code = "for i in range(100):\n    open(f'f{i:03}', 'wb').write(bytes(1_000_000))\n"
    limits = Limits(timeout=60, cpu_time=60)
    events = client.stream(code, limits=limits)
    for event in events:
        if isinstance(event, PhaseChange) and event.phase == "collecting":
            break
    else:
        pytest.fail("it was never collecting")
    events.close()
    wait_until(lambda: "executions_under_way 0" in under_way(server), "nothing is under way", 10)
    assert run("1").check().value == 1


def under_way(server: Server) -> str:
    """How many executions there are, as text for the message."""
    number = sum(
        len(list((entry / "executions").iterdir())) for entry in server.runtime_dir.iterdir() if entry.is_dir()
    )
    return f"executions_under_way {number}"


def test_timeout_of_a_millisecond_is_a_timeout(hit: Hit) -> None:
    """The shortest time that may be asked for ends in an orderly way, again and again."""
    for _ in range(5):
        assert kind_of(hit("while True: pass", limits=Limits(timeout=0.001))) is ErrorKind.TIMEOUT


def test_cancelled_code_is_gone_at_once(client: Client, server: Server) -> None:
    """A loop that ignores every signal is gone soon after its client."""
    events = client.stream(f"{DEAF}print('on it', flush=True)\nwhile True:\n    pass\n", limits=Limits(timeout=60))
    for event in events:
        assert not isinstance(event, Finished)
        if isinstance(event, PhaseChange) and event.phase == "running":
            break
    before = metric(server, "belljar_sandboxes_live")
    began = time.monotonic()
    events.close()
    wait_until(lambda: under_way(server).endswith(" 0"), "the execution is gone", 10)
    assert time.monotonic() - began < 5
    assert before >= 1
