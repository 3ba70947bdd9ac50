"""After every attack the same three questions: does the next execution work, did a secret get out, is anything left."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from belljar_client import Result
from tests.conftest import CANARY, Server, wait_until

MARGIN = 8
"""File descriptors that a server may hold more or less than before, for connections that come and go."""


@dataclass
class Attack:
    """What an attack got to see. Mutable state: everything that came back to the client."""

    seen: list[bytes] = field(default_factory=list)

    def saw(self, result: Result) -> Result:
        """Notes all that a result carries."""
        self.seen += [repr(result).encode(), result.stdout, result.stderr]
        return result


def metric(server: Server, name: str) -> float:
    """The value of a metric without labels."""
    with urllib.request.urlopen(f"http://{server.http_address}/metrics", timeout=10) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def footprint(server: Server) -> dict[str, int]:
    """What the server has on the host, counted: cgroups, state files of runsc, processes called runsc, mounts."""
    instances = [entry for entry in server.runtime_dir.iterdir() if entry.is_dir()]
    cgroups = [
        Path(parent)
        for entry in instances
        for parent, *_ in json.loads((entry / "cgroups.json").read_text())
        if Path(parent).is_dir()
    ]
    sandboxes = {child.name for parent in cgroups for child in parent.iterdir() if child.is_dir()}
    states = {file.name.split("_")[0] for entry in instances for file in (entry / "runsc").glob("*.state")}
    supervisors = 0
    for pid in server.children():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        supervisors += b"--bundle=" in command and b"boot" not in command.split(b"\0")
    return {
        "cgroups": len(sandboxes),
        "states": len(states),
        "supervisors": supervisors,
        "mounts": Path(f"/proc/{server.process.pid}/mountinfo").read_text().count(str(server.runtime_dir)),
        "executions": sum(len(os.listdir(entry / "executions")) for entry in instances),
    }


def is_tidy(server: Server) -> bool:
    """Whether there is exactly as much as the sandboxes that the server knows of need."""
    live = metric(server, "belljar_sandboxes_live")
    found = footprint(server)
    same = (
        found["cgroups"] == found["states"] == found["supervisors"] == live == metric(server, "belljar_sandboxes_live")
    )
    return same and found["mounts"] == 0 and found["executions"] == 0


def state_of(server: Server) -> str:
    """What there is and what there should be, for a failure's message."""
    live = metric(server, "belljar_sandboxes_live")
    return f"{footprint(server)}, {live:g} live; the server said last: {server.log_text()[-2000:]}"


def open_files(server: Server) -> int:
    """File descriptors of the server itself."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@pytest.fixture
def attack() -> Attack:
    """Where a test puts what came back to it."""
    return Attack()


@pytest.fixture(autouse=True)
def aftermath(server: Server, run: Callable[..., Result], attack: Attack) -> Iterator[None]:
    """Asks the three questions about the shared server after every test of this folder."""
    live, files = metric(server, "belljar_sandboxes_live"), open_files(server)
    yield
    after = run("def main(a):\n    print('out')\n    return a + 1\n", inputs={"a": 1}).check()
    assert (after.value, after.stdout) == (2, b"out\n")
    wait_until(lambda: is_tidy(server), lambda: f"the server is tidy after: {state_of(server)}")
    more = metric(server, "belljar_sandboxes_live") - live
    wait_until(lambda: open_files(server) <= files + 8 * max(0, more) + MARGIN, "the server has let go of its files")
    for text in attack.seen:
        assert CANARY.encode() not in text


@pytest.fixture
def hit(run: Callable[..., Result], attack: Attack) -> Callable[..., Result]:
    """Runs hostile code like `run`, and notes all that comes back."""

    def execute(code: str, runtime: str = "python", **options: object) -> Result:
        return attack.saw(run(code, runtime=runtime, **options))

    return execute
