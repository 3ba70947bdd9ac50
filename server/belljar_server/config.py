"""Settings: one TOML file and `BELLJAR_…` environment variables, parsed once into frozen types.

The environment wins over the file; `__` separates levels (`BELLJAR_HTTP__LISTEN`). Unknown keys are refused in both.
README.md has the table of all settings; a test compares it with this module. Long, for it is that list.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from belljar_server import models
from belljar_server.errors import HostNotReady

MIB = 1 << 20
GIB = 1 << 30

WaivableLimit = Literal["memory_bytes", "cpus", "cpu_time"]
"""Limits that need a cgroup controller, by their name in the contract."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grpc(_Section):
    """The gRPC port."""

    listen: str = "127.0.0.1:50051"
    """Address and port; port 0 picks a free one and prints it."""
    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=GIB)] = 32 * MIB
    """Largest request."""
    max_streams: Annotated[int, Field(ge=1)] = 256
    """Executions that one connection may have open at once."""
    stall_timeout: Annotated[float, Field(gt=0)] = 60.0
    """A client that reads nothing for so many seconds after the end of its execution is let go."""


class Http(_Section):
    """The HTTP port: artifact downloads, metrics, health."""

    listen: str = "127.0.0.1:8080"
    """Address and port; port 0 picks a free one and prints it."""
    public_url: str = ""
    """What download URLs start with, when clients reach the port by another name. Default: the address listened on."""


class LimitSet(_Section):
    """Values of all limits, in seconds, cores, bytes and counts. `Limits` in the contract says what each means."""

    timeout: Annotated[float, Field(gt=0)] = 30.0
    cpu_time: Annotated[float, Field(gt=0)] = 31.0
    cpus: Annotated[float, Field(gt=0)] = 1.0
    memory_bytes: Annotated[int, Field(gt=0)] = 512 * MIB
    processes: Annotated[int, Field(gt=0)] = 128
    disk_bytes: Annotated[int, Field(gt=0)] = 256 * MIB
    open_files: Annotated[int, Field(gt=0)] = 1024
    output_bytes: Annotated[int, Field(ge=0)] = 4 * MIB
    result_bytes: Annotated[int, Field(ge=0)] = MIB
    artifact_count: Annotated[int, Field(ge=0)] = 1000
    artifact_bytes: Annotated[int, Field(ge=0)] = 256 * MIB

    def as_limits(self) -> models.Limits:
        """The same values as the type that the rest of the server uses."""
        return models.Limits(**{f.name: getattr(self, f.name) for f in fields(models.Limits)})


class MaxLimits(LimitSet):
    """The ceilings: the highest value that a request may ask for."""

    timeout: Annotated[float, Field(gt=0)] = 900.0
    cpu_time: Annotated[float, Field(gt=0)] = 3600.0
    cpus: Annotated[float, Field(gt=0)] = float(max(1, os.cpu_count() or 1))
    memory_bytes: Annotated[int, Field(gt=0)] = 4 * GIB
    processes: Annotated[int, Field(gt=0)] = 4000
    disk_bytes: Annotated[int, Field(gt=0)] = 4 * GIB
    open_files: Annotated[int, Field(gt=0)] = 65536
    output_bytes: Annotated[int, Field(ge=0)] = 16 * MIB
    result_bytes: Annotated[int, Field(ge=0)] = 16 * MIB
    artifact_count: Annotated[int, Field(ge=0)] = 10_000
    artifact_bytes: Annotated[int, Field(ge=0)] = 4 * GIB


class LimitSettings(_Section):
    """Limits of executions."""

    default: LimitSet = LimitSet()
    """What an unset field of a request means."""
    max: MaxLimits = MaxLimits()
    """The highest value of each."""
    waived: frozenset[WaivableLimit] = frozenset()
    """Limits that this host cannot enforce and that you accept as such; else the server does not start."""
    output_flood_bytes: Annotated[int, Field(gt=0)] = 256 * MIB
    """Output of one execution, dropped or not, after which it is ended with OUTPUT_LIMIT."""

    @model_validator(mode="after")
    def _defaults_are_below_ceilings(self) -> Self:
        for name in LimitSet.model_fields:
            default, ceiling = getattr(self.default, name), getattr(self.max, name)
            if default > ceiling:
                raise ValueError(f"limits.default.{name} is {default}, above limits.max.{name}, which is {ceiling}")
        return self


