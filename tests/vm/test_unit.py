"""The systemd unit on a host with nothing but cgroup v2: what systemd and the kernel there do with it."""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from belljar_client import Client, ErrorKind, Limits, Result
from belljar_client.errors import BelljarClientError
from belljar_client.models import Started
from tests.conftest import run_until_done, wait_until
from tests.hostile.network.modes import assert_modes_are_enforced
from tests.vm.internet import internet

MIB = 1 << 20
PATIENCE = 400.0
"""Seconds in which what must happen has happened, with every instruction emulated."""
CGROUP = Path("/sys/fs/cgroup/system.slice/belljar.service")
STATE = Path("/run/belljar")
ENVIRONMENT = Path("/etc/belljar/environment")
HEALTH = ("/opt/belljar/bin/belljar", "health", "--timeout", "120s")

Run = Callable[..., Result]


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def main_pid() -> int:
    return int(systemctl("show", "--property=MainPID", "--value", "belljar"))


def journal() -> str:
    return subprocess.run(
        ["journalctl", "--unit=belljar", "--no-pager", "--output=cat"], check=True, capture_output=True, text=True
    ).stdout


def is_serving() -> bool:
    """Asked over HTTP: starting `belljar health` again and again would take the one CPU away from what is awaited."""
    time.sleep(0.5)
    try:
        with urllib.request.urlopen("http://127.0.0.1:8080/readyz", timeout=60):
            return True
    except OSError:
        return False


def wait_until_serving() -> None:
    wait_until(is_serving, lambda: f"the unit serves: {journal()[-3000:]}", PATIENCE)


