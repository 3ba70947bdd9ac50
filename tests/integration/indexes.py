"""A real Python index on loopback, pypiserver, with packages that the tests build."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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
