"""The host's end of the control channel: frames over the socketpair whose other end is fd 0 of the agent.

What arrives is untrusted in every respect but its framing; a frame that is too large ends the channel.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from typing import Any

from belljar_server.errors import SandboxFailed
from belljar_server.guest import framing

READ_BYTES = 1 << 18


class ChannelClosed(SandboxFailed):
    """The sandbox's end is gone, or sent what is no frame."""


class Channel:
    """Frames to and from one agent. Mutable state: frames that were received but not asked for yet."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unpacker = framing.Unpacker()
        self._frames: deque[tuple[bytes, bytes]] = deque()
        self._sending = asyncio.Lock()

    async def receive(self) -> tuple[bytes, bytes]:
        """The next frame. Raises ChannelClosed."""
        while not self._frames:
            try:
                data = await self._loop.sock_recv(self._sock, READ_BYTES)
                if not data:
                    raise ChannelClosed("the sandbox closed its channel")
                self._frames.extend(self._unpacker.feed(data))
            except (OSError, framing.BrokenFrame) as error:
                raise ChannelClosed(f"the sandbox's channel broke: {error}") from error
        return self._frames.popleft()

    async def send(self, kind: bytes, payload: bytes) -> None:
        """Sends one frame whole, also when others send at the same time. Raises ChannelClosed."""
        async with self._sending:
            try:
                await self._loop.sock_sendall(self._sock, framing.HEADER.pack(kind, len(payload)) + payload)
            except OSError as error:
                raise ChannelClosed(f"the sandbox's channel broke: {error}") from error

    async def send_json(self, kind: bytes, message: dict[str, Any]) -> None:
        """Sends one frame with a JSON payload. Raises ChannelClosed."""
        await self.send(kind, json.dumps(message).encode())

    def is_quiet(self) -> bool:
        """Whether the sandbox's end is there and has said nothing, as it should while it waits. Does not wait."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return not self._frames
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Lets the agent see the end of the channel, which ends the sandbox."""
        self._sock.close()


def parse(payload: bytes) -> dict[str, Any]:
    """The JSON object in a frame of the agent. Raises ChannelClosed when it is something else."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ChannelClosed(f"the sandbox sent no JSON: {error}") from error
    if not isinstance(message, dict):
        raise ChannelClosed("the sandbox sent JSON that is no object")
    return message
