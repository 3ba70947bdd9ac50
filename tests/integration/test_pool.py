"""The pool, through a real server: sandboxes wait, are used once, and are replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from belljar_client import Client
from tests.conftest import Server, running_server, wait_until
from tests.integration.pools import (
    ENVIRONMENTS,
    RUNTIMES,
    SETTLED,
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

TRACES = """
import os
def main(mark):
    found = [name for folder in ("/home/user", "/tmp", "/dev/shm") for name in os.listdir(folder)]
    for folder in ("/home/user", "/tmp", "/dev/shm"):
        with open(folder + "/" + mark, "w") as file:
            file.write(mark)
    os.environ["MARK"] = mark
    import builtins, json
    seen = [getattr(builtins, "mark", None), getattr(json, "mark", None)]
    builtins.mark = json.mark = mark
    return {"mark": mark, "found": found, "seen": seen}
"""
"""Tells what an earlier execution left, and leaves everything that it can."""


@pytest.fixture(scope="module")
def pooled() -> Iterator[Server]:
    """A server with small pools."""
    with running_server(POOL__MIN="3", POOL__MAX="4") as server:
        wait_until_full(server)
        yield server


@pytest.fixture
def tidy(pooled: Server) -> Iterator[Server]:
    """The same, full before and after, with nothing left."""
    with leaves_nothing(pooled):
        yield pooled


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_waiting_sandbox_answers_and_is_told_as_warm(tidy: Server, runtime: str) -> None:
    """What waits is taken, says so, and another one takes its place."""
    before = metrics(tidy)
    hits, misses = (f'belljar_pool_requests_total{{found="{found}",runtime="{runtime}"}}' for found in ("hit", "miss"))
    with Client(tidy.address) as client:
        warm, ending = run_warm(client, "1 + 1", runtime=runtime)
    assert (warm, ending.value) == (True, 2)
    after = metrics(tidy)
    assert after[hits] == before.get(hits, 0) + 1
    assert after.get(misses, 0) == before.get(misses, 0)
    age = f'belljar_pool_wait_seconds_count{{runtime="{runtime}"}}'
    assert after[age] == before.get(age, 0) + 1


def test_a_burst_larger_than_the_pool_is_all_answered(tidy: Server) -> None:
    """Those that find nobody waiting get a sandbox made for them, and are told so."""
    misses = 'belljar_pool_requests_total{found="miss",runtime="python"}'
    before = metrics(tidy).get(misses, 0)
    with Client(tidy.address) as client, ThreadPoolExecutor(12) as threads:
        futures = [threads.submit(run_warm, client, "n", inputs={"n": n}) for n in range(12)]
        answers = [future.result() for future in futures]
    assert [ending.value for _, ending in answers] == list(range(12))
    cold = sum(not warm for warm, _ in answers)
    assert 0 < cold < 12
    assert metrics(tidy)[misses] == before + cold


def test_statusz_and_metrics_tell_what_waits(tidy: Server) -> None:
    """People and Prometheus see the same."""
    for runtime in RUNTIMES:

        def agree(runtime: str = runtime) -> bool:  # a target falls by itself, and the pool a moment later
            waiting = metrics(tidy)[f'belljar_pool_waiting{{runtime="{runtime}"}}']
            row = pool(tidy, runtime)
            return bool(waiting == row["waiting"] == row["target"])

        wait_until(agree, "what waits is what is wanted", 20)
        values, row = metrics(tidy), pool(tidy, runtime)
        assert 3 <= row["waiting"] <= 4
        assert values[f'belljar_pool_restoring{{runtime="{runtime}"}}'] == 0
        assert row["failures in a row"] == 0
        assert row["snapshots"] >= 1
        assert 0 < row["restore seconds"] < 30
        assert values[f'belljar_restore_seconds_count{{runtime="{runtime}"}}'] >= row["waiting"]
    wait_until(
        lambda: len(runsc_processes(tidy)) == sum(pool(tidy, each)["waiting"] for each in ENVIRONMENTS),
        "as many sandboxes as wait",
        20,
    )


def test_demand_raises_the_target_up_to_the_maximum(tidy: Server) -> None:
    """A pool that is asked often holds more, and never more than the settings allow."""
    with Client(tidy.address) as client:
        for _ in range(20):
            client.execute("1").check()
    assert pool(tidy)["target"] == 4


def test_no_sandbox_is_used_twice(tidy: Server) -> None:
    """Each execution finds a sandbox that nobody was in before, and the process of the one before is gone."""
    answers = []
    used: list[set[str]] = []
    with Client(tidy.address) as client:
        for n in range(8):
            there = set(runsc_processes(tidy).values())
            answers.append(client.execute(TRACES, inputs={"mark": f"mark{n}"}).check().value)
            now = set(runsc_processes(tidy).values())
            used.append(there - now)
    assert answers == [{"mark": f"mark{n}", "found": ["matplotlib"], "seen": [None, None]} for n in range(8)]
    assert not any(one & other for one, other in pairwise(used))


def test_a_waiting_sandbox_that_was_killed_is_replaced_and_nobody_gets_it(tidy: Server) -> None:
    """Whoever asks right after the death is served by a living one, and the pool fills up again."""
    before = runsc_processes(tidy)
    all_of_them = [pid for sandbox in before.values() for pid in sandbox_processes(tidy, sandbox)]
    kill(all_of_them)
    wait_until(lambda: not any(is_alive(pid) for pid in all_of_them), "they are dead", SETTLED)
    with Client(tidy.address) as client:
        for runtime in RUNTIMES:
            for n in range(3):
                assert client.execute("n", runtime=runtime, inputs={"n": n}).check().value == n
    wait_until(
        lambda: not set(before.values()) & set(runsc_processes(tidy).values()), "the dead ones are gone", SETTLED
    )
    wait_until_full(tidy)


def freeze(server: Server) -> set[str]:
    """Stops all sandboxes without killing them; their ids."""
    frozen = set(runsc_processes(server).values())
    for sandbox in frozen:
        for pid in sandbox_processes(server, sandbox):
            os.kill(pid, signal.SIGSTOP)
    return frozen


def test_a_waiting_sandbox_that_does_not_answer_is_replaced() -> None:
    """The heartbeat finds those that hang."""
    with running_server(POOL__MIN="1", POOL__MAX="1") as server, leaves_nothing(server):
        frozen = freeze(server)
        assert len(frozen) == len(ENVIRONMENTS)
        wait_until(lambda: not frozen & set(runsc_processes(server).values()), "those that hang are replaced", SETTLED)
        assert server.log_text().count("waiting sandbox does not answer") == len(ENVIRONMENTS)


def test_whoever_gets_a_sandbox_that_hangs_is_served_by_another() -> None:
    """The execution takes long and does not fail."""
    with running_server(POOL__MIN="1", POOL__MAX="1") as server, leaves_nothing(server):
        freeze(server)
        with Client(server.address) as client:
            assert client.execute("1").check().value == 1


def sandbox_processes(server: Server, sandbox: str) -> list[int]:
    """All host processes of one sandbox."""
    found = []
    for pid in server.children():
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            continue
        if sandbox in groups:
            found.append(pid)
    return found


def test_old_sandboxes_are_replaced() -> None:
    """None waits longer than the setting says."""
    with running_server(POOL__MIN="1", POOL__MAX="1", POOL__MAX_AGE="2") as server:
        wait_until_full(server)
        first = set(runsc_processes(server).values())
        wait_until(lambda: not first & set(runsc_processes(server).values()), "all are replaced", SETTLED)
        with Client(server.address) as client:
            assert client.execute("1").check().value == 1


def test_a_maximum_of_zero_means_no_pool() -> None:
    """Then every sandbox is booted for its execution, nothing waits, and no snapshot is made."""
    with running_server(POOL__MAX="0") as server, Client(server.address) as client:
        for runtime in RUNTIMES:
            warm, ending = run_warm(client, "1", runtime=runtime)
            assert (warm, ending.value) == (False, 1)
        wait_until(lambda: not runsc_processes(server), "no sandbox exists")
        assert total(server, "belljar_pool_waiting") == total(server, "belljar_sandboxes_live") == 0


def test_a_memory_budget_of_nothing_leaves_nothing_waiting() -> None:
    """Sandboxes are restored when they are asked for."""
    with running_server(POOL__MEMORY_BYTES="1") as server, Client(server.address) as client:
        assert client.execute("1").check().value == 1
        wait_until(lambda: not runsc_processes(server), "no sandbox exists", SETTLED)
        assert pool(server)["target"] == 0


def test_a_host_short_of_memory_empties_the_pools() -> None:
    """Waiting sandboxes yield first; executions still run."""
    with running_server(POOL__MIN_AVAILABLE_BYTES=str(1 << 60)) as server, Client(server.address) as client:
        wait_until(lambda: "pools are emptied" in server.log_text(), "it is told")
        wait_until(lambda: not runsc_processes(server), "no sandbox exists", SETTLED)
        assert client.execute("1").check().value == 1


def test_two_servers_share_a_data_directory(pooled: Server) -> None:
    """Both have pools from the same snapshots, and neither notices the other one's end."""
    with leaves_nothing(pooled):
        with running_server() as other:
            wait_until_full(other)
            with Client(pooled.address) as one, Client(other.address) as two:
                for client in (one, two, one, two):
                    assert run_warm(client, "1")[0]
                    wait_until_full(other)
                    wait_until_full(pooled)
            other.stop(signal.SIGKILL)
        with Client(pooled.address) as client:
            assert client.execute("1").check().value == 1
    assert "building a snapshot" not in pooled.log_text()


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stopped_server_leaves_no_waiting_sandbox() -> None:
    """SIGTERM ends those that wait as well, at once."""
    with running_server() as server:
        wait_until_full(server)
        processes = server.children()
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 30
        wait_until(lambda: not [pid for pid in processes if is_alive(pid)], "all are gone")
        assert not list(server.runtime_dir.iterdir())
