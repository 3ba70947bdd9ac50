"""The gRPC servicer: what a call does, from the request to the last event that the client has read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NoReturn

import grpc
import structlog

from belljar.v1 import sandbox_pb2 as pb
from belljar.v1 import sandbox_pb2_grpc
from belljar_server import policy
from belljar_server.config import Settings
from belljar_server.errors import BelljarError, InvalidRequest, Violation
from belljar_server.execution import Execution
from belljar_server.executor import Executor
from belljar_server.messages import (
    NETWORK_MODES,
    Undecodable,
    decode,
    to_draft,
    to_limits,
    to_network_limits,
    to_response,
    to_status,
)
from belljar_server.metrics import Metrics
from belljar_server.sandbox.spec import Environment

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


class SandboxService(sandbox_pb2_grpc.SandboxServiceServicer):
    """The contract's methods."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        environments: Mapping[str, Environment],
        metrics: Metrics,
        waived: frozenset[str],
        networks: policy.NetworkSettings,
    ) -> None:
        self._networks = networks
        self._settings = settings
        self._executor = executor
        self._environments = environments
        self._metrics = metrics
        self._waived = waived
        self._ecosystems = {
            name: each.runtime.layer.ecosystem for name, each in environments.items() if each.runtime.layer
        }

    async def Execute(  # noqa: N802  the contract's name
        self, request: pb.ExecuteRequest | Undecodable, context: Context
    ) -> None:
        """Runs code; see the contract."""
        try:
            if isinstance(request, Undecodable):
                raise InvalidRequest(Violation("request", f"is no ExecuteRequest: {request.problem}"))
            accepted = policy.judge(
                to_draft(request),
                self._settings.limits,
                self._environments,
                self._networks,
                self._ecosystems,
                self._settings.dependencies,
            )
            execution = await self._executor.submit(accepted)
        except BelljarError as error:
            await self._abort(context, error)
        try:
            async with contextlib.aclosing(execution.follow()) as events, self._patience(execution) as still_there:
                async for event in events:
                    await context.write(to_response(event))
                    still_there()
        except TimeoutError:
            log.warning("client does not read", execution_id=execution.id)
            # gRPC cannot send a status behind a message that flow control holds back: the client learns of this only
            # if it reads on. What counts is that the events are let go of.
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the client read nothing for too long")

    @contextlib.asynccontextmanager
    async def _patience(self, execution: Execution) -> AsyncIterator[Callable[[], None]]:
        """A scope that ends by TimeoutError when the execution is over and the client reads nothing for too long.

        What it gives is to be called whenever the client has read something.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as patience:

            def begin_anew() -> None:
                if execution.finished:
                    patience.reschedule(loop.time() + self._settings.grpc.stall_timeout)

            async def begin() -> None:
                await execution.wait()
                begin_anew()

            waiting = asyncio.create_task(begin())
            try:
                yield begin_anew
            finally:
                waiting.cancel()

    async def ListRuntimes(  # noqa: N802
        self, request: pb.ListRuntimesRequest, context: Context
    ) -> pb.ListRuntimesResponse:
        """What this server runs; see the contract."""
        del request, context
        limits = self._settings.limits
        return pb.ListRuntimesResponse(
            runtimes=[
                pb.Runtime(
                    name=name,
                    version=environment.version,
                    main_file=environment.runtime.main_file,
                    image_digest=environment.digest,
                    packages=[pb.Package(name=package, version=version) for package, version in environment.packages],
                )
                for name, environment in sorted(self._environments.items())
            ],
            default_limits=to_limits(limits.default.as_limits()),
            max_limits=to_limits(limits.max.as_limits()),
            waived_limits=sorted(self._waived),
            network_modes=sorted(
                number for number, mode in NETWORK_MODES.items() if number and mode in self._networks.rules.modes
            ),
            default_network_limits=to_network_limits(self._networks.limits.default.as_limits()),
            max_network_limits=to_network_limits(self._networks.limits.max.as_limits()),
        )

    async def _abort(self, context: Context, error: BelljarError) -> NoReturn:
        status = to_status(error)
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self._metrics.refused.labels(code.name).inc()
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(code, status.message)


def add_to(server: grpc.aio.Server, service: SandboxService, name: str) -> None:
    """Registers the service under its full name; as the generated function does, but with `decode`."""
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Execute": grpc.unary_stream_rpc_method_handler(
            service.Execute, request_deserializer=decode, response_serializer=pb.ExecuteResponse.SerializeToString
        ),
        "ListRuntimes": grpc.unary_unary_rpc_method_handler(
            service.ListRuntimes,
            request_deserializer=pb.ListRuntimesRequest.FromString,
            response_serializer=pb.ListRuntimesResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
