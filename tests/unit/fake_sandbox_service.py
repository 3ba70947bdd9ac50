"""A server that speaks the contract on loopback and plays scripts instead of running code; only the server is fake."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped, unused-ignore]

from belljar.v1 import sandbox_pb2, sandbox_pb2_grpc

Message = sandbox_pb2.ExecuteResponse
Context = Any
Script = Callable[[sandbox_pb2.ExecuteRequest, Context], AsyncIterator[Message]]


def event(sequence: int, *, execution_id: str = "e1", **kind: Any) -> Message:
    """One message; `kind` is one of started, phase, output, finished."""
    message = sandbox_pb2.ExecuteResponse(execution_id=execution_id, sequence=sequence, **kind)
    message.time.FromSeconds(1_700_000_000 + sequence)
    return message


def queued(sequence: int = 1, **other: Any) -> Message:
    """The execution waits for a place."""
    return event(sequence, phase=sandbox_pb2.PhaseChange(phase=sandbox_pb2.PHASE_QUEUED), **other)


def started(sequence: int, **other: Any) -> Message:
    """The code is about to run in a warm sandbox after a quarter of a second."""
    queue_time = duration_pb2.Duration(nanos=250_000_000)
    return event(sequence, started=sandbox_pb2.Started(warm=True, queue_time=queue_time), **other)


def stdout(sequence: int, content: bytes, **other: Any) -> Message:
    """The code printed."""
    output = sandbox_pb2.Output(stream=sandbox_pb2.OUTPUT_STREAM_STDOUT, content=content)
    return event(sequence, output=output, **other)


def stderr(sequence: int, content: bytes, **other: Any) -> Message:
    """The code complained."""
    output = sandbox_pb2.Output(stream=sandbox_pb2.OUTPUT_STREAM_STDERR, content=content)
    return event(sequence, output=output, **other)


def succeeded(sequence: int, result_json: str = "null", *, execution_id: str = "e1", **fields: Any) -> Message:
    """The code ran to its end."""
    finished = sandbox_pb2.Finished(outcome=sandbox_pb2.OUTCOME_SUCCEEDED, result_json=result_json, **fields)
    return event(sequence, execution_id=execution_id, finished=finished)


def failed(sequence: int, kind: int, message: str = "", *, exit_code: int = 1, **place: Any) -> Message:
    """The code did not."""
    error = sandbox_pb2.Error(kind=kind, message=message, **place)  # type: ignore[arg-type]
    outcome = sandbox_pb2.OUTCOME_FAILED
    return event(sequence, finished=sandbox_pb2.Finished(outcome=outcome, exit_code=exit_code, error=error))


def plays(*messages: Message) -> Script:
    """A script that sends the messages and ends the stream."""

    async def script(request: sandbox_pb2.ExecuteRequest, context: Context) -> AsyncIterator[Message]:
        for message in messages:
            yield message

    return script


def breaks(
    *messages: Message,
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
    text: str = "no",
    violations: tuple[tuple[str, str], ...] = (),
    retry_after: float | None = None,
) -> Script:
    """A script that sends the messages and then ends with a status, with google.rpc details where any are given."""

    async def script(request: sandbox_pb2.ExecuteRequest, context: Context) -> AsyncIterator[Message]:
        for message in messages:
            yield message
        await context.abort(code, text, details_of(code, text, violations, retry_after))

    return script


def waits(*messages: Message) -> Script:
    """A script that sends the messages and then waits to be cancelled."""

    async def script(request: sandbox_pb2.ExecuteRequest, context: Context) -> AsyncIterator[Message]:
        for message in messages:
            yield message
        await asyncio.Event().wait()

    return script


def details_of(
    code: grpc.StatusCode, text: str, violations: tuple[tuple[str, str], ...], retry_after: float | None
) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata as a server sends it; none when there is nothing to say."""
    status = status_pb2.Status(code=code.value[0], message=text)
    if violations:
        bad_request = error_details_pb2.BadRequest()
        for field, description in violations:
            bad_request.field_violations.add(field=field, description=description)
        status.details.append(_packed(bad_request))
    if retry_after is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromNanoseconds(round(retry_after * 1e9))
        status.details.append(_packed(retry_info))
    return (("grpc-status-details-bin", status.SerializeToString()),) if status.details else ()


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


class FakeSandboxService(sandbox_pb2_grpc.SandboxServiceServicer):  # type: ignore[misc, unused-ignore]
    """Plays one script per call, the last one again and again. State: requests seen, whether one was cancelled."""

    def __init__(self) -> None:
        self.address = ""
        self.scripts: list[Script] = [plays(succeeded(1))]
        self.requests: list[sandbox_pb2.ExecuteRequest] = []
        self.remaining: list[float | None] = []
        self.called = threading.Event()
        self.cancelled = threading.Event()
        self.runtimes = sandbox_pb2.ListRuntimesResponse()
        self.list_failures: list[grpc.StatusCode] = []

    async def Execute(  # noqa: N802 - the name in the contract
        self, request: sandbox_pb2.ExecuteRequest, context: Context
    ) -> AsyncIterator[Message]:
        """Plays the next script."""
        self.requests.append(request)
        self.called.set()
        self.remaining.append(context.time_remaining())
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            async for message in script(request, context):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def ListRuntimes(  # noqa: N802 - the name in the contract
        self, request: sandbox_pb2.ListRuntimesRequest, context: Context
    ) -> sandbox_pb2.ListRuntimesResponse:
        """Fails as often as it should, then tells."""
        if self.list_failures:
            code = self.list_failures.pop(0)
            await context.abort(code, "no", details_of(code, "no", (), 0.0))
        return self.runtimes


@contextmanager
def serving() -> Iterator[FakeSandboxService]:
    """The service on a port of its own, in an event loop of its own, so that synchronous clients can talk to it."""
    service = FakeSandboxService()
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = grpc.aio.server()
        sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call, unused-ignore]
        service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        ready.set()
        await stop.wait()
        await server.stop(grace=0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield service
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


class FakeDownloads:
    """An HTTP server for artifacts. State: what each path answers with."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.contents: dict[str, bytes] = {}

    def artifact(self, name: str, content: bytes, **changes: Any) -> sandbox_pb2.Artifact:
        """An artifact that can be downloaded here; `changes` are lies about it."""
        path = f"/{len(self.contents)}"
        self.contents[path] = content
        fields: dict[str, Any] = {
            "id": f"a{len(self.contents)}",
            "name": name,
            "content_type": "text/plain",
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "download_url": f"http://127.0.0.1:{self.port}{path}",
            "state": sandbox_pb2.ARTIFACT_STATE_AVAILABLE,
        }
        return sandbox_pb2.Artifact(**(fields | changes))


@contextmanager
def serving_downloads() -> Iterator[FakeDownloads]:
    """The HTTP server on a port of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    downloads = FakeDownloads(server.server_address[1])
    server.downloads = downloads  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield downloads
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answers with the content of the path, without saying how long it is."""
        content = self.server.downloads.contents.get(self.path)  # type: ignore[attr-defined]
        self.send_response(200 if content is not None else 410)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: Any, **__: Any) -> None:
        """Says nothing."""
