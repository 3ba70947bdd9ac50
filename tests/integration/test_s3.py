"""Artifacts in a real S3 server: as they should be, large and many, and with every fault that the world has."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from aiobotocore.session import get_session
from aiohttp import web
from yarl import URL

from belljar_server.artifacts import ArtifactStore, StoredArtifact, Upload
from belljar_server.artifacts.download import content_disposition
from belljar_server.artifacts.s3 import PART_BYTES, S3Store
from belljar_server.artifacts.spool import SpoolingStore
from belljar_server.config import S3
from belljar_server.errors import HostNotReady, NotFound, StoreFailed
from belljar_server.models import ArtifactState
from tests.integration.versitygw import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Gateway, running

MIB = 1 << 20
BUCKET = "artifacts"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("versitygw")) as started:
        asyncio.run(make_bucket(started.url))
        yield started


async def make_bucket(endpoint_url: str) -> None:
    async with get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint_url,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    ) as client:
        await client.create_bucket(Bucket=BUCKET)


@pytest.fixture
def settings(gateway: Gateway, tmp_path: Path) -> S3:
    (tmp_path / "id").write_text(f"{ACCESS_KEY_ID}\n")
    (tmp_path / "secret").write_text(f"{SECRET_ACCESS_KEY}\n")
    return S3(
        bucket=BUCKET,
        prefix="tests/",
        endpoint_url=gateway.url,
        access_key_id_file=tmp_path / "id",
        secret_access_key_file=tmp_path / "secret",
    )


@pytest.fixture
async def store(settings: S3) -> AsyncIterator[S3Store]:
    async with S3Store(settings, url_ttl=60) as opened:
        yield opened


def peak_kib(*, reset: bool = False) -> int:
    """The most memory that this process has had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


async def keep(
    store: ArtifactStore, content: bytes, name: str = "a.bin", content_type: str = "text/x"
) -> StoredArtifact:
    return await (await fill(store, content, name, content_type)).commit()


async def fill(store: ArtifactStore, content: bytes, name: str = "a.bin", content_type: str = "text/x") -> Upload:
    upload = await store.begin(name, content_type)
    for start in range(0, len(content), MIB):
        await upload.write(content[start : start + MIB])
    return upload


async def read(store: ArtifactStore, artifact_id: str) -> bytes:
    _, pieces = await store.open(artifact_id)
    return b"".join([piece async for piece in pieces])


async def download(
    url: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[aiohttp.ClientResponse, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, URL(url, encoded=True), headers=headers) as response,
    ):
        return response, await response.read()


@pytest.mark.parametrize("size", [0, 1, 100_000, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 5])
async def test_artifact_comes_back_as_it_went_in(store: S3Store, size: int) -> None:
    """One part or several: bytes, size, SHA-256, type and name survive."""
    content = os.urandom(size)
    kept = await keep(store, content, "charts/Übersicht 1.png", "image/png")
    assert (kept.size_bytes, kept.sha256) == (size, hashlib.sha256(content).hexdigest())
    found, pieces = await store.open(kept.id)
    assert found == kept
    assert b"".join([piece async for piece in pieces]) == content


@pytest.mark.parametrize(
    "name", ["new\nline\r\n.txt", 'q"u.txt', "ü" * 2000, "lone\udc80", "%2e%2e/x", "rtl\u202egpj.exe"]
)
@pytest.mark.parametrize("size", [3, PART_BYTES + 3])
async def test_hostile_names_are_stored_and_downloaded_safely(store: S3Store, name: str, size: int) -> None:
    """A name of any length and content is kept apart from the key, and the download's header is ours."""
    kept = await keep(store, bytes(size), name, "text/html; charset=utf-8")
    assert (await store.open(kept.id))[0].name == name.replace("\udc80", "?")
    response, _ = await download((await store.sign(kept)).url)
    assert response.status == 200
    assert response.headers["Content-Disposition"] == content_disposition(name)
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"