class Execution(_Section):
    """How much runs at once."""

    max_running: Annotated[int, Field(ge=1)] = 4 * max(1, os.cpu_count() or 1)
    """Executions that run at once."""
    max_queued: Annotated[int, Field(ge=0)] = 256
    """Executions that wait for a place; one more is refused at once with RESOURCE_EXHAUSTED."""
    start_timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a sandbox may take to start."""
    collect_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that storing the artifacts of one execution may take."""
    replay_ttl: Annotated[float, Field(ge=0)] = 600.0
    """Seconds for which a finished execution that has a request_id can be replayed."""
    replay_bytes: Annotated[int, Field(ge=0)] = 64 * MIB
    """Memory for finished executions that can be replayed; the oldest go first."""


class Sandbox(_Section):
    """How sandboxes are made."""

    runsc: Path | None = None
    """The runsc binary. Default: what `belljar setup` chose."""
    platform: str = "systrap"
    """gVisor's platform; `kvm` needs hardware virtualisation."""
    cgroup_parent: str = ""
    """Path of the cgroup to work below, from the root of the hierarchy. Default: found by itself."""


class Pool(_Section):
    """Sandboxes that wait for executions, one pool for each runtime."""

    max: Annotated[int, Field(ge=0)] = 16
    """Most sandboxes that wait for one runtime; 0 turns pool and snapshots off."""
    min: Annotated[int, Field(ge=0)] = 2
    """Sandboxes that wait even when nobody came for long."""
    memory_bytes: Annotated[int, Field(gt=0)] = 2 * GIB
    """Memory that all waiting sandboxes may take together, at about 48 MiB each."""
    min_available_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    """Below this much available memory on the host the pools are emptied first."""
    max_age: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds after which a waiting sandbox is replaced."""

    @model_validator(mode="after")
    def _min_is_below_max(self) -> Self:
        if self.max and self.min > self.max:
            raise ValueError(f"pool.min is {self.min}, above pool.max, which is {self.max}")
        return self


class NetworkLimitSet(_Section):
    """Values of all limits of traffic: counts, bytes, seconds. `NetworkLimits` in the contract says what each means."""

    connections: Annotated[int, Field(ge=1)] = 256
    connections_per_second: Annotated[int, Field(ge=1)] = 100
    bytes_in: Annotated[int, Field(ge=0)] = GIB
    bytes_out: Annotated[int, Field(ge=0)] = 256 * MIB
    dns_queries: Annotated[int, Field(ge=0)] = 2000
    idle_timeout: Annotated[float, Field(ge=1)] = 60.0

    def as_limits(self) -> models.NetworkLimits:
        """The same values as the type that the rest of the server uses."""
        return models.NetworkLimits(**{f.name: getattr(self, f.name) for f in fields(models.NetworkLimits)})


class MaxNetworkLimits(NetworkLimitSet):
    """The ceilings: the highest value that a request may ask for."""

    connections: Annotated[int, Field(ge=1)] = 1024
    connections_per_second: Annotated[int, Field(ge=1)] = 1000
    bytes_in: Annotated[int, Field(ge=0)] = 64 * GIB
    bytes_out: Annotated[int, Field(ge=0)] = 64 * GIB
    dns_queries: Annotated[int, Field(ge=0)] = 100_000
    idle_timeout: Annotated[float, Field(ge=1)] = 3600.0


class Egress(_Section):
    """What code may reach over the network."""

    modes: frozenset[Literal["none", "allowlist", "full"]] | None = None
    """Network modes that requests may ask for; `none` is always there. Default: all, where the host can."""
    always_allow: tuple[str, ...] = ()
    """Rules in force for every execution with ALLOWLIST, as in `network.allow`."""
    deny: tuple[str, ...] = ()
    """Names and networks that are never reached, whatever a request allows."""
    max_rules: Annotated[int, Field(ge=0)] = 64
    """Rules that one request may have."""
    default: NetworkLimitSet = NetworkLimitSet()
    """What an unset field of network.limits means."""
    max: MaxNetworkLimits = MaxNetworkLimits()
    """The highest value of each."""
    trusted_upstream_cidrs: tuple[str, ...] = ()
    """Networks that count as public though they are not."""
    dns_servers: tuple[str, ...] = ()
    """Addresses, with a port if not 53. Default: those of /etc/resolv.conf."""
    upstream_proxy: str = ""
    """`http://host:port` or `socks5://host:port`: a proxy that all connections go through."""
    upstream_proxy_credentials_file: Path | None = None
    """File with `user:password` for it."""
    ca_bundle: Path | None = None
    """PEM file of certificates that images trust beside the usual ones; `belljar setup` puts them in."""
    audit: bool = False
    """A line in the log for each connection."""
    waiting: Annotated[int, Field(ge=0)] = 1
    """Sandboxes with network that wait for each runtime even when nobody came for long; beyond it pool.max counts."""

    @model_validator(mode="after")
    def _defaults_are_below_ceilings(self) -> Self:
        for name in NetworkLimitSet.model_fields:
            default, ceiling = getattr(self.default, name), getattr(self.max, name)
            if default > ceiling:
                raise ValueError(f"egress.default.{name} is {default}, above egress.max.{name}, which is {ceiling}")
        return self


class S3(_Section):
    """An S3 bucket for artifacts."""

    bucket: str = ""
    prefix: str = ""
    """What object keys start with."""
    endpoint_url: str = ""
    """Default: AWS."""
    public_endpoint_url: str = ""
    """What download URLs start with, when clients reach the store by another name."""
    region: str = "us-east-1"
    access_key_id_file: Path | None = None
    """File with the key id. Default: the usual AWS sources (environment, instance role)."""
    secret_access_key_file: Path | None = None
    """File with the secret key."""


class Artifacts(_Section):
    """Where artifacts go."""

    store: Literal["local", "s3"] = "local"
    url_ttl: Annotated[float, Field(gt=0, le=7 * 86400)] = 3600.0
    """Seconds that a download URL works."""
    retention: Annotated[float, Field(gt=0)] = 86400.0
    """Seconds that the local store keeps an artifact. A bucket has its own life-cycle rules."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 512 * MIB
    """Below this much free space in data_dir new executions are refused with RESOURCE_EXHAUSTED."""
    s3: S3 = S3()

    @model_validator(mode="after")
    def _s3_has_a_bucket(self) -> Self:
        if self.store == "s3" and not self.s3.bucket:
            raise ValueError("artifacts.store is s3 but artifacts.s3.bucket is empty")
        return self


