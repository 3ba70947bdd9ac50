"""Content types come from our own table and the first bytes."""

from __future__ import annotations

import pytest

from belljar_server.artifacts.content_type import HEAD_BYTES, decide

PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("chart.png", PNG, "image/png"),
        ("photo.JPG", b"\xff\xd8\xff\xe0" + bytes(8), "image/jpeg"),
        ("a.gif", b"GIF89a" + bytes(8), "image/gif"),
        ("a.webp", b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        ("a.wav", b"RIFF\x10\0\0\0WAVEfmt ", "audio/wav"),
        ("a.bmp", b"BM\x46\0\0\0" + bytes(4) + b"\x36\0\0\0", "image/bmp"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic"),
        ("a.heic", b"\0\0\0\x18ftypheix\0\0\0\0mif1heix", "image/heic"),
        ("a.heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heic"),
        ("a.heics", b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", "image/heic"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", "image/avif"),
        ("a.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "video/mp4"),
        ("a.mp3", b"ID3\x04\0\0\0\0\0\0", "audio/mpeg"),
        ("a.mp3", b"\xff\xfb\x90\x64" + bytes(32), "audio/mpeg"),
        ("a.mp3", b"\xff\xf3\x44\xc4" + bytes(32), "audio/mpeg"),
        ("a.mp3", b"\xff\xe3\x18\xc4" + bytes(32), "audio/mpeg"),
        ("report.pdf", b"%PDF-1.7\n%\xe2\xe3", "application/pdf"),
        ("a.zip", b"PK\x03\x04\x14\0", "application/zip"),
        ("book.xlsx", b"PK\x03\x04\x14\0", XLSX),
        ("dir.with.dots/book.XLSX", b"PK\x03\x04\x14\0", XLSX),
        ("old.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/vnd.ms-excel"),
        ("a.tar.gz", b"\x1f\x8b\x08\0\0\0", "application/gzip"),
        ("a.tar", b"a.txt".ljust(257, b"\0") + b"ustar\x0000", "application/x-tar"),
        ("a.parquet", b"PAR1\x15\x04\x15\0", "application/vnd.apache.parquet"),
        ("notes.txt", b"hello", "text/plain; charset=utf-8"),
        ("table.csv", "Zürich,1\n".encode(), "text/csv; charset=utf-8"),
        ("table.csv", "Zürich,1\n".encode("latin-1"), "text/csv"),
        ("data.json", b'{"a": 1}', "application/json"),
        ("page.html", b"<!doctype html><script>1</script>", "text/html; charset=utf-8"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        ("README", b"plain words\n", "text/plain; charset=utf-8"),
        ("empty.csv", b"", "text/csv; charset=utf-8"),
        ("empty", b"", "application/octet-stream"),
        ("model.pkl", b"\x80\x04\x95\0\0", "application/octet-stream"),
        ("png", b"\x00\x01", "application/octet-stream"),
    ],
)
def test_usual_files_get_their_type(name: str, head: bytes, expected: str) -> None:
    """What code nodes leave is recognised."""
    assert decide(name, head) == expected


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("innocent.txt", PNG, "image/png"),
        ("innocent.txt", b"PK\x03\x04\x14\0", "application/zip"),
        ("fake.png", b"<script>alert(1)</script>", "text/plain; charset=utf-8"),
        ("fake.png", b"\x00\x01\x02", "application/octet-stream"),
        ("fake.xlsx", b"%PDF-1.7", "application/pdf"),
        ("fake.html", b"\x7fELF\x02\x01\x01\x00", "application/octet-stream"),
        ("a.txt", b"BMW is a car, and this is no bitmap", "text/plain; charset=utf-8"),
        ("a.txt", b"PAR1S is no parquet", "text/plain; charset=utf-8"),
        ("a.txt", b"nul \x00 inside", "application/octet-stream"),
        ("utf-16.mp3", "no sound".encode("utf-16"), "application/octet-stream"),
        ("reserved.mp3", b"\xff\xfb\xff\xff", "application/octet-stream"),
        ("short.mp3", b"\xff\xfb", "application/octet-stream"),
        ("a.html\n.png", b"x\xff", "application/octet-stream"),
    ],
)
def test_first_bytes_win_over_a_lying_name(name: str, head: bytes, expected: str) -> None:
    """A name cannot make an image of a script, or text of a binary."""
    assert decide(name, head) == expected


def test_character_cut_at_the_end_of_a_full_head_is_still_text() -> None:
    """The head of a long text may end inside a character; a whole file may not."""
    text = ("a" + "ü" * HEAD_BYTES).encode()
    assert decide("a", text) == "text/plain; charset=utf-8"
    assert decide("a", text[:HEAD_BYTES]) == "text/plain; charset=utf-8"
    assert decide("a", text[:10]) == "application/octet-stream"
