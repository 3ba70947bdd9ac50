"""A real S3 server on loopback for tests: versitygw over a directory, built once and started as a process of ours."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.gotool import binary

VERSION = "v1.8.0"
ACCESS_KEY_ID = "belljar-test"
SECRET_ACCESS_KEY = "belljar-test-secret"
_MODULE = "github.com/versity/versitygw/cmd/versitygw"
_START_SECONDS = 30.0


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
                    *(str(binary(_MODULE, VERSION)), "--port", f"127.0.0.1:{self.port}", "--quiet", "--keep-alive"),
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
