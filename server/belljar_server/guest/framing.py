"""The framing that host, agent and workers speak: one type byte, four length bytes (big-endian), the payload.

Copied into every image, so it imports nothing of ours. Workers in other languages write the same six lines.

Both connections are stream sockets. Between host and agent (fd 0 of the agent):

    host -> agent   (WAKE | PING)*, PREPARE, (FILE DATA*)*, JOB, then KILL at any time
    agent -> host   READY; (READY | PONG)*; STARTED; RESULT*, REPORT?; EXIT; (ARTIFACT DATA* ARTIFACT_END)*, END
                    (FAULT instead of any of these: the agent itself failed; nothing follows)

Between agent and worker (fd 3 of the worker):

    agent -> worker WAKE*, JOB, with a seal of SEAL_BYTES before the payload
    worker -> agent READY, and once more for each WAKE; then RESULT*, REPORT with the same seal before the payload, and
                    LEFT with it when the report says that the worker is still leaving; then the agent ends it

A worker's frames are untrusted once user code runs: agent and host believe nothing in them but that user code sent
them.
"""

import struct

HEADER = struct.Struct("!cI")
MAX_PAYLOAD = 1 << 20
"""Largest payload that the host accepts from the agent and the agent from a worker, in bytes."""
MAX_TRUSTED_PAYLOAD = 1 << 30
"""Largest payload in the other direction; code and inputs travel as one frame."""
SEAL_BYTES = 16
"""What tells the worker's own report from one that user code sends by mistake or in the hope to hide how it ends. No
secret: code that looks for it in the worker's memory finds it, and can as well end the process as it likes."""

READY = b"y"  # {"version": "3.13.5"}: warmed up and waiting
WAKE = b"w"  # {"disk_bytes": as most jobs want it}, {} to a worker: you are a copy restored from a snapshot; make
# yourself unique, touch what a job touches, say READY
PING = b"h"  # {}: are you there
PONG = b"o"  # {}: yes
PREPARE = b"l"  # {"disk_bytes", "processes", "open_files", "artifact_count", "artifact_bytes"}
FILE = b"f"  # {"root": "home" | "code", "path": "a/b.txt", "size": n}
DATA = b"d"  # bytes of the FILE or ARTIFACT before it
JOB = b"j"  # {"code", "inputs", "entry", "env", "main_file", "memory_bytes"}: go; passed on to the worker as it is
KILL = b"k"  # {}: kill what user code started, then collect as always
STARTED = b"s"  # {}: user code is about to run
RESULT = b"r"  # bytes: a piece of the result's JSON text
REPORT = b"p"  # {"ok": true} or {"ok": false, "error": {...}}, see runtimes/__init__.py
LEFT = b"q"  # nothing but the seal: what user code has left to be done at its end is done
EXIT = b"x"  # {"status": the worker's raw wait status, "tasks": processes and threads at its report, "leaving": bool:
# it was ended before it had left}
ARTIFACT = b"a"  # {"name": base64 of the raw path below /home/user, "size": n}
ARTIFACT_END = b"e"  # {"complete": bool}
END = b"z"  # {"skipped": [[base64 name, reason], ...], "left_out": how many files were skipped in all}
FAULT = b"!"  # {"message": text, "errno": name or ""}


class BrokenFrame(Exception):
    """The other side sent what is not a frame."""


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(kind, len(payload)) + payload


class Unpacker:
    """Cuts a byte stream into frames. Its state is the bytes of the frame that is not complete yet."""

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self._buffer = bytearray()
        self._max = max_payload

    def feed(self, data: bytes | memoryview) -> list[tuple[bytes, bytes]]:
        """Takes more bytes and returns the frames they complete, as (kind, payload). Raises BrokenFrame."""
        self._buffer += data
        frames = []
        position = 0
        available = len(self._buffer)
        while available - position >= HEADER.size:
            kind, size = HEADER.unpack_from(self._buffer, position)
            if size > self._max:
                raise BrokenFrame(f"a frame of {size} bytes, at most {self._max} are allowed")
            end = position + HEADER.size + size
            if end > available:
                break
            frames.append((kind, bytes(self._buffer[position + HEADER.size : end])))
            position = end
        del self._buffer[:position]
        return frames
