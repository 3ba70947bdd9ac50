"""Bytes between two sockets, and the time that reading them may take."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from belljar_server.egress import relay


def test_reading_has_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst is free; what is beyond it waits until the share is kept again."""
    now = 100.0
    monkeypatch.setattr("belljar_server.egress.relay.time.monotonic", lambda: now)
    reader = relay.Reader()
    assert reader.wait() == 0
    reader.spent(relay.READING_BURST)
    assert reader.wait() == 0
    reader.spent(1.0)
    assert reader.wait() == pytest.approx(1.0 / relay.READING_SHARE)
    now += 2.0 / relay.READING_SHARE
    assert reader.wait() == 0


async def test_what_takes_long_to_read_leaves_time_for_others() -> None:
    """The loop has its turns while a client says what is costly to read, and all of it arrives in the end."""
    client, inside = socket.socketpair()
    outside, server = socket.socketpair()
    for sock in (client, inside, outside, server):
        sock.setblocking(False)
    loop = asyncio.get_running_loop()
    sizes = []

    def see(data: memoryview) -> bytes:
        sizes.append(len(data))
        time.sleep(0.02)  # costly
        return bytes(data)

    pump = relay.Pump(inside, outside, bytearray(relay.PIECE), see, relay.Reader())
    pump.start()
    sent = bytes(8 * relay.READ_PIECE)
    sending = asyncio.create_task(loop.sock_sendall(client, sent))
    got = b""
    began = time.monotonic()
    while len(got) < len(sent):
        got += await loop.sock_recv(server, len(sent))
    assert max(sizes) <= relay.READ_PIECE
    assert time.monotonic() - began > (8 * 0.02 - relay.READING_BURST) / relay.READING_SHARE * 0.5
    await sending
    pump.stop()
    for sock in (client, inside, outside, server):
        sock.close()


async def test_what_is_not_read_goes_in_large_pieces() -> None:
    """And takes none of the time that reading has."""
    client, inside = socket.socketpair()
    outside, server = socket.socketpair()
    for sock in (client, inside, outside, server):
        sock.setblocking(False)
    sizes = []

    def see(data: memoryview) -> memoryview:
        sizes.append(len(data))
        pump.reader = None
        return data

    pump = relay.Pump(inside, outside, bytearray(relay.PIECE), see, relay.Reader())
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, bytes(4 * relay.READ_PIECE))
    pump.start()
    got = 0
    while got < 4 * relay.READ_PIECE:
        got += len(await loop.sock_recv(server, 1 << 20))
    assert sizes == [relay.READ_PIECE, 3 * relay.READ_PIECE]
    pump.stop()
    for sock in (client, inside, outside, server):
        sock.close()