async def test_signed_url_downloads_with_ranges_and_only_what_was_signed(store: S3Store) -> None:
    """Anybody with the URL can read this artifact, whole or in part, and nothing else."""
    content = os.urandom(PART_BYTES + 1000)
    kept = await keep(store, content)
    url = (await store.sign(kept)).url
    response, body = await download(url)
    assert (response.status, body) == (200, content)
    response, body = await download(url, {"Range": "bytes=100-199"})
    assert (response.status, body) == (206, content[100:200])
    response, _ = await download(url, {"Range": f"bytes={len(content)}-"})
    assert response.status == 416
    for method in ("PUT", "DELETE"):
        assert (await download(url, method=method))[0].status == 403
    other = await keep(store, b"other")
    assert (await download(url.replace(kept.id, other.id)))[0].status == 403
    assert (await download(url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")))[0].status == 403


async def test_signed_url_names_the_public_endpoint(settings: S3) -> None:
    """Clients that reach the store by another name get that name; its host is part of the signature."""
    public = settings.model_copy(update={"public_endpoint_url": "https://files.example.com"})
    async with S3Store(public, url_ttl=60) as store:
        kept = await keep(store, b"x")
        signed = await store.sign(kept)
    assert signed.url.startswith(f"https://files.example.com/{BUCKET}/tests/{kept.id}?")
    assert "X-Amz-Expires=60" in signed.url


async def test_deleted_artifact_is_gone(store: S3Store, gateway: Gateway) -> None:
    """Also what was kept beside a large one; a second deletion says so."""
    for size in (1, PART_BYTES + 1):
        kept = await keep(store, bytes(size))
        url = (await store.sign(kept)).url
        await store.delete(kept.id)
        with pytest.raises(NotFound):
            await store.open(kept.id)
        with pytest.raises(NotFound):
            await store.delete(kept.id)
        assert (await download(url))[0].status == 404
        assert not list(gateway.objects.rglob(f"{kept.id}*"))


async def test_aborted_upload_leaves_nothing(store: S3Store, gateway: Gateway) -> None:
    """Parts that were sent already are given back."""
    before = sorted(gateway.objects.rglob("*"))
    upload = await fill(store, bytes(3 * PART_BYTES))
    await upload.abort()
    await upload.abort()
    assert sorted(path for path in gateway.objects.rglob("*") if path.is_file()) == [
        path for path in before if path.is_file()
    ]


async def test_secret_file_that_is_missing_or_empty_stops_the_start(settings: S3, tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "empty").write_text("\n")
    for file in ("missing", "empty"):
        wrong = settings.model_copy(update={"secret_access_key_file": tmp_path / file})
        with pytest.raises(HostNotReady, match=file):
            await S3Store(wrong, url_ttl=60).__aenter__()


async def test_missing_bucket_is_a_failure_of_the_store(settings: S3) -> None:
    """An upload must never look like a question about something that does not exist."""
    async with S3Store(settings.model_copy(update={"bucket": "nowhere"}), url_ttl=60) as store:
        for size in (1, PART_BYTES + 1):
            with pytest.raises(StoreFailed):
                await keep(store, bytes(size))


@pytest.mark.timeout(300)
async def test_thousand_small_artifacts_and_300_mb_keep_memory_flat(settings: S3, tmp_path: Path) -> None:
    """Through the spool into the store and back, without being held; nothing stays in the spool."""
    async with (
        S3Store(settings, url_ttl=60) as remote,
        SpoolingStore(remote, tmp_path / "spool", min_free_bytes=0) as store,
    ):
        gate = asyncio.Semaphore(8)

        async def small(number: int) -> StoredArtifact:
            async with gate:
                return await keep(store, b"%d" % number)

        kept = await asyncio.gather(*(small(number) for number in range(1000)))
        assert {artifact.state for artifact in kept} == {ArtifactState.AVAILABLE}
        before = peak_kib(reset=True)
        piece = os.urandom(MIB)
        upload = await store.begin("large.bin", "application/octet-stream")
        for _ in range(300):
            await upload.write(piece)
        large = await upload.commit()
        received = 0
        _, pieces = await store.open(large.id)
        async for got in pieces:
            received += len(got)
        grown_kib = peak_kib() - before
        assert large.state is ArtifactState.AVAILABLE
        assert received == large.size_bytes == 300 * MIB
        assert grown_kib < 128 * 1024
        assert await store.pending() == 0


@dataclass
class Fault:
    """What a proxy in front of the store does to writes. Mutable state: which fault it is now."""

    kind: str = ""


@asynccontextmanager
async def faulty_proxy(upstream: str) -> AsyncIterator[tuple[str, Fault]]:
    """A proxy that passes requests on as they are, until a fault is set."""
    fault = Fault()
    session = aiohttp.ClientSession(auto_decompress=False)

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if fault.kind in ("500", "403"):
            return web.Response(status=int(fault.kind))
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "swallow" and request.method == "PUT":
            return web.Response(headers={"ETag": '"0"'})
        headers = request.headers.copy()
        if fault.kind == "truncate" and request.method == "PUT":
            body = body[: len(body) // 2]
            headers["Content-Length"] = str(len(body))
        async with session.request(
            request.method,
            URL(upstream + request.raw_path, encoded=True),
            headers=headers,
            data=io.BytesIO(body) if body else None,
        ) as reply:
            kept = {
                name: value
                for name, value in reply.headers.items()
                if name.lower() not in ("transfer-encoding", "connection", "content-length")
            }
            answer = await reply.read()
            if request.method == "HEAD":
                kept["Content-Length"] = reply.headers.get("Content-Length", "0")
            return web.Response(status=reply.status, headers=kept, body=answer)

    app = web.Application(client_max_size=64 * MIB)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", fault
    finally:
        await runner.cleanup()
        await session.close()


async def until_delivered(store: SpoolingStore) -> None:
    async with asyncio.timeout(60):
        while await store.pending() or store.is_down:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("size", [1000, 2 * PART_BYTES])
@pytest.mark.parametrize("kind", ["500", "403", "truncate", "swallow", "hang"])
async def test_artifact_waits_while_the_store_fails_and_arrives_when_it_does_not(
    settings: S3, gateway: Gateway, tmp_path: Path, kind: str, size: int
) -> None:
    """500, 403, a store that cuts, loses or sits on what it gets: PENDING, then whole, under the first URL."""
    content = os.urandom(size)
    async with AsyncExitStack() as stack:
        proxy, fault = await stack.enter_async_context(faulty_proxy(gateway.url))
        behind = settings.model_copy(update={"endpoint_url": proxy, "public_endpoint_url": gateway.url})
        remote = await stack.enter_async_context(S3Store(behind, url_ttl=600))
        store = await stack.enter_async_context(
            SpoolingStore(remote, tmp_path / "spool", min_free_bytes=0, patience=3, first_retry=0.05)
        )
        fault.kind = kind
        kept = await keep(store, content, "report.pdf", "application/pdf")
        url = (await store.sign(kept)).url
        assert kept.state is ArtifactState.PENDING
        assert kept.sha256 == hashlib.sha256(content).hexdigest()
        assert await read(store, kept.id) == content
        assert (await download(url))[0].status == 404
        # What hangs in the delivering task is bounded by the client's own timeout; a restart is quicker.
        await store.aclose()
        fault.kind = ""
        again = await stack.enter_async_context(
            SpoolingStore(remote, tmp_path / "spool", min_free_bytes=0, first_retry=0.05)
        )
        await until_delivered(again)
        response, body = await download(url)
        assert (response.status, body) == (200, content)
        assert response.headers["Content-Type"] == "application/pdf"
        assert (await store.open(kept.id))[0] == replace(kept, state=ArtifactState.AVAILABLE)


async def test_store_killed_in_the_middle_of_an_upload_gets_it_after_its_restart(tmp_path: Path) -> None:
    """The upload goes on into the spool, the client is told PENDING, and the URL works once the store is back."""
    content = os.urandom(6 * PART_BYTES)
    (tmp_path / "id").write_text(ACCESS_KEY_ID)
    (tmp_path / "secret").write_text(SECRET_ACCESS_KEY)
    with running(tmp_path / "gateway") as gateway:
        await make_bucket(gateway.url)
        settings = S3(
            bucket=BUCKET,
            endpoint_url=gateway.url,
            access_key_id_file=tmp_path / "id",
            secret_access_key_file=tmp_path / "secret",
        )
        async with (
            S3Store(settings, url_ttl=600) as remote,
            SpoolingStore(remote, tmp_path / "spool", min_free_bytes=0, first_retry=0.05) as store,
        ):
            upload = await fill(store, content[: 3 * PART_BYTES + MIB])
            gateway.kill()
            for start in range(3 * PART_BYTES + MIB, len(content), MIB):
                await upload.write(content[start : start + MIB])
            kept = await upload.commit()
            small = await keep(store, b"while it is down")
            urls = [(await store.sign(artifact)).url for artifact in (kept, small)]
            assert kept.state is small.state is ArtifactState.PENDING
            assert await read(store, kept.id) == content
            gateway.start()
            await until_delivered(store)
            assert (await download(urls[0]))[1] == content
            assert (await download(urls[1]))[1] == b"while it is down"
            assert (await keep(store, b"afterwards")).state is ArtifactState.AVAILABLE