class Dependencies(_Section):
    """Packages that requests ask for."""

    python_index: str = ""
    """Address of the Python package index (the simple API). Default: what pip of this machine uses, as set-up found."""
    python_extra_indexes: tuple[str, ...] = ()
    """More indexes, asked for what those before do not have."""
    python_credentials_file: Path | None = None
    """File with `name:password` for python_index."""
    npm_registry: str = ""
    """Address of the npm registry. Default: what npm of this machine uses, as set-up found."""
    npm_token_file: Path | None = None
    """File with the bearer token for npm_registry."""
    ca_file: Path | None = None
    """Certificates to trust instead of the host's own."""
    build: bool = False
    """Build Python packages that have no wheel, and run npm's package scripts; in the sandbox that installs."""
    max_count: Annotated[int, Field(ge=0)] = 64
    """Dependencies that one request may name; 0 turns them off."""
    max_packages: Annotated[int, Field(ge=1)] = 500
    """Packages that they may resolve to."""
    max_installing: Annotated[int, Field(ge=1)] = 2
    """Installations that run at once."""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that one installation may take."""
    memory_bytes: Annotated[int, Field(ge=256 * MIB)] = 3 * GIB
    """Memory of one installation; its disk is in it."""
    disk_bytes: Annotated[int, Field(ge=64 * MIB)] = 2 * GIB
    """Disk of one installation: downloads, what they unpack to, and the layer made of it."""
    download_bytes: Annotated[int, Field(ge=MIB)] = GIB
    """Bytes that one installation may download."""
    layer_bytes: Annotated[int, Field(ge=MIB)] = GIB
    """Bytes that what is installed may take."""
    resolve_ttl: Annotated[float, Field(ge=0)] = 86400.0
    """Seconds after which the same request is resolved again, in the background."""
    cache_bytes: Annotated[int, Field(ge=0)] = 10 * GIB
    """Layers on disk; the least recently used go first."""


class Log(_Section):
    """The service's own log, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, JSON elsewhere."""


