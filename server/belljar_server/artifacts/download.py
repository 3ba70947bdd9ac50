"""What a download is called: names that user code chose, made safe for URLs, headers and the disks they land on."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

MAX_FILE_NAME_BYTES = 200
"""Below the 255 of usual file systems, with room for what browsers append."""
_MAX_EXTENSION = 16

_FORBIDDEN = frozenset('/\\:*?"<>|%;`$')
"""Separators, what Windows refuses, and what some client would decode or expand once more."""
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Controls, text direction and other invisible characters, lone surrogates, private and unassigned ones."""
_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{device}{digit}" for device in ("com", "lpt") for digit in "0123456789¹²³"}
)


def safe_file_name(name: str) -> str:
    """The last part of the path `name` as a file name that is harmless everywhere and keeps its extension."""
    last = name.rstrip("/").rpartition("/")[2]
    clean = "".join("_" if c in _FORBIDDEN or unicodedata.category(c) in _FORBIDDEN_CATEGORIES else c for c in last)
    clean = clean.strip(" ").rstrip(". ")
    # A hidden file, or one that a shell takes for an option, is not what a download should leave.
    if clean[:1] in (".", "-"):
        clean = "_" + clean[1:]
    if clean.partition(".")[0].rstrip(" ").lower() in _WINDOWS_DEVICES:
        clean = "_" + clean
    return _shorten(clean) or "artifact"


def content_disposition(name: str) -> str:
    """The Content-Disposition of an attachment: a plain name for old clients and the full one (RFC 6266, RFC 8187)."""
    full = safe_file_name(name)
    plain = "".join(c if c.isascii() else "_" for c in full)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(full, safe='')}"


def _shorten(name: str) -> str:
    encoded = name.encode()
    if len(encoded) <= MAX_FILE_NAME_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    tail = (dot + extension).encode() if stem and len(extension) <= _MAX_EXTENSION else b""
    head = (stem.encode() if tail else encoded)[: MAX_FILE_NAME_BYTES - len(tail)]
    return (head + tail).decode(errors="ignore")
