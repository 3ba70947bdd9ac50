"""`belljar health`: whether a server takes work, for health checks of containers and for scripts.

It speaks the gRPC health protocol (grpc/grpc-proto, grpc/health/v1/health.proto). Both messages have one field, so they
are written here as bytes: the client depends on nothing for that.
"""

from __future__ import annotations

import grpc

from belljar_client.channels import options_for
from belljar_client.errors import ServerFault, Unavailable

CHECK = "/grpc.health.v1.Health/Check"
WHOLE_SERVER = b""
"""HealthCheckRequest with an empty service name."""
SERVING = b"\x08\x01"
"""HealthCheckResponse with status = SERVING."""


def check(address: str, timeout: float) -> None:
    """Returns when the server says that it serves. Raises Unavailable when it says no, or nothing within `timeout`."""
    with grpc.insecure_channel(address, options=options_for(address)) as channel:
        ask = channel.unary_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
        try:
            answer = ask(WHOLE_SERVER, timeout=timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ServerFault(f"{address} does not speak the gRPC health protocol") from error
            raise Unavailable(f"{address}: {error.details()}") from error
    if answer != SERVING:
        raise Unavailable(f"{address} does not serve now: no sandbox can be started, or it is stopping")
