"""What the world does to snapshots, restores and runsc while a server runs: executions go on, and the pool recovers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from belljar_client import AsyncClient, Client
from belljar_server import runtimes
from tests.conftest import Server, running_server, wait_until
from tests.integration.pools import (
    RUNTIMES,
    SETTLED,
    is_full,
    kill,
    leaves_nothing,
    metrics,
    pool,
    run_warm,
    runsc_processes,
    total,
    wait_until_full,
)

pytestmark = pytest.mark.integration

DATA_DIR = Path(os.environ.get("BELLJAR_DATA_DIR", "/var/lib/belljar"))
MANIFEST = "manifest.json"


def lay_out(data_dir: Path) -> Path:
    """A data directory with the host's images and runsc, and no snapshots: those are bound to where the images are."""
    for part in ("images", "layers", "bin"):
        (data_dir / part).symlink_to(DATA_DIR / part)
    (data_dir / "snapshots").mkdir()
    return data_dir


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with snapshots to be damaged. Each test leaves whole ones behind."""
    made = lay_out(tmp_path_factory.mktemp("data"))
    with running_server(DATA_DIR=str(made)) as server:
        wait_until_whole(server)
    return made


def wait_until_whole(server: Server) -> None:
    """Returns when all snapshots are there and the pools are full."""
    wanted = {name: runtime.snapshots for name, runtime in runtimes.load().items()}
    wait_until(lambda: all(pool(server, name)["snapshots"] == wanted[name] for name in wanted), "all snapshots", 100)
    wait_until_full(server)


def snapshot_of(data_dir: Path, runtime: str) -> Path:
    """The newest first snapshot of a runtime."""
    return max((data_dir / "snapshots").glob(f"{runtime}-*-0"), key=lambda each: each.stat().st_mtime)


def flip_a_byte(file: Path) -> None:
    """Changes one byte in the middle, in place."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 0x40]))


def is_whole(snapshot: Path) -> bool:
    """Whether the files are those of the manifest."""
    try:
        manifest = json.loads((snapshot / MANIFEST).read_text())
        return all(hashlib.sha256((snapshot / name).read_bytes()).hexdigest() == manifest[name] for name in manifest)
    except (OSError, ValueError):
        return False


def drafts(data_dir: Path) -> list[str]:
    """What is left of snapshots that were not finished."""
    return [each.name for each in (data_dir / "snapshots").iterdir() if each.name.startswith(".draft")]


def test_damaged_snapshots_are_rebuilt_before_use(data_dir: Path) -> None:
    """A flipped byte, a file cut short and a manifest that is none: never restored from, told in the log, made anew."""
    damaged = {runtime: snapshot_of(data_dir, runtime) for runtime in RUNTIMES}
    flip_a_byte(damaged["javascript"] / "pages.img")
    os.truncate(damaged["typescript"] / "pages.img", 4096)
    (damaged["python"] / MANIFEST).write_text("{")
    assert not any(is_whole(each) for each in damaged.values())
    with running_server(DATA_DIR=str(data_dir)) as server, Client(server.address) as client:
        for runtime in RUNTIMES:
            assert client.execute("1", runtime=runtime).check().value == 1
        wait_until_whole(server)
        log = server.log_text()
        for snapshot in damaged.values():
            told = [line for line in log.splitlines() if f'"{snapshot.name}"' in line and '"error"' in line]
            assert any("snapshot is damaged" in line or "snapshot cannot be read" in line for line in told)
        assert all(is_whole(each) for each in damaged.values())
        assert not total(server, "belljar_restore_failures_total")
        for runtime in RUNTIMES:
            warm, ending = run_warm(client, "1", runtime=runtime)
            assert (warm, ending.value) == (True, 1)


