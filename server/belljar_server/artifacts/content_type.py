"""The content type of an artifact, from the table below and its first bytes; never from what user code claims.

For binary formats the first bytes win: a `.txt` that starts like a PNG is a PNG, a `.png` that does not is no image.
Text formats have no signature, so there the extension decides, and only over bytes that are text. What fits nothing
is `application/octet-stream`. Downloads are attachments with `nosniff` in any case: a wrong guess costs comfort only.
"""

from __future__ import annotations

import codecs

HEAD_BYTES = 4096
"""How many first bytes are enough to decide."""

UNKNOWN = "application/octet-stream"
_PLAIN = "text/plain"

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (8, b"AVI ", "video/x-msvideo"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypavis", "image/avif"),
    (4, b"ftyphei", "image/heic"),
    (4, b"ftyphev", "image/heic"),
    (4, b"ftypmif1", "image/heic"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"\x00\x00\x01\x00", "image/vnd.microsoft.icon"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"PK\x05\x06", "application/zip"),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"(\xb5/\xfd", "application/zstd"),
    (0, b"7z\xbc\xaf'\x1c", "application/x-7z-compressed"),
    (257, b"ustar", "application/x-tar"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (0, b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (0, b"PAR1", "application/vnd.apache.parquet"),
    (0, b"ARROW1\x00\x00", "application/vnd.apache.arrow.file"),
    (0, b"\x89HDF\r\n\x1a\n", "application/x-hdf5"),
    (0, b"\x00asm", "application/wasm"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"OggS", "audio/ogg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3\x03", "audio/mpeg"),
    (0, b"ID3\x04", "audio/mpeg"),
    (0, b"wOFF", "font/woff"),
    (0, b"wOF2", "font/woff2"),
)
"""Offset, bytes, type; the first that fits wins, so the longer of two comes first."""

_RIFF_TYPES = frozenset({"image/webp", "audio/wav", "video/x-msvideo"})
_COULD_BE_TEXT = frozenset(
    {"application/x-bzip2", "application/vnd.apache.parquet", "audio/ogg", "audio/flac", "font/woff", "font/woff2"}
)
"""Types whose signature is printable: text that happens to start so stays text."""

_INSIDE_ZIP = {
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "odt": "application/vnd.oasis.opendocument.text",
    "odp": "application/vnd.oasis.opendocument.presentation",
    "epub": "application/epub+zip",
}
_INSIDE_OLE = {
    "xls": "application/vnd.ms-excel",
    "doc": "application/msword",
    "ppt": "application/vnd.ms-powerpoint",
}
_CONTAINERS = {"application/zip": _INSIDE_ZIP, "application/x-ole-storage": _INSIDE_OLE}

_TEXT = {
    "txt": _PLAIN,
    "log": _PLAIN,
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "md": "text/markdown",
    "html": "text/html",
    "htm": "text/html",
    "xml": "application/xml",
    "svg": "image/svg+xml",
    "css": "text/css",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "jsonl": "application/x-ndjson",
    "geojson": "application/geo+json",
    "ipynb": "application/x-ipynb+json",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "toml": "application/toml",
    "ics": "text/calendar",
    "vcf": "text/vcard",
    "rtf": "application/rtf",
    "sql": "application/sql",
}
_TEXT_CONTROLS = frozenset(b"\a\b\t\n\v\f\r\x1b")
_BINARY_CONTROLS = bytes(byte for byte in (*range(0x20), 0x7F) if byte not in _TEXT_CONTROLS)


def decide(name: str, head: bytes) -> str:
    """The content type of the file called `name` that starts with `head`: HEAD_BYTES of it or more, or all it has."""
    head = head[:HEAD_BYTES]
    extension = name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""
    is_text = _is_utf8_text(head)
    signature = _by_signature(head, is_text=is_text)
    if signature:
        return _CONTAINERS.get(signature, {}).get(extension, signature)
    if extension in _TEXT and _has_no_control_bytes(head):
        return _with_charset(_TEXT[extension], is_utf8=is_text)
    if is_text and head:
        return _with_charset(_PLAIN, is_utf8=True)
    return UNKNOWN


def _by_signature(head: bytes, *, is_text: bool) -> str:
    for offset, magic, content_type in _SIGNATURES:
        if not head.startswith(magic, offset):
            continue
        if content_type in _RIFF_TYPES and not head.startswith(b"RIFF"):
            continue
        if is_text and content_type in _COULD_BE_TEXT:
            continue
        return content_type
    # Two letters are too few to go by: a bitmap also has four reserved bytes that are zero.
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "image/bmp"
    return "audio/mpeg" if _is_mp3_frame(head[:4]) else ""


def _is_mp3_frame(header: bytes) -> bool:
    """Whether an MPEG audio frame of layer III begins so (ISO/IEC 11172-3, 2.4.1.3): no reserved value in any field.

    A byte order mark of UTF-16 and AAC have the same eleven first bits, but another layer.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return False
    version, bitrate, frequency = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    return version != 1 and 0 < bitrate < 0xF and frequency != 3


def _with_charset(content_type: str, *, is_utf8: bool) -> str:
    """Says charset=utf-8 of text/* only where the bytes are that; the JSON and XML families carry their own rules."""
    return f"{content_type}; charset=utf-8" if is_utf8 and content_type.startswith("text/") else content_type


def _has_no_control_bytes(head: bytes) -> bool:
    return head == head.translate(None, _BINARY_CONTROLS)


def _is_utf8_text(head: bytes) -> bool:
    """Whether these are characters. A head of full length may be cut inside one."""
    if not _has_no_control_bytes(head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return True
