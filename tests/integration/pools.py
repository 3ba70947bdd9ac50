"""What tests of the pool ask a real server, and do to its sandboxes."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from belljar_client import Client, Finished, Result, Started
from tests.conftest import Server, wait_until
from tests.hostile.conftest import footprint, is_tidy, open_files

RUNTIMES = ("python", "javascript", "typescript")
ENVIRONMENTS = (*RUNTIMES, "python-data")
SETTLED = 60.0
"""Seconds in which a pool is as it should be, also on a slow machine."""


def pool(server: Server, runtime: str = "python") -> dict[str, Any]:
    """The row of a pool on /statusz."""
    with urllib.request.urlopen(f"http://{server.http_address}/statusz?format=json", timeout=10) as answer:
        rows: list[dict[str, Any]] = json.load(answer)["pools"]
    return next(row for row in rows if row["runtime"] == runtime)


def metrics(server: Server) -> dict[str, float]:
    """All metrics, by name with labels."""
    with urllib.request.urlopen(f"http://{server.http_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def total(server: Server, name: str) -> float:
    """A metric, over all its labels."""
    return sum(value for key, value in metrics(server).items() if key.partition("{")[0] == name)


def is_full(server: Server, runtime: str) -> bool:
    """Whether as many wait as should, and nothing is under way."""
    row = pool(server, runtime)
    return row["waiting"] == row["target"] and not row["restoring"]


def wait_until_full(server: Server) -> None:
    """Returns when every pool has what it wants."""
    wait_until(lambda: all(is_full(server, each) for each in ENVIRONMENTS), "the pools are full", SETTLED)


def runsc_processes(server: Server, word: str = "--bundle=") -> dict[int, str]:
    """The server's processes that supervise a sandbox (`runsc run`, `runsc restore`): sandbox ids by pid."""
    found = {}
    for pid in server.children():
        try:
            parts = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "boot" not in parts and any(part.startswith(word) for part in parts) and "runsc" in parts[0]:
            found[pid] = parts[-2]
    return found


def kill(pids: list[int]) -> None:
    """SIGKILL to processes of a server that the test started."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def run_warm(client: Client, code: str, **options: Any) -> tuple[bool, Result | Finished]:
    """Runs code; tells whether a waiting sandbox took it, and how it ended."""
    warm = False
    for event in client.stream(code, **options):
        if isinstance(event, Started):
            warm = event.warm
        if isinstance(event, Finished):
            return warm, event
    raise AssertionError("no terminal event")


@contextmanager
def leaves_nothing(server: Server) -> Iterator[None]:
    """What the server has on the host at the end is what it has at the beginning; the pools are full at both ends."""
    wait_until_full(server)
    wait_until(lambda: has_only_what_waits(server), f"tidy before: {footprint(server)}", SETTLED)
    idle_files, idle_live = open_files(server), total(server, "belljar_sandboxes_live")
    yield
    wait_until_full(server)
    wait_until(lambda: has_only_what_waits(server), f"tidy after: {footprint(server)}", SETTLED)
    more = max(0.0, total(server, "belljar_sandboxes_live") - idle_live)
    wait_until(lambda: open_files(server) <= idle_files + 8 * more + 8, "files are closed", SETTLED)


def has_only_what_waits(server: Server) -> bool:
    """Whether there is just what the sandboxes that the server knows of need. Others may mount things meanwhile."""
    mounts = Path(f"/proc/{server.process.pid}/mountinfo").read_text()
    return str(server.runtime_dir) not in mounts and is_tidy(server)