class Settings(BaseSettings):
    """All settings of a server."""

    model_config = SettingsConfigDict(
        env_prefix="BELLJAR_", env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    data_dir: Path = Path("/var/lib/belljar")
    """Images, runsc, artifacts, keys: what outlives a server."""
    setup_dir: Path | None = None
    """Where `belljar setup` puts what it builds: runsc, images. Default: data_dir."""
    runtime_dir: Path = Path("/run/belljar")
    """State of running servers; on a tmpfs."""
    shutdown_grace: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running executions get after SIGTERM."""
    insecure_public_plaintext: bool = False
    """Allow other addresses than loopback, without TLS and without tokens. Whoever reaches the port can run code."""
    grpc: Grpc = Grpc()
    http: Http = Http()
    limits: LimitSettings = LimitSettings()
    execution: Execution = Execution()
    sandbox: Sandbox = Sandbox()
    pool: Pool = Pool()
    egress: Egress = Egress()
    artifacts: Artifacts = Artifacts()
    dependencies: Dependencies = Dependencies()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment before the file (which comes in as init arguments); nothing else."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    @property
    def built(self) -> Path:
        """Where what set-up builds is."""
        return self.setup_dir or self.data_dir

    @model_validator(mode="after")
    def _public_means_said_so(self) -> Self:
        for name, listen in (("grpc.listen", self.grpc.listen), ("http.listen", self.http.listen)):
            host, _ = split_address(name, listen)
            if not _is_loopback(host) and not self.insecure_public_plaintext:
                raise ValueError(
                    f"{name} is {listen}, which is not loopback. Whoever reaches it could run code: there is no TLS"
                    " and no token yet. Set insecure_public_plaintext to true if that is meant"
                )
        return self


def split_address(name: str, address: str) -> tuple[str, int]:
    """Host and port of `host:port`; IPv6 hosts stand in brackets. Raises ValueError naming the setting."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{name} is {address!r}, expected host:port with a port from 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(file: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the file (or BELLJAR_CONFIG's) and the environment. Raises HostNotReady naming every wrong key."""
    file = file or (Path(environ["BELLJAR_CONFIG"]) if environ.get("BELLJAR_CONFIG") else None)
    from_file: dict[str, Any] = {}
    if file:
        try:
            from_file = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise HostNotReady(f"settings file {file}: {error}") from error
    unknown = [name for name in environ if name.startswith("BELLJAR_") and not _is_known(name)]
    if unknown:
        raise HostNotReady(f"unknown settings in the environment: {', '.join(sorted(unknown))}")
    try:
        return Settings(**from_file)
    except ValidationError as error:
        where = f" in {file} or the environment" if file else " in the environment"
        lines = [
            f"  {'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise HostNotReady(f"wrong settings{where}:\n" + "\n".join(lines)) from error


CLIENT_VARIABLES = frozenset({"BELLJAR_CONFIG", "BELLJAR_ADDRESS"})
"""Variables that are not settings of the server: where its file is, and where the client finds it."""


def _is_known(name: str) -> bool:
    if name in CLIENT_VARIABLES:
        return True
    model: type[BaseModel] = Settings
    parts = name.removeprefix("BELLJAR_").lower().split("__")
    for depth, part in enumerate(parts):
        field = model.model_fields.get(part)
        if field is None:
            return False
        if depth == len(parts) - 1:
            return True
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return False
        model = field.annotation
    return False
