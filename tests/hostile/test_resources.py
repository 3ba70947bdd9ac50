"""Code that takes too much: processes, threads, memory, disk, files, sockets (HOSTILE.md 9 and 10)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from belljar_client import ErrorKind, Limits, Outcome, Result

MIB = 1 << 20
Hit = Callable[..., Result]


def kind_of(result: Result) -> ErrorKind | None:
    """Why it failed."""
    return result.error.kind if result.error else None


FORK_BOMB = "import os\nwhile True:\n    os.fork()\n"
THREAD_BOMB = """
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
"""
CHILDREN = """
import os, time
while True:
    if os.fork() == 0:
        os.setsid()
        time.sleep(100)
        os._exit(0)
"""
WORKERS = """
const { Worker } = require('worker_threads');
const all = [];
for (;;) all.push(new Worker('setInterval(() => {}, 1000)', { eval: true }));
"""
SPAWN = """
const { spawn } = require('child_process');
async function main() {
  for (;;) await new Promise((resolve, reject) => spawn('sleep', ['100']).on('spawn', resolve).on('error', reject));
}
"""


@pytest.mark.parametrize(
    ("code", "runtime"),
    [
        (FORK_BOMB, "python"),
        (THREAD_BOMB, "python"),
        (CHILDREN, "python"),
        (WORKERS, "javascript"),
        (SPAWN, "javascript"),
    ],
    ids=["forks", "threads", "children", "worker_threads", "spawn"],
)
def test_bomb_hits_process_limit(hit: Hit, code: str, runtime: str) -> None:
    """Processes and threads end at the limit, and the result says so."""
    limits = Limits(processes=32, timeout=30, cpus=2, memory_bytes=1024 * MIB)
    result = hit(code, runtime, limits=limits)
    assert kind_of(result) is ErrorKind.PROCESS_LIMIT
    assert result.exit_code == 1


def test_thread_bomb_at_the_ceiling_is_told_from_a_kill(hit: Hit) -> None:
    """The highest limit that a request may ask for is one that the sandbox can hold."""
    result = hit(THREAD_BOMB, limits=Limits(processes=4000, timeout=60, memory_bytes=2048 * MIB, cpus=2))
    assert kind_of(result) is ErrorKind.PROCESS_LIMIT


def test_fork_bomb_that_takes_no_for_an_answer_is_ended_by_its_time(hit: Hit) -> None:
    """A bomb that catches the refusal goes on until its time is up, not longer."""
    code = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    result = hit(code, limits=Limits(processes=24, timeout=1, memory_bytes=1024 * MIB))
    assert kind_of(result) is ErrorKind.TIMEOUT


MEMORY = {
    "one step": "b'x' * (1 << 33)",
    "small steps": "kept = []\nwhile True:\n    kept.append(bytes(100_000))",
    "shared memory": "f = open('/dev/shm/x', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))",
    "memfd": "import os\nfd = os.memfd_create('x')\nwhile True:\n    os.write(fd, bytes(1 << 20))",
    "pipes": """
import fcntl, os
kept = []
while True:
    kept.append(os.pipe())
    os.set_blocking(kept[-1][1], False)
    fcntl.fcntl(kept[-1][1], 1031, 1 << 20)  # F_SETPIPE_SZ
    try:
        while True:
            os.write(kept[-1][1], bytes(65536))
    except BlockingIOError:
        pass
""",
    "socket buffers": """
