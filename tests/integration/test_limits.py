"""Limits: each is enforced by the one who can see it, told as what it is, and the next execution works."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from belljar_client import ErrorKind, Limits, Result

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

MIB = 1 << 20

MEMORY = {
    "one step": ("python", "x = bytearray(600 << 20)"),
    "small steps": ("python", "x = []\nwhile True: x.append(bytearray(1 << 20))"),
    "tiny objects": ("python", "x = []\nwhile True: x.append(object())"),
    "child": (
        "python",
        "import os\nif os.fork() == 0:\n    x = bytearray(600 << 20)\nos.wait()\nimport time; time.sleep(1)",
    ),
    "files": ("python", "with open('/tmp/big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))"),
    "shared": ("python", "import mmap\nm = mmap.mmap(-1, 600 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1"),
    "buffers": ("javascript", "const x = []; for (;;) x.push(Buffer.alloc(1 << 20, 1))"),
    "objects": ("typescript", "const x: object[] = []; for (;;) x.push({ a: [1, 2, 3], b: 'x' + x.length })"),
    "string": ("javascript", "let s = 'x'; const all = []; for (;;) { all.push(s.repeat(1e6).split('').join('-')) }"),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_limit_is_told_by_the_kernels_count(run: Run, name: str) -> None:
    """In one step, in small ones, in a child, in files, in JavaScript's own heap: always MEMORY_LIMIT."""
    runtime, code = MEMORY[name]
    limits = Limits(memory_bytes=192 * MIB, disk_bytes=1024 * MIB, timeout=60)
    code = f"print('before')\n{code}" if runtime == "python" else f"console.log('before');\n{code}"
    result = run(code, runtime=runtime, limits=limits)
    assert result.error is not None
    assert (result.error.kind, result.exit_code, result.signal) == (ErrorKind.MEMORY_LIMIT, 137, 9)
    assert str(192 * MIB) in result.error.message
    assert result.error.hint
    assert result.stdout == b"before\n"
    assert run("1").check().value == 1


def test_memory_below_the_limit_is_there(run: Run) -> None:
    """What was asked for can be used, and the peak is told."""
    result = run("x = bytearray(300 << 20)\nreturn len(x)", limits=Limits(memory_bytes=512 * MIB)).check()
    assert 300 * MIB <= result.usage.peak_memory_bytes <= 512 * MIB


