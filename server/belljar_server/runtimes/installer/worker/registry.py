"""The registry as the package managers see it: HTTP on the loopback address, every question passed to the host."""

from __future__ import annotations

import http.server
import json
import queue
import struct
import threading

import protocol

PORT = 4873
"""The host writes addresses with this port into the answers that it passes on."""
PIECES = 64
"""Pieces of one answer that wait for a slow reader."""
SECONDS = 3600.0
"""The host watches the time; this is only so that no thread waits for ever."""


class Registry:
    """Carries questions and answers between the loopback port and the host. State: who waits for which answer."""

    def __init__(self, host: protocol.Host) -> None:
        self._host = host
        self._answers: dict[int, queue.Queue[tuple[bytes, bytes]]] = {}
        self._lock = threading.Lock()
        self._asked = 0
        self._reader = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Listens, and takes the host's frames from now on."""
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.answer(self, head=False)

            def do_HEAD(self) -> None:
                registry.answer(self, head=True)

            def log_message(self, *_: object) -> None:
                return

        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._reader.start()

    def wait_for_end(self) -> None:
        """Returns when the host has closed the connection."""
        self._reader.join()

    def answer(self, request: http.server.BaseHTTPRequestHandler, *, head: bool) -> None:
        """Asks the host and passes its answer on."""
        answers: queue.Queue[tuple[bytes, bytes]] = queue.Queue(PIECES)
        with self._lock:
            self._asked += 1
            number = self._asked
            self._answers[number] = answers
        try:
            part = request.headers.get("Range", "")
            self._host.send(protocol.FETCH, {"id": number, "path": request.path, "range": part, "head": head})
            kind, payload = answers.get(timeout=SECONDS)
            begin = json.loads(payload) if kind == protocol.HEAD else {"status": 502, "size": 0, "headers": {}}
            request.send_response(begin["status"])
            for name, value in begin["headers"].items():
                request.send_header(name, value)
            if begin["size"] >= 0:
                request.send_header("Content-Length", str(begin["size"]))
            else:
                request.send_header("Connection", "close")
                request.close_connection = True
            request.end_headers()
            while kind != protocol.BROKEN:
                kind, payload = answers.get(timeout=SECONDS)
                if not payload:
                    return
                request.wfile.write(payload)
            request.close_connection = True
        except (OSError, queue.Empty):
            request.close_connection = True
        finally:
            with self._lock:
                del self._answers[number]

    def _read(self) -> None:
        while True:
            kind, payload = self._host.receive()
            if not kind:
                return
            if kind == protocol.BODY:
                (number,) = struct.unpack_from("!I", payload)
                piece = payload[4:]
            else:
                number, piece = json.loads(payload)["id"], payload
            with self._lock:
                answers = self._answers.get(number)
            if answers is not None:
                answers.put((kind, piece))
