"""The HTTP port: only what was signed, only as a download, any range, and nothing about the server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from yarl import URL

from belljar_server import http
from belljar_server.artifacts import StoredArtifact
from belljar_server.artifacts.download import content_disposition
from belljar_server.artifacts.local import LocalStore
from belljar_server.errors import HostNotReady
from belljar_server.http import build, serve_http

STATUS: dict[str, list[dict[str, object]]] = {"pools": [{"runtime": "<python>", "waiting": 3}], "under way": []}
CONTENT = bytes(range(256)) * 8192
SIZE = len(CONTENT)


@dataclass
class Clock:
    """A wall clock that tests can set."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Port:
    """A served application with one artifact. Mutable state: clock, readiness and what the test adds."""

    store: LocalStore
    clock: Clock
    readiness: list[str] = field(default_factory=list)
    address: str = ""
    session: aiohttp.ClientSession = field(init=False)
    artifact: StoredArtifact = field(init=False)

    async def keep(self, content: bytes, name: str, content_type: str = "text/plain") -> StoredArtifact:
        upload = await self.store.begin(name, content_type)
        await upload.write(content)
        return await upload.commit()

    async def url(self, artifact: StoredArtifact | None = None) -> str:
        return (await self.store.sign(artifact or self.artifact)).url

    async def ask(
        self, url: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        request = self.session.request(method, URL(url, encoded=True), headers=headers)
        async with request as response:
            return response, await response.read()


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    clock = Clock()
    registry = CollectorRegistry()
    Counter("belljar_things", "Things.", registry=registry).inc()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            LocalStore(tmp_path, b"k" * 32, url_ttl=60, retention=3600, min_free_bytes=0, clock=clock)
        )
        port = Port(store, clock)
        app = build(registry, lambda: (not port.readiness, " ".join(port.readiness)), store, lambda: STATUS)
        port.address = await stack.enter_async_context(serve_http(app, "127.0.0.1", 0))
        store.base_url = f"http://{port.address}"
        port.session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        port.artifact = await port.keep(CONTENT, "charts/data.bin", "application/octet-stream")
        yield port


async def test_signed_url_gives_the_bytes_as_a_harmless_download(port: Port) -> None:
    """Every header that keeps a browser from showing, sniffing, running or embedding the content is there."""
    response, body = await port.ask(await port.url())
    assert response.status == 200
    assert body == CONTENT
    headers = response.headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Length"] == str(SIZE)
    assert headers["Content-Disposition"] == "attachment; filename=\"data.bin\"; filename*=UTF-8''data.bin"
    assert headers["ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"].startswith("private")
    assert headers["Cross-Origin-Resource-Policy"] == "same-site"
    assert "Server" not in headers


@pytest.mark.parametrize(
    ("name", "content", "content_type"),
    [
        ("page.html", b"<script>alert(1)</script>", "text/html; charset=utf-8"),
        ("drawing.svg", b"<svg onload='alert(1)'/>", "image/svg+xml"),
        ("feed.xml", b"<?xml version='1.0'?><a/>", "application/xml"),
        ("paper.pdf", b"%PDF-1.7", "application/pdf"),
    ],
)
async def test_active_content_is_an_attachment(port: Port, name: str, content: bytes, content_type: str) -> None:
    """HTML, SVG, XML and PDF keep their type but are never shown."""
    response, body = await port.ask(await port.url(await port.keep(content, name, content_type)))
    assert body == content
    assert response.headers["Content-Type"] == content_type
    assert response.headers["Content-Disposition"].startswith("attachment;")
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "ü" * 127,
        "new\nline\r\nX-Injected: 1.txt",
        'quo"te.txt',
        "rtl\u202egpj.exe",
        "%2e%2e",
        "%2e%2e/%2e%2e",
        "invalid %FF.txt",
        "NUL",
        "..",
        "a b+c&d=e?f#g.txt",
        "lone\udc80.txt",
        "{curly}.txt",
    ],
)
async def test_hostile_names_download_with_safe_headers(port: Port, name: str) -> None:
    """The URL works, the header is ours, and nothing was injected."""
    response, body = await port.ask(await port.url(await port.keep(b"x", name)))
    assert (response.status, body) == (200, b"x")
    assert response.headers["Content-Disposition"] == content_disposition(name)
    assert "X-Injected" not in response.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=100-199", 100, 199),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        (f"bytes=5-{SIZE * 10}", 5, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        (f"bytes=-{SIZE * 10}", 0, SIZE - 1),
        (f"bytes=1000-{SIZE - 7}", 1000, SIZE - 7),
        ("BYTES = 3-4", 3, 4),
    ],
)
async def test_range_gives_exactly_these_bytes(port: Port, asked: str, first: int, last: int) -> None:
    """A single range is answered with 206 and says which bytes these are."""
    response, body = await port.ask(await port.url(), headers={"Range": asked})
    assert response.status == 206
    assert body == CONTENT[first : last + 1]
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"


