"""Logs: streamed while the code runs, as bytes, in order, counted exactly, and complete up to the moment of death."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from belljar_client import Client, ErrorKind, Finished, Limits, Output, PhaseChange, Result, Stream
from belljar_client.models import Event, Phase
from tests.conftest import running_server

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

AT_ONCE = 2.0
"""Seconds in which a print must be seen; generous against the 100 ms that are promised, short against the computing."""
COMPUTING = 20.0
"""Seconds for which the code below computes without a pause, unless somebody ends it."""
PRINT_THEN_COMPUTE = {
    "print": ("python", "import time\nprint('first')\nend = time.time() + 20\nwhile time.time() < end: pass"),
    "no newline": (
        "python",
        "import time\nprint('first\\n', end='')\nend = time.time() + 20\nwhile time.time() < end: pass",
    ),
    "stderr": ("python", "import sys\nsys.stderr.write('first\\n')\nsum(range(10**10))"),
    "in C": ("python", "print('first')\nsum(range(10**10))"),
    "logging": ("python", "import logging\nlogging.warning('first')\nimport re\nre.match('(a*)*b', 'a' * 40)"),
    "child": (
        "python",
        "import os, time\nif os.fork() == 0:\n    os.write(1, b'first\\n')\n    os._exit(0)\ntime.sleep(20)",
    ),
    "console": ("javascript", "console.log('first'); const end = Date.now() + 20e3; while (Date.now() < end);"),
    "stdout": (
        "javascript",
        "process.stdout.write('first\\n'); const end = Date.now() + 20e3; while (Date.now() < end);",
    ),
    "console of ts": (
        "typescript",
        "console.error('first'); const end: number = Date.now() + 20e3; while (Date.now() < end);",
    ),
}


def until_output(events: Iterator[Event]) -> Iterator[Event]:
    """The events up to the first output."""
    for event in events:
        yield event
        if isinstance(event, Output):
            return


@pytest.mark.parametrize("name", PRINT_THEN_COMPUTE)
def test_print_arrives_while_the_code_goes_on_computing(client: Client, name: str) -> None:
    """The first byte is there long before the computation ends, by the server's clock and by ours."""
    runtime, code = PRINT_THEN_COMPUTE[name]
    stream = client.stream(code, runtime=runtime, limits=Limits(timeout=COMPUTING + 5))
    running = printed = 0.0
    seen = b""
    for event in until_output(stream):
        if isinstance(event, PhaseChange) and event.phase is Phase.RUNNING:
            running = time.monotonic()
            began = event.time
        elif isinstance(event, Output):
            printed = time.monotonic()
            seen = event.content
            assert (event.time - began).total_seconds() < AT_ONCE
    stream.close()
    assert b"first" in seen
    assert printed - running < AT_ONCE


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import sys\nfor i in range(3000):\n    print(i)\n    print(-i, file=sys.stderr)"),
        ("javascript", "for (let i = 0; i < 3000; i++) { console.log(i); console.error(-i || '0') }"),
        ("typescript", "for (let i: number = 0; i < 3000; i++) { console.log(`${i}`); console.error(`${-i}`) }"),
    ],
)
def test_streams_stay_apart_and_in_order(run: Run, runtime: str, code: str) -> None:
    """Every line of both, each in its order."""
    result = run(code, runtime=runtime).check()
    assert result.stdout.split() == [b"%d" % i for i in range(3000)]
    assert result.stderr.split() == [b"%d" % -i for i in range(3000)]
    assert (result.usage.stdout_bytes, result.usage.stderr_bytes) == (len(result.stdout), len(result.stderr))
    assert not result.truncated.stdout
    assert not result.truncated.stderr


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        (
            "python",
            "from sys import *\nstdout.buffer.write(bytes(range(256)) * 2)\nstderr.buffer.write(b'\\xf0\\x9f')",
        ),
        (
            "javascript",
            (
                "const b = Buffer.from([...Array(256).keys()]);\nprocess.stdout.write(b); process.stdout.write(b);\n"
                "process.stderr.write(Buffer.of(240, 159))"
            ),
        ),
    ],
)
def test_output_is_bytes(run: Run, runtime: str, code: str) -> None:
    """All 256 of them, and half of a UTF-8 sequence, come as they were written."""
    result = run(code, runtime=runtime).check()
    assert (result.stdout, result.stderr) == (bytes(range(256)) * 2, b"\xf0\x9f")


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import os\nos.write(1, b'x' * 2500)\nos.write(2, b'y' * 700)\nreturn 'done'"),
        ("javascript", "process.stdout.write('x'.repeat(2500)); process.stderr.write('y'.repeat(700)); return 'done'"),
    ],
)
def test_output_over_the_limit_is_dropped_and_counted_to_the_byte(run: Run, runtime: str, code: str) -> None:
    """The first bytes are delivered, the rest counted; the code itself goes on as if nothing were."""
    result = run(code, runtime=runtime, limits=Limits(output_bytes=1000)).check()
    assert result.value == "done"
    truncated, usage = result.truncated, result.usage
    assert len(result.stdout) + len(result.stderr) == 1000
    assert (usage.stdout_bytes, usage.stderr_bytes) == (2500, 700)
    assert truncated.stdout_dropped_bytes == 2500 - len(result.stdout)
    assert truncated.stderr_dropped_bytes == 700 - len(result.stderr)
    assert truncated.stdout == (truncated.stdout_dropped_bytes > 0)
    assert truncated.stderr == (truncated.stderr_dropped_bytes > 0)
    assert set(result.stdout) | set(result.stderr) <= set(b"xy")