@pytest.mark.parametrize("how", ["flipped", "cut short", "removed"])
def test_a_snapshot_that_is_damaged_while_the_server_runs_is_not_used_any_more(data_dir: Path, how: str) -> None:
    """Executions start cold meanwhile, the log says why, and the pool is full again in the end."""
    with running_server(DATA_DIR=str(data_dir), POOL__MIN="1", POOL__MAX="1") as server, leaves_nothing(server):
        snapshot = snapshot_of(data_dir, "javascript")
        match how:
            case "flipped":
                flip_a_byte(snapshot / "pages.img")
            case "cut short":
                os.truncate(snapshot / "pages.img", 4096)
            case _:
                shutil.rmtree(snapshot)
        with Client(server.address) as client, ThreadPoolExecutor(4) as threads:
            answers = list(
                threads.map(lambda n: run_warm(client, "n", runtime="javascript", inputs={"n": n}), range(4))
            )
        assert [ending.value for _, ending in answers] == list(range(4))
        assert not all(warm for warm, _ in answers)
        assert "changed on disk" in server.log_text()
        wait_until(lambda: is_whole(snapshot), "the snapshot is made anew", SETTLED)


def test_a_full_disk_keeps_snapshots_from_being_written_and_nothing_else(tmp_path: Path) -> None:
    """Executions start cold, nothing half-written stays, and when there is room the pool fills."""
    data_dir = lay_out(tmp_path)
    folder = data_dir / "snapshots"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    try:
        with (
            running_server(DATA_DIR=str(data_dir), POOL__MIN="1", POOL__MAX="1") as server,
            Client(server.address) as client,
        ):
            wait_until(lambda: "snapshot cannot be built" in server.log_text(), "it is told", SETTLED)
            for runtime in RUNTIMES:
                warm, ending = run_warm(client, "1", runtime=runtime)
                assert (warm, ending.value) == (False, 1)
            assert total(server, "belljar_restore_failures_total") > 0
            wait_until(lambda: not drafts(data_dir), "no draft is left", SETTLED)
            subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
            wait_until(lambda: pool(server, "javascript")["waiting"] == 1, "the pool is full", 100)
            assert run_warm(client, "1", runtime="javascript")[0]
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_drafts_of_a_killed_server_are_removed(data_dir: Path) -> None:
    """Whoever builds next cleans up first."""
    left = data_dir / "snapshots" / ".draft-0123456789ab"
    left.mkdir()
    (left / "pages.img").write_bytes(b"x" * 1000)
    shutil.rmtree(snapshot_of(data_dir, "javascript"))
    with running_server(DATA_DIR=str(data_dir)) as server:
        wait_until(lambda: pool(server, "javascript")["snapshots"] == 1, "the snapshot is built", SETTLED)
        assert not left.exists()


def test_restores_that_are_killed_half_way_cost_no_execution(data_dir: Path) -> None:
    """While every restore dies executions are booted, the breaker holds, and afterwards the pool is full again."""
    with running_server(DATA_DIR=str(data_dir), POOL__MIN="2", POOL__MAX="2") as server, leaves_nothing(server):
        waiting = set(runsc_processes(server))
        over = threading.Event()
        victims: set[int] = set()

        def shoot() -> None:
            while not over.is_set():
                fresh = [pid for pid in runsc_processes(server, "--image-path=") if pid not in waiting | victims]
                fresh = [pid for pid in fresh if b"\0restore\0" in command(pid)]
                kill(fresh)
                victims.update(fresh)

        shooter = threading.Thread(target=shoot)
        shooter.start()
        try:
            with Client(server.address) as client, ThreadPoolExecutor(4) as threads:
                for runtime in ("python", "javascript"):
                    numbers = range(8)
                    results = threads.map(
                        lambda n, to=runtime: client.execute("n", runtime=to, inputs={"n": n}), numbers
                    )
                    assert [result.check().value for result in results] == list(numbers)
        finally:
            over.set()
            shooter.join()
        assert victims
        assert total(server, "belljar_restore_failures_total") > 0
        assert "restore failed" in server.log_text()


