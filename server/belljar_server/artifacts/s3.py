"""Artifacts in an S3 bucket. The only module that knows aiobotocore.

An artifact is the object `<prefix><id>`, with content type and disposition for downloads, and name and SHA-256 as
object metadata. Where these do not fit (S3 takes 2 KiB, and wants them of a multipart upload before the SHA-256 is
known) they are JSON in `<prefix><id>.json`, written before the artifact exists. How long artifacts live is up to the
bucket's own life-cycle rules, which should also end multipart uploads that a killed server left open.

Long, for what the library raises and what S3 lacks is known here and nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote, unquote

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from belljar_server.artifacts import SignedUrl, StoredArtifact, Upload
from belljar_server.artifacts.disk import PIECE_BYTES, new_id
from belljar_server.artifacts.download import content_disposition
from belljar_server.errors import HostNotReady, NotFound, StoreFailed

PART_BYTES = 8 << 20
"""Size of a part; S3 allows 10,000 of them, so an artifact can have 80 GB."""
PARTS_IN_FLIGHT = 2
_MAX_METADATA_BYTES = 1800
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0
_ATTEMPTS = 3
_CONNECTIONS = 32


class Bucket(Protocol):
    """Which bucket, and how it is reached: the `artifacts.s3` section of the settings."""

    @property
    def bucket(self) -> str:
        """Name of the bucket."""

    @property
    def prefix(self) -> str:
        """What object keys start with."""

    @property
    def endpoint_url(self) -> str:
        """Empty means AWS."""

    @property
    def public_endpoint_url(self) -> str:
        """What signed URLs start with; empty means as `endpoint_url`."""

    @property
    def region(self) -> str:
        """Name of the region."""

    @property
    def access_key_id_file(self) -> Path | None:
        """None means the usual AWS sources."""

    @property
    def secret_access_key_file(self) -> Path | None:
        """None means the usual AWS sources."""


class S3Store:
    """An ArtifactStore in a bucket; also a RemoteStore for the spool. Use it as an async context manager.

    Mutable state is two clients with their connection pools: one talks to the bucket, the other only signs URLs.
    URLs signed with temporary credentials (an instance role) end with these, which can be before `url_ttl` seconds.
    """

    def __init__(self, bucket: Bucket, *, url_ttl: float) -> None:
        self._bucket = bucket
        self._url_ttl = int(url_ttl)
        self._open = AsyncExitStack()
        self._client: Any = None
        self._signer: Any = None

    def __repr__(self) -> str:
        return (
            f"S3Store(bucket={self._bucket.bucket!r}, prefix={self._bucket.prefix!r}, open={self._client is not None})"
        )

    async def __aenter__(self) -> Self:
        """Raises HostNotReady for settings that cannot work. Does not ask the bucket, which may be up later."""
        bucket = self._bucket
        credentials = {
            "aws_access_key_id": _secret(bucket.access_key_id_file),
            "aws_secret_access_key": _secret(bucket.secret_access_key_file),
        }
        config = AioConfig(
            signature_version="s3v4",
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
            max_pool_connections=_CONNECTIONS,
            # Stores beside AWS have no host names for buckets, and not all understand checksums in trailers.
            s3={"addressing_style": "path" if bucket.endpoint_url else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        session = get_session()
        endpoints = (bucket.endpoint_url, bucket.public_endpoint_url or bucket.endpoint_url)
        try:
            self._client, self._signer = [
                await self._open.enter_async_context(
                    session.create_client(
                        "s3", region_name=bucket.region, endpoint_url=endpoint or None, config=config, **credentials
                    )
                )
                for endpoint in endpoints
            ]
        except (BotoCoreError, ValueError) as error:
            await self._open.aclose()
            raise HostNotReady(f"artifacts.s3: {error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def begin(self, name: str, content_type: str) -> Upload:
        """As ArtifactStore."""
        return await self.begin_as(new_id(), name, content_type)

    async def begin_as(self, artifact_id: str, name: str, content_type: str) -> Upload:
        """As RemoteStore. Nothing is sent before the first part is full, or the artifact is complete."""
        artifact = StoredArtifact(artifact_id, name, content_type, size_bytes=0, sha256="")
        return _S3Upload(self._client, {"Bucket": self._bucket.bucket, "Key": self._key(artifact_id)}, artifact)

    async def open(self, artifact_id: str) -> tuple[StoredArtifact, AsyncIterator[bytes]]:
        """As ArtifactStore. The object is opened with the first piece, so an unused iterator leaks nothing."""
        key = self._key(artifact_id)
        with _reading(artifact_id):
            head = await self._client.head_object(Bucket=self._bucket.bucket, Key=key)
            label = head["Metadata"] if {"name", "sha256"} <= head["Metadata"].keys() else await self._label_beside(key)
        artifact = StoredArtifact(
            artifact_id, unquote(label["name"]), head["ContentType"], head["ContentLength"], label["sha256"]
        )
        return artifact, self._pieces(artifact, head["ETag"])

    async def sign(self, artifact: StoredArtifact) -> SignedUrl:
        """As ArtifactStore; needs no network, so it works for an artifact that is still on its way."""
        expire_time = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=self._url_ttl)
        with _failures(artifact.id):
            url: str = await self._signer.generate_presigned_url(
                "get_object",
                Params={"Bucket": self._bucket.bucket, "Key": self._key(artifact.id)},
                ExpiresIn=self._url_ttl,
            )
        return SignedUrl(url, expire_time)

    async def delete(self, artifact_id: str) -> None:
        """As ArtifactStore."""
        key = self._key(artifact_id)
        with _reading(artifact_id):
            await self._client.head_object(Bucket=self._bucket.bucket, Key=key)
            await self._client.delete_object(Bucket=self._bucket.bucket, Key=key)
            await self._client.delete_object(Bucket=self._bucket.bucket, Key=_label_key(key))

    async def check(self) -> None:
        """As ArtifactStore; a bucket has room."""

    async def aclose(self) -> None:
        """As ArtifactStore; a second call does nothing."""
        await self._open.aclose()
        self._client = self._signer = None

    def _key(self, artifact_id: str) -> str:
        return self._bucket.prefix + artifact_id

    async def _label_beside(self, key: str) -> dict[str, str]:
        reply = await self._client.get_object(Bucket=self._bucket.bucket, Key=_label_key(key))
        async with reply["Body"] as body:
            label: dict[str, str] = json.loads(await body.read())
        return label

    async def _pieces(self, artifact: StoredArtifact, etag: str) -> AsyncIterator[bytes]:
        received = 0
        with _reading(artifact.id):
            reply = await self._client.get_object(Bucket=self._bucket.bucket, Key=self._key(artifact.id), IfMatch=etag)
            async with reply["Body"] as body:
                async for piece in body.iter_chunks(PIECE_BYTES):
                    received += len(piece)
                    yield piece
        if received != artifact.size_bytes:
            raise StoreFailed(f"the bucket gave {received} of {artifact.size_bytes} bytes of artifact {artifact.id}")


class _S3Upload(Upload):
    """One artifact on its way into the bucket.

    Mutable state: the part being filled, the parts on their way, and what S3 said about those that arrived.
    """

    def __init__(self, client: Any, at: dict[str, str], artifact: StoredArtifact) -> None:
        self._client = client
        self._at = at
        self._artifact = artifact
        self._id = artifact.id
        self._hash = hashlib.sha256()
        self._size = 0
        self._filling = bytearray()
        self._multipart_id = ""
        self._sending: dict[int, asyncio.Task[dict[str, object]]] = {}
        self._sent: list[dict[str, object]] = []

    async def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._filling += data
        while len(self._filling) > PART_BYTES:
            part = bytes(self._filling[:PART_BYTES])
            del self._filling[:PART_BYTES]
            await self._send(part)

    async def commit(self) -> StoredArtifact:
        artifact = replace(self._artifact, size_bytes=self._size, sha256=self._hash.hexdigest())
        label = {"name": quote(artifact.name, safe="/", errors="replace"), "sha256": artifact.sha256}
        rest = bytes(self._filling)
        self._filling.clear()
        if self._multipart_id:
            await self._put_beside(label)
            await self._finish(rest)
        elif len(label["name"]) <= _MAX_METADATA_BYTES:
            await self._put(rest, label)
        else:
            await self._put_beside(label)
            await self._put(rest, {})
        return artifact

    async def abort(self) -> None:
        self._filling.clear()
        await _cancel(self._sending.values())
        if not self._multipart_id:
            return
        # An upload that is gone already is as good; any other is left to the bucket's life-cycle rule.
        with suppress(*_ERRORS):
            await self._client.abort_multipart_upload(**self._at, UploadId=self._multipart_id)

    async def _put(self, body: bytes, metadata: dict[str, str]) -> None:
        checksum = base64.b64encode(self._hash.digest()).decode()
        with _failures(self._id):
            reply = await self._client.put_object(
                **self._at, **self._headers(), Body=body, Metadata=metadata, ChecksumSHA256=checksum
            )
        # A store that gives the checksum back has compared it; of any other we ask what arrived.
        if reply.get("ChecksumSHA256") != checksum:
            await self._verify_size()

    async def _put_beside(self, label: dict[str, str]) -> None:
        key = _label_key(self._at["Key"])
        with _failures(self._id):
            await self._client.put_object(
                Bucket=self._at["Bucket"], Key=key, Body=json.dumps(label).encode(), ContentType="application/json"
            )

    async def _send(self, part: bytes) -> None:
        """Starts sending a part; waits while PARTS_IN_FLIGHT are on their way."""
        if not self._multipart_id:
            with _failures(self._id):
                reply = await self._client.create_multipart_upload(
                    **self._at, **self._headers(), ChecksumAlgorithm="SHA256"
                )
            self._multipart_id = reply["UploadId"]
        while len(self._sending) >= PARTS_IN_FLIGHT:
            await self._collect_first()
        number = len(self._sent) + len(self._sending) + 1
        self._sending[number] = asyncio.create_task(self._send_part(number, part))

    async def _send_part(self, number: int, part: bytes) -> dict[str, object]:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(part).digest())
        checksum = base64.b64encode(digest).decode()
        reply = await self._client.upload_part(
            **self._at, UploadId=self._multipart_id, PartNumber=number, Body=part, ChecksumSHA256=checksum
        )
        sent = {"PartNumber": number, "ETag": reply["ETag"]}
        return sent | ({"ChecksumSHA256": checksum} if reply.get("ChecksumSHA256") else {})

    async def _collect_first(self) -> None:
        number, task = next(iter(self._sending.items()))
        await asyncio.wait([task])
        with _failures(self._id):
            self._sent.append(task.result())
        del self._sending[number]

    async def _finish(self, rest: bytes) -> None:
        await self._send(rest)
        while self._sending:
            await self._collect_first()
        with _failures(self._id):
            await self._client.complete_multipart_upload(
                **self._at, UploadId=self._multipart_id, MultipartUpload={"Parts": self._sent}
            )
        self._multipart_id = ""
        await self._verify_size()

    async def _verify_size(self) -> None:
        """Asks what arrived, and takes it away again when it is not what was sent: its URL may be known already."""
        with _failures(self._id):
            head = await self._client.head_object(**self._at)
            if head["ContentLength"] == self._size:
                return
            await self._client.delete_object(**self._at)
        raise StoreFailed(f"the bucket took only {head['ContentLength']} of {self._size} bytes of artifact {self._id}")

    def _headers(self) -> dict[str, str]:
        return {
            "ContentType": self._artifact.content_type,
            "ContentDisposition": content_disposition(self._artifact.name),
            "CacheControl": "private, no-transform",
        }


_ERRORS = (BotoCoreError, ClientError, aiohttp.ClientError, OSError, TimeoutError)
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})


@contextmanager
def _failures(artifact_id: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise StoreFailed(f"the bucket, artifact {artifact_id}: {error or type(error).__name__}") from error


@contextmanager
def _reading(artifact_id: str) -> Iterator[None]:
    """As `_failures`, where an object that does not exist is an answer and not a failure."""
    with _failures(artifact_id):
        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _ABSENT:
                raise NotFound("artifact", artifact_id) from error
            raise


async def _cancel(tasks: Iterable[asyncio.Task[dict[str, object]]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    # Asking each for its exception keeps asyncio from reporting that nobody did.
    await asyncio.gather(*running, return_exceptions=True)


def _label_key(key: str) -> str:
    return f"{key}.json"


def _secret(file: Path | None) -> str | None:
    """The content of a secret's file; None leaves it to the usual AWS sources. Raises HostNotReady."""
    if file is None:
        return None
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HostNotReady(f"artifacts.s3: the secret file {file}: {error}") from error
    if not secret:
        raise HostNotReady(f"artifacts.s3: the secret file {file} is empty")
    return secret
