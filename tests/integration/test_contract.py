"""The service as any client finds it: ports, reflection, health, runtimes, events, refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from belljar.v1 import sandbox_pb2, sandbox_pb2_grpc
from belljar_client import Client
from tests.conftest import BELLJAR, CANARY, Server
from tests.integration.gotool import binary

pytestmark = pytest.mark.integration

SERVICE = "belljar.v1.SandboxService"
PATIENCE = 120.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def channel(server_address: str) -> Iterator[grpc.Channel]:
    """A plain channel, as any language has it."""
    with grpc.insecure_channel(server_address) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> sandbox_pb2_grpc.SandboxServiceStub:
    """The generated stub."""
    return sandbox_pb2_grpc.SandboxServiceStub(channel)


@pytest.fixture(scope="module")
def grpcurl(server_address: str) -> Callable[..., str]:
    """Runs grpcurl against the server and gives its stdout."""
    program = str(binary("github.com/fullstorydev/grpcurl/cmd/grpcurl", "v1.9.3"))

    def ask(*arguments: str) -> str:
        *options, method = arguments
        command = [program, "-plaintext", *options, server_address, *method.split()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    return ask


def execute(stub: Any, **fields: Any) -> list[sandbox_pb2.ExecuteResponse]:
    """All events of an execution."""
    return list(stub.Execute(sandbox_pb2.ExecuteRequest(**fields), timeout=PATIENCE))


def refusal(stub: Any, request: sandbox_pb2.ExecuteRequest) -> tuple[grpc.StatusCode, dict[str, str], list[str]]:
    """Status, violations by field, and the types of all details."""
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Execute(request, timeout=PATIENCE))
    call: Any = refused.value
    trailing = dict(call.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailing, call
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert status.code == call.code().value[0]
    violations: dict[str, str] = {}
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations |= {violation.field: violation.description for violation in bad.field_violations}
    return call.code(), violations, [detail.type_url.rpartition(".")[2] for detail in status.details]


def test_grpcurl_lists_describes_and_executes(grpcurl: Callable[..., str]) -> None:
    """Without any file of ours: reflection is enough."""
    assert {SERVICE, "grpc.health.v1.Health"} <= set(grpcurl("list").split())
    assert "rpc Execute ( .belljar.v1.ExecuteRequest ) returns ( stream .belljar.v1.ExecuteResponse );" in grpcurl(
        f"describe {SERVICE}"
    )
    request = json.dumps(
        {"runtime": "python", "code": "def main(a):\n    print('hi')\n    return a + 1", "inputs_json": '{"a": 41}'}
    )
    answer = grpcurl("-d", request, f"{SERVICE}/Execute")
    assert re.search(r'"result(_json|Json)": "42"', answer)  # reflection of Python servers has no JSON names
    assert '"outcome": "OUTCOME_SUCCEEDED"' in answer
    assert '"content": "aGkK"' in answer


def test_reflection_knows_the_whole_contract(channel: grpc.Channel) -> None:
    """Every message and enum can be asked for by name."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(
        database.get_services()
    )
    file = database.FindFileContainingSymbol("belljar.v1.Finished")
    assert {message.name for message in file.message_type} >= {"ExecuteRequest", "Finished", "Artifact", "Limits"}


def test_health_serves_once_a_sandbox_can_be_started(channel: grpc.Channel, server: Server) -> None:
    """For the server as a whole and for the service; an unknown one is NOT_FOUND. HTTP says the same."""
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    for path in ("healthz", "readyz"):
        with urllib.request.urlopen(f"http://{server.http_address}/{path}", timeout=10) as answer:
            assert answer.status == 200


