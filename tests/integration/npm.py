"""A real npm registry on loopback, Verdaccio, with packages that the tests make and publish as `npm publish` does."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.integration.indexes import free_port

LOCKED = Path(__file__).with_name("verdaccio")
INSTALL_SECONDS = 600.0
START_SECONDS = 60.0
CONFIG = """
storage: {storage}
packages:
  '**': {{ access: $all, publish: $all }}
log: {{ type: stdout, format: json, level: warn }}
"""


class Registry:
    """A registry that runs. Its state is in the registry."""

    def __init__(self, address: str) -> None:
        self.address = address

    def add(self, name: str, files: Mapping[str, str], *, version: str = "1.0.0", **manifest: object) -> None:
        """Publishes a version of a package."""
        described: dict[str, Any] = {"name": name, "version": version, "main": "index.js", **manifest}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path, text in {"package.json": json.dumps(described), **files}.items():
                member = tarfile.TarInfo(f"package/{path}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        data = packed.getvalue()
        file = f"{name.rpartition('/')[2]}-{version}.tgz"
        described["dist"] = {
            "tarball": f"{self.address}/{name}/-/{file}",
            "integrity": "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode(),
        }
        attachment = {"content_type": "application/octet-stream", "data": base64.b64encode(data).decode()}
        document = {
            "_id": name,
            "name": name,
            "dist-tags": {"latest": version},
            "versions": {version: described},
            "_attachments": {file: {**attachment, "length": len(data)}},
        }
        request = urllib.request.Request(
            f"{self.address}/{quote(name, safe='@')}",
            data=json.dumps(document).encode(),
            headers={"Content-Type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=30).close()


def installed() -> Path:
    """Verdaccio's program, installed on first use as the lock says, and kept. Raises CalledProcessError."""
    lock = (LOCKED / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("BELLJAR_TEST_CACHE", "/var/cache/belljar-test"))
    folder = cache / f"verdaccio-{hashlib.sha256(lock).hexdigest()[:16]}"
    program = folder / "node_modules/verdaccio/bin/verdaccio"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".verdaccio.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not program.exists():
            shutil.copytree(LOCKED, folder, dirs_exist_ok=True)
            argv = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    return program


@contextmanager
def registry() -> Iterator[Registry]:
    """A registry without packages."""
    address = f"http://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="belljar-npm-") as made:
        config = Path(made) / "config.yaml"
        config.write_text(CONFIG.format(storage=Path(made) / "storage"))
        argv = ["node", str(installed()), "--config", str(config), "--listen", address]
        environ = os.environ | {"HOME": made}
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ) as process:
            try:
                _wait_for(address)
                yield Registry(address)
            finally:
                process.terminate()


def _wait_for(address: str) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/-/ping", timeout=5).close()
        except urllib.error.URLError:
            assert time.monotonic() < until, "Verdaccio does not answer"
            time.sleep(0.1)
        else:
            return
