"""What all suites share: the real server as a process, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from belljar_client import Client, Limits, Result
from belljar_client.models import Output, Transcript

BELLJAR = str(Path(sys.executable).with_name("belljar"))
START_SECONDS = 60.0
STOP_SECONDS = 60.0
CANARY = "canary-5f1c7f0c-do-not-leak"
"""A secret in the server's environment; no client and no sandbox may ever see it."""


def pytest_configure() -> None:
    """Ctrl-C is tested: programs started in the background by a shell without job control inherit it as ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Server:
    """A running `belljar serve`. Mutable state: the process."""

    process: subprocess.Popen[str]
    address: str
    http_address: str
    log: Path
    runtime_dir: Path
    settings: dict[str, str] = field(default_factory=dict)

    def log_text(self) -> str:
        """Everything it logged so far."""
        return self.log.read_text()

    def children(self) -> set[int]:
        """The processes that it started, and theirs."""
        return descendants(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def wait_until(condition: Callable[[], bool], what: str | Callable[[], str], seconds: float = 20.0) -> None:
    """Returns as soon as the condition holds; fails when it does not within a generous time, and says what is then."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)


def run_until_done(client: Client, code: str, begun: threading.Event, limits: Limits | None = None) -> Result:
    """Runs code to its end; `begun` tells when it prints something."""
    transcript = Transcript()
    for event in client.stream(code, limits=limits or Limits()):
        transcript.add(event)
        if isinstance(event, Output):
            begun.set()
    return transcript.result()


@contextmanager
def running_server(*, ready: bool = True, prefix: tuple[str, ...] = (), **settings: str) -> Iterator[Server]:
    """Starts `belljar serve` on free ports with BELLJAR_… settings (without the prefix) and stops it in the end.

    `prefix` is a command line that prepares something and then execs what follows it.
    """
    with tempfile.TemporaryDirectory(prefix="belljar-") as temporary:
        runtime_dir = Path(temporary) / "run"
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("BELLJAR_") or name == "BELLJAR_DATA_DIR"
        }
        chosen = {
            "GRPC__LISTEN": "127.0.0.1:0",
            "HTTP__LISTEN": "127.0.0.1:0",
            "RUNTIME_DIR": str(runtime_dir),
            "ARTIFACTS__MIN_FREE_BYTES": "0",
            "EGRESS__WAITING": "0",
            "LOG__FORMAT": "json",
        } | settings
        environ |= {f"BELLJAR_{name}": value for name, value in chosen.items()} | {"CANARY": CANARY}
        log = Path(temporary) / "log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*prefix, BELLJAR, "serve"],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline().strip()
            if not line.startswith("belljar: gRPC on "):
                pytest.fail(f"the server did not start: {line} {log.read_text()}")
            grpc_part, http_part = line.removeprefix("belljar: gRPC on ").split(", HTTP on ")
            server = Server(process, grpc_part, http_part, log, Path(chosen["RUNTIME_DIR"]), chosen)
            if ready:
                wait_until(lambda: '"event": "ready"' in log.read_text(), "the server is ready", START_SECONDS)
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            process.stdout.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server for all tests that do nothing to the server itself."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def server_address(request: pytest.FixtureRequest) -> str:
    """Where the shared server listens for gRPC: BELLJAR_TEST_ADDRESS, when there is one to be tested already."""
    given = os.environ.get("BELLJAR_TEST_ADDRESS")
    if given:
        return given
    server: Server = request.getfixturevalue("server")
    return server.address


@pytest.fixture(scope="session")
def client(server_address: str) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(server_address) as connected:
        yield connected


@pytest.fixture(scope="session")
def run(client: Client) -> Callable[..., Result]:
    """Runs code on the shared server: `run(code, runtime="python", inputs=…, …)`."""

    def execute(code: str, runtime: str = "python", **options: Any) -> Result:
        return client.execute(code, runtime=runtime, **options)

    return execute