def command(pid: int) -> bytes:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_another_runsc_under_a_running_server_gets_snapshots_of_its_own(tmp_path: Path, data_dir: Path) -> None:
    """Nothing is restored by a runsc that did not write the snapshot; executions go on meanwhile."""
    binary = tmp_path / "runsc"
    shutil.copy2(DATA_DIR / "bin" / "runsc", binary)
    with (
        running_server(DATA_DIR=str(data_dir), SANDBOX__RUNSC=str(binary), POOL__MIN="1", POOL__MAX="1") as server,
        leaves_nothing(server),
        Client(server.address) as client,
    ):
        old = snapshot_of(data_dir, "javascript")
        changed = tmp_path / "runsc.new"
        shutil.copy(binary, changed)
        with changed.open("ab") as file:
            file.write(b"another build")
        changed.replace(binary)
        for n in range(4):
            assert client.execute("n", runtime="javascript", inputs={"n": n}).check().value == n
        wait_until(lambda: is_full(server, "javascript") and not old.exists(), "the snapshot is replaced", SETTLED)
        assert snapshot_of(data_dir, "javascript") != old
        assert run_warm(client, "1", runtime="javascript")[0]
        wait_until_whole(server)


def test_servers_with_different_runscs_leave_each_others_snapshots_alone(tmp_path: Path, data_dir: Path) -> None:
    """An upgrade with old and new side by side does not make them build in turn."""
    binary = tmp_path / "runsc"
    shutil.copy2(DATA_DIR / "bin" / "runsc", binary)
    with binary.open("ab") as file:
        file.write(b"another build")
    settings: dict[str, Any] = {"DATA_DIR": str(data_dir), "POOL__MIN": "1", "POOL__MAX": "1"}
    with running_server(**settings) as one:
        wait_until_full(one)
        mine = snapshot_of(data_dir, "javascript")
        with running_server(**settings, SANDBOX__RUNSC=str(binary)) as other:
            wait_until(lambda: pool(other, "javascript")["waiting"] == 1, "the other one is full", SETTLED)
            assert snapshot_of(data_dir, "javascript") != mine
            assert is_whole(mine)
        with Client(one.address) as client:
            for _ in range(3):
                assert client.execute("1", runtime="javascript").check().value == 1
        wait_until(lambda: is_full(one, "javascript"), "full again", SETTLED)
        assert "changed on disk" not in one.log_text()


FRESH = """
import os
def main(n):
    folders = ("/home/user", "/tmp", "/dev/shm")
    found = [name for folder in folders for name in os.listdir(folder)]
    for folder in folders:
        open(f"{folder}/{n}", "w").close()
    return [n, found]
"""
MANY = 1000


@pytest.fixture(scope="module")
def busy() -> Iterator[Server]:
    """A server of its own."""
    with running_server(POOL__MIN="4", POOL__MAX="8") as server:
        yield server


@pytest.mark.timeout(900)
async def test_many_executions_with_every_tenth_cancelled_at_a_random_moment_leave_nothing(busy: Server) -> None:
    """Everybody gets a fresh sandbox and the own answer, and afterwards all is as before."""
    chance = random.Random(4)  # noqa: S311 - the same moments each time
    patience = {n: chance.choice([0.001, 0.005, 0.02, 0.1, 0.3]) for n in range(0, MANY, 10)}
    places = asyncio.Semaphore(8)

    async def one(n: int) -> object:
        async with places:
            if n not in patience:
                return (await client.execute(FRESH, inputs={"n": n})).check().value
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(patience[n]):
                    await client.execute("import time\ntime.sleep(30)")
            return None

    with leaves_nothing(busy):
        async with AsyncClient(busy.address) as client:
            answers = await asyncio.gather(*(one(n) for n in range(MANY)))
        assert answers == [None if n in patience else [n, ["matplotlib"]] for n in range(MANY)]
        wait_until(lambda: metrics(busy)["belljar_executions_running"] == 0, "nothing runs")
        ended = {name: value for name, value in metrics(busy).items() if name.startswith("belljar_executions_total")}
        cancelled = sum(value for name, value in ended.items() if "cancelled" in name.lower())
        assert 0 < cancelled <= len(patience)
        assert sum(ended.values()) - cancelled == MANY - len(patience)