def metric(name: str) -> float:
    time.sleep(0.5)
    with urllib.request.urlopen("http://127.0.0.1:8080/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def unit() -> None:
    """The unit, active and ready."""
    systemctl("start", "belljar")
    wait_until_serving()


def test_host_has_nothing_but_cgroup_v2_and_every_limit_is_enforced(unit: None) -> None:
    """The server works below its delegated group, and nothing had to be waived."""
    kinds = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert "cgroup2" in kinds
    assert "cgroup" not in kinds
    wait_until(lambda: subprocess.run(HEALTH, check=False).returncode == 0, "belljar health says so too", PATIENCE)
    assert "limit is not enforced" not in journal()
    assert str(main_pid()) in (CGROUP / "service" / "cgroup.procs").read_text().split()
    (parent,) = (path for path in CGROUP.glob("belljar/*") if path.is_dir())
    assert {"memory", "cpu", "pids"} <= set((parent / "cgroup.subtree_control").read_text().split())


@pytest.mark.parametrize(
    ("runtime", "code"),
    [("python", "return 6 * 7"), ("javascript", "return 6 * 7"), ("typescript", "const x: number = 6\nreturn x * 7")],
)
def test_every_runtime_works(unit: None, run: Run, runtime: str, code: str) -> None:
    """A result from each."""
    assert run(code, runtime, limits=Limits(timeout=300, cpu_time=300)).check().value == 42


def test_memory_kill_ends_the_sandbox_and_not_the_unit(unit: None, run: Run) -> None:
    """Systemd watches for out-of-memory kills below a unit and stops it, unless told not to."""
    before = main_pid()
    limits = Limits(memory_bytes=192 * MIB, timeout=300, cpu_time=300)
    result = run("x = []\nwhile True: x.append(bytearray(1 << 20))", limits=limits)
    assert result.error is not None
    assert (result.error.kind, result.exit_code) == (ErrorKind.MEMORY_LIMIT, 137)
    assert result.usage.peak_memory_bytes > 100 * MIB
    time.sleep(2)
    assert main_pid() == before
    assert run("1", limits=Limits(timeout=300, cpu_time=300)).check().value == 1


@pytest.mark.parametrize(
    ("kind", "code", "limits"),
    [
        (
            ErrorKind.PROCESS_LIMIT,
            "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(600)",
            Limits(processes=16, memory_bytes=1536 * MIB, timeout=300, cpu_time=300),
        ),
        (
            ErrorKind.DISK_LIMIT,
            "open('big', 'wb').write(bytes(40 << 20))",
            Limits(disk_bytes=16 * MIB, timeout=300, cpu_time=300),
        ),
    ],
    ids=["processes", "disk"],
)
def test_limit_is_enforced(unit: None, run: Run, kind: ErrorKind, code: str, limits: Limits) -> None:
    """Those that the sandbox itself enforces."""
    result = run(code, limits=limits)
    assert result.error is not None
    assert result.error.kind is kind


def test_time_limits_are_told_apart(unit: None, run: Run) -> None:
    """CPU time is read from the group, wall time from the clock."""
    busy = run("while True: pass", limits=Limits(cpu_time=3, timeout=300))
    assert busy.error is not None
    assert (busy.error.kind, busy.usage.cpu_time >= 3) == (ErrorKind.TIMEOUT, True)
    idle = run("import time; time.sleep(600)", limits=Limits(timeout=3))
    assert idle.error is not None
    assert idle.error.kind is ErrorKind.TIMEOUT


def test_network_modes_are_enforced(unit: None, run: Run, tmp_path: Path) -> None:
    """With the seven capabilities of the unit, and rules and links that its sandboxes get on this kernel."""
    with internet(tmp_path):
        assert_modes_are_enforced(run)


def test_killed_server_is_restarted_and_sweeps(unit: None, client: Client) -> None:
    """After SIGKILL nothing of the dead server is left, and what it was running is told as lost."""
    failures: list[BelljarClientError] = []

    def run_for_ever() -> None:
        try:
            client.execute("import time\nwhile True: time.sleep(1)", limits=Limits(timeout=800, cpu_time=800))
        except BelljarClientError as error:
            failures.append(error)

    thread = threading.Thread(target=run_for_ever)
    thread.start()
    wait_until(lambda: metric("belljar_executions_running") == 1, "it runs", PATIENCE)
    (old_instance,) = [path for path in STATE.iterdir() if path.is_dir()]
    old_pid = main_pid()
    # The next one has pools, which the next tests are about: a start of its own for them would take minutes here.
    ENVIRONMENT.write_text(ENVIRONMENT.read_text().replace("POOL__MAX=0", "POOL__MAX=1"))
    systemctl("kill", "--signal=KILL", "--kill-whom=main", "belljar")
    thread.join(PATIENCE)
    assert len(failures) == 1
    wait_until(lambda: main_pid() not in {0, old_pid} and is_serving(), "it is back", PATIENCE)
    assert "execution lost" in journal()
    assert not old_instance.exists()
    assert not (CGROUP / "belljar" / old_instance.name).exists()


def test_sandboxes_wait_where_there_are_pools(unit: None, client: Client) -> None:
    """Snapshots are made on this CPU and restored; with them a sandbox waits, and the next run is warm."""
    wait_until(lambda: metric('belljar_pool_waiting{runtime="javascript"') >= 1, "a sandbox waits", PATIENCE)
    events = list(client.stream("return 6 * 7", runtime="javascript"))
    assert [event.warm for event in events if isinstance(event, Started)] == [True]


def test_stop_lets_executions_end_and_leaves_nothing(unit: None, client: Client) -> None:
    """The drain: what runs ends with its result, and then no process, no group and no file is there."""
    results: list[Result] = []
    code = "import time\nprint('begun', flush=True)\ntime.sleep(8)\nreturn 'done'"
    begun = threading.Event()
    limits = Limits(timeout=100)
    thread = threading.Thread(target=lambda: results.append(run_until_done(client, code, begun, limits)))
    thread.start()
    assert begun.wait(PATIENCE)
    systemctl("stop", "belljar")
    thread.join(PATIENCE)
    assert results[0].check().value == "done"
    assert systemctl("show", "--property=Result", "--value", "belljar") == "success"
    assert not CGROUP.exists()
    assert not STATE.exists()
    assert not [line for line in processes() if "runsc" in line]


def processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