import socket
kept = []
while True:
    kept.append(socket.socketpair())
    kept[-1][0].setblocking(False)
    kept[-1][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    try:
        while True:
            kept[-1][0].send(bytes(65536))
    except BlockingIOError:
        pass
""",
    "page tables": "import mmap\nm = mmap.mmap(-1, 1 << 44)\nfor at in range(0, 1 << 44, 1 << 21):\n    m[at] = 1\n",
}


@pytest.mark.parametrize("how", MEMORY)
def test_memory_taken_anyhow_hits_memory_limit(hit: Hit, how: str) -> None:
    """Everything that holds bytes counts, whoever holds them for the code."""
    result = hit(MEMORY[how], limits=Limits(memory_bytes=128 * MIB, timeout=60, cpu_time=60, open_files=4096))
    assert kind_of(result) is ErrorKind.MEMORY_LIMIT
    assert (result.exit_code, result.signal) == (137, 9)


def test_node_buffers_hit_memory_limit_and_what_was_printed_is_there(hit: Hit) -> None:
    """What was printed before the kill is delivered."""
    code = "console.log('before');\nconst kept = [];\nfor (;;) kept.push(Buffer.alloc(1e6, 1));\n"
    result = hit(code, "javascript", limits=Limits(memory_bytes=160 * MIB, timeout=60, cpu_time=60))
    assert kind_of(result) is ErrorKind.MEMORY_LIMIT
    assert result.stdout == b"before\n"


def test_address_space_without_memory_is_nothing(hit: Hit) -> None:
    """100 TB that nobody touches cost nothing, or are refused; neither ends the sandbox."""
    code = "import mmap\ntry:\n    mmap.mmap(-1, 100 << 40)\nexcept OSError:\n    pass\n'still here'"
    assert hit(code).check().value == "still here"


def test_child_that_is_killed_for_memory_leaves_no_success(hit: Hit) -> None:
    """Memory is one budget for all processes: a greedy child ends its parent too."""
    code = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", "b'x' * (1 << 33)"])
time.sleep(30)
"""
    assert kind_of(hit(code, limits=Limits(memory_bytes=128 * MIB, timeout=20))) is ErrorKind.MEMORY_LIMIT


def test_disk_that_is_full_is_a_disk_limit(hit: Hit) -> None:
    """Home and /tmp share one budget, which the files that are removed give back."""
    code = """
open("/tmp/most", "wb").write(bytes(700_000))
try:
    open("/home/user/more", "wb").write(bytes(700_000))
except OSError as error:
    print(error.errno)
open("/home/user/more", "wb").write(bytes(700_000))
"""
    result = hit(code, limits=Limits(disk_bytes=MIB))
    assert kind_of(result) is ErrorKind.DISK_LIMIT
    assert result.stdout == b"28\n"
    node = "const fs = require('fs'); for (let i = 0; ; i += 1) fs.writeFileSync(`f${i}`, Buffer.alloc(100000));"
    assert kind_of(hit(node, "javascript", limits=Limits(disk_bytes=MIB, artifact_count=0))) is ErrorKind.DISK_LIMIT


def test_ten_thousand_sockets_end_at_the_limit_of_open_files(hit: Hit) -> None:
    """Descriptors are counted for each process."""
    code = """
import errno, socket
kept = []
try:
    while len(kept) < 10_000:
        kept.append(socket.socket())
except OSError as error:
    print(errno.errorcode[error.errno])
len(kept)
"""
    result = hit(code, limits=Limits(open_files=200)).check()
    assert result.stdout == b"EMFILE\n"
    assert 150 < result.value < 200


def test_hundred_thousand_empty_files_are_counted_and_the_first_come_out(hit: Hit) -> None:
    """The list of what was left out stays short."""
    code = """
import os
for i in range(100_000):
    os.close(os.open(f"f{i:06}", os.O_CREAT | os.O_WRONLY))
"""
    limits = Limits(timeout=60, cpu_time=60, cpus=2, artifact_count=5, memory_bytes=1024 * MIB)
    result = hit(code, limits=limits).check()
    assert [artifact.name for artifact in result.artifacts] == [f"f{i:06}" for i in range(5)]
    assert result.warnings == ("only 5 artifacts are allowed, there were 100000", "99995 files were left out in all")


def test_directories_without_end_are_walked_to_a_depth(hit: Hit) -> None:
    """10,000 folders in each other, with names up to the longest path: what is too deep is told, the rest comes out."""
    code = """
import os
for i in range(10_000):
    os.mkdir("d")
    os.chdir("d")
    if i in (5, 9_999):
        open("f", "w").write("x")
"""
    result = hit(code, limits=Limits(timeout=60, cpu_time=60)).check()
    assert [artifact.name for artifact in result.artifacts] == ["d/" * 6 + "f"]
    (warning,) = result.warnings
    assert "nested deeper than 64 folders" in warning


def test_paths_at_the_longest_path_cost_no_other_artifact(hit: Hit) -> None:
    """A file whose path is longer than the system takes is left out by name; all others are there."""
    code = """
import os
open("first", "w").write("1")
for _ in range(18):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
    for size in (10, 100, 250):
        open("f" * size, "w").write("x")
os.chdir("/home/user")
open("last", "w").write("2")
"""
    result = hit(code).check()
    names = [artifact.name for artifact in result.artifacts]
    assert (names[0], names[-1]) == ("first", "last")
    assert len(names) > 40
    assert any("File name too long" in warning for warning in result.warnings)


def test_holes_cost_nothing_and_huge_files_are_left_out(hit: Hit) -> None:
    """A file of 1 TB with holes is told, not sent; one within the limit comes out with its zeros."""
    code = """
import os
for name, size in (("huge", 1 << 40), ("small", 1 << 20)):
    os.truncate(os.open(name, os.O_CREAT | os.O_WRONLY), size)
"""
    result = hit(code, limits=Limits(disk_bytes=MIB)).check()
    assert [(artifact.name, artifact.size_bytes) for artifact in result.artifacts] == [("small", MIB)]
    assert len(result.warnings) == 1
    assert "'huge' was left out" in result.warnings[0]


def test_limits_cannot_be_raised_from_inside(hit: Hit) -> None:
    """The hard limits are the request's, and nobody inside may raise one, of itself or of others."""
    code = """
import resource
told = []
for what in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
    soft, hard = resource.getrlimit(what)
    for pid in (0, 1):
        try:
            resource.prlimit(pid, what, (hard + 1, hard + 1))
            told.append("raised")
        except (OSError, ValueError) as error:
            told.append("refused")
    told.append(hard)
told
"""
    result = hit(code, limits=Limits(processes=50, open_files=100)).check()
    assert result.value == ["refused", "refused", 50, "refused", "refused", 100]


def test_bombs_of_one_do_not_slow_another_to_death(hit: Hit, run: Hit) -> None:
    """While one execution floods everything at once, an ordinary one ends well."""
    from concurrent.futures import ThreadPoolExecutor

    bomb = "import os\nos.fork()\nos.fork()\nwhile True:\n    print('x' * 1000)\n"
    with ThreadPoolExecutor(2) as threads:
        floods = [threads.submit(hit, bomb, limits=Limits(timeout=3, cpu_time=60)) for _ in range(2)]
        assert run("1 + 1", limits=Limits(timeout=30)).check().value == 2
        assert all(flood.result().outcome is Outcome.FAILED for flood in floods)
