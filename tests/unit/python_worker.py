"""Runs code in the Python worker as the agent would, without a sandbox: a process with fd 3, and folders of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from belljar_server.guest import framing
from belljar_server.runtimes import python

WORKER = Path(python.__file__).parent / "worker" / "worker.py"
PYTHON = os.environ.get("WORKER_PYTHON", sys.executable)
"""Another interpreter to test with, for example the version that the image has."""
SECONDS = 60.0
SEAL = bytes(range(framing.SEAL_BYTES))
"""What a worker may take before a test fails."""


@dataclass(frozen=True)
class Ran:
    """How one execution ended."""

    status: int
    """Exit code, or minus the signal."""
    result_json: str | None
    error: dict[str, Any] | None
    ok: bool
    """REPORT said ok."""
    stdout: str
    stderr: str
    home: Path
    left: list[str]
    """What was still under way, as REPORT says."""

    @property
    def result(self) -> Any:
        """The result as a value; fails with the error when there is none."""
        assert self.error is None, self.error
        assert self.result_json is not None, self
        return json.loads(self.result_json)

    @property
    def failure(self) -> dict[str, Any]:
        """The error; fails when there is none."""
        assert self.error is not None, self
        assert self.status == 1
        assert self.result_json is None
        return self.error


class Worker:
    """A worker that is warm and waits. Mutable state: the process, and the frames that have come."""

    def __init__(self, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.home, self.code = folder / "home", folder / "code"
        for path in (self.home, self.code):
            path.mkdir()
        self._out, self._err = folder / "stdout", folder / "stderr"
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(SECONDS)
        self._unpacker = framing.Unpacker()
        self.frames: list[tuple[bytes, bytes]] = []
        options = ["--home", str(self.home), "--code", str(self.code), "--guest", str(Path(framing.__file__).parent)]
        argv = [PYTHON, *python.RUNTIME.worker[1:-1], str(WORKER), *options]
        writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self._out), writing, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, str(self._err), writing, 0o600),
        ]
        clean = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8", "TZ": "UTC"}
        self.pid = os.posix_spawn(PYTHON, argv, clean | (environ or {}), file_actions=actions)
        theirs.close()

    def frame(self) -> tuple[bytes, bytes] | None:
        """The next frame; None at the end."""
        while not self.frames:
            data = self.sock.recv(1 << 20)
            if not data:
                return None
            self.frames += self._unpacker.feed(data)
        return self.frames.pop(0)

    def send_job(self, code: str, inputs: str, entry: str, env: dict[str, str], *, network: bool = False) -> None:
        """Hands over the job."""
        job = {"code": code, "inputs": inputs, "entry": entry, "env": env, "main_file": "main.py", "network": network}
        self.sock.sendall(framing.pack(framing.JOB, SEAL + json.dumps(job).encode()))

    def finish(self) -> Ran:
        """Reads up to the report, as the agent does, and waits for the end."""
        result: list[bytes] = []
        report = None
        leaving = False
        while (report is None or leaving) and (frame := self.frame()):
            kind, payload = frame
            if kind == framing.RESULT:
                result.append(payload)
            if kind == framing.REPORT:
                assert payload.startswith(SEAL)
                report = json.loads(payload.removeprefix(SEAL))
                leaving = report.get("leaving") is True
            if kind == framing.LEFT:
                assert payload == SEAL
                leaving = False
        self.sock.close()
        status = self.wait()
        report = report or {}
        text = b"".join(result).decode() if result else None
        out, err = self._out.read_text(), self._err.read_text()
        return Ran(
            status, text, report.get("error"), report.get("ok") is True, out, err, self.home, report.get("left", [])
        )

    def wait(self) -> int:
        """Waits for the end of the process; gives its exit code, or minus the signal."""
        until = time.monotonic() + SECONDS
        while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < until, "the worker did not end"
            time.sleep(0.001)
        self.pid = 0
        return os.waitstatus_to_exitcode(ended[1])

    def wait_for_output(self, expected: str) -> None:
        """Returns as soon as stdout is `expected`; fails when it does not become that."""
        until = time.monotonic() + SECONDS
        while (text := self._out.read_text()) != expected:
            assert time.monotonic() < until, text
            time.sleep(0.005)

    def close(self) -> None:
        """Ends a worker that is still there."""
        self.sock.close()
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)


Run = Callable[..., Ran]


@pytest.fixture(name="run")
def running_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs code in a fresh worker: `run(code, {"input": 1}, entry=…, files={path: text}, env={…})`."""
    workers = []

    def execute(code: str, inputs: dict[str, Any] | str = "{}", **options: Any) -> Ran:
        worker = Worker(tmp_path_factory.mktemp("worker"), options.get("worker_env"))
        workers.append(worker)
        for path, text in options.get("files", {}).items():
            target = worker.code / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        assert worker.frame() is not None
        text = inputs if isinstance(inputs, str) else json.dumps(inputs)
        entry, env, network = options.get("entry", "detect"), options.get("env", {}), options.get("network", False)
        worker.send_job(code, text, entry, env, network=network)
        return worker.finish()

    yield execute
    for worker in workers:
        worker.close()


@pytest.fixture(name="worker")
def waiting_worker(tmp_path: Path) -> Iterator[Worker]:
    """A worker whose frames a test reads itself."""
    worker = Worker(tmp_path)
    yield worker
    worker.close()