FORKING = 1536 * MIB
"""gVisor copies memory in large pieces: a forked Python takes up to 20 MiB, and memory must not run out first."""
PROCESSES = {
    "fork": ("python", "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)"),
    "thread": ("python", "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()"),
    "subprocess": ("python", "import subprocess\np = []\nwhile True: p.append(subprocess.Popen(['sleep', '60']))"),
    "spawnSync": (
        "javascript",
        (
            "const { spawn, spawnSync } = require('child_process');"
            " for (let i = 0; i < 60; i++) spawn('sleep', ['60']);"
            " const { error } = spawnSync('sleep', ['0']); if (error) throw error;"
        ),
    ),
    "spawn": (
        "typescript",
        (
            "import { spawn } from 'node:child_process';\nfor (let i = 0; i < 60; i++) spawn('sleep', ['60']);\n"
            "await new Promise((done) => setTimeout(done, 20000))"
        ),
    ),
    "worker": (
        "javascript",
        (
            "const { Worker } = require('worker_threads');\n"
            "for (let i = 0; i < 60; i++) new Worker('setInterval(() => {}, 1000)', { eval: true });\n"
            "await new Promise((done) => setTimeout(done, 20000))"
        ),
    ),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_process_limit_is_told_as_that(run: Run, name: str) -> None:
    """Processes and threads count alike; nothing is left, and the next execution works."""
    runtime, code = PROCESSES[name]
    result = run(code, runtime=runtime, limits=Limits(processes=32, memory_bytes=FORKING, timeout=30))
    assert result.error is not None
    assert (result.error.kind, result.exit_code) == (ErrorKind.PROCESS_LIMIT, 1)
    assert result.error.hint
    assert run("1").check().value == 1


def test_processes_below_the_limit_start(run: Run) -> None:
    """A thread pool and children within the limit are no problem."""
    code = (
        "import subprocess, threading as th, time\nt = [th.Thread(target=time.sleep, args=(0.2,)) for _ in range(60)]\n"
        "[x.start() for x in t]\np = [subprocess.Popen(['sleep', '0.2']) for _ in range(20)]\n"
        "[x.join() for x in t]\nreturn [x.wait() for x in p]"
    )
    assert run(code).check().value == [0] * 20


def test_caught_refusal_is_no_process_limit(run: Run) -> None:
    """Code that copes with the refusal succeeds; an EAGAIN of its own making is an ordinary exception."""
    code = (
        "import os, time\nn = 0\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "except BlockingIOError: pass\nreturn n"
    )
    assert 8 <= run(code, limits=Limits(processes=32, memory_bytes=FORKING)).check().value < 32
    error = run("raise BlockingIOError(11, 'mine')").error
    assert error is not None
    assert error.kind is ErrorKind.EXCEPTION


DISK = {
    "home": ("python", "with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))"),
    "tmp": ("python", "with open('/tmp/big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))"),
    "cause": (
        "python",
        "try:\n    open('big', 'wb').write(bytes(40 << 20))\nexcept OSError as e:\n    raise RuntimeError('x') from e",
    ),
    "sync": ("javascript", "require('fs').writeFileSync('big', Buffer.alloc(40 << 20))"),
    "promise": (
        "typescript",
        "import { writeFile } from 'node:fs/promises';\nawait writeFile('/tmp/big', new Uint8Array(40 << 20))",
    ),
}


@pytest.mark.parametrize("name", DISK)
def test_disk_limit_is_told_as_that(run: Run, name: str) -> None:
    """/home/user and /tmp share one budget; the error is at the line that wrote."""
    runtime, code = DISK[name]
    result = run(code, runtime=runtime, limits=Limits(disk_bytes=16 * MIB))
    assert result.error is not None
    assert (result.error.kind, result.exit_code) == (ErrorKind.DISK_LIMIT, 1)
    assert "disk_bytes" in result.error.hint
    assert result.error.line >= 1
    assert result.error.traceback


def test_disk_below_the_limit_is_there(run: Run) -> None:
    """What was asked for can be written."""
    code = "open('/tmp/a', 'wb').write(bytes(10 << 20))\nopen('b', 'wb').write(bytes(4 << 20))\nreturn 'fits'"
    assert run(code, limits=Limits(disk_bytes=16 * MIB)).check().value == "fits"


def test_holes_take_no_disk_but_their_size_counts_as_an_artifact(run: Run) -> None:
    """A sparse file of a terabyte is left out with a warning; nothing breaks."""
    result = run("open('holes', 'wb').truncate(1 << 40)\nopen('small', 'w').write('x')").check()
    assert [artifact.name for artifact in result.artifacts] == ["small"]
    assert any("holes" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "x = []\nwhile True: x.append(open('/dev/null'))"),
        ("javascript", "const fs = require('fs'); for (;;) fs.openSync('/dev/null')"),
    ],
)
def test_open_files_are_limited(run: Run, runtime: str, code: str) -> None:
    """EMFILE is an exception at the user's line; the worker still reports."""
    error = run(code, runtime=runtime, limits=Limits(open_files=64)).error
    assert error is not None
    assert (error.kind, error.line) == (ErrorKind.EXCEPTION, code.count("\n") + 1)
    assert "EMFILE" in error.message or "Too many open files" in error.message


def test_cores_are_limited(run: Run) -> None:
    """Half a core gives half of the CPU time; what a process may see of it does not matter."""
    code = "import time\nend = time.time() + 3\nwhile time.time() < end: pass"
    usage = run(code, limits=Limits(cpus=0.3)).check().usage
    assert usage.cpu_time < 0.6 * usage.run_time


def test_two_threads_share_the_cores_that_were_asked_for(run: Run) -> None:
    """cpu_time counts all processes of the sandbox together."""
    code = (
        "import os, time\nend = time.time() + 1\nfor _ in range(3):\n    if os.fork() == 0: break\n"
        "while time.time() < end: pass\ntime.sleep(0.2)"
    )
    usage = run(code, limits=Limits(cpus=1)).check().usage
    assert 0.2 < usage.cpu_time < 2.5


def test_smallest_limits_still_run_the_smallest_program(run: Run) -> None:
    """The floors that the contract names are enough for the runtime itself."""
    floors = Limits(
        cpus=0.5, memory_bytes=64 * MIB, processes=16, disk_bytes=MIB, open_files=64, result_bytes=100, artifact_count=0
    )
    assert run("1", limits=floors).check().value == 1
    for runtime in ("javascript", "typescript"):
        result = run("1", runtime=runtime, limits=floors)
        assert result.error is None or result.error.kind is ErrorKind.MEMORY_LIMIT, result
