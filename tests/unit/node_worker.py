"""Runs the worker of JavaScript and TypeScript as the agent does, without gVisor, on the Node of the image recipe.

Node and the parsers are fetched through npm once and kept in a cache folder, by the hashes that the image has too.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import platform
import shutil
import signal
import socket
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from belljar_server.guest import framing
from belljar_server.runtimes import Runtime, javascript, typescript
from belljar_server.setup import npm
from belljar_server.setup.cache import Cache, fingerprint

CACHE = Path(os.environ.get("BELLJAR_TEST_CACHE") or Path.home() / ".cache/belljar-tests")
IN_IMAGE = "/opt/belljar/node"
WORKER = Path(javascript.__file__).parent / "worker"
RUNTIMES = {"javascript": javascript.RUNTIME, "typescript": typescript.RUNTIME}
SECONDS = 60.0
SEAL = bytes(range(framing.SEAL_BYTES))
"""How long a run may take; far more than any needs."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What the image has: the binary, and the packages of the npm project."""

    node: Path
    modules: Path


@functools.cache
def installed() -> Installation:
    """Node and the parsers, fetched when they are not there yet."""
    recipe = javascript.IMAGE
    assert recipe.npm_project is not None
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache = Cache(CACHE / "tarballs")

        def tarball(wanted: npm.Tarball) -> Path:
            with tempfile.TemporaryDirectory() as scratch:
                return cache.get("npm", asdict(wanted), lambda target: npm.fetch(target, wanted, Path(scratch), print))

        (binary,) = recipe.npm_binaries[platform.machine()]
        packages = npm.read_lock(recipe.npm_project, platform.machine())
        root = CACHE / f"node-{fingerprint([asdict(binary), [asdict(package) for package in packages]])[:16]}"
        if not (root / "complete").exists():
            npm.extract_binary(tarball(npm.tarball_of(binary)), binary, root)
            npm.install(root, packages, tarball)
            (root / "complete").touch()
    return Installation(root / binary.target.lstrip("/"), root / "node_modules")


@functools.cache
def scratch() -> Path:
    """Where the runs of this process have their folders; it goes away with the process."""
    folder = tempfile.mkdtemp(prefix="belljar-node-worker-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@dataclass(frozen=True, slots=True)
class Ran:
    """What came out of one run."""

    ready: dict[str, Any]
    result_text: str | None
    """None when no RESULT frame came."""
    report: dict[str, Any] | None
    exit_code: int
    """As os.waitstatus_to_exitcode gives it: negative for a signal."""
    stdout: str
    stderr: str
    home: Path
    frames: list[bytes] = field(default_factory=list)
    """The kinds of all frames after READY."""

    @property
    def result(self) -> Any:
        """The result of a run that succeeded."""
        assert self.report == {"ok": True}, self.report or self.stderr
        assert self.exit_code == 0
        return None if self.result_text is None else json.loads(self.result_text)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a run that failed and said why."""
        assert self.report is not None, f"no report, exit code {self.exit_code}: {self.stderr}"
        assert self.report["ok"] is False, self.result_text
        assert self.exit_code == 1
        assert self.result_text is None
        error = self.report["error"]
        assert isinstance(error, dict)
        return error


class Worker:
    """A worker that has started. Its state is the process and the socket to it."""

    def __init__(
        self, language: str, folder: Path, stdout: int | None = None, env: dict[str, str] | None = None
    ) -> None:
        self.runtime: Runtime = RUNTIMES[language]
        self.folder = folder
        self.home, self.code = folder / "home", folder / "code"
        for place in (self.home, self.code):
            place.mkdir(parents=True, exist_ok=True)
        installation = installed()
        argv = [
            str(installation.node),
            *(part.replace(IN_IMAGE, str(WORKER)) for part in self.runtime.worker[1:]),
            str(self.home),
            str(self.code),
            str(installation.modules),
        ]
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(SECONDS)
        logs = [os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr")]
        self.pid = os.posix_spawn(
            argv[0],
            argv,
            {"PATH": "/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8", **(env or {})},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, logs[0] if stdout is None else stdout, 1),
                (os.POSIX_SPAWN_DUP2, logs[1], 2),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
            ],
        )
        theirs.close()
        for fd in logs:
            os.close(fd)
        self._unpacker = framing.Unpacker()
        self._frames: list[tuple[bytes, bytes]] = []

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next frame; None when the worker has closed the socket."""
        while not self._frames:
            data = self.sock.recv(1 << 20)
            if not data:
                return None
            self._frames += self._unpacker.feed(data)
        return self._frames.pop(0)

    def finish(self, job: dict[str, Any]) -> Ran:
        """Sends the job and waits for the end of the process."""
        try:
            kind, payload = self.receive() or (b"", b"")
            assert kind == framing.READY, (self.folder / "stderr").read_text()
            self.sock.sendall(framing.pack(framing.JOB, SEAL + json.dumps(job).encode()))
            pieces, kinds, report = [], [], None
            while frame := self.receive():
                kinds.append(frame[0])
                if frame[0] == framing.RESULT:
                    pieces.append(frame[1])
                else:
                    assert frame[1].startswith(SEAL)
                    report = json.loads(frame[1].removeprefix(SEAL))
                    self.sock.shutdown(socket.SHUT_WR)  # the agent closes now; here the rest is still read
        except BaseException:
            os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(self.pid, 0)
            self.sock.close()
        return Ran(
            ready=json.loads(payload),
            result_text=b"".join(pieces).decode() if pieces else None,
            report=report,
            exit_code=os.waitstatus_to_exitcode(status),
            stdout=(self.folder / "stdout").read_text(),
            stderr=(self.folder / "stderr").read_text(),
            home=self.home,
            frames=kinds,
        )


def run(
    code: str,
    inputs: dict[str, Any] | str | None = None,
    *,
    language: str = "javascript",
    entry: str = "detect",
    files: dict[str, str] | None = None,
    env: dict[str, str] | None = None,
    worker_env: dict[str, str] | None = None,
    stdout: int | None = None,
    timeout: float = 30,
    network: bool = False,
) -> Ran:
    """Runs code in a fresh worker and folder. `inputs` as text is passed on as it is."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    worker = Worker(language, folder, stdout, worker_env)
    for path, content in (files or {}).items():
        target = worker.code / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    return worker.finish(
        {
            "code": code,
            "inputs": inputs if isinstance(inputs, str) else json.dumps(inputs or {}),
            "entry": entry,
            "env": env or {},
            "main_file": worker.runtime.main_file,
            "timeout": timeout,
            "network": network,
        }
    )
