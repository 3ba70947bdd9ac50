"""The composition root: builds everything from top to bottom, serves, and takes it down in the reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from belljar.v1 import sandbox_pb2
from belljar_server import config, http, runtimes
from belljar_server.artifacts import ArtifactStore
from belljar_server.artifacts.local import LocalStore
from belljar_server.artifacts.s3 import S3Store
from belljar_server.artifacts.spool import SpoolingStore
from belljar_server.artifacts.urls import load_key
from belljar_server.config import Settings
from belljar_server.dependencies.cache import LayerCache
from belljar_server.dependencies.installing import Kit
from belljar_server.dependencies.provider import Dependencies
from belljar_server.dependencies.registry import Registries
from belljar_server.dependencies.shared import SharedLayers
from belljar_server.egress import build as egress
from belljar_server.environments import to_load
from belljar_server.errors import HostNotReady
from belljar_server.executor import Executor
from belljar_server.log import configure as configure_log
from belljar_server.metrics import Metrics
from belljar_server.models import ExecutionRequest
from belljar_server.policy import NetworkSettings
from belljar_server.readiness import Readiness
from belljar_server.runtimes.installer import INSTALLER
from belljar_server.sandbox import MakeLink, instance
from belljar_server.sandbox.cold import ColdSource
from belljar_server.sandbox.pool import PoolSource, Starts
from belljar_server.sandbox.requested import RequestedEnvironments
from belljar_server.sandbox.runsc import Launcher, Runsc
from belljar_server.sandbox.snapshot import Snapshots
from belljar_server.sandbox.spec import Environment, installer_spec, oci_spec
from belljar_server.sandbox.start import Start, write_bundle
from belljar_server.service import SandboxService, add_to
from belljar_server.setup import environments as hosted
from belljar_server.setup import images, registries
from belljar_server.setup import runsc as runsc_setup

log = structlog.get_logger()

SERVICE = sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name
RECURSION_LIMIT = 10_000
"""JSON nested as deep as the contract allows is parsed by recursion."""
CLOSE_SECONDS = 5.0
"""Time for streams to take their last events once all executions are over."""


async def serve(settings: Settings) -> None:  # noqa: PLR0915  the composition root, top to bottom
    """Serves until SIGTERM or SIGINT. Raises HostNotReady when the host or the settings do not allow to start."""
    configure_log(settings.log)
    sys.setrecursionlimit(RECURSION_LIMIT)
    # Every connection of a sandbox takes two files: as many as root allows, not as few as a shell gives.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    async with contextlib.AsyncExitStack() as stack:
        # What earlier servers left goes first: its memory and cgroups are needed.
        swept = await instance.sweep(settings.runtime_dir)
        for left in swept:
            log.warning("swept a dead server", instance=left.instance, sandboxes=left.sandboxes)
            for lost in left.lost:
                log.error("execution lost", execution_id=lost.execution_id, instance=left.instance)

        # The host: a place of our own, every limit enforceable, runsc and an image for each runtime.
        here = instance.claim(settings.runtime_dir, settings.sandbox.cgroup_parent)
        stack.push_async_callback(here.close)
        waived = check_limits(here.tree.missing, settings)
        binary = runsc_setup.find(settings)
        environments = find_environments(settings)
        preloaded = {each.runtime.name: each for each in hosted.preloaded(environments.values())}
        for file in hosted.files(environments.values()):
            stack.enter_context(images.in_use(file))

        # Networks: what the server allows of them, and the way out, which is tried before anybody needs it.
        rules, outside = egress.build(settings.egress)
        networks = NetworkSettings(rules, settings.egress)

        # Sandboxes: a launcher that starts them, bundles for each environment, pools of waiting ones in front.
        launcher = await stack.enter_async_context(Launcher())
        runsc = Runsc(binary, here.runsc_root, settings.sandbox.platform)
        make_link = outside.gateway if outside else None
        begin = partial(make_starts, runsc=runsc, here=here, settings=settings, make_link=make_link)
        starts = dict(pair for each in (*environments.values(), *preloaded.values()) for pair in begin(each).items())
        metrics = Metrics()
        sandboxes: ColdSource | PoolSource
        if settings.pool.max:
            snapshots = Snapshots(settings.data_dir / "snapshots", launcher, here.tree)
            stack.callback(snapshots.close)
            snapshots.forget()
            sandboxes = await stack.enter_async_context(
                PoolSource(starts, snapshots, launcher, here.tree, settings.pool, metrics)
            )
        else:
            sandboxes = ColdSource({name: each.cold for name, each in starts.items()}, launcher, here.tree)

        # Requested packages: a sandbox that installs, what it can ask, what is kept, and sandboxes with that in them.
        requested = RequestedEnvironments(sandboxes, begin)
        stack.callback(requested.close)

        async def admit(request: ExecutionRequest, environment: Environment) -> Environment:
            return await requested.admit(environment, to_load(request, environment))

        dependencies = await stack.enter_async_context(open_dependencies(settings, runsc, here, launcher, admit))

        # HTTP needs the store for downloads, the local store needs the port for its URLs.
        health_service = health.aio.HealthServicer()
        telling: set[asyncio.Task[None]] = set()
        readiness = Readiness(
            environments,
            sandboxes,
            settings.limits.default.as_limits(),
            lambda ready: _tell_health(health_service, telling, ready=ready),
        )
        store = await stack.enter_async_context(open_store(settings))
        local = store if isinstance(store, LocalStore) else None
        status: list[http.Status] = [sandboxes.status] if isinstance(sandboxes, PoolSource) else []
        site = http.build(
            metrics.registry,
            lambda: (readiness.ready, readiness.reason),
            local,
            lambda: {title: rows for part in status for title, rows in part().items()},
        )
        host, port = config.split_address("http.listen", settings.http.listen)
        http_address = await stack.enter_async_context(http.serve_http(site, host, port))
        if local:
            local.base_url = settings.http.public_url or f"http://{http_address}"

        # The executor and the contract in front of it.
        executor = Executor(
            settings=settings.execution,
            environments=environments,
            preloaded=preloaded,
            dependencies=dependencies,
            sandboxes=sandboxes,
            store=store,
            metrics=metrics,
            waived=waived,
            flood_bytes=settings.limits.output_flood_bytes,
            journal=here,
            lost=[lost for left in swept for lost in left.lost],
            on_sandbox_failed=readiness.doubt,
        )
        status.append(executor.status)
        metrics.watch("belljar_sandboxes_live", "Sandboxes that exist now.", lambda: sandboxes.live)
        metrics.watch("belljar_executions_running", "Executions that hold a place.", lambda: executor.admission.running)
        metrics.watch("belljar_executions_waiting", "Executions that wait for one.", lambda: executor.admission.waiting)
        metrics.watch(
            "belljar_installations", "Sets of packages installed since the start.", lambda: dependencies.installations
        )
        if isinstance(sandboxes, PoolSource):
            for name, pool in sandboxes.pools.items():
                metrics.watch_pool(name, pool.count_waiting, pool.count_restoring)
        metrics.watch("belljar_ready", "1 when sandboxes can be started.", lambda: readiness.ready)
        service = SandboxService(settings, executor, environments, metrics, waived, networks)
        server, grpc_address = await start_grpc(settings, service, health_service)

        print(f"belljar: gRPC on {grpc_address}, HTTP on {http_address}", flush=True)  # noqa: T201  for who started it
        log.info("listening", grpc=grpc_address, http=http_address, instance=here.directory.name, runsc=str(binary))
        watching = asyncio.create_task(readiness.watch())
        try:
            await stopping.wait()
        finally:
            # Down again: no new work, then what runs, then the streams, then everything above in reverse.
            log.info("stopping", under_way=executor.under_way, grace=settings.shutdown_grace)
            watching.cancel()
            await health_service.enter_graceful_shutdown()
            await executor.drain(settings.shutdown_grace)
            await server.stop(CLOSE_SECONDS)
            await asyncio.wait([watching])
    log.info("stopped")


def check_limits(missing: Mapping[str, str], settings: Settings) -> frozenset[str]:
    """The limits that are not enforced because the operator waived them. Raises HostNotReady for any other."""
    refused = {name: reason for name, reason in missing.items() if name not in settings.limits.waived}
    if refused:
        lines = "\n".join(f"  limits.{name}: {reason}" for name, reason in sorted(refused.items()))
        names = ", ".join(f'"{name}"' for name in sorted(refused))
        raise HostNotReady(
            f"this host cannot enforce:\n{lines}\n"
            "Give the service a writable cgroup (`belljar doctor` tells how),"
            f" or accept it with limits.waived = [{names}]"
        )
    for name, reason in missing.items():
        log.warning("limit is not enforced", limit=name, reason=reason)
    return frozenset(missing)


def make_starts(
    environment: Environment, runsc: Runsc, here: instance.Instance, settings: Settings, make_link: MakeLink | None
) -> dict[str, Starts]:
    """How sandboxes of an environment come to be, by key, with their bundles; with network too if links can be made."""

    def start(environment: Environment, kind: str) -> Start:
        spec = oci_spec(environment, warm=kind == "warm")
        bundle = write_bundle(here.bundle(f"{environment.key}-{kind}"), spec)
        disk_bytes = settings.limits.default.as_limits().disk_bytes
        return Start(environment, runsc, bundle, settings.execution.start_timeout, disk_bytes, make_link=make_link)

    warm = start(environment, "warm")
    starts = {environment.key: Starts(start(environment, "cold"), warm)}
    if make_link:
        linked = replace(environment, network=True)
        starts[linked.key] = Starts(
            start(linked, "cold"), warm, linked=start(linked, "warm"), floor=settings.egress.waiting
        )
    return starts


def find_environments(settings: Settings) -> dict[str, Environment]:
    """Every runtime with its image and layer. Raises HostNotReady when one is missing."""
    images.check_certificates(settings.built, settings.egress.ca_bundle)
    return {name: hosted.find(settings.built, runtime) for name, runtime in runtimes.load().items()}


@contextlib.asynccontextmanager
async def open_dependencies(
    settings: Settings,
    runsc: Runsc,
    here: instance.Instance,
    launcher: Launcher,
    admit: Callable[[ExecutionRequest, Environment], Awaitable[Environment]],
) -> AsyncIterator[Dependencies]:
    """What finds and makes layers of requested packages. Raises HostNotReady."""
    image = images.find(settings.built, INSTALLER)
    bundle = write_bundle(
        here.bundle("installer"), installer_spec(image.path, INSTALLER.worker, settings.dependencies.disk_bytes)
    )
    kit = Kit(runsc, bundle, launcher, here.tree, settings.dependencies)
    cache = LayerCache(settings.data_dir / "dependencies", settings.dependencies.cache_bytes)
    try:
        cache.open()
    except OSError as error:
        raise HostNotReady(f"data_dir {error.filename}: {error.strerror}") from error
    shared = None
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(images.in_use(image.path))
        if settings.artifacts.store == "s3":
            bucket = S3Store(settings.artifacts.s3, url_ttl=settings.artifacts.url_ttl)
            shared = SharedLayers(await stack.enter_async_context(bucket))
        async with Registries(settings.dependencies, settings.built / registries.FILE) as found:
            dependencies = Dependencies(kit, cache, found, admit, shared)
            try:
                yield dependencies
            finally:
                await dependencies.close()


@contextlib.asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[ArtifactStore]:
    """The artifact store that the settings name. Raises HostNotReady."""
    wanted = settings.artifacts
    if wanted.store == "local":
        key = load_key(settings.data_dir / "secrets" / "url.key")
        local = LocalStore(
            settings.data_dir / "artifacts",
            key,
            url_ttl=wanted.url_ttl,
            retention=wanted.retention,
            min_free_bytes=wanted.min_free_bytes,
        )
        async with local:
            yield local
        return
    # The spool is inside the scope of the remote store: what waits can go out until the end.
    async with S3Store(wanted.s3, url_ttl=wanted.url_ttl) as remote:
        spool = SpoolingStore(remote, settings.data_dir / "spool", min_free_bytes=wanted.min_free_bytes)
        async with spool:
            yield spool


def _tell_health(service: health.aio.HealthServicer, tasks: set[asyncio.Task[None]], *, ready: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING

    async def tell() -> None:
        for name in ("", SERVICE):
            await service.set(name, status)

    task = asyncio.create_task(tell())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    log.info("ready" if ready else "not ready any more")


async def start_grpc(
    settings: Settings, service: SandboxService, health_service: health.aio.HealthServicer
) -> tuple[grpc.aio.Server, str]:
    """The gRPC server with health and reflection, and the address it listens on. Raises HostNotReady."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.grpc.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", settings.grpc.max_streams),
            ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
            # A client that vanished without a FIN is noticed within 15 seconds.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            # The other timeout sees a dead network only; a client that is stopped still has a kernel that answers.
            ("grpc.http2.ping_timeout_ms", 5_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    add_to(server, service, SERVICE)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    for name in ("", SERVICE):
        await health_service.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    host, _ = config.split_address("grpc.listen", settings.grpc.listen)
    try:
        port = server.add_insecure_port(settings.grpc.listen)
    except RuntimeError as error:
        raise HostNotReady(f"grpc.listen {settings.grpc.listen} cannot be listened on: {error}") from error
    await server.start()
    return server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
