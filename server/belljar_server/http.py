"""The HTTP port: downloads of locally stored artifacts, metrics for Prometheus, and the two health questions.

    GET /artifacts/<id>/<file name>?expires=…&signature=…   the bytes, as an attachment
    GET /metrics   GET /healthz (the process lives)   GET /readyz (200 or 503 with the reason)
    GET /statusz   what runs, what waits and what ended lately: a plain page, or JSON by `Accept` or `?format=json`

A download answers, in this order: 403 for a signature that this server did not make (an id that does not exist looks
the same), 410 when the time of the URL is over, 404 when the artifact is gone. The bytes are user code's, so every
answer tells browsers to save and not to show, run, sniff or embed them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape
from http import HTTPStatus

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from belljar_server.artifacts import StoredArtifact
from belljar_server.artifacts.disk import PIECE_BYTES
from belljar_server.artifacts.download import content_disposition
from belljar_server.artifacts.local import LocalStore
from belljar_server.errors import HostNotReady, NotFound, StoreFailed

Status = Callable[[], dict[str, list[dict[str, object]]]]
"""Tables by their title: each a list of rows with the same columns."""
Ready = Callable[[], tuple[bool, str]]
"""Tells whether executions can start, and why not."""

STALL_SECONDS = 60.0
"""A client that takes no byte for so long loses its connection."""
_IDLE_SECONDS = 30.0
"""How long a connection may wait without a whole request."""
_SHUTDOWN_SECONDS = 5.0

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-site",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-transform",
}
_EXPIRES = re.compile(r"[0-9]{1,12}", re.ASCII)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII | re.IGNORECASE)


def build(registry: CollectorRegistry, ready: Ready, store: LocalStore | None, status: Status) -> web.Application:
    """The application. Without a local store there are no downloads here: the object store serves its own."""
    app = web.Application()
    app.on_response_prepare.append(_harden)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def is_ready(_: web.Request) -> web.Response:
        yes, reason = ready()
        return web.Response(text="ready\n") if yes else web.Response(status=503, text=f"not ready: {reason}\n")

    async def statusz(request: web.Request) -> web.Response:
        tables = status()
        wants_json = request.query.get("format") == "json" or "application/json" in request.headers.get("Accept", "")
        return web.json_response(tables) if wants_json else web.Response(text=page(tables), content_type="text/html")

    app.router.add_get("/statusz", statusz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", alive)
    app.router.add_get("/readyz", is_ready)
    if store is not None:
        app.router.add_get("/artifacts/{id:[^/]+}/{name:[^/]+}", _Downloads(store).get)
    return app


def page(tables: dict[str, list[dict[str, object]]]) -> str:
    """The tables as a page without scripts or styles; every value is escaped."""
    parts = ["<!doctype html><title>Belljar</title><h1>Belljar</h1>"]
    for title, rows in tables.items():
        parts.append(f"<h2>{escape(title)}</h2>")
        if not rows:
            parts.append("<p>none</p>")
            continue
        parts.append("<table><tr>" + "".join(f"<th>{escape(name)}" for name in rows[0]))
        parts += ["<tr>" + "".join(f"<td>{escape(str(value))}" for value in row.values()) for row in rows]
        parts.append("</table>")
    return "\n".join(parts)


@asynccontextmanager
async def serve_http(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Serves the application while the scope lasts and gives `host:port` as bound. Raises HostNotReady."""
    runner = web.AppRunner(app, shutdown_timeout=_SHUTDOWN_SECONDS, handler_cancellation=True)
    await runner.setup()
    server = runner.server
    assert server is not None  # noqa: S101 - `setup` made it
    # Whoever reads the URL of a download can download.
    no_log = logging.Logger("http access", logging.CRITICAL + 1)  # noqa: LOG001 - settings must not reach it by name
    loop = asyncio.get_running_loop()

    def connection() -> _Connection:
        return _Connection(server, loop=loop, access_log=no_log, keepalive_timeout=_IDLE_SECONDS)

    try:
        try:
            port_open = await loop.create_server(connection, host, port)
        except OSError as error:
            raise HostNotReady(f"cannot listen for HTTP on {host}:{port}: {error.strerror}") from error
        bound_host, bound_port = port_open.sockets[0].getsockname()[:2]
        try:
            yield f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"
        finally:
            port_open.close()
    finally:
        await runner.cleanup()