@pytest.mark.parametrize(
    "asked", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0", "bytes=9" + "9" * 17 + "-"]
)
async def test_range_outside_is_416_and_says_the_size(port: Port, asked: str) -> None:
    """Nothing is read past the end."""
    response, _ = await port.ask(await port.url(), headers={"Range": asked})
    assert response.status == 416
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("asked", ["bytes=0-0", "bytes=-5", "bytes=0-"])
async def test_range_of_an_empty_artifact_is_416(port: Port, asked: str) -> None:
    """There is no byte to give; without a range the answer is empty."""
    url = await port.url(await port.keep(b"", "empty"))
    response, _ = await port.ask(url, headers={"Range": asked})
    assert response.status == 416
    response, body = await port.ask(url)
    assert (response.status, body) == (200, b"")


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-1,5-6", "bytes=5-3", "bytes=-", "lines=0-1", "bytes=a-b", "bytes=--1", "", "bytes=0x1-2", "bytes=²-"],
)
async def test_what_is_no_single_range_is_ignored(port: Port, asked: str) -> None:
    """Several ranges and nonsense give the whole artifact, as the RFC allows."""
    response, body = await port.ask(await port.url(), headers={"Range": asked})
    assert response.status == 200
    assert len(body) == SIZE


async def test_conditions_compare_the_content(port: Port) -> None:
    """If-Range with the right tag gives the range, with another the whole; If-None-Match gives 304."""
    url, etag = await port.url(), f'"{port.artifact.sha256}"'
    assert (await port.ask(url, headers={"Range": "bytes=0-9", "If-Range": etag}))[0].status == 206
    assert (await port.ask(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'}))[0].status == 200
    assert (await port.ask(url, headers={"If-None-Match": f'"other", W/{etag}'}))[0].status == 304
    assert (await port.ask(url, headers={"If-None-Match": "*"}))[0].status == 304
    assert (await port.ask(url, headers={"If-None-Match": '"other"'}))[0].status == 200


async def test_head_gives_headers_without_bytes(port: Port) -> None:
    """HEAD says the size, also of a range."""
    response, body = await port.ask(await port.url(), "HEAD")
    assert (response.status, body, response.headers["Content-Length"]) == (200, b"", str(SIZE))
    response, body = await port.ask(await port.url(), "HEAD", {"Range": "bytes=0-9"})
    assert (response.status, body, response.headers["Content-Length"]) == (206, b"", "10")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods_are_405_and_change_nothing(port: Port, method: str) -> None:
    """A signed URL is for reading."""
    response, _ = await port.ask(await port.url(), method)
    assert response.status == 405
    assert response.headers["Allow"] == "GET,HEAD"
    assert (await port.ask(await port.url()))[0].status == 200


async def test_url_altered_in_any_byte_is_refused(port: Port) -> None:
    """Every byte of path and query is covered, and the answer never depends on whether the id exists."""
    url = await port.url()
    start = url.index("/artifacts/") + 1
    refused = set()
    for position in range(start, len(url)):
        other = "0" if url[position] != "0" else "1"
        response, body = await port.ask(url[:position] + other + url[position + 1 :])
        assert response.status in (403, 404), url[position]
        if response.status == 403:
            refused.add(body)
        else:
            # Only the fixed words of the route lead to another place.
            assert position < start + len("artifacts/") or url[position] == "/"
            assert body == b"404: Not Found"
    assert len(refused) == 1


async def test_url_with_more_or_fewer_parameters_is_refused(port: Port) -> None:
    """What was not signed is not accepted, twice the same neither."""
    url = await port.url()
    for altered in (f"{url}&a=b", f"{url}&expires=99999999999", url.partition("&")[0], url.partition("?")[0]):
        assert (await port.ask(altered))[0].status == 403


async def test_unknown_id_looks_like_a_bad_signature(port: Port) -> None:
    """Nobody can ask which ids exist."""
    known, unknown = port.artifact.id, "0" * 32
    answers = [await port.ask(f"http://{port.address}/artifacts/{i}/a?expires=1&signature=0") for i in (known, unknown)]
    assert [response.status for response, _ in answers] == [403, 403]
    assert answers[0][1] == answers[1][1]


async def test_expired_url_is_410_and_the_wall_clock_decides(port: Port) -> None:
    """A clock that jumps forward ends it, one that jumps back brings it back; expiry is what the client was told."""
    url = await port.url()
    assert (await port.ask(url))[0].status == 200
    port.clock.ahead = 61
    assert (await port.ask(url))[0].status == 410
    port.clock.ahead = -3600
    assert (await port.ask(url))[0].status == 200


async def test_deleted_artifact_is_404_with_a_good_signature(port: Port) -> None:
    """Who had the right to read it may know that it is gone."""
    url = await port.url()
    await port.store.delete(port.artifact.id)
    assert (await port.ask(url))[0].status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/",
        "/artifacts/x",
        "/artifacts/../secrets/url.key",
        "/artifacts/%2e%2e/%2e%2e%2fetc",
        "/",
        "/etc/passwd",
    ],
)
async def test_other_paths_lead_nowhere(port: Port, path: str) -> None:
    """There is no listing and no way up."""
    response, body = await port.ask(f"http://{port.address}{path}")
    assert response.status in (403, 404)
    assert len(body) < 100
    assert "Server" not in response.headers


