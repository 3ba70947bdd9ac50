"""Signed URLs of the local store: whoever has one can download one artifact until a point in time.

    <base>/artifacts/<id>/<file name>?expires=<seconds since the epoch>&signature=<hex>

The signature is HMAC-SHA256 over id, file name and expiry, so no byte of the URL can be changed. Expiry is judged by
the wall clock only, which is what the client was told.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from urllib.parse import quote

from belljar_server.artifacts.download import safe_file_name
from belljar_server.errors import HostNotReady

KEY_BYTES = 32


def load_key(file: Path) -> bytes:
    """The signing key in `file`, made on first use. Raises HostNotReady when it cannot be made or is not a secret.

    Servers that start at once on one disk end up with the same key: it appears whole, under its name, exactly once.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            _create_key(file)
        if file.stat().st_mode & 0o077:
            raise HostNotReady(f"the signing key {file} can be read by others; run: chmod 600 {file}")
        key = file.read_bytes()
    except OSError as error:
        raise HostNotReady(f"the signing key {file}: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise HostNotReady(
            f"the signing key {file} has {len(key)} bytes, expected {KEY_BYTES}; delete it to get a new one"
        )
    return key


def _create_key(file: Path) -> None:
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}.part")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(secrets.token_bytes(KEY_BYTES))
            out.flush()
            os.fsync(fd)
        # A link fails where the name exists, which a rename would replace.
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class UrlSigner:
    """Signs and verifies download paths. Has no state but the key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def path(self, artifact_id: str, name: str, expires: int) -> str:
        """Path and query of the URL for an artifact of that name, which works until `expires`."""
        file_name = safe_file_name(name)
        signature = self._signature(artifact_id, file_name, str(expires))
        return f"/artifacts/{artifact_id}/{quote(file_name, safe='')}?expires={expires}&signature={signature}"

    def is_genuine(self, artifact_id: str, file_name: str, expires: str, signature: str) -> bool:
        """Whether these parts of a URL, decoded, are as this server signed them; says nothing about the time."""
        expected = self._signature(artifact_id, file_name, expires)
        return hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))

    def _signature(self, artifact_id: str, file_name: str, expires: str) -> str:
        message = f"{artifact_id}\n{file_name}\n{expires}".encode(errors="replace")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()
