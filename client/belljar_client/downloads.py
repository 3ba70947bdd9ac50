"""Fetching artifacts into a local directory.

Names and sizes come from untrusted code, and what a name means is up to the local system: it is taken apart and made
of harmless parts, and nothing is ever written outside the directory, not even through a link that lies in it.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import secrets
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from belljar_client.channels import is_loopback
from belljar_client.errors import DownloadFailed
from belljar_client.models import Artifact, ArtifactState

Progress = Callable[[int, int], None]
"""Called with the bytes fetched so far and the bytes in all."""

_PIECE = 1 << 18
_LONGEST_PART = 200
"""Bytes. File systems allow 255; the rest is room for the number that makes a name unique."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\.|$)", re.IGNORECASE)
"""What Windows takes for a device, with any extension."""
_SPECIAL = frozenset('<>:"|?*\\')


def download(
    artifact: Artifact,
    directory: Path | str,
    *,
    path: PurePosixPath | str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetches the artifact into the directory and returns the file, complete and with the SHA-256 it should have.

    It is named `path`, by default the harmless form of the artifact's own name; a file of that name is replaced.
    `timeout` is for each wait on the network, in seconds. Raises DownloadFailed, and OSError for the local disk.
    """
    if artifact.state is ArtifactState.PENDING:
        raise DownloadFailed(f"{artifact.name!r} is not in the object store yet; its URL works as soon as it is")
    target = _target(Path(directory), PurePosixPath(path) if path is not None else local_paths([artifact.name])[0])
    partial = target.with_name(f".belljar-{secrets.token_hex(8)}")
    try:
        with partial.open("xb") as file:
            _fetch(artifact, file, progress, timeout)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return target


def local_paths(names: Iterable[str]) -> list[PurePosixPath]:
    """A harmless relative path for each name, no two of them the same, also where case does not count."""
    taken: set[str] = set()
    paths = []
    for name in names:
        parts = [_harmless(part) for part in name.split("/") if part not in ("", ".")] or ["_"]
        path = PurePosixPath(*parts)
        number = 1
        while str(path).casefold() in taken:
            number += 1
            path = PurePosixPath(*parts).with_name(_numbered(parts[-1], number))
        taken.add(str(path).casefold())
        paths.append(path)
    return paths


def _harmless(part: str) -> str:
    """A file name that means nothing special anywhere, and shows as what it is."""
    clean = "".join("_" if c in _SPECIAL or unicodedata.category(c)[0] == "C" else c for c in part)
    clean = re.sub(r"[. ]+$", "_", clean)
    if _RESERVED.match(clean):
        clean = f"_{clean}"
    if len(clean.encode()) <= _LONGEST_PART:
        return clean
    stem, suffix = _split(clean)
    suffix = suffix if len(suffix.encode()) <= 20 else ""
    digest = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    kept = stem.encode()[: _LONGEST_PART - 9 - len(suffix.encode())].decode("utf-8", "ignore")
    return f"{kept}~{digest}{suffix}"


def _numbered(name: str, number: int) -> str:
    stem, suffix = _split(name)
    return f"{stem} ({number}){suffix}"


def _split(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return path.stem, path.suffix


def _target(directory: Path, path: PurePosixPath) -> Path:
    """Where the file goes, with its directory made. Raises DownloadFailed when that is not below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    root = directory.resolve()
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DownloadFailed(f"{path} is not a path below {directory}")
    parent = root
    for part in path.parts[:-1]:
        parent /= part
        if not parent.is_symlink() and not parent.exists():
            parent.mkdir(exist_ok=True)
        if parent.is_symlink() or not parent.is_dir():
            raise DownloadFailed(f"{parent} is in the way: it is no directory of its own")
    target = parent / path.name
    if target.is_dir() and not target.is_symlink():
        raise DownloadFailed(f"{target} is in the way: it is a directory")
    return target


def _fetch(artifact: Artifact, file: IO[bytes], progress: Progress | None, timeout: float) -> None:
    digest = hashlib.sha256()
    fetched = 0
    try:
        with _open(artifact.download_url, timeout) as response:
            while piece := response.read(_PIECE):
                fetched += len(piece)
                if fetched > artifact.size_bytes:
                    raise DownloadFailed(f"{artifact.name!r} has more than the {artifact.size_bytes} bytes it should")
                digest.update(piece)
                file.write(piece)
                if progress is not None:
                    progress(fetched, artifact.size_bytes)
    except urllib.error.HTTPError as error:
        with error:
            raise DownloadFailed(f"{artifact.name!r}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DownloadFailed(f"{artifact.name!r}: {error}") from error
    if fetched != artifact.size_bytes:
        raise DownloadFailed(f"{artifact.name!r} has {fetched} bytes of the {artifact.size_bytes} it should")
    if digest.hexdigest() != artifact.sha256:
        raise DownloadFailed(f"{artifact.name!r} is not what the execution left: its SHA-256 differs")


def _open(url: str, timeout: float) -> http.client.HTTPResponse:
    """Opens an HTTP URL, and nothing else: urllib would read local files too."""
    try:
        parsed = urllib.parse.urlsplit(url)
        host = parsed.hostname or ""
    except ValueError as error:
        raise DownloadFailed(f"the download URL cannot be read: {error}") from error
    if parsed.scheme not in ("http", "https") or not host:
        raise DownloadFailed(f"the download URL is not one of HTTP: {url[:100]!r}")
    proxies = urllib.request.ProxyHandler({} if is_loopback(host) else None)
    response: http.client.HTTPResponse = urllib.request.build_opener(proxies).open(url, timeout=timeout)
    return response
