"""Files that are not what they look like, and downloads that someone tampers with (HOSTILE.md 36 to 39)."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.message import Message

import pytest

from belljar_client import Artifact, Limits, Result

Hit = Callable[..., Result]


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, Message, bytes]:
    """Status, headers and body, whatever the status."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def names(result: Result) -> list[str]:
    """What the artifacts are called, in their order."""
    return [artifact.name for artifact in result.artifacts]


def test_only_regular_files_come_out_and_each_other_thing_is_told(hit: Hit) -> None:
    """Links, pipes, sockets and loops are named and left; what nobody has permission to read comes out."""
    code = """
import os, socket
os.symlink("/etc/passwd", "link")
os.symlink("/proc/1/environ", "environ")
os.symlink("loop", "loop")
os.symlink("/", "root")
os.mkfifo("pipe")
bound = socket.socket(socket.AF_UNIX)
bound.bind("socket")
os.mkdir("folder.txt")
open("plain", "w").write("x")
os.link("plain", "again")
open("closed", "w").write("c")
os.chmod("closed", 0)
os.mkdir("locked")
open("locked/inside", "w").write("i")
os.chmod("locked", 0)
os.chmod("/home/user", 0)
"""
    result = hit(code).check()
    assert sorted(names(result)) == ["again", "closed", "locked/inside", "plain"]
    told = [warning.partition("' was left out: ") for warning in result.warnings]
    assert sorted(name.strip("'") for name, _, _ in told) == ["environ", "link", "loop", "pipe", "root", "socket"]
    assert {reason for _, _, reason in told} == {"not a regular file"}
    contents = {artifact.name: fetch(artifact.download_url)[2] for artifact in result.artifacts}
    assert contents == {"plain": b"x", "again": b"x", "closed": b"c", "locked/inside": b"i"}


def test_hard_link_to_a_file_of_the_image_is_refused(hit: Hit) -> None:
    """Nothing of the image or of /proc can be linked into home."""
    code = """
import os
told = []
for source in ("/etc/passwd", "/opt/belljar/guest/agent.py", "/proc/1/cmdline", "/proc/self/exe"):
    try:
        os.link(source, "mine")
        told.append(source)
    except OSError:
        pass
told
"""
    result = hit(code).check()
    assert (result.value, result.artifacts) == ([], ())


def test_file_that_never_stops_changing_is_the_one_that_was_there_at_the_end(hit: Hit) -> None:
    """Survivors are killed before the first file is read: size, hash and content agree."""
    code = """
import os, time
for number in range(3):
    if os.fork() == 0:
        os.setsid()
        while True:
            with open(f"grows{number}", "ab") as file:
                file.write(b"x" * 1000)
            os.replace(f"grows{number}", "swapped")
            os.symlink("/etc/passwd", "swapped.tmp")
            os.replace("swapped.tmp", f"grows{number}")
            os.unlink(f"grows{number}")
time.sleep(0.3)
"""
    result = hit(code, limits=Limits(timeout=20, cpu_time=60)).check()
    for artifact in result.artifacts:
        status, _, body = fetch(artifact.download_url)
        assert status == 200
        assert (len(body), hashlib.sha256(body).hexdigest()) == (artifact.size_bytes, artifact.sha256)
        assert set(body) <= set(b"x")


def test_artifacts_over_count_and_size_are_left_out_by_name(hit: Hit) -> None:
    """The limits are the request's; zero means none."""
    code = "for name in 'abcd':\n    open(name, 'wb').write(bytes(1000))\n"
    few = hit(code, limits=Limits(artifact_count=2)).check()
    assert names(few) == ["a", "b"]
    assert few.warnings == ("only 2 artifacts are allowed, there were 4", "2 files were left out in all")
    small = hit(code, limits=Limits(artifact_bytes=2500)).check()
    assert names(small) == ["a", "b"]
    assert len(small.warnings) == 2
    none = hit(code, limits=Limits(artifact_count=0)).check()
    assert none.artifacts == ()


def test_input_file_that_is_only_touched_is_no_artifact_and_a_changed_one_is(hit: Hit) -> None:
    """A changed modification time is not a change; content, also of the same size and with its times set back, is."""
    code = """
import os
before = os.stat("changed")
open("changed", "r+b").write(b"B")
os.utime("changed", ns=(before.st_atime_ns, before.st_mtime_ns))
open("read").read()
"""
    result = hit(code, input_files={"changed": b"A", "read": b"A"}).check()
    assert names(result) == ["changed"]


STRANGE = {
    "long": b"n" * 255,
    "newline": b"a\r\nSet-Cookie: x=1",
    "quotes": b'a"; filename="b.exe',
    "rtl": "\u202egpj.exe".encode(),
    "encoded": b"%2e%2e%2fetc%2fpasswd",
    "invalid": b"bad\xff\xfe",
    "reserved": b"CON",
    "backslash": b"..\\..\\windows",
    "semicolon": b"a;b=c",
    "null text": "a\u2028b\u0085\x7f".encode(),
    "dots": b"...",
    "space": b" ",
    "dash": b"-rf",
    "html": b"<script>alert(1)<script>",
}


