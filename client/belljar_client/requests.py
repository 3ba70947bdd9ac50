"""What a caller may ask for, and how it becomes the message of the contract.

What is allowed is for the server to judge, which names every wrong field. Only what the message cannot carry is refused
here, as the same `InvalidRequest`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from google.protobuf import duration_pb2

from belljar.v1 import sandbox_pb2
from belljar_client.errors import InvalidRequest, Violation
from belljar_client.models import Artifact, ArtifactId, Limits, NetworkLimits

T = TypeVar("T")
EntryName = Literal["detect", "main_args", "main_named", "script"]
DisconnectPolicyName = Literal["cancel", "continue"]
NetworkModeName = Literal["none", "allowlist", "full"]

_ENTRIES: dict[str, sandbox_pb2.Entry] = {
    "detect": sandbox_pb2.ENTRY_UNSPECIFIED,
    "main_args": sandbox_pb2.ENTRY_MAIN_ARGS,
    "main_named": sandbox_pb2.ENTRY_MAIN_NAMED,
    "script": sandbox_pb2.ENTRY_SCRIPT,
}
_DISCONNECT_POLICIES: dict[str, sandbox_pb2.DisconnectPolicy] = {
    "cancel": sandbox_pb2.DISCONNECT_POLICY_CANCEL,
    "continue": sandbox_pb2.DISCONNECT_POLICY_CONTINUE,
}
_NETWORK_MODES: dict[str, sandbox_pb2.NetworkMode] = {
    "none": sandbox_pb2.NETWORK_MODE_NONE,
    "allowlist": sandbox_pb2.NETWORK_MODE_ALLOWLIST,
    "full": sandbox_pb2.NETWORK_MODE_FULL,
}


class Options(TypedDict, total=False):
    """The keyword arguments of `execute` and `stream`, all of them optional."""

    runtime: str
    """`python` (the default), `javascript`, `typescript`, or what else `runtimes()` lists."""
    inputs: Mapping[str, Any] | None
    """Inputs as values that JSON can carry."""
    inputs_json: str | None
    """Inputs as the text of a JSON object, passed on as it is. Not together with `inputs`."""
    entry: EntryName
    """How the code takes inputs; `detect` by default."""
    files: Mapping[str, bytes | str] | None
    """More sources to import from, by relative path."""
    input_files: Mapping[str, bytes | str | Path | ArtifactId | Artifact] | None
    """Files below /home/user, by relative path: content, a local file to read, or an artifact."""
    env: Mapping[str, str] | None
    dependencies: Sequence[str] | None
    """Packages beside the preinstalled ones: `polars>=1` for Python, `zod@4` for Node."""
    lock: str | None
    """The `lockfile` of an earlier result: the very same packages again, instead of `dependencies`."""
    limits: Limits | None
    labels: Mapping[str, str] | None
    """For the server's log."""
    request_id: str | None
    """Idempotency key: a second call with it sees the first execution. Lets a lost stream be picked up again."""
    disconnect_policy: DisconnectPolicyName
    """Whether the execution ends (`cancel`, the default) or goes on (`continue`) when this client goes away."""
    network: NetworkModeName | None
    """What the code may reach: nothing (`none`, the default), what `allow` names, or the public internet (`full`)."""
    allow: Sequence[str]
    """Rules such as `api.example.com`, `db.example.com:5432`, `*.example.org`; with them `network` is `allowlist`."""
    network_limits: NetworkLimits | None


def build_request(  # noqa: PLR0913 - the contract has as many fields
    code: str,
    *,
    runtime: str = "python",
    inputs: Mapping[str, Any] | None = None,
    inputs_json: str | None = None,
    entry: EntryName = "detect",
    files: Mapping[str, bytes | str] | None = None,
    input_files: Mapping[str, bytes | str | Path | ArtifactId | Artifact] | None = None,
    env: Mapping[str, str] | None = None,
    dependencies: Sequence[str] | None = None,
    lock: str | None = None,
    limits: Limits | None = None,
    labels: Mapping[str, str] | None = None,
    request_id: str | None = None,
    disconnect_policy: DisconnectPolicyName = "cancel",
    network: NetworkModeName | None = None,
    allow: Sequence[str] = (),
    network_limits: NetworkLimits | None = None,
) -> sandbox_pb2.ExecuteRequest:
    """The message for these options. Reads local files. Raises InvalidRequest, and OSError from reading."""
    request = sandbox_pb2.ExecuteRequest(
        runtime=_text("runtime", runtime),
        code=_text("code", code),
        inputs_json=_inputs(inputs, inputs_json),
        entry=_choice("entry", entry, _ENTRIES),
        disconnect_policy=_choice("disconnect_policy", disconnect_policy, _DISCONNECT_POLICIES),
        request_id=_text("request_id", request_id or ""),
        dependencies=_dependencies(dependencies or ()),
        lock=_text("lock", lock or ""),
        limits=_limits(limits or Limits()),
        network=_network(network or ("allowlist" if allow else "none"), allow, network_limits or NetworkLimits()),
    )
    for path, content in (files or {}).items():
        request.files.add(path=_text("files.path", path), content=_bytes(f"files[{path!r}]", content))
    for path, source in (input_files or {}).items():
        request.input_files.append(_input_file(path, source))
    for name, target, given in (("env", request.env, env), ("labels", request.labels, labels)):
        target.update({_text(name, key): _text(f"{name}[{key!r}]", value) for key, value in (given or {}).items()})
    return request


