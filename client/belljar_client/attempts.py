"""When a call is made again, and what its stream has shown: everything about retries but the waiting.

Both clients drive an `Attempts`: it decides, they do the I/O. A call is made again only where nothing was started, or
where its `request_id` makes the server replay the first execution instead of starting another one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import grpc

from belljar.v1 import sandbox_pb2
from belljar_client import errors, results
from belljar_client.models import Event, Finished, Output, Phase, PhaseChange, Started

DEFAULT_ATTEMPTS = 3
LONGEST_WAIT = 30.0
"""Seconds. A server that asks for more gets no second attempt: the caller knows better what to do with that time."""
_FIRST_WAIT = 0.25


class Attempts:
    """One call with all its attempts.

    Mutable state is the number of attempts made and what the stream has shown: execution, last sequence number,
    whether the code was started and whether it is over.
    """

    def __init__(
        self,
        *,
        limit: int = DEFAULT_ATTEMPTS,
        deadline: float | None = None,
        replayable: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`deadline`: seconds from now for all attempts together; `replayable`: the request has a `request_id`."""
        self._limit = limit
        self._clock = clock
        self._ends_at = None if deadline is None else clock() + deadline
        self._replayable = replayable
        self._made = 0
        self._execution_id = ""
        self._sequence = 0
        self._started = False
        self.finished = False

    def __repr__(self) -> str:
        return (
            f"<Attempts {self._made} of {self._limit} made, execution {self._execution_id or 'unknown'},"
            f" sequence {self._sequence}, started={self._started}, finished={self.finished}>"
        )

    def begin(self) -> float | None:
        """Counts an attempt and returns the seconds it may take. Raises DeadlineExceeded."""
        self._made += 1
        remaining = self._remaining()
        if remaining is not None and remaining <= 0:
            raise self._named(errors.DeadlineExceeded("the deadline passed"))
        return remaining

    def accept(self, message: sandbox_pb2.ExecuteResponse) -> Event | None:
        """The event for the caller; None for one that it has seen already or that is of an unknown kind.

        Raises ConnectionLost when a replay turns out to be another execution than the one the caller has seen.
        """
        if self._sequence and message.execution_id != self._execution_id:
            lost = f"the stream broke and the server does not remember execution {self._execution_id}"
            raise self._named(errors.ConnectionLost(lost))
        if self._sequence and message.sequence <= self._sequence:
            return None
        self._execution_id = message.execution_id
        self._sequence = message.sequence
        event = results.event_of(message)
        running = isinstance(event, PhaseChange) and event.phase is Phase.RUNNING
        self._started = self._started or running or isinstance(event, Started | Output | Finished)
        self.finished = isinstance(event, Finished)
        return event

    def failed(self, error: grpc.RpcError) -> float:
        """Seconds to wait before the next attempt. Raises the error for the caller where there is to be none."""
        return self._wait_or_raise(errors.from_rpc(error, accepted=bool(self._sequence), started=self._started))

    def cut_short(self) -> float:
        """The same as `failed` for a stream that ended in peace but without its last event."""
        return self._wait_or_raise(errors.ConnectionLost("the stream ended before the execution did"))

    def _wait_or_raise(self, error: errors.BelljarClientError) -> float:
        wait = self._wait(error)
        remaining = self._remaining()
        if wait is None or self._made >= self._limit or (remaining is not None and wait >= remaining):
            raise self._named(error)
        if not isinstance(error, errors.ConnectionLost):
            self._execution_id, self._sequence = "", 0
        return wait

    def _wait(self, error: errors.BelljarClientError) -> float | None:
        backoff = _FIRST_WAIT * 2.0 ** (self._made - 1) * _jitter(0.5, 1)
        match error:
            case errors.Overloaded(retry_after=None):
                return None
            case errors.Overloaded(retry_after=float(asked)) | errors.Unavailable(retry_after=float(asked)):
                return None if asked > LONGEST_WAIT else max(asked, 0.0) * _jitter(1, 1.25) + backoff / 10
            case errors.Unavailable():
                return backoff
            case errors.ConnectionLost() if self._replayable:
                return backoff
        return None

    def _remaining(self) -> float | None:
        return None if self._ends_at is None else self._ends_at - self._clock()

    def _named(self, error: errors.BelljarClientError) -> errors.BelljarClientError:
        error.execution_id = self._execution_id
        return error


def _jitter(low: float, high: float) -> float:
    """A factor that keeps clients which failed together from coming back together; no secret."""
    return random.uniform(low, high)  # noqa: S311
