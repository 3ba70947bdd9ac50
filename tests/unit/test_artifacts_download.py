"""Names of downloads are harmless, and URLs cannot be changed or guessed."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from belljar_server.artifacts.disk import new_id
from belljar_server.artifacts.download import MAX_FILE_NAME_BYTES, content_disposition, safe_file_name
from belljar_server.artifacts.urls import KEY_BYTES, UrlSigner, load_key
from belljar_server.errors import HostNotReady

HOSTILE_NAMES = [
    "a" * 255,
    "ü" * 127 + ".csv",
    "new\nline\r\nSet-Cookie: a=b.txt",
    'quo"te\\.txt',
    "rtl\u202egpj.exe",
    "%2e%2e/%2e%2e%2fpasswd",
    "invalid %FF%FE.txt",
    "CON",
    "nul.txt",
    "COM¹.log",
    "..",
    ".",
    "",
    "/",
    "a/../..",
    ".bashrc",
    "-rf",
    "trailing. . ",
    "semi;colon=1; filename=evil.exe",
    "zero\u200bwidth\ufeff.txt",
    "lone\udc80surrogate",
    "\x00\x1b[31m",
    "stream.txt:$DATA",
    "日本語.txt",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_become_harmless_file_names(name: str) -> None:
    """Nothing that a disk, a shell, a header or a reader could misunderstand is left."""
    safe = safe_file_name(name)
    assert 0 < len(safe.encode()) <= MAX_FILE_NAME_BYTES
    assert safe.isprintable()
    assert not set(safe) & set('/\\:*?"<>|%;')
    assert safe[0] not in ".- "
    assert safe[-1] not in ". "
    assert safe.partition(".")[0].lower() not in ("con", "nul", "com¹")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_make_a_well_formed_header(name: str) -> None:
    """The header is one line of ASCII with two parameters, whatever the file was called."""
    header = content_disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
    assert header.count(";") == 2
    assert unquote(header.rpartition("''")[2]) == safe_file_name(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("charts/result.png", "result.png"),
        ("日本語.txt", "日本語.txt"),
        ("two words.csv", "two words.csv"),
        ("%2e%2e", "_2e_2e"),
        ("nul.txt", "_nul.txt"),
        ("", "artifact"),
        ("x" * 300 + ".json", "x" * (MAX_FILE_NAME_BYTES - 5) + ".json"),
    ],
)
def test_ordinary_names_are_kept(name: str, expected: str) -> None:
    """Only what is harmful is replaced; the extension survives."""
    assert safe_file_name(name) == expected


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_signed_url_is_genuine_as_it_is(name: str) -> None:
    """What the signer makes, decoded as a server does, is what it accepts."""
    signer = UrlSigner(os.urandom(KEY_BYTES))
    artifact_id = new_id()
    url = urlsplit(signer.path(artifact_id, name, 1_800_000_000))
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    assert url.path.isascii()
    _, root, found_id, file_name = url.path.split("/")
    assert (root, found_id) == ("artifacts", artifact_id)
    assert signer.is_genuine(found_id, unquote(file_name), query["expires"], query["signature"])


def test_url_signed_for_one_artifact_or_by_another_server_is_refused() -> None:
    """Every part counts: id, name, expiry, signature and key."""
    signer, other = UrlSigner(b"a" * KEY_BYTES), UrlSigner(b"b" * KEY_BYTES)
    query = urlsplit(signer.path("1" * 32, "a.txt", 100)).query
    signature = parse_qs(query)["signature"][0]
    assert signer.is_genuine("1" * 32, "a.txt", "100", signature)
    assert not other.is_genuine("1" * 32, "a.txt", "100", signature)
    assert not signer.is_genuine("2" * 32, "a.txt", "100", signature)
    assert not signer.is_genuine("1" * 32, "b.txt", "100", signature)
    assert not signer.is_genuine("1" * 32, "a.txt", "101", signature)
    assert not signer.is_genuine("1" * 32, "a.txt", "0100", signature)
    assert not signer.is_genuine("1" * 32, "a.txt", "100", signature.upper())
    assert not signer.is_genuine("1" * 32, "a.txt", "100", "")
    assert not signer.is_genuine("1" * 32, "a.txt", "100", "ü\udc80")


def test_key_is_made_once_also_by_servers_that_start_together(tmp_path: Path) -> None:
    """All get the same secret, nothing else is left, and only the owner can read it."""
    file = tmp_path / "secrets" / "url.key"
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: load_key(file), range(32)))
    assert len(keys) == 1
    assert [path.name for path in file.parent.iterdir()] == ["url.key"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_key_that_is_no_secret_or_damaged_is_refused(tmp_path: Path) -> None:
    """The message says which file and what to do."""
    file = tmp_path / "url.key"
    load_key(file)
    file.chmod(0o644)
    with pytest.raises(HostNotReady, match="chmod 600"):
        load_key(file)
    file.write_bytes(b"short")
    file.chmod(0o600)
    with pytest.raises(HostNotReady, match="5 bytes"):
        load_key(file)
