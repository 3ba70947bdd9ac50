"""One execution as the rest of the server sees it: a log of events that any number of clients can follow.

The execution writes to the log and never waits for a reader: a client that reads slowly slows only itself. The log
is bounded by the limits of the execution, so is the memory of a client that does not read at all.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable

from belljar_server.models import Event, ExecutionRequest, Finished, Happening, Output, Stream

LARGEST_OUTPUT = 256 * 1024
"""Bytes in one output event."""


class Execution:
    """Mutable state: its events so far, how many of them were read, who follows, and what was dropped."""

    def __init__(
        self, request: ExecutionRequest, on_abandoned: Callable[[Execution], None], execution_id: str = ""
    ) -> None:
        self.id = execution_id or secrets.token_hex(12)
        self.request = request
        self.began = time.monotonic()
        self.finished: Finished | None = None
        self.finished_at = 0.0
        self.dropped = dict.fromkeys(Stream, 0)
        self.written = dict.fromkeys(Stream, 0)
        self._on_abandoned = on_abandoned
        self._events: list[Event] = []
        self._read = 0
        self._followers = 0
        self._more = asyncio.Event()
        self._delivered = 0

    def __repr__(self) -> str:
        """Its id and how far it is."""
        state = self.finished.outcome.value if self.finished else "under way"
        return f"<Execution {self.id} {state}, {len(self._events)} events, {self._followers} followers>"

    @property
    def held_bytes(self) -> int:
        """Memory that the log takes, roughly."""
        size = self._delivered + 512 * len(self._events)
        if self.finished:
            size += (
                len(self.finished.result_json or "") + len(self.finished.lockfile) + 1024 * len(self.finished.artifacts)
            )
            size += sum(map(len, self.finished.warnings))
            if self.finished.error:
                size += len(self.finished.error.message) + len(self.finished.error.traceback)
        return size

    def tell(self, happening: Happening) -> None:
        """Appends an event and wakes the followers."""
        self._events.append(Event(self.id, len(self._events) + 1, time.time(), happening))
        if isinstance(happening, Finished):
            self.finished = happening
            self.finished_at = time.monotonic()
        self._wake()

    def tell_output(self, stream: Stream, data: bytes) -> int:
        """Appends output up to the limit and counts the rest; returns how much was written so far on both streams."""
        self.written[stream] += len(data)
        room = self.request.limits.output_bytes - self._delivered
        kept = data[: max(0, room)]
        self.dropped[stream] += len(data) - len(kept)
        self._delivered += len(kept)
        for start in range(0, len(kept), LARGEST_OUTPUT):
            self._append_output(stream, kept[start : start + LARGEST_OUTPUT])
        return self.written[Stream.STDOUT] + self.written[Stream.STDERR]

    def _append_output(self, stream: Stream, piece: bytes) -> None:
        """Joins the piece to the last event if nobody has read that yet, so that slow readers get few large ones."""
        last = self._events[-1] if len(self._events) > self._read else None
        before = last.happening if last else None
        if (
            last
            and isinstance(before, Output)
            and before.stream is stream
            and len(before.content) + len(piece) <= LARGEST_OUTPUT
        ):
            self._events[-1] = Event(self.id, last.sequence, last.time, Output(stream, before.content + piece))
        else:
            self.tell(Output(stream, piece))

    async def follow(self) -> AsyncGenerator[Event, None]:
        """All events from the first to `finished`. When the last follower leaves early, the execution is told."""
        self._followers += 1
        position = 0
        try:
            while True:
                while position < len(self._events):
                    event = self._events[position]
                    position += 1
                    self._read = max(self._read, position)
                    yield event
                if self.finished:
                    return
                await self._more.wait()
        finally:
            self._followers -= 1
            if self._followers == 0 and self.finished is None:
                self._on_abandoned(self)

    async def wait(self) -> Finished:
        """The end, when it is there."""
        while self.finished is None:
            await self._more.wait()
        return self.finished

    def _wake(self) -> None:
        woken, self._more = self._more, asyncio.Event()
        woken.set()