def test_output_of_exactly_the_limit_is_complete(run: Run) -> None:
    """One byte more is one byte dropped; a limit of nothing delivers nothing."""
    exact = run("import os\nos.write(1, b'x' * 1000)", limits=Limits(output_bytes=1000)).check()
    assert (len(exact.stdout), exact.truncated.stdout) == (1000, False)
    above = run("import os\nos.write(1, b'x' * 1001)", limits=Limits(output_bytes=1000)).check()
    assert (len(above.stdout), above.truncated.stdout, above.truncated.stdout_dropped_bytes) == (1000, True, 1)
    nothing = run("print('x')", limits=Limits(output_bytes=0)).check()
    assert (nothing.stdout, nothing.truncated.stdout_dropped_bytes, nothing.usage.stdout_bytes) == (b"", 2, 2)


BEFORE = "b'before' * 50000"
DEATHS = {
    "exception": ("python", f"import os\nos.write(1, {BEFORE})\nraise ValueError", ErrorKind.EXCEPTION),
    "unflushed exception": ("python", f"print(({BEFORE}).decode(), end='')\n1 / 0", ErrorKind.EXCEPTION),
    "exit": ("python", f"import sys\nprint(({BEFORE}).decode(), end='')\nsys.exit(3)", ErrorKind.EXITED),
    "hard exit": ("python", f"import os\nos.write(1, {BEFORE})\nos._exit(3)", ErrorKind.EXITED),
    "signal": ("python", f"import os\nos.write(1, {BEFORE})\nos.kill(os.getpid(), 9)", ErrorKind.SIGNALED),
    "abort": ("python", f"import os\nos.write(1, {BEFORE})\nos.abort()", ErrorKind.SIGNALED),
    "timeout": ("python", f"import os, time\nos.write(1, {BEFORE})\ntime.sleep(60)", ErrorKind.TIMEOUT),
    "memory": ("python", f"import os\nos.write(1, {BEFORE})\nx = bytearray(1 << 30)", ErrorKind.MEMORY_LIMIT),
    "process.exit": ("javascript", "process.stdout.write('before'.repeat(50000)); process.exit(3)", ErrorKind.EXITED),
    "throw": ("javascript", "console.log('before'.repeat(50000)); throw 1", ErrorKind.EXCEPTION),
    "kill": (
        "typescript",
        "process.stdout.write('before'.repeat(50000)); process.kill(process.pid, 9)",
        ErrorKind.SIGNALED,
    ),
    "loop": ("javascript", "process.stdout.write('before'.repeat(50000)); for (;;);", ErrorKind.TIMEOUT),
}