def test_port_zero_picks_ports_and_prints_them(server: Server) -> None:
    """Two different ones, on loopback."""
    ports = {int(address.removeprefix("127.0.0.1:")) for address in (server.address, server.http_address)}
    assert len(ports) == 2
    assert 0 not in ports


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("GRPC__LISTEN", "0.0.0.0:0"),
        ("GRPC__LISTEN", "[::]:0"),
        ("GRPC__LISTEN", "example.org:0"),
        ("HTTP__LISTEN", "0.0.0.0:0"),
        ("HTTP__LISTEN", "192.0.2.1:0"),
    ],
)
def test_other_addresses_than_loopback_are_refused(setting: str, address: str) -> None:
    """Before anything listens, naming the setting and the one that would allow it."""
    environ = os.environ | {"BELLJAR_GRPC__LISTEN": "127.0.0.1:0", "BELLJAR_HTTP__LISTEN": "127.0.0.1:0"}
    done = subprocess.run(
        [BELLJAR, "serve"],
        env=environ | {f"BELLJAR_{setting}": address},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert setting.lower().replace("__", ".") in done.stderr
    assert "insecure_public_plaintext" in done.stderr


def test_runtimes_are_listed_with_versions_and_limits(stub: Any) -> None:
    """Name, exact version, main file, digest; defaults below ceilings; nothing waived here."""
    answer = stub.ListRuntimes(sandbox_pb2.ListRuntimesRequest(), timeout=PATIENCE)
    runtimes = {runtime.name: runtime for runtime in answer.runtimes}
    assert sorted(runtimes) == [runtime.name for runtime in answer.runtimes] == ["javascript", "python", "typescript"]
    assert {name: runtime.main_file for name, runtime in runtimes.items()} == {
        "javascript": "main.js",
        "python": "main.py",
        "typescript": "main.ts",
    }
    for runtime in answer.runtimes:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", runtime.image_digest)
        assert re.fullmatch(r"\d+(\.\d+)+", runtime.version)
    assert runtimes["python"].version.startswith("3.13.")
    for field in answer.default_limits.DESCRIPTOR.fields:
        default, ceiling = getattr(answer.default_limits, field.name), getattr(answer.max_limits, field.name)
        if isinstance(default, Duration):
            default, ceiling = default.ToNanoseconds(), ceiling.ToNanoseconds()
        assert 0 < default <= ceiling, field.name
    assert list(answer.waived_limits) == []


def test_version_that_is_listed_is_the_one_that_runs(stub: Any) -> None:
    """Asked from inside."""
    answer = stub.ListRuntimes(sandbox_pb2.ListRuntimesRequest(), timeout=PATIENCE)
    versions = {runtime.name: runtime.version for runtime in answer.runtimes}
    python = execute(stub, runtime="python", code="import platform\nplatform.python_version()")[-1].finished
    node = execute(stub, runtime="typescript", code="process.versions.node")[-1].finished
    assert (json.loads(python.result_json), json.loads(node.result_json)) == (
        versions["python"],
        versions["typescript"],
    )


def test_events_are_numbered_and_end_with_finished(stub: Any) -> None:
    """One id, a sequence from 1 without gaps, times and phases in order, one `started`, one `finished` at the end."""
    events = execute(stub, runtime="python", code="print('x')\nopen('f', 'w').write('y')")
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len({event.execution_id for event in events}) == 1
    assert events[0].execution_id
    times = [event.time.ToNanoseconds() for event in events]
    assert times == sorted(times)
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds.count("started"), kinds.count("finished"), kinds[-1]) == (1, 1, "finished")
    phases = [sandbox_pb2.Phase.Name(e.phase.phase) for e in events if e.WhichOneof("event") == "phase"]
    assert phases == ["PHASE_STARTING", "PHASE_RUNNING", "PHASE_COLLECTING"]
    finished = events[-1].finished
    assert finished.outcome == sandbox_pb2.OUTCOME_SUCCEEDED
    assert not finished.HasField("error")
    assert finished.usage.run_time.ToNanoseconds() > 0
    assert finished.usage.peak_memory_bytes > MIB
    assert finished.artifacts[0].state == sandbox_pb2.ARTIFACT_STATE_AVAILABLE


def test_execution_ids_differ(stub: Any) -> None:
    """Two executions of the same request are two."""
    first, second = (execute(stub, runtime="python", code="1")[0].execution_id for _ in range(2))
    assert first != second


