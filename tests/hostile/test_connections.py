"""Clients that misuse their connection: idle, half a message, floods of streams and resets, not reading, vanishing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from belljar.v1 import sandbox_pb2 as pb
from belljar.v1 import sandbox_pb2_grpc
from belljar_client import Client, Result
from tests.conftest import Server, running_server, wait_until
from tests.hostile import h2
from tests.hostile.conftest import metric

pytestmark = pytest.mark.hostile

FOR_EVER = "import time\ntime.sleep(600)"
NOTICED_SECONDS = 45.0
"""Keepalive asks every 10 seconds and waits 5; the rest is for a machine that has other things to do."""
CLIENT = """
import sys
from belljar_client import Client, Limits
with Client(sys.argv[1]) as client:
    code = "import time\\ntime.sleep(600)"
    for event in client.stream(code, limits=Limits(timeout=300), labels={"who": sys.argv[2]}):
        print(type(event).__name__, flush=True)
"""


def request(code: str, **fields: object) -> bytes:
    """A gRPC message with an ExecuteRequest."""
    return h2.message(pb.ExecuteRequest(runtime="python", code=code, **fields).SerializeToString())  # type: ignore[arg-type]


def idle(server: Server) -> bool:
    """Whether no execution runs or waits."""
    return metric(server, "belljar_executions_running") == metric(server, "belljar_executions_waiting") == 0


def ended(server: Server) -> list[dict[str, object]]:
    """The canonical log lines so far."""
    lines = (json.loads(line) for line in server.log_text().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == "execution"]


def test_connections_that_never_send_keep_nobody_out(server: Server, run: Callable[..., Result]) -> None:
    """Two hundred of them, on both ports, also with half a preface."""
    with ExitStack() as opened:
        for address in (server.address, server.http_address):
            host, _, port = address.rpartition(":")
            for number in range(200):
                sock = opened.enter_context(socket.create_connection((host, int(port)), timeout=10))
                if number % 2:
                    sock.sendall(
                        h2.PREFACE[: number % len(h2.PREFACE)] if address == server.address else b"GET /healthz HT"
                    )
        assert run("1 + 1").value == 2
        assert metric(server, "belljar_ready") == 1


def test_half_a_message_starts_nothing(server: Server, run: Callable[..., Result]) -> None:
    """Neither while it waits for the rest nor when the client leaves; a length that never comes costs no memory."""
    whole = request("print('never')", labels={"who": "half"})
    with h2.Connection(server.address) as connection:
        for stream, part in enumerate((b"", whole[:3], whole[:5], whole[:-1], b"\0\x01\xff\xff\xff" + whole[5:])):
            connection.begin(2 * stream + 1)
            connection.send(2 * stream + 1, part, end=False)
        assert run("1 + 1").value == 2
        assert idle(server)
    assert not [line for line in ended(server) if (line.get("labels") or {}) == {"who": "half"}]


def test_frames_that_are_none_end_their_own_connection_only(server: Server, run: Callable[..., Result]) -> None:
    """Garbage, a header block that is none, a frame larger than allowed, data on a stream that is not open."""
    for garbage in (
        b"\0" * 100,
        os.urandom(4096),
        h2.PREFACE + os.urandom(4096),
        h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff" * 200),
        h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.DATA, 0, 1, b"x" * 100),
        h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + b"\xff\xff\xff\0\0\0\0\0\x01" + b"x" * 4096,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ):
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock, suppress(OSError):
            sock.sendall(garbage)
    assert run("1 + 1").value == 2


def test_a_thousand_streams_that_are_cancelled_at_once_leave_nothing(
    server: Server, run: Callable[..., Result]
) -> None:
    """More than one connection may have open, more than run, and nobody wants any of them."""
    with grpc.insecure_channel(server.address) as channel:
        stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        calls = [stub.Execute(pb.ExecuteRequest(runtime="python", code=FOR_EVER)) for _ in range(1000)]
        for call in calls:
            call.cancel()
        wait_until(lambda: idle(server), "all executions are over")
    assert run("1 + 1").value == 2


def test_streams_reset_as_fast_as_possible_do_not_keep_others_waiting(
    server: Server, run: Callable[..., Result]
) -> None:
    """The server may hang up; every execution it had accepted ends."""
    code = request(FOR_EVER)
    with h2.Connection(server.address) as connection:
        burst = b"".join(
            h2.frame(h2.HEADERS, h2.END_HEADERS, stream, h2.headers())
            + h2.frame(h2.DATA, h2.END_STREAM, stream, code)
            + h2.frame(h2.RST_STREAM, 0, stream, b"\0\0\0\x08")
            for stream in range(1, 10_000, 2)
        )
        with suppress(OSError):
            connection.sock.sendall(burst)
        assert run("1 + 1").value == 2
    wait_until(lambda: idle(server), "all executions are over")


def test_client_that_does_not_read_slows_no_other_and_is_let_go() -> None:
    """Its window is one byte; the code ends in its own time, and its output is not kept for ever."""
    with running_server(POOL__MAX="0", GRPC__STALL_TIMEOUT="1") as server, ExitStack() as opened:
        for _ in range(4):
            connection = opened.enter_context(h2.Connection(server.address, window=1))
            connection.begin(1)
            connection.send(1, request("import sys\nfor _ in range(3000):\n    sys.stdout.write('x' * 1000)"))
        with Client(server.address) as client:
            assert client.execute("print('y' * 3_000_000)").stdout == b"y" * 3_000_000 + b"\n"
        wait_until(lambda: len(ended(server)) == 5, "all executions are over")
        assert {line["outcome"] for line in ended(server)} == {"succeeded"}
        wait_until(lambda: server.log_text().count("client does not read") == 4, "the slow ones are let go")
        assert server.stop() == 0


def test_client_that_reads_one_byte_a_time_gets_all_of_it() -> None:
    """Slow is not wrong as long as something is read; a flood comes in few, large events."""
    with running_server(POOL__MAX="0") as server, h2.Connection(server.address, window=64) as connection:
        connection.begin(1)
        connection.send(1, request("for i in range(3000): print('z', flush=True)"))
        got = b""
        while True:
            kind, flags, stream, payload = connection.read()
            if kind == h2.DATA:
                got += payload
                if payload:
                    connection.allow(stream, len(payload))
            if kind == h2.HEADERS and flags & h2.END_STREAM:
                break
        events = []
        while got:
            size = int.from_bytes(got[1:5], "big")
            events.append(pb.ExecuteResponse.FromString(got[5 : 5 + size]))
            got = got[5 + size :]
        assert b"".join(event.output.content for event in events) == b"z\n" * 3000
        assert events[-1].finished.outcome == pb.OUTCOME_SUCCEEDED


@contextmanager
def cut_off_network(name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A network namespace with one link to this one: the address here, and what cuts the link without a word."""
    here, there, address = f"{name}0", f"{name}1", "198.18.77.1"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", f"{address}/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", "198.18.77.2/30", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        yield address, lambda: ip("-n", name, "link", "set", there, "down")
    finally:
        subprocess.run(["ip", "link", "del", here], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")
def test_clients_that_vanish_without_a_word_are_noticed(tmp_path: Path) -> None:
    """One is stopped and one is cut off, neither says goodbye: their executions are cancelled."""
    program = tmp_path / "client.py"
    program.write_text(CLIENT)
    with ExitStack() as stack:
        name = f"bj{os.getpid() % 100_000}"
        address, cut = stack.enter_context(cut_off_network(name))
        with socket.socket() as probe:
            probe.bind((address, 0))
            listen = f"{address}:{probe.getsockname()[1]}"
        server = stack.enter_context(
            running_server(GRPC__LISTEN=listen, INSECURE_PUBLIC_PLAINTEXT="true", POOL__MAX="0")
        )
        clients = []
        for who, prefix in (("stopped", []), ("cut", ["ip", "netns", "exec", name])):
            process = subprocess.Popen(
                [*prefix, sys.executable, str(program), listen, who],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(end, process)
            clients.append(process)
        for process in clients:
            assert process.stdout is not None
            while "Started" not in process.stdout.readline():
                assert process.poll() is None
        os.kill(clients[0].pid, signal.SIGSTOP)
        cut()
        began = time.monotonic()
        wait_until(lambda: len(ended(server)) == 2, "both are noticed", NOTICED_SECONDS)
        assert {line["outcome"] for line in ended(server)} == {"cancelled"}
        assert time.monotonic() - began < NOTICED_SECONDS
        assert idle(server)


def end(process: subprocess.Popen[str]) -> None:
    """Kills a client, also a stopped one."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
