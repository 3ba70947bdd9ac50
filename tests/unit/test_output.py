"""What user code prints becomes events: lines whole, floods in few, nothing lost, nothing late."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from belljar_server.models import Stream
from belljar_server.sandbox.output import JOIN, READ_BYTES, OutputPump

Pieces = list[bytes]


@pytest.fixture
async def printed() -> AsyncIterator[tuple[OutputPump, int, Pieces]]:
    """A pump that reads, the end that the code writes to, and the pieces that have come."""
    pieces: Pieces = []
    pump = OutputPump(Stream.STDOUT, lambda _, data: pieces.append(data))
    written = os.dup(pump.write_fd)
    pump.start()
    yield pump, written, pieces
    pump.close()
    os.close(written)


async def until(pieces: Pieces, size: int) -> None:
    """Waits until so many bytes have come."""
    async with asyncio.timeout(20):
        while sum(map(len, pieces)) < size:
            await asyncio.sleep(0.001)


async def test_line_written_in_pieces_is_one(printed: tuple[OutputPump, int, Pieces]) -> None:
    """Text and newline are two writes of Python's print."""
    _, fd, pieces = printed
    for _ in range(3):
        for piece in (b"hello", b" ", b"you", b"\n"):
            os.write(fd, piece)
            await asyncio.sleep(0)
        await until(pieces, 10)
        assert pieces == [b"hello you\n"]
        pieces.clear()
        await asyncio.sleep(JOIN)


async def test_text_without_newline_is_not_late(printed: tuple[OutputPump, int, Pieces]) -> None:
    """A prompt, dots of a progress bar."""
    _, fd, pieces = printed
    began = time.monotonic()
    os.write(fd, b"name? ")
    await until(pieces, 6)
    assert pieces == [b"name? "]
    assert time.monotonic() - began < 5


async def test_flood_of_bytes_is_no_flood_of_events(printed: tuple[OutputPump, int, Pieces]) -> None:
    """A hundred thousand writes are few pieces, in order."""
    _, fd, pieces = printed
    for number in range(100_000):
        os.write(fd, b"%d" % (number % 10))
        if number % 100 == 0:
            await asyncio.sleep(0)
    await until(pieces, 100_000)
    assert b"".join(pieces) == b"0123456789" * 10_000
    assert len(pieces) < 5_000


async def test_flood_of_megabytes_passes_whole(printed: tuple[OutputPump, int, Pieces]) -> None:
    """In pieces that are bounded, whatever is in them."""
    _, fd, pieces = printed
    data = bytes(range(256)) * 4096
    await asyncio.gather(asyncio.to_thread(lambda: [os.write(fd, data) for _ in range(16)]), until(pieces, 16 << 20))
    assert b"".join(pieces) == data * 16
    assert max(map(len, pieces)) <= 2 * READ_BYTES


async def test_drain_gives_all_there_is(printed: tuple[OutputPump, int, Pieces]) -> None:
    """Also what was waiting for the end of its line."""
    pump, fd, pieces = printed
    os.write(fd, b"begun")
    await asyncio.sleep(JOIN / 10)
    os.write(fd, b", and the last word")
    pump.drain()
    pump.close()
    assert b"".join(pieces) == b"begun, and the last word"


async def test_end_of_the_pipe_gives_what_was_begun(printed: tuple[OutputPump, int, Pieces]) -> None:
    """The last line has no newline."""
    _, fd, pieces = printed
    os.write(fd, b"a\nb")
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
    await until(pieces, 3)
    assert b"".join(pieces) == b"a\nb"
