"""A real S3 server on loopback for tests: versitygw over a directory, built once and started as a process of ours."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "v1.8.0"
ACCESS_KEY_ID = "belljar-test"
SECRET_ACCESS_KEY = "belljar-test-secret"
_MODULE = "github.com/versity/versitygw/cmd/versitygw"
_START_SECONDS = 30.0
_BUILD_SECONDS = 600.0


def binary() -> Path:
    """The versitygw binary, built by `go install` on first use. Raises RuntimeError saying what is missing."""
    cache = Path(os.environ.get("BELLJAR_TEST_CACHE", "/var/cache/belljar-test")) / "bin"
    built = cache / f"versitygw-{VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".versitygw.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build(cache, built)
    return built


def _build(cache: Path, built: Path) -> None:
    go = shutil.which("go") or ("/usr/local/go/bin/go" if Path("/usr/local/go/bin/go").exists() else None)
    if go is None:
        raise RuntimeError("the S3 tests build versitygw with Go 1.25 or later, and there is no `go` on PATH")
    scratch = cache / f"versitygw-{VERSION}.build"
    done = subprocess.run(
        [go, "install", f"{_MODULE}@{VERSION}"],
        env=os.environ | {"GOBIN": str(scratch), "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"versitygw could not be built:\n{done.stderr[-2000:]}")
    (scratch / "versitygw").replace(built)
    scratch.rmdir()


class Gateway:
    """One versitygw over `directory`, on one port for its whole life. Mutable state: the process, when it runs."""

    def __init__(self, directory: Path) -> None:
        self.objects = directory / "objects"
        self._labels = directory / "labels"
        self._log = directory / "versitygw.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it listens."""
        for directory in (self.objects, self._labels):
            directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(binary()), "--port", f"127.0.0.1:{self.port}", "--quiet", "--keep-alive"),
                    *("posix", "--sidecar", str(self._labels), str(self.objects)),
                ],
                env={"ROOT_ACCESS_KEY": ACCESS_KEY_ID, "ROOT_SECRET_KEY": SECRET_ACCESS_KEY, "PATH": os.defpath},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"versitygw did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Ends it at once; what it has stored stays."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None


@contextmanager
def running(directory: Path) -> Iterator[Gateway]:
    """A gateway that runs while the scope lasts."""
    gateway = Gateway(directory)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
