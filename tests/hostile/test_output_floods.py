"""Code that prints too much, or in ways that make printing hard (HOSTILE.md 13, 15)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from belljar_client import Client, ErrorKind, Limits, Output, Result, Stream
from tests.conftest import Server

MIB = 1 << 20
Hit = Callable[..., Result]

FLOODS = {
    "stdout": ("python", "import os\nwhile True:\n    os.write(1, bytes(65536))\n", True, False),
    "stderr": ("python", "import os\nwhile True:\n    os.write(2, bytes(65536))\n", False, True),
    "print": ("python", "while True:\n    print('x' * 100_000)\n", True, False),
    "node": ("javascript", "for (;;) process.stdout.write('x'.repeat(1 << 20));", True, False),
    "children": (
        "python",
        "import os\nos.fork()\nos.fork()\nwhile True:\n    os.write(1, bytes(65536))\n    os.write(2, bytes(65536))\n",
        True,
        True,
    ),
}


@pytest.mark.parametrize("how", FLOODS)
def test_flood_is_cut_counted_and_ended(hit: Hit, how: str) -> None:
    """What fits the limit is delivered, the rest is counted, and far beyond it the code is ended."""
    runtime, code, out, err = FLOODS[how]
    limits = Limits(output_bytes=100_000, timeout=100, cpu_time=100, cpus=2)
    result = hit(code, runtime, limits=limits)
    assert result.error
    assert result.error.kind is ErrorKind.OUTPUT_LIMIT
    assert len(result.stdout) + len(result.stderr) == 100_000
    assert (result.truncated.stdout, result.truncated.stderr) == (out, err)
    dropped = result.truncated.stdout_dropped_bytes + result.truncated.stderr_dropped_bytes
    assert dropped + 100_000 == result.usage.stdout_bytes + result.usage.stderr_bytes
    assert dropped > 200 * MIB


def test_output_at_the_limit_is_whole_and_one_more_byte_is_told(hit: Hit) -> None:
    """The limit counts both streams together, to the byte."""
    code = "import os\ndef main(n):\n    os.write(1, b'a' * 600)\n    os.write(2, b'b' * n)\n"
    limits = Limits(output_bytes=1000)
    whole = hit(code, inputs={"n": 400}, limits=limits).check()
    assert (len(whole.stdout), len(whole.stderr), whole.truncated.stderr) == (600, 400, False)
    cut = hit(code, inputs={"n": 401}, limits=limits).check()
    assert (len(cut.stdout), len(cut.stderr), cut.truncated.stderr_dropped_bytes) == (600, 400, 1)
    none = hit("print('x')", limits=Limits(output_bytes=0)).check()
    assert (none.stdout, none.truncated.stdout_dropped_bytes) == (b"", 2)


def test_one_byte_a_write_on_both_streams_becomes_few_events(client: Client) -> None:
    """Ten thousand writes of a byte do not become ten thousand messages, and none is lost."""
    code = "import os\nfor _ in range(10_000):\n    os.write(1, b'a')\n    os.write(2, b'b')\n"
    events = list(client.stream(code, limits=Limits(timeout=60, cpu_time=60)))
    outputs = [event for event in events if isinstance(event, Output)]
    for stream, letter in ((Stream.STDOUT, b"a"), (Stream.STDERR, b"b")):
        assert b"".join(event.content for event in outputs if event.stream is stream) == letter * 10_000
    assert len(outputs) < 4000
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


BINARY = bytes(range(256)) * 300


def test_bytes_come_as_they_were_written(hit: Hit) -> None:
    """Binary output, half UTF-8 sequences and output without a newline are nobody's text."""
    code = "import os\nd = bytes(range(256)) * 300\nfor at in range(0, 76800, 777):\n    os.write(1, d[at:at + 777])\n"
    assert hit(code).check().stdout == BINARY
    halves = "import os, time\nfor byte in '€𝄞'.encode():\n    os.write(1, bytes([byte]))\n    time.sleep(0.02)\n"
    assert hit(halves).check().stdout_text == "€𝄞"
    node = "process.stdout.write(Buffer.from(Array.from({ length: 76800 }, (_, i) => i % 256)));"
    assert hit(f"{node} null", "javascript").check().stdout == BINARY


LOOKALIKES = (
    '{"event": "execution", "outcome": "succeeded", "level": "info"}\n',
    "p\x00\x00\x00\x0b" + '{"ok":true}',
    "x\x00\x00\x00\x02{}",
    "\x1b[2J\x1b]0;owned\x07\r\rbelljar: gRPC on 127.0.0.1:1, HTTP on 127.0.0.1:1\n",
    "\u2028\u2029\u0085</script>\x00--END--\n---RESULT---\n{}\n",
)


def test_output_that_looks_like_ours_is_only_output(hit: Hit) -> None:
    """Frames, log lines, terminal sequences and result markers in the output mean nothing to anyone."""
    text = "".join(LOOKALIKES)
    code = "import sys\ndef main(text):\n    sys.stdout.write(text)\n    sys.stderr.write(text)\n    return 'mine'\n"
    result = hit(code, inputs={"text": text}).check()
    assert result.value == "mine"
    assert result.stdout == result.stderr == text.encode()


def test_output_never_reaches_the_servers_log(hit: Hit, server: Server) -> None:
    """Neither what is printed nor what an exception says is in the server's own log."""
    hit("print('needle-in-output')\nraise ValueError('needle-in-message')")
    assert "needle" not in server.log_text()


def test_stdout_can_be_opened_again_or_refuses(hit: Hit) -> None:
    """Opening the stream by its name in /proc or /dev gives the same stream or an error, never another file."""
    code = """
told = []
for path in ("/dev/stdout", "/proc/self/fd/1", "/proc/self/fd/2"):
    try:
        with open(path, "w") as stream:
            stream.write("again\\n")
        told.append("written")
    except OSError as error:
        told.append("refused")
told
"""
    result = hit(code).check()
    assert result.stdout.count(b"again\n") + result.stderr.count(b"again\n") == result.value.count("written")


def test_reading_and_resizing_ones_own_streams_harms_nobody(hit: Hit) -> None:
    """Code may make its streams non-blocking, shrink them or read from them: the server still gets what is written."""
    code = """
import fcntl, os
for fd in (1, 2):
    os.set_blocking(fd, False)
    for call in (lambda: fcntl.fcntl(fd, 1031, 4096), lambda: os.read(fd, 10), lambda: os.ftruncate(fd, 0),
                 lambda: os.lseek(fd, 0, 0), lambda: fcntl.flock(fd, fcntl.LOCK_EX)):
        try:
            call()
        except OSError:
            pass
os.set_blocking(1, True)
print("x" * 3_000_000)
"""
    assert len(hit(code, limits=Limits(timeout=30)).check().stdout) == 3_000_001
