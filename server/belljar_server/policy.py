"""Decides what a request may do: a pure function from what was asked and the settings to a request, or a refusal.

Every violation names the field, what was given and what is allowed; all of them are told at once. Nothing is started
here and nothing is lowered in silence. Long, for it has a question for each field of a request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from belljar_server import inputs
from belljar_server.config import Dependencies, Egress, LimitSettings
from belljar_server.dependencies import specs
from belljar_server.egress import rules
from belljar_server.errors import InvalidRequest, Violation, shown
from belljar_server.models import (
    DisconnectPolicy,
    Entry,
    ExecutionRequest,
    InputFile,
    Limits,
    Network,
    NetworkLimits,
    NetworkMode,
    SourceFile,
)
from belljar_server.runtimes import Ecosystem

MAX_CODE_BYTES = 4 << 20
MAX_FILES = 1000
MAX_FILE_BYTES = 4 << 20
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_ENV = 128
MAX_ENV_BYTES = 256 * 1024
MAX_VARIABLE_BYTES = 128 * 1024 - 1
"""Linux takes no longer `NAME=value` in an execve(2): no program could be started from the code."""
MAX_LABELS = 32
MAX_LABEL_CHARACTERS = 256
MAX_ARTIFACT_ID_CHARACTERS = 128

CPU_TIME_MARGIN = 1.0
"""Seconds by which an unset cpu_time exceeds timeout times cpus."""

FLOORS = Limits(
    timeout=0.001,
    cpu_time=0.01,
    cpus=0.05,
    memory_bytes=64 << 20,
    processes=16,
    disk_bytes=1 << 20,
    open_files=64,
    output_bytes=0,
    result_bytes=0,
    artifact_count=0,
    artifact_bytes=0,
)
"""The lowest value of each limit that leaves the runtime able to work."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Draft:
    """A request as it came in: typed, but nothing in it is checked. Unset limits are missing in `limits`."""

    runtime: str = ""
    code: str = ""
    files: tuple[SourceFile, ...] = ()
    inputs_json: str = ""
    entry: Entry | None = Entry.DETECT
    """None: a value that the contract does not know."""
    input_files: tuple[InputFile, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    dependencies: tuple[str, ...] = ()
    lock: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    limits: dict[str, float | int] = field(default_factory=dict)
    wrong: tuple[Violation, ...] = ()
    """What could not even be taken over into these types."""
    request_id: str = ""
    fingerprint: bytes = b""
    disconnect_policy: DisconnectPolicy | None = DisconnectPolicy.CANCEL
    network_mode: NetworkMode | None = NetworkMode.NONE
    allow: tuple[str, ...] = ()
    network_limits: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """What the server allows of networks: its rules, parsed, and the limits of traffic."""

    rules: rules.ServerRules = field(default_factory=rules.ServerRules)
    limits: Egress = field(default_factory=Egress)


def judge(  # noqa: C901  one question after the other
    draft: Draft,
    settings: LimitSettings,
    runtimes: Iterable[str],
    networks: NetworkSettings | None = None,
    ecosystems: Mapping[str, Ecosystem] = MappingProxyType({}),
    dependencies: Dependencies = Dependencies(),  # noqa: B008  frozen
) -> ExecutionRequest:
    """The validated request with effective limits. Raises InvalidRequest with everything that is wrong."""
    wrong: list[Violation] = [*draft.wrong]

    def refuse(where: str, description: str) -> None:
        wrong.append(Violation(where, description))

    names = sorted(runtimes)
    if draft.runtime not in names:
        refuse("runtime", f"{shown(draft.runtime)} is not a runtime of this server; it has {', '.join(names)}")
    _judge_code("code", draft.code, refuse)
    if not draft.code:
        refuse("code", "is empty; it is required")
    if draft.entry is None:
        refuse("entry", "is not a value of Entry")
    if draft.disconnect_policy is None:
        refuse("disconnect_policy", "is not a value of DisconnectPolicy")
    if draft.request_id and not _REQUEST_ID.fullmatch(draft.request_id):
        refuse("request_id", f"{shown(draft.request_id)} is not 1 to 128 characters of A-Z a-z 0-9 - _ . :")
    if problem := inputs.problem(draft.inputs_json):
        refuse("inputs_json", problem)
    _judge_paths("files", [file.path for file in draft.files], refuse)
    for index, source in enumerate(draft.files):
        if len(source.content) > MAX_FILE_BYTES:
            refuse(f"files[{index}].content", f"has {len(source.content)} bytes; at most {MAX_FILE_BYTES} are allowed")
    _judge_paths("input_files", [file.path for file in draft.input_files], refuse)
    _judge_sources(draft.input_files, refuse)
    _judge_env(draft.env, refuse)
    wanted, lock = _judge_dependencies(draft, ecosystems.get(draft.runtime), dependencies.max_count, refuse)
    _judge_labels(draft.labels, refuse)
    limits = _judge_limits(draft.limits, settings, refuse)
    network = _judge_network(draft, networks or NetworkSettings(), refuse)
    size = sum(len(file.content) for file in draft.files) + sum(len(file.content or b"") for file in draft.input_files)
    if limits and size > limits.disk_bytes:
        refuse(
            "limits.disk_bytes",
            f"is {limits.disk_bytes}, but files and input_files alone have {size} bytes; raise it or send less",
        )
    if wrong or limits is None or draft.entry is None or draft.disconnect_policy is None:
        raise InvalidRequest(*wrong)
    return ExecutionRequest(
        runtime=draft.runtime,
        code=draft.code,
        limits=limits,
        inputs_json=draft.inputs_json or "{}",
        entry=draft.entry,
        files=draft.files,
        input_files=draft.input_files,
        env=draft.env,
        dependencies=wanted,
        lock=lock,
        labels=draft.labels,
        request_id=draft.request_id,
        fingerprint=draft.fingerprint,
        disconnect_policy=draft.disconnect_policy,
        network=network,
    )


Refuse = Callable[[str, str], None]


def _judge_code(where: str, code: str, refuse: Refuse) -> None:
    size = len(code.encode("utf-8", "surrogatepass")) if len(code) * 4 > MAX_CODE_BYTES else len(code)
    if size > MAX_CODE_BYTES:
        refuse(where, f"has {size} bytes; at most {MAX_CODE_BYTES} are allowed")
    if "\0" in code:
        refuse(where, f"has a NUL character at position {code.index(chr(0))}; none is allowed")


def _judge_limits(asked: dict[str, float | int], settings: LimitSettings, refuse: Refuse) -> Limits | None:
    values: dict[str, float | int] = {}
    for spec in fields(Limits):
        name = spec.name
        floor, ceiling = getattr(FLOORS, name), getattr(settings.max, name)
        value = asked.get(name)
        if value is None:
            values[name] = getattr(settings.default, name)
        elif math.isfinite(value) and floor <= value <= ceiling:
            values[name] = value
        else:
            shortest, longest = exactly(floor), exactly(ceiling)
            words = f"is {exactly(value)}; {shortest} to {longest} {unit(name)} are allowed"
            refuse(f"limits.{name}", words.replace("  ", " "))
            values[name] = floor
    if "cpu_time" not in asked:
        # Somewhat more than the cores can give in that time: code that is busy all the time meets the wall time first.
        values["cpu_time"] = min(values["timeout"] * max(1.0, values["cpus"]) + CPU_TIME_MARGIN, settings.max.cpu_time)
    return Limits(**values)  # type: ignore[arg-type]  # each field's type is that of its default


NETWORK_FLOORS = NetworkLimits(
    connections=1, connections_per_second=1, bytes_in=0, bytes_out=0, dns_queries=0, idle_timeout=1.0
)


def _judge_network(draft: Draft, settings: NetworkSettings, refuse: Refuse) -> Network | None:
    """What the execution may reach; None for nothing."""
    server = settings.rules
    mode = draft.network_mode
    if mode is None:
        refuse("network.mode", "is not a value of NetworkMode")
        return None
    if mode is not NetworkMode.NONE and mode not in server.modes:
        allowed = ", ".join(each.name for each in NetworkMode if each in server.modes or each is NetworkMode.NONE)
        refuse("network.mode", f"is {mode.name}; this server allows {allowed}")
    if draft.allow and mode is not NetworkMode.ALLOWLIST:
        refuse("network.allow", f"has rules, but network.mode is {mode.name}; they are for ALLOWLIST")
    if len(draft.allow) > server.max_rules:
        refuse("network.allow", f"has {len(draft.allow)} rules; at most {server.max_rules} are allowed")
        return None
    allow = []
    for index, text in enumerate(draft.allow):
        try:
            rule = rules.parse(text, server.trusted)
        except rules.WrongRule as error:
            refuse(f"network.allow[{index}]", f"{shown(text)} {error}")
            continue
        denied = rules.denied_by(rule, server.deny)
        if denied:
            refuse(f"network.allow[{index}]", f"{shown(text)} is denied by this server's rule {shown(denied.text)}")
        allow.append(rule)
    limits = _judge_network_limits(draft.network_limits, settings.limits, refuse)
    return Network(mode, limits, tuple(allow)) if mode is not NetworkMode.NONE else None


def _judge_network_limits(asked: dict[str, float | int], settings: Egress, refuse: Refuse) -> NetworkLimits:
    values: dict[str, float | int] = {}
    for spec in fields(NetworkLimits):
        name = spec.name
        floor, ceiling = getattr(NETWORK_FLOORS, name), getattr(settings.max, name)
        value = values[name] = asked.get(name, getattr(settings.default, name))
        if name in asked and not (math.isfinite(value) and floor <= value <= ceiling):
            what = "seconds" if name == "idle_timeout" else "bytes" if name.startswith("bytes_") else ""
            words = f"is {exactly(value)}; {exactly(floor)} to {exactly(ceiling)} {what} are allowed"
            refuse(f"network.limits.{name}", words.replace("  ", " "))
    return NetworkLimits(**values)  # type: ignore[arg-type]  # each field's type is that of its default


def exactly(value: float) -> str:
    """A number with all its digits: one byte above a ceiling must not look like the ceiling."""
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def unit(limit: str) -> str:
    """The unit of a limit in words."""
    if limit in ("timeout", "cpu_time"):
        return "seconds"
    if limit == "cpus":
        return "cores"
    return "bytes" if limit.endswith("_bytes") else ""


def _judge_paths(where: str, paths: list[str], refuse: Refuse) -> None:
    if len(paths) > MAX_FILES:
        refuse(where, f"has {len(paths)} entries; at most {MAX_FILES} are allowed")
        return
    files: set[str] = set()
    folders: set[str] = set()
    for index, path in enumerate(paths):
        problem = path_problem(path)
        if problem is None and path in files:
            problem = "is there twice"
        parents = {path[:at] for at, character in enumerate(path) if character == "/"}
        if problem is None and (path in folders or parents & files):
            problem = "is needed both as a file and as a folder"
        if problem:
            refuse(f"{where}[{index}].path", f"{shown(path)} {problem}")
        files.add(path)
        folders |= parents


def path_problem(path: str) -> str | None:
    """Why a relative path is not allowed, or None when it is."""
    if not path:
        return "is empty"
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if size > MAX_PATH_BYTES:
        return f"has {size} bytes; at most {MAX_PATH_BYTES} are allowed"
    if path.startswith("/"):
        return "is absolute; a path below the working directory is wanted"
    if "\0" in path:
        return "has a NUL character"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "has an empty part, a `.` or a `..`"
        if len(part.encode()) > MAX_NAME_BYTES:
            return f"has a name of {len(part.encode())} bytes; at most {MAX_NAME_BYTES} are allowed"
    return None


def _judge_sources(files: tuple[InputFile, ...], refuse: Refuse) -> None:
    for index, file in enumerate(files):
        if file.content is None and not file.artifact_id:
            refuse(f"input_files[{index}].source", "is not set; content or artifact_id is required")
        elif len(file.artifact_id or "") > MAX_ARTIFACT_ID_CHARACTERS:
            refuse(f"input_files[{index}].artifact_id", f"{shown(file.artifact_id or '')} is no id of an artifact")


def _judge_env(env: tuple[tuple[str, str], ...], refuse: Refuse) -> None:
    if len(env) > MAX_ENV:
        refuse("env", f"has {len(env)} variables; at most {MAX_ENV} are allowed")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in env)
    if size > MAX_ENV_BYTES:
        refuse("env", f"has {size} bytes; at most {MAX_ENV_BYTES} are allowed")
    for name, value in env:
        if not _ENV_NAME.fullmatch(name):
            refuse("env", f"{shown(name)} is not a name of letters, digits and _ that starts with no digit")
        elif name.upper().startswith("BELLJAR_"):
            refuse("env", f"{shown(name)} is reserved: names that start with BELLJAR_ are")
        if "\0" in value:
            refuse(f"env[{shown(name)}]", "has a NUL character in its value")
        variable = len(name.encode()) + 1 + len(value.encode())
        if variable > MAX_VARIABLE_BYTES:
            refuse(
                f"env[{shown(name)}]", f"has {variable} bytes with its name; at most {MAX_VARIABLE_BYTES} are allowed"
            )


