"""The asynchronous client: `client.py` once more, with another transport."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from belljar.v1 import sandbox_pb2
from belljar_client.attempts import DEFAULT_ATTEMPTS, Attempts
from belljar_client.channels import SandboxServiceStub, default_address, options_for
from belljar_client.models import Event, Result, Runtimes, Transcript
from belljar_client.requests import Options, build_request
from belljar_client.results import runtimes_of


class AsyncClient:
    """Runs code on a Belljar server, from within one event loop. Use it as `async with`, which opens the channel.

    Arguments, results and errors are those of `Client`. Cancelling the task cancels the execution.
    """

    def __init__(self, address: str | None = None, *, attempts: int = DEFAULT_ATTEMPTS) -> None:
        """As `Client`."""
        self.address = address or default_address()
        self._attempts = attempts
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def execute(self, code: str, *, deadline: float | None = None, **options: Unpack[Options]) -> Result:
        """Runs the code to its end and returns what came of it. `deadline`: seconds for all of it, waiting included."""
        transcript = Transcript()
        async with aclosing(self.stream(code, deadline=deadline, **options)) as events:
            async for event in events:
                transcript.add(event)
        return transcript.result()

    async def stream(
        self, code: str, *, deadline: float | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """Runs the code and yields what happens while it does; the last event is `Finished`.

        Closing the generator early cancels the execution. Leaving `async for` by `break` closes it when Python gets to
        it; `contextlib.aclosing` makes that at once.
        """
        attempts = self._new_attempts(deadline, replayable=bool(options.get("request_id")))
        # Files are read and inputs are made text here, which would hold up the event loop.
        request = await asyncio.to_thread(build_request, code, **options)
        while True:
            call = self._opened().Execute(request, timeout=attempts.begin())
            try:
                async for message in call:
                    event = attempts.accept(message)
                    if event is not None:
                        yield event
                wait = 0.0 if attempts.finished else attempts.cut_short()
            except grpc.RpcError as error:
                wait = 0.0 if attempts.finished else attempts.failed(error)
            finally:
                call.cancel()
            if attempts.finished:
                return
            await asyncio.sleep(wait)

    async def runtimes(self, *, deadline: float | None = None) -> Runtimes:
        """What the server runs, and within which limits."""
        attempts = self._new_attempts(deadline, replayable=True)
        while True:
            timeout = attempts.begin()
            try:
                call = self._opened().ListRuntimes(sandbox_pb2.ListRuntimesRequest(), timeout=timeout)
                return runtimes_of(await call)
            except grpc.RpcError as error:
                wait = attempts.failed(error)
            await asyncio.sleep(wait)

    def _new_attempts(self, deadline: float | None, *, replayable: bool) -> Attempts:
        return Attempts(limit=self._attempts, deadline=deadline, replayable=replayable)

    def _opened(self) -> Any:
        if self._channel is None:
            raise RuntimeError("the AsyncClient is not open: use it as `async with AsyncClient() as client`")
        return self._stub

    async def close(self) -> None:
        """Cancels what is running and closes the connection. A second call does nothing."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.address, options=options_for(self.address))
        self._stub = SandboxServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_channel", None) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.address}{'' if self._channel else ', not open'}>"