@pytest.mark.parametrize("name", DEATHS)
def test_what_was_printed_before_the_end_is_delivered(run: Run, name: str) -> None:
    """All of 300,000 bytes, however the process died."""
    runtime, code, kind = DEATHS[name]
    result = run(code, runtime=runtime, limits=Limits(timeout=1.5, memory_bytes=256 << 20))
    assert result.error is not None
    assert result.error.kind is kind
    assert result.stdout.strip() == b"before" * 50000


@pytest.mark.parametrize(
    ("death", "kind"),
    [
        ("bytearray(1 << 30)", ErrorKind.MEMORY_LIMIT),
        ("ctypes.string_at(0)", ErrorKind.SIGNALED),
        ("ctypes.CDLL(None)._exit(3)", ErrorKind.EXITED),
    ],
)
def test_last_words_arrive_however_sudden_the_end(run: Run, death: str, kind: ErrorKind) -> None:
    """No flush, no newline, and nothing of Python runs any more."""
    code = f"import ctypes\nfor i in range(10): print(i)\nprint('last', 'words', end='')\n{death}"
    result = run(code, limits=Limits(memory_bytes=256 << 20))
    assert result.error is not None
    assert result.error.kind is kind
    assert result.stdout == b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\nlast words"


def test_unflushed_text_is_delivered_before_sudden_death(run: Run) -> None:
    """Print without flush, then a signal that nobody can catch a while later."""
    result = run("import os, time\nprint('before')\ntime.sleep(0.5)\nos.kill(os.getpid(), 9)")
    assert result.stdout == b"before\n"


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import os\nwhile True: os.write(1, b'x' * 65536)"),
        ("javascript", "for (;;) process.stdout.write('x'.repeat(65536))"),
    ],
)
def test_endless_output_ends_with_output_limit(strict: Client, runtime: str, code: str) -> None:
    """A flood is cut at the limit, and ended some way beyond it; the next execution works."""
    result = strict.execute(code, runtime=runtime, limits=Limits(output_bytes=10_000))
    assert result.error is not None
    assert (result.error.kind, result.exit_code, result.signal) == (ErrorKind.OUTPUT_LIMIT, 137, 9)
    assert result.stdout == b"x" * 10_000
    assert result.usage.stdout_bytes > 4 << 20
    assert result.truncated.stdout_dropped_bytes == result.usage.stdout_bytes - 10_000
    assert strict.execute("1").check().value == 1


@pytest.fixture(scope="module")
def strict() -> Iterator[Client]:
    """A client of a server that ends code after 4 MiB of output."""
    settings = {"LIMITS__OUTPUT_FLOOD_BYTES": str(4 << 20), "POOL__MAX": "0"}
    with running_server(**settings) as server, Client(server.address) as client:  # type: ignore[arg-type]
        yield client


def test_client_that_does_not_read_slows_only_itself(client: Client, run: Run) -> None:
    """The code ends in its own time, others run meanwhile, and everything is still there to read afterwards."""
    size = 8 << 20
    code = f"import os\nfor _ in range({size >> 16}): os.write(1, b'x' * 65536)"
    stream = client.stream(code, limits=Limits(output_bytes=size))
    total = sum(len(event.content) for event in until_output(stream) if isinstance(event, Output))
    assert run("import time\ntime.sleep(2)\n'other'").check().value == "other"
    resumed = time.time()
    for event in stream:
        if isinstance(event, Output):
            total += len(event.content)
        elif isinstance(event, Finished):
            assert event.time.timestamp() < resumed
            assert event.succeeded
            assert event.usage.stdout_bytes == size
    assert total == size


def test_output_names_its_stream_in_events(client: Client) -> None:
    """Pieces say where they come from."""
    events = list(client.stream("import sys\nprint('o')\nprint('e', file=sys.stderr)"))
    pieces = {(event.stream, event.content) for event in events if isinstance(event, Output)}
    assert pieces == {(Stream.STDOUT, b"o\n"), (Stream.STDERR, b"e\n")}