def _judge_dependencies(
    draft: Draft, ecosystem: Ecosystem | None, most: int, refuse: Refuse
) -> tuple[tuple[str, ...], str]:
    """What is asked for in canonical form; with a lock that alone."""
    if not draft.dependencies and not draft.lock:
        return (), ""
    where = "lock" if draft.lock else "dependencies"
    if ecosystem is None:
        refuse(where, "is set, but this runtime has no packages")
        return (), ""
    if most == 0:
        refuse(where, "is set, but this server installs nothing beside what ListRuntimes lists")
        return (), ""
    if ecosystem is Ecosystem.NPM and any(file.path.startswith("node_modules/") for file in draft.files):
        refuse("files", "has a node_modules of its own, together with dependencies")
    if draft.lock:  # says all by itself: dependencies are not looked at
        try:
            return (), specs.canonical_lock(ecosystem, draft.lock)
        except specs.Refused as error:
            refuse("lock", str(error))
            return (), ""
    if len(draft.dependencies) > most:
        refuse("dependencies", f"has {len(draft.dependencies)} entries; at most {most} are allowed")
        return (), ""
    found = []
    for index, text in enumerate(draft.dependencies):
        try:
            found.append(specs.canonical(ecosystem, text))
        except specs.Refused as error:
            refuse(f"dependencies[{index}]", f"{shown(text)} {error}")
    return tuple(found), ""


def _judge_labels(labels: tuple[tuple[str, str], ...], refuse: Refuse) -> None:
    if len(labels) > MAX_LABELS:
        refuse("labels", f"has {len(labels)} entries; at most {MAX_LABELS} are allowed")
    for key, value in labels:
        if not _LABEL_KEY.fullmatch(key):
            refuse("labels", f"{shown(key)} does not match [a-z][a-z0-9_.-]{{0,62}}")
        if len(value) > MAX_LABEL_CHARACTERS:
            refuse(f"labels[{shown(key)}]", f"has {len(value)} characters; at most {MAX_LABEL_CHARACTERS} are allowed")
