"""Where the server is and how a channel to it is made; what both clients share of the transport."""

from __future__ import annotations

import ipaddress
import os

import grpc

from belljar.v1 import sandbox_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"

_MAX_RECEIVED_BYTES = 128 << 20
"""Far above what a server sends with default settings, and still a bound."""
_KEEPALIVE_MS = 330_000
"""gRPC servers take more than one ping in five minutes for an attack and hang up."""


class SandboxServiceStub(sandbox_pb2_grpc.SandboxServiceStub):  # type: ignore[misc, unused-ignore]
    """The generated stub, which has no types of its own."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call, unused-ignore]


def default_address() -> str:
    """The address in BELLJAR_ADDRESS, else the one that a server listens on when nothing is set."""
    return os.environ.get("BELLJAR_ADDRESS") or DEFAULT_ADDRESS


def options_for(address: str) -> list[tuple[str, int]]:
    """Channel options: large messages, quick reconnects (the retries are ours), no proxy to this machine."""
    options = [
        ("grpc.max_receive_message_length", _MAX_RECEIVED_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    if is_loopback(address.rpartition(":")[0]):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def is_loopback(host: str) -> bool:
    """True for this machine. A proxy from the environment cannot reach it on our behalf, so none is asked."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