def test_same_request_id_runs_once(stub: Any) -> None:
    """The second call replays the first, with the same id and the same random number; another body is refused."""
    request: dict[str, Any] = {
        "runtime": "python",
        "code": "import random\nrandom.random()",
        "request_id": "test-contract:once",
    }
    first, second = execute(stub, **request), execute(stub, **request)
    assert [event.SerializeToString() for event in first] == [event.SerializeToString() for event in second]
    other = sandbox_pb2.ExecuteRequest(**request | {"code": "2"})
    code, violations, _ = refusal(stub, other)
    assert (code, set(violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {"request_id"})


@pytest.mark.parametrize(
    ("fields", "named", "said"),
    [
        ({"runtime": "cobol"}, "runtime", "cobol"),
        ({"runtime": ""}, "runtime", "python"),
        ({"code": ""}, "code", "required"),
        ({"code": "a\0b"}, "code", "NUL"),
        ({"code": "#" * (4 * MIB + 1)}, "code", str(4 * MIB)),
        ({"inputs_json": "[1]"}, "inputs_json", "object"),
        ({"inputs_json": '{"a": 1, "a": 2}'}, "inputs_json", "twice"),
        ({"inputs_json": '{"a": NaN}'}, "inputs_json", "NaN"),
        ({"inputs_json": '{"a": ' + "[" * 300 + "]" * 300 + "}"}, "inputs_json", "200"),
        ({"inputs_json": '{"a": '}, "inputs_json", "JSON"),
        ({"entry": 77}, "entry", "Entry"),
        ({"disconnect_policy": 77}, "disconnect_policy", "DisconnectPolicy"),
        ({"request_id": "with space"}, "request_id", "128"),
        ({"files": [{"path": "../up.py"}]}, "files[0].path", ".."),
        ({"files": [{"path": "/abs.py"}]}, "files[0].path", "absolute"),
        ({"files": [{"path": "a"}, {"path": "a"}]}, "files[1].path", "twice"),
        (
            {"input_files": [{"path": "a", "content": b""}, {"path": "a/b", "content": b""}]},
            "input_files[1].path",
            "folder",
        ),
        ({"input_files": [{"path": "a"}]}, "input_files[0].source", "required"),
        ({"env": {"BELLJAR_X": "1"}}, "env", "BELLJAR_"),
        ({"env": {"1X": "1"}}, "env", "1X"),
        ({"labels": {"Bad Key": "1"}}, "labels", "Bad Key"),
        ({"limits": {"timeout": {"seconds": 1_000_000}}}, "limits.timeout", "900"),
        ({"limits": {"timeout": {"seconds": -1}}}, "limits.timeout", "-1"),
        ({"limits": {"cpus": float("nan")}}, "limits.cpus", "nan"),
        ({"limits": {"cpus": 0}}, "limits.cpus", "0.05"),
        ({"limits": {"memory_bytes": 1 << 50}}, "limits.memory_bytes", "bytes"),
        ({"limits": {"memory_bytes": 512}}, "limits.memory_bytes", "512"),
        ({"limits": {"processes": 0}}, "limits.processes", "16"),
        ({"limits": {"disk_bytes": 1 << 50}}, "limits.disk_bytes", "bytes"),
        ({"limits": {"open_files": 1}}, "limits.open_files", "64"),
        ({"limits": {"output_bytes": -1}}, "limits.output_bytes", "-1"),
        ({"limits": {"result_bytes": 1 << 50}}, "limits.result_bytes", "bytes"),
        ({"limits": {"artifact_count": 1 << 30}}, "limits.artifact_count", "10000"),
        ({"limits": {"artifact_bytes": 1 << 50}}, "limits.artifact_bytes", "bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_bad_request_is_refused_by_field(stub: Any, fields: dict[str, Any], named: str, said: str) -> None:
    """INVALID_ARGUMENT with a BadRequest and an ErrorInfo that name the field and what is allowed."""
    request = sandbox_pb2.ExecuteRequest(**{"runtime": "python", "code": "1"} | fields)
    code, violations, details = refusal(stub, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(violations) == {named}
    assert said in violations[named]
    assert set(details) == {"BadRequest", "ErrorInfo"}


def test_every_mistake_is_named_at_once(stub: Any) -> None:
    """Nobody has to fix one to learn of the next."""
    limits = {"timeout": {"seconds": -5}, "memory_bytes": 1, "cpus": 1e9}
    request = sandbox_pb2.ExecuteRequest(runtime="cobol", code="", inputs_json="{", env={"": ""}, limits=limits)
    _, violations, _ = refusal(stub, request)
    assert set(violations) == {
        "runtime",
        "code",
        "inputs_json",
        "env",
        "limits.timeout",
        "limits.memory_bytes",
        "limits.cpus",
    }


def test_very_many_mistakes_are_still_a_refusal(stub: Any) -> None:
    """Not a stream that breaks under the weight of its own status."""
    files = [sandbox_pb2.SourceFile(path=f"../{'%' * 60}{index}") for index in range(900)]
    code, violations, _ = refusal(stub, sandbox_pb2.ExecuteRequest(runtime="python", code="1", files=files))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "files[0].path" in violations


def test_artifact_that_does_not_exist_is_not_found(stub: Any) -> None:
    """NOT_FOUND with a ResourceInfo; what is too long to be an id is refused by field."""
    gone = sandbox_pb2.InputFile(path="x", artifact_id="0" * 32)
    code, _, details = refusal(stub, sandbox_pb2.ExecuteRequest(runtime="python", code="1", input_files=[gone]))
    assert (code, "ResourceInfo" in details) == (grpc.StatusCode.NOT_FOUND, True)
    endless = sandbox_pb2.InputFile(path="x", artifact_id="0" * 100_000)
    code, violations, _ = refusal(stub, sandbox_pb2.ExecuteRequest(runtime="python", code="1", input_files=[endless]))
    assert (code, list(violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["input_files[0].artifact_id"])


def test_refused_requests_start_nothing_and_leak_nothing(stub: Any, server: Server) -> None:
    """The server goes on, and its log has neither its secrets nor the code that was refused."""
    refusal(stub, sandbox_pb2.ExecuteRequest(runtime="python", code="never-run-\0-secret"))
    assert execute(stub, runtime="python", code="1")[-1].finished.result_json == "1"
    assert "never-run" not in server.log_text()
    assert CANARY not in server.log_text()


def test_one_canonical_log_line_per_execution(server: Server, client: Client) -> None:
    """With its labels, its outcome and its times; what the code printed is not in it."""
    list(client.stream("print('printed-by-user')\n1 / 0", labels={"job": "canonical-line"}))
    lines = [json.loads(line) for line in server.log_text().splitlines() if "canonical-line" in line]
    assert [line["event"] for line in lines] == ["execution"]
    assert (lines[0]["outcome"], lines[0]["kind"], lines[0]["labels"]) == (
        "failed",
        "EXCEPTION",
        {"job": "canonical-line"},
    )
    assert "printed-by-user" not in server.log_text()
    assert "ZeroDivisionError" not in server.log_text()
