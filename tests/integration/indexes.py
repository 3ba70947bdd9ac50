"""Registries on loopback with packages that the tests build: a real one for Python, a small one for npm.

A real npm registry (Verdaccio) needs packages that a mirror may not have.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PYPI_SERVER = str(Path(sys.executable).with_name("pypi-server"))


def wheel(
    folder: Path, name: str, files: Mapping[str, bytes | str], *, version: str = "1.0", requires: str = ""
) -> Path:
    """Builds a wheel out of files by path, and puts it where an index serves from."""
    tag = "py3-none-any"
    return _wheel(folder, name, files, version=version, requires=requires, tag=tag)


def foreign_wheel(folder: Path, name: str) -> Path:
    """A wheel for another platform."""
    return _wheel(folder, name, {f"{name}.py": ""}, version="1.0", requires="", tag="cp39-cp39-win_amd64")


def _wheel(folder: Path, name: str, files: Mapping[str, bytes | str], *, version: str, requires: str, tag: str) -> Path:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    info = f"{name}-{version}.dist-info"
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    contents[f"{info}/METADATA"] = metadata.encode()
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for path, data in contents.items()
    )
    contents[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    target = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
    return target


def sdist(folder: Path, name: str, setup: str, *, version: str = "1.0") -> Path:
    """A source distribution whose build back end is `setup`: a module that lies in it and needs nothing."""
    back_end = "\n".join(
        [
            "import os, sys, zipfile",
            f"NAME, VERSION = {name!r}, {version!r}",
            "def build_wheel(folder, config_settings=None, metadata_directory=None):",
            *("    " + line for line in setup.splitlines()),
            "    file = f'{NAME}-{VERSION}-py3-none-any.whl'",
            "    info = f'{NAME}-{VERSION}.dist-info'",
            "    with zipfile.ZipFile(os.path.join(folder, file), 'w') as archive:",
            "        archive.writestr(f'{NAME}.py', 'seen = ' + repr(globals().get('seen')))",
            "        metadata = f'Metadata-Version: 2.1\\nName: {NAME}\\nVersion: {VERSION}\\n'",
            "        archive.writestr(f'{info}/METADATA', metadata)",
            "        wheel = 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'",
            "        archive.writestr(f'{info}/WHEEL', wheel)",
            "        archive.writestr(f'{info}/RECORD', '')",
            "    return file",
        ]
    )
    project = '[build-system]\nrequires = []\nbuild-backend = "back_end"\nbackend-path = ["."]\n'
    project += f'[project]\nname = "{name}"\nversion = "{version}"\n'
    files = {
        "pyproject.toml": project,
        "back_end.py": back_end,
        "PKG-INFO": f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n",
    }
    target = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(target, "w:gz") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return target


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def python_index(folder: Path, port: int = 0) -> Iterator[str]:
    """The address of a real index that serves the folder; packages may be added while it runs."""
    port = port or free_port()
    argv = [
        PYPI_SERVER,
        "run",
        "-i",
        "127.0.0.1",
        "-p",
        str(port),
        "--disable-fallback",
        "-a",
        ".",
        "-P",
        ".",
        str(folder),
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/simple/"
        finally:
            process.terminate()


class NpmRegistry:
    """A registry of packages that a test makes, as npm asks one. State: packages by name, files by path."""

    def __init__(self) -> None:
        self.address = ""
        self._packages: dict[str, dict[str, Any]] = {}
        self._files: dict[str, bytes] = {}

    def add(self, name: str, files: Mapping[str, str], *, version: str = "1.0.0", **manifest: object) -> None:
        """Publishes a version of a package."""
        manifest = {"name": name, "version": version, "main": "index.js", **manifest}
        contents = {"package.json": json.dumps(manifest), **files}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path, text in contents.items():
                member = tarfile.TarInfo(f"package/{path}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        data = packed.getvalue()
        path = f"/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
        self._files[path] = data
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
        dist = {"tarball": f"{self.address}{path}", "integrity": integrity}
        package = self._packages.setdefault(name, {"name": name, "versions": {}, "dist-tags": {}})
        package["versions"][version] = {**manifest, "dist": dist}
        package["dist-tags"]["latest"] = version

    def answer(self, path: str) -> bytes | None:
        """What it has at a path."""
        name = unquote(path).lstrip("/")
        return json.dumps(self._packages[name]).encode() if name in self._packages else self._files.get(path)


@contextmanager
def npm_registry() -> Iterator[NpmRegistry]:
    """A registry on loopback."""
    registry = NpmRegistry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = registry.answer(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        registry.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield registry
        server.shutdown()