class _Connection(web.RequestHandler):
    """One connection of a client.

    What is no HTTP gets one line that repeats nothing and names no software, and stays out of the log: anybody can send
    it, as often as they like.
    """

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answers a request that could not be parsed, or whose handler failed."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        response = web.Response(status=status, text="This is not a valid request.\n", headers=_HEADERS)
        # Requests without a route do not pass `_harden`, and left out, aiohttp puts its own name and version here.
        response.headers["Server"] = "belljar"
        response.force_close()
        return response


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    response.headers.popall("Server", None)


@dataclass(frozen=True, slots=True)
class _Span:
    """Which bytes go out."""

    start: int
    count: int
    is_partial: bool


class _Downloads:
    """Serves what a signed URL names. Has no state but the store."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    async def get(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        try:
            artifact, fd = self._store.disk.open_file(request.match_info["id"])
        except NotFound:
            return web.Response(status=404, text="This artifact does not exist any more.\n")
        except StoreFailed:
            return web.Response(status=503, text="The artifact cannot be read now.\n", headers={"Retry-After": "10"})
        try:
            return await self._answer(request, artifact, fd)
        finally:
            os.close(fd)

    def _refusal(self, request: web.Request) -> web.Response | None:
        query = request.query
        expires, signature = query.get("expires", ""), query.get("signature", "")
        is_genuine = (
            set(query) == {"expires", "signature"}
            and len(query) == len(set(query))
            and _EXPIRES.fullmatch(expires)
            and self._store.signer.is_genuine(request.match_info["id"], request.match_info["name"], expires, signature)
        )
        if not is_genuine:
            return web.Response(status=403, text="The signature of this URL is not valid.\n")
        if self._store.clock() >= int(expires):
            return web.Response(status=410, text="The time of this URL is over. Ask for a fresh one.\n")
        return None

    async def _answer(self, request: web.Request, artifact: StoredArtifact, fd: int) -> web.StreamResponse:
        etag = f'"{artifact.sha256}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if _names(request.headers.get("If-None-Match", ""), etag):
            return web.Response(status=304, headers=headers)
        span = _span(request, artifact.size_bytes, etag)
        if span is None:
            headers["Content-Range"] = f"bytes */{artifact.size_bytes}"
            return web.Response(status=416, text="There are no such bytes.\n", headers=headers)
        response = web.StreamResponse(status=206 if span.is_partial else 200, headers=headers)
        response.headers["Content-Type"] = artifact.content_type
        response.headers["Content-Disposition"] = content_disposition(artifact.name)
        response.content_length = span.count
        if span.is_partial:
            last = span.start + span.count - 1
            response.headers["Content-Range"] = f"bytes {span.start}-{last}/{artifact.size_bytes}"
        await response.prepare(request)
        if request.method == "GET":
            await self._send(request, response, fd, span)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, fd: int, span: _Span) -> None:
        offset, end = span.start, span.start + span.count
        try:
            while offset < end:
                piece = await self._store.disk.read(fd, min(end - offset, PIECE_BYTES), offset)
                async with asyncio.timeout(STALL_SECONDS):
                    await response.write(piece)
                offset += len(piece)
        except (TimeoutError, StoreFailed):
            # The length is promised already: a connection that breaks is the only way to say that it will not be kept.
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            return


def _names(condition: str, etag: str) -> bool:
    """Whether an If-None-Match header names this entity tag, by weak comparison."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in condition.split(","))


def _span(request: web.Request, size: int, etag: str) -> _Span | None:
    """What the Range header asks for; None when there are no such bytes.

    Several ranges, other units and what is no range at all are ignored, as RFC 9110 14.2 allows; so is a range of
    another version than If-Range names.
    """
    everything = _Span(0, size, is_partial=False)
    asked = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if asked is None or request.headers.get("If-Range", etag) != etag:
        return everything
    first, last = asked.groups()
    if not first and not last:
        return everything
    if not first:
        count = min(int(last), size)
        return _Span(size - count, count, is_partial=True) if count else None
    if last and int(last) < int(first):
        return everything
    if int(first) >= size:
        return None
    end = min(int(last), size - 1) if last else size - 1
    return _Span(int(first), end - int(first) + 1, is_partial=True)