async def test_metrics_and_health(port: Port) -> None:
    """Prometheus can read the registry; alive and ready are two questions."""
    base = f"http://{port.address}"
    response, body = await port.ask(f"{base}/metrics")
    assert response.status == 200
    assert b"belljar_things_total 1.0" in body
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert (await port.ask(f"{base}/healthz"))[0].status == 200
    assert (await port.ask(f"{base}/readyz"))[0].status == 200
    port.readiness.append("no sandbox starts")
    response, body = await port.ask(f"{base}/readyz")
    assert (response.status, body) == (503, b"not ready: no sandbox starts\n")
    assert (await port.ask(f"{base}/healthz"))[0].status == 200


async def test_without_a_local_store_there_are_no_downloads() -> None:
    """With an object store the port serves metrics and health only."""
    app = build(CollectorRegistry(), lambda: (True, ""), None, dict)
    async with serve_http(app, "127.0.0.1", 0) as address, aiohttp.ClientSession() as session:
        async with session.get(f"http://{address}/artifacts/{'0' * 32}/a?expires=1&signature=0") as response:
            assert response.status == 404
        async with session.get(f"http://{address}/healthz") as response:
            assert response.status == 200


async def test_taken_port_says_so_and_ipv6_is_bracketed(port: Port) -> None:
    """The message names the address; the address of an IPv6 port fits into a URL."""
    app = build(CollectorRegistry(), lambda: (True, ""), None, dict)
    with pytest.raises(HostNotReady, match=port.address):
        async with serve_http(app, "127.0.0.1", int(port.address.rpartition(":")[2])):
            pytest.fail("the port was free")
    app = build(CollectorRegistry(), lambda: (True, ""), None, dict)
    async with serve_http(app, "::1", 0) as address:
        assert urlsplit(f"http://{address}").port


async def test_client_that_reads_nothing_loses_its_connection(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled download holds no file and no more than a piece of memory, and not for ever."""
    monkeypatch.setattr(http, "STALL_SECONDS", 0.2)
    large = await port.keep(bytes(64 << 20), "large.bin")
    fds = len(os.listdir("/proc/self/fd"))
    host, _, number = port.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(number), limit=1024)
    url = urlsplit(await port.url(large))
    writer.write(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    async with asyncio.timeout(30):
        while len(os.listdir("/proc/self/fd")) <= fds:
            await asyncio.sleep(0.01)
        while len(os.listdir("/proc/self/fd")) > fds + 1:
            await asyncio.sleep(0.01)
        received = 0
        try:
            while piece := await reader.read(1 << 20):
                received += len(piece)
        except ConnectionError:
            pass
    writer.close()
    assert received < 64 << 20
    assert (await port.ask(await port.url()))[0].status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_broken_requests_are_refused_without_a_word_about_the_server(port: Port, request_bytes: bytes) -> None:
    """The answer is an error or nothing, and names no software."""
    host, _, number = port.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    writer.write(request_bytes)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    assert answer.startswith((b"HTTP/1.0 4", b"HTTP/1.1 4")) or not answer
    assert b"aiohttp" not in answer.lower()
    assert b"python" not in answer.lower()
    assert (await port.ask(f"http://{port.address}/healthz"))[0].status == 200


async def test_status_is_a_plain_page_and_json(port: Port) -> None:
    """People read the page, programs the JSON; values are escaped."""
    answer, text = await port.ask(f"http://{port.address}/statusz")
    assert answer.content_type == "text/html"
    assert b"&lt;python&gt;" in text
    assert b"<p>none</p>" in text
    for url, headers in (("/statusz?format=json", {}), ("/statusz", {"Accept": "application/json"})):
        answer, text = await port.ask(f"http://{port.address}{url}", headers=headers)
        assert answer.content_type == "application/json"
        assert json.loads(text) == STATUS
