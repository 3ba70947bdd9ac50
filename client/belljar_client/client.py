"""The synchronous client."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from belljar.v1 import sandbox_pb2
from belljar_client.attempts import DEFAULT_ATTEMPTS, Attempts
from belljar_client.channels import SandboxServiceStub, default_address, options_for
from belljar_client.models import Event, Result, Runtimes, Transcript
from belljar_client.requests import Options, build_request
from belljar_client.results import runtimes_of


class Client:
    """Runs code on a Belljar server. Use it as a context manager, and from as many threads as you like.

    Every method raises a subclass of `BelljarClientError` that says how to react; how the code itself ended is in the
    `Result` and never an exception.
    """

    def __init__(self, address: str | None = None, *, attempts: int = DEFAULT_ATTEMPTS) -> None:
        """`address` is `host:port`; by default BELLJAR_ADDRESS, else 127.0.0.1:50051. Connects with the first call.

        `attempts`: how often a call is tried in all, when nothing was started or its `request_id` makes that safe.
        """
        self.address = address or default_address()
        self._attempts = attempts
        self._channel: grpc.Channel | None = grpc.insecure_channel(self.address, options=options_for(self.address))
        self._stub: Any = SandboxServiceStub(self._channel)

    def execute(self, code: str, *, deadline: float | None = None, **options: Unpack[Options]) -> Result:
        """Runs the code to its end and returns what came of it. `deadline`: seconds for all of it, waiting included."""
        transcript = Transcript()
        for event in self.stream(code, deadline=deadline, **options):
            transcript.add(event)
        return transcript.result()

    def stream(
        self, code: str, *, deadline: float | None = None, **options: Unpack[Options]
    ) -> Generator[Event, None, None]:
        """Runs the code and yields what happens while it does; the last event is `Finished`.

        Closing the generator early (`close()`, or letting go of it) cancels the execution. After a retry the phases
        before the start of the code can come again, under another execution id.
        """
        request = build_request(code, **options)
        return self._events(request, self._new_attempts(deadline, replayable=bool(request.request_id)))

    def runtimes(self, *, deadline: float | None = None) -> Runtimes:
        """What the server runs, and within which limits."""
        attempts = self._new_attempts(deadline, replayable=True)
        while True:
            timeout = attempts.begin()
            try:
                return runtimes_of(self._stub.ListRuntimes(sandbox_pb2.ListRuntimesRequest(), timeout=timeout))
            except grpc.RpcError as error:
                wait = attempts.failed(error)
            time.sleep(wait)

    def _events(self, request: sandbox_pb2.ExecuteRequest, attempts: Attempts) -> Generator[Event, None, None]:
        while True:
            call = self._stub.Execute(request, timeout=attempts.begin())
            try:
                for message in call:
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
            time.sleep(wait)

    def _new_attempts(self, deadline: float | None, *, replayable: bool) -> Attempts:
        return Attempts(limit=self._attempts, deadline=deadline, replayable=replayable)

    def close(self) -> None:
        """Cancels what is running and closes the connection. A second call does nothing."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_channel", None) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<Client of {self.address}{'' if self._channel else ', closed'}>"