def test_strange_names_make_safe_headers(hit: Hit) -> None:
    """Whatever a file is called, its download has one Content-Disposition and no header of its own making."""
    result = hit(
        "def main(names):\n    for name in names:\n        open(bytes.fromhex(name), 'w').write('x')\n",
        inputs={"names": [name.hex() for name in STRANGE.values()]},
    ).check()
    assert len(result.artifacts) == len(STRANGE)
    for artifact in result.artifacts:
        status, headers, body = fetch(artifact.download_url)
        assert (status, body) == (200, b"x"), artifact.name
        (disposition,) = headers.get_all("Content-Disposition", [])
        assert disposition.startswith("attachment"), artifact.name
        assert all(" " <= letter <= "~" for letter in disposition), artifact.name
        assert "Set-Cookie" not in headers
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert "bad%FF%FE" in names(result)


ACTIVE = {
    "page.html": b"<script>alert(1)</script>",
    "image.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "data.xml": b'<?xml version="1.0"?><a/>',
    "paper.pdf": b"%PDF-1.7\n",
    "picture.png": b"<html><script>alert(1)</script>",
    "noname": b"<!doctype html><script>alert(1)</script>",
    "app.js": b"alert(1)",
}


def test_active_content_is_an_attachment_that_nobody_sniffs(hit: Hit) -> None:
    """Nothing that a browser could run opens in one."""
    code = "def main(files):\n    for name, text in files.items():\n        open(name, 'w').write(text)\n"
    result = hit(code, inputs={"files": {name: text.decode() for name, text in ACTIVE.items()}}).check()
    assert sorted(names(result)) == sorted(ACTIVE)
    for artifact in result.artifacts:
        status, headers, _ = fetch(artifact.download_url)
        assert status == 200
        assert headers["Content-Disposition"].startswith("attachment")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Type"].partition(";")[0] == artifact.content_type.partition(";")[0]


@pytest.fixture
def artifact(hit: Hit) -> Artifact:
    """A file of ten bytes."""
    (made,) = hit("open('ten.bin', 'wb').write(bytes(range(10)))\nNone").check().artifacts
    return made


def test_url_that_was_altered_gives_nothing(artifact: Artifact) -> None:
    """One changed character anywhere in path or query, a missing or a doubled parameter: refused, without a hint."""
    url = artifact.download_url
    assert fetch(url)[2] == bytes(range(10))
    start = url.index("/", len("http://"))
    for at in range(start + 1, len(url)):
        if url[at] in "/?&=%.":
            continue
        changed = url[:at] + ("0" if url[at] != "0" else "1") + url[at + 1 :]
        status, _, body = fetch(changed)
        assert status in (400, 403, 404, 410), changed
        assert bytes(range(10)) not in body
    parts = urllib.parse.urlsplit(url)
    for query in ("", parts.query.split("&")[0], f"{parts.query}&{parts.query}", parts.query.upper()):
        status, _, _ = fetch(parts._replace(query=query).geturl())
        assert status in (400, 403, 404, 410) or query.startswith(parts.query), query


def test_url_of_one_artifact_does_not_open_another(hit: Hit) -> None:
    """A signature belongs to one id; ids cannot be guessed from each other, nor folders listed."""
    one, two = hit("for name in 'ab':\n    open(name, 'w').write(name)\n").check().artifacts
    assert fetch(one.download_url.replace(one.id, two.id))[0] in (403, 404)
    base = one.download_url.partition("?")[0]
    for guess in (base, base.rpartition("/")[0], base.rpartition("/")[0] + "/", f"{base}/../{two.id}"):
        assert fetch(guess)[0] in (400, 401, 403, 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(artifact: Artifact, method: str) -> None:
    """A URL reads, and does nothing else."""
    assert fetch(artifact.download_url, method)[0] in (403, 404, 405)
    assert fetch(artifact.download_url)[2] == bytes(range(10))


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("bytes=2-4", 206, b"\2\3\4"),
        ("bytes=-3", 206, b"\7\x08\x09"),
        ("bytes=8-99", 206, b"\x08\x09"),
        ("bytes=10-", 416, None),
        ("bytes=99-100", 416, None),
        ("bytes=5-2", None, None),
        ("bytes=0-18446744073709551616", None, bytes(range(10))),
        ("items=0-1", None, None),
        ("bytes=" + "0-0," * 5000 + "0-0", None, None),
    ],
)
def test_ranges_in_and_out_of_bounds(artifact: Artifact, wanted: str, status: int | None, body: bytes | None) -> None:
    """A range inside gives that part, one outside 416, nonsense the whole or a refusal, never more than there is."""
    try:
        got, headers, content = fetch(artifact.download_url, Range=wanted)
    except (http.client.HTTPException, ConnectionError):  # a header that is too long may end the connection
        return
    if status is None:
        assert got in (200, 206, 400, 416, 431)
        assert len(content) <= 1000
    else:
        assert got == status
    if body is not None:
        assert content == body
        assert headers["Content-Length"] == str(len(body))
