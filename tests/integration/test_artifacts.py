"""Artifacts: what code leaves in /home/user comes out whole, in order, whatever the end, and behind signed URLs."""

from __future__ import annotations

import datetime as dt
import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from belljar_client import Artifact, ErrorKind, Limits, Result, download

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

MIB = 1 << 20
WRITES = {
    "python": """\
import os
os.makedirs("reports/2024")
open("z first.txt", "w").write("first")
open("reports/2024/a.csv", "w").write("a,b\\n1,2\\n")
open("/home/user/empty.bin", "wb").close()
open("image.png", "wb").write(b"\\x89PNG\\r\\n\\x1a\\n" + bytes(100))
open("/tmp/gone.txt", "w").write("not kept")
open("naïve 😀.json", "w").write("{}")
""",
    "javascript": """\
const fs = require('fs');
fs.mkdirSync('reports/2024', { recursive: true });
fs.writeFileSync('z first.txt', 'first');
fs.writeFileSync('reports/2024/a.csv', 'a,b\\n1,2\\n');
fs.writeFileSync('/home/user/empty.bin', '');
fs.writeFileSync('image.png', Buffer.from([0x89, 80, 78, 71, 13, 10, 26, 10, ...Array(100).fill(0)]));
fs.writeFileSync('/tmp/gone.txt', 'not kept');
fs.writeFileSync('naïve 😀.json', '{}');
null
""",
    "typescript": """\
import * as fs from 'node:fs';
import { writeFile, mkdir } from 'node:fs/promises';
await mkdir('reports/2024', { recursive: true });
await writeFile('z first.txt', 'first');
await writeFile('reports/2024/a.csv', 'a,b\\n1,2\\n');
fs.writeFileSync('/home/user/empty.bin', '');
fs.writeFileSync('image.png', Uint8Array.of(0x89, 80, 78, 71, 13, 10, 26, 10, ...Array<number>(100).fill(0)));
fs.writeFileSync('/tmp/gone.txt', 'not kept');
fs.writeFileSync('naïve 😀.json', '{}');
null
""",
}
WRITTEN = [
    ("z first.txt", b"first", "text/plain"),
    ("reports/2024/a.csv", b"a,b\n1,2\n", "text/csv"),
    ("empty.bin", b"", "application/octet-stream"),
    ("image.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "image/png"),
    ("naïve 😀.json", b"{}", "application/json"),
]


def names(result: Result) -> list[str]:
    """Names of the artifacts in their order."""
    return [artifact.name for artifact in result.artifacts]


def fetch(artifact: Artifact, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers (in lower case) of its download."""
    request = urllib.request.Request(
        artifact.download_url, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}


@pytest.mark.parametrize("runtime", WRITES)
def test_files_come_out_in_the_order_they_were_written(run: Run, runtime: str) -> None:
    """Name, size, SHA-256 and content type of each, nested ones too; /tmp is not kept."""
    result = run(WRITES[runtime], runtime=runtime).check()
    assert names(result) == [name for name, _, _ in WRITTEN]
    for artifact, (_, content, content_type) in zip(result.artifacts, WRITTEN, strict=True):
        assert (artifact.size_bytes, artifact.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert artifact.content_type.partition(";")[0] == content_type
        status, body, headers = fetch(artifact)
        assert (status, body) == (200, content)
        assert headers["content-type"] == artifact.content_type
        assert headers["content-disposition"].startswith("attachment")
        assert headers["x-content-type-options"] == "nosniff"
        assert artifact.expire_time > dt.datetime.now(dt.UTC)
    assert result.usage.artifact_bytes == sum(len(content) for _, content, _ in WRITTEN)


def test_order_is_that_of_the_last_write(run: Run) -> None:
    """A file that is written again moves to the end; names do not decide."""
    code = "for n in ('c', 'a', 'b'): open(n, 'w').write(n)\nopen('c', 'a').write('again')"
    assert names(run(code).check()) == ["a", "b", "c"]


def test_rewritten_file_counts_once_with_its_last_content(run: Run) -> None:
    """An artifact is a file, not a write."""
    result = run(
        "for i in range(3): open('x.txt', 'w').write(str(i))\nimport os\nopen('y', 'w')\nos.remove('y')"
    ).check()
    assert names(result) == ["x.txt"]
    assert fetch(result.artifacts[0])[1] == b"2"


@pytest.mark.parametrize(
    ("runtime", "code", "kind"),
    [
        ("python", "open('left.txt', 'w').write('x')\n1 / 0", ErrorKind.EXCEPTION),
        ("python", "open('left.txt', 'w').write('x')\nimport os; os._exit(4)", ErrorKind.EXITED),
        ("python", "open('left.txt', 'w').write('x')\nimport os; os.abort()", ErrorKind.SIGNALED),
        ("python", "open('left.txt', 'w').write('x')\nwhile True: pass", ErrorKind.TIMEOUT),
        ("python", "open('left.txt', 'w').write('x')\nreturn {1, 2}", ErrorKind.RESULT_NOT_SERIALIZABLE),
        ("javascript", "require('fs').writeFileSync('left.txt', 'x'); throw 1", ErrorKind.EXCEPTION),
        ("typescript", "require('fs').writeFileSync('left.txt', 'x'); for (;;);", ErrorKind.TIMEOUT),
    ],
)
def test_artifacts_survive_a_bad_end(run: Run, runtime: str, code: str, kind: ErrorKind) -> None:
    """What was written before an exception, an exit, a signal or a timeout is there."""
    result = run(code, runtime=runtime, limits=Limits(timeout=2))
    assert result.error is not None
    assert (result.error.kind, names(result)) == (kind, ["left.txt"])
    assert fetch(result.artifacts[0])[1] == b"x"


def test_file_that_is_still_open_comes_with_what_was_written(run: Run) -> None:
    """Nobody needs to close it; a child that goes on writing is ended before anything is read."""
    code = """\
import os, time
f = open('log.txt', 'wb', buffering=0)
f.write(b'one')
if os.fork() == 0:
    while True: f.write(b'.' * 100); time.sleep(0.001)
time.sleep(0.05)
return 1
"""
    result = run(code).check()
    status, body, _ = fetch(result.artifacts[0])
    assert (status, body[:3], len(body)) == (200, b"one", result.artifacts[0].size_bytes)


def test_only_regular_files_are_artifacts(run: Run) -> None:
    """Links, pipes and empty folders are not, and the warning names them; nothing of the host comes out."""
    code = """\
import os, socket
open('real', 'w').write('x')
os.symlink('/etc/passwd', 'link')
os.symlink('.', 'loop')
os.mkfifo('pipe')
os.mkdir('folder')
os.mkdir('closed'); open('closed/inner', 'w').write('y'); os.chmod('closed', 0)
open('unreadable', 'w').write('z'); os.chmod('unreadable', 0)
socket.socket(socket.AF_UNIX).bind('socket')
"""
    result = run(code).check()
    assert sorted(names(result)) == ["closed/inner", "real", "unreadable"]
    for name in ("link", "loop", "pipe", "socket"):
        assert any(repr(name) in warning and "not a regular file" in warning for warning in result.warnings)


def test_count_and_bytes_are_limited_with_a_warning(run: Run) -> None:
    """The first ones come; that there were more, and why they are missing, is told."""
    code = "for i in range(5): open(f'{i}.txt', 'w').write('x' * 10)"
    few = run(code, limits=Limits(artifact_count=2)).check()
    assert names(few) == ["0.txt", "1.txt"]
    assert any("only 2 artifacts are allowed, there were 5" in warning for warning in few.warnings)
    small = run(code, limits=Limits(artifact_bytes=25)).check()
    assert names(small) == ["0.txt", "1.txt"]
    assert any("'2.txt' was left out" in warning and "artifact_bytes" in warning for warning in small.warnings)
    none = run(code, limits=Limits(artifact_count=0)).check()
    assert names(none) == []
    assert any("only 0 artifacts are allowed, there were 5" in warning for warning in none.warnings)


@pytest.mark.parametrize(
    ("header", "status", "body", "content_range"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=3-5", 206, b"345", "bytes 3-5/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-500", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
    ],
)
def test_download_answers_ranges(digits: Artifact, header: str, status: int, body: bytes, content_range: str) -> None:
    """As RFC 9110 has them."""
    got, content, headers = fetch(digits, Range=header)
    assert (got, headers["content-range"]) == (status, content_range)
    if body is not None:
        assert content == body


@pytest.fixture(scope="module")
def digits(run: Run) -> Artifact:
    """An artifact with the content 0123456789."""
    return run("open('digits.txt', 'w').write('0123456789')").check().artifacts[0]


def test_url_works_as_it_was_signed_only(digits: Artifact) -> None:
    """One byte changed anywhere in it is refused; its own is good for a download with the right sum."""
    url = digits.download_url
    for at in (url.index(digits.id), url.index("digits.txt"), url.index("expires=") + 8, len(url) - 1):
        changed = url[:at] + ("1" if url[at] != "1" else "2") + url[at + 1 :]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(changed, timeout=30)
        refused.value.close()
        assert refused.value.code in (403, 404)


def test_download_of_the_client_checks_the_sum(digits: Artifact, tmp_path: Path) -> None:
    """The file lands under its name with its content."""
    path = download(digits, tmp_path)
    assert (path, path.read_bytes()) == (tmp_path / "digits.txt", b"0123456789")


def test_thousand_small_artifacts_come_out_in_order(run: Run) -> None:
    """All of them, each with its own id and URL."""
    code = "for i in range(1000): open(f'part-{i:04}.txt', 'w').write(str(i))"
    result = run(code, limits=Limits(artifact_count=1000)).check()
    assert names(result) == [f"part-{i:04}.txt" for i in range(1000)]
    assert len({artifact.id for artifact in result.artifacts}) == 1000
    assert fetch(result.artifacts[777])[1] == b"777"


def test_hundred_megabytes_in_one_artifact_come_out_whole(run: Run, tmp_path: Path) -> None:
    """Size and sum are right, and a range at its end is."""
    code = "with open('big.bin', 'wb') as f:\n    for i in range(100): f.write(bytes([i]) * (1 << 20))"
    result = run(code, limits=Limits(memory_bytes=512 * MIB, timeout=60)).check()
    (artifact,) = result.artifacts
    assert artifact.size_bytes == 100 * MIB
    path = download(artifact, tmp_path)
    expected = hashlib.sha256(b"".join(bytes([i]) * MIB for i in range(100))).hexdigest()
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256 == expected
    assert fetch(artifact, Range="bytes=-3")[1] == bytes([99]) * 3