def _dependencies(names: Sequence[str]) -> list[str]:
    if isinstance(names, str):
        raise _refusal("dependencies", "must be a list of names with versions, got one text")
    return [_text(f"dependencies[{index}]", name) for index, name in enumerate(names)]


def _inputs(inputs: Mapping[str, Any] | None, inputs_json: str | None) -> str:
    if inputs is None:
        return _text("inputs_json", inputs_json or "")
    if inputs_json is not None:
        raise _refusal("inputs", "given together with inputs_json; give one of them")
    if not isinstance(inputs, Mapping):
        raise _refusal("inputs", f"must be a mapping of names to values, got {type(inputs).__name__}")
    try:
        return _text("inputs", json.dumps(dict(inputs), allow_nan=False, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal("inputs", f"JSON cannot carry it: {error}") from error


def _input_file(path: str, source: bytes | str | Path | ArtifactId | Artifact) -> sandbox_pb2.InputFile:
    message = sandbox_pb2.InputFile(path=_text("input_files.path", path))
    if isinstance(source, Artifact):
        source = source.id
    if isinstance(source, ArtifactId):
        message.artifact_id = _text("input_files.artifact_id", source)
    elif isinstance(source, os.PathLike):
        message.content = Path(source).read_bytes()
    else:
        message.content = _bytes(f"input_files[{path!r}]", source)
    return message


def _network(mode: NetworkModeName, allow: Sequence[str], limits: NetworkLimits) -> sandbox_pb2.Network | None:
    chosen = _choice("network", mode, _NETWORK_MODES)
    if isinstance(allow, str):
        raise _refusal("allow", "must be a list of rules, got one text")
    message = sandbox_pb2.Network(mode=chosen, allow=[_text("allow", rule) for rule in allow])
    _fill("network.limits", message.limits, limits)
    return message if message != sandbox_pb2.Network(mode=sandbox_pb2.NETWORK_MODE_NONE) else None


def _limits(limits: Limits) -> sandbox_pb2.Limits:
    message = sandbox_pb2.Limits()
    _fill("limits", message, limits)
    return message


def _fill(where: str, message: sandbox_pb2.Limits | sandbox_pb2.NetworkLimits, limits: Limits | NetworkLimits) -> None:
    """Puts the limits that are set into the message."""
    for field in fields(limits):
        value = getattr(limits, field.name)
        if value is None:
            continue
        try:
            if field.name in ("timeout", "cpu_time", "idle_timeout"):
                getattr(message, field.name).CopyFrom(_duration(value))
            else:
                setattr(message, field.name, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise _refusal(f"{where}.{field.name}", f"{value!r} is not possible: {error}") from error


def _duration(seconds: float) -> duration_pb2.Duration:
    if not math.isfinite(seconds):
        raise ValueError("not a finite number of seconds")
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _choice(field: str, name: str, choices: Mapping[str, T]) -> T:
    if name not in choices:
        raise _refusal(field, f"{name!r} is none of {', '.join(choices)}")
    return choices[name]


def _text(field: str, value: str) -> str:
    """The value, when it is text that UTF-8 can carry."""
    if not isinstance(value, str):
        raise _refusal(field, f"must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _refusal(field, f"has a lone surrogate at position {error.start}, which UTF-8 cannot carry") from error
    return value


def _bytes(field: str, content: object) -> bytes:
    if isinstance(content, str):
        return _text(field, content).encode()
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise _refusal(field, f"must be bytes or text, got {type(content).__name__}")


def _refusal(field: str, description: str) -> InvalidRequest:
    return InvalidRequest("", [Violation(field, description)])
