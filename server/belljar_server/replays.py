"""Finished executions that a repeated request_id finds again: for a time, and as far as the memory for them goes.

Among them those that a killed server had accepted: whoever repeats one is told that it was lost, instead of running
it a second time.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import fields

from belljar_server.execution import Execution
from belljar_server.models import Accepted, ErrorKind, ExecutionRequest, Failure, Finished, Limits, Outcome

_NO_LIMITS = Limits(*(0 for _ in fields(Limits)))


class Replays:
    """Mutable state: executions by request_id, those that have finished in that order, and what they take in bytes."""

    def __init__(self, ttl: float, max_bytes: int) -> None:
        """`ttl` is in seconds."""
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._by_request_id: dict[str, Execution] = {}
        self._finished: deque[tuple[Execution, int]] = deque()
        self._bytes = 0

    def __repr__(self) -> str:
        """How much is kept."""
        return f"<Replays {len(self._by_request_id)} executions, {self._bytes} bytes of finished ones>"

    def find(self, request_id: str) -> Execution | None:
        """The execution that had this request_id, under way or finished."""
        self._forget_old()
        return self._by_request_id.get(request_id)

    def add(self, execution: Execution) -> None:
        """The execution is under way, and kept at least until it ends."""
        self._by_request_id[execution.request.request_id] = execution

    def lost(self, accepted: Accepted) -> None:
        """A server was killed while it ran this; it has ended now. Without a request_id nobody can ask for it."""
        if not accepted.request_id or self.find(accepted.request_id):
            return
        request = ExecutionRequest("", "", _NO_LIMITS, request_id=accepted.request_id, fingerprint=accepted.fingerprint)
        execution = Execution(request, lambda _: None, accepted.execution_id)
        failure = Failure(ErrorKind.SANDBOX_FAILED, "the server was killed while it ran this execution")
        execution.tell(Finished(Outcome.FAILED, 1, error=failure))
        self.add(execution)
        self.ended(execution)

    def ended(self, execution: Execution) -> None:
        """It has finished, and is kept without what only running it took. Unknown ones are ignored."""
        if self._by_request_id.get(execution.request.request_id) is not execution:
            return
        execution.request = execution.request.without_contents()
        size = execution.held_bytes
        self._finished.append((execution, size))
        self._bytes += size
        self._forget_old()

    def _forget_old(self) -> None:
        """Drops finished executions that are too old or, oldest first, too much."""
        oldest_kept = time.monotonic() - self._ttl
        while self._finished:
            execution, size = self._finished[0]
            if execution.finished_at >= oldest_kept and self._bytes <= self._max_bytes:
                return
            self._finished.popleft()
            self._bytes -= size
            del self._by_request_id[execution.request.request_id]
