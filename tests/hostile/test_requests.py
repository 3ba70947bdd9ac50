"""Requests that are wrong, absurd or hostile: refused by name before anything starts, or run as what they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from belljar.v1 import sandbox_pb2 as pb
from belljar.v1 import sandbox_pb2_grpc
from tests.conftest import Server
from tests.hostile.conftest import Attack, metric

pytestmark = pytest.mark.hostile

MIB = 1 << 20
METHOD = "/belljar.v1.SandboxService/Execute"
RUNTIMES = ("python", "javascript", "typescript")
Stub = sandbox_pb2_grpc.SandboxServiceStub


class Call:
    """What came of one Execute: its events, or a status with the fields that were wrong."""

    def __init__(self, events: Iterator[pb.ExecuteResponse]) -> None:
        self.events: list[pb.ExecuteResponse] = []
        self.status = grpc.StatusCode.OK
        self.wrong: dict[str, str] = {}
        try:
            self.events += events
        except grpc.RpcError as error:
            self.status = error.code()
            pairs: Any = error.trailing_metadata() or ()
            metadata = dict(pairs)
            details = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
            for detail in details.details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad):
                    self.wrong |= {each.field: each.description for each in bad.field_violations}

    @property
    def finished(self) -> pb.Finished:
        """The terminal event."""
        assert self.events, self.status
        return self.events[-1].finished

    @property
    def kind(self) -> str:
        """Why it failed, in one word; empty when it did not."""
        return pb.ErrorKind.Name(self.finished.error.kind).removeprefix("ERROR_KIND_").replace("UNSPECIFIED", "")

    def is_refusal_of(self, field: str) -> bool:
        """Whether it was refused for this field, in words, and nothing was started."""
        return self.status is grpc.StatusCode.INVALID_ARGUMENT and bool(self.wrong.get(field)) and not self.events


@pytest.fixture(scope="module")
def channel(server_address: str) -> Iterator[grpc.Channel]:
    """A channel that sends messages of any size."""
    with grpc.insecure_channel(server_address, options=[("grpc.max_send_message_length", -1)]) as opened:
        yield opened


def serialize(request: Any) -> bytes:
    """Messages as gRPC does it; bytes as they are."""
    return request if isinstance(request, bytes) else bytes(request.SerializeToString())


@pytest.fixture
def execute(channel: grpc.Channel, attack: Attack) -> Callable[[pb.ExecuteRequest | bytes], Call]:
    """Sends a request, or bytes in place of one."""
    send = channel.unary_stream(
        METHOD,
        request_serializer=serialize,
        response_deserializer=pb.ExecuteResponse.FromString,
    )

    def execute(request: pb.ExecuteRequest | bytes) -> Call:
        call = Call(send(request, timeout=60))
        attack.seen.append(repr((call.events, call.wrong)).encode())
        return call

    return execute


Execute = Callable[[pb.ExecuteRequest | bytes], Call]


def ask(code: str = "1", runtime: str = "python", **fields: Any) -> pb.ExecuteRequest:
    """A request that is right but for `fields`."""
    return pb.ExecuteRequest(code=code, runtime=runtime, **fields)


def limits(**fields: Any) -> pb.ExecuteRequest:
    """A request with these limits."""
    return ask(limits=pb.Limits(**fields))


def not_refused(execute: Execute, wrong: dict[str, list[pb.ExecuteRequest]]) -> list[str]:
    """Those of the requests that were not refused for their field."""
    return [
        f"{field}: {repr(request)[:200]}"
        for field, requests in wrong.items()
        for request in requests
        if not execute(request).is_refusal_of(field)
    ]


def test_limits_that_make_no_sense_are_refused_by_name_and_nothing_starts(server: Server, execute: Execute) -> None:
    """Zero, negative, NaN, infinite, one above the ceiling, absurd, and durations that are none."""
    durations = [
        Duration(),
        Duration(seconds=-5),
        Duration(seconds=315_576_000_001),
        Duration(seconds=2**62),
        Duration(seconds=1, nanos=10**9),
        Duration(seconds=1, nanos=-1),
        Duration(seconds=-1, nanos=1),
    ]
    sizes: dict[str, tuple[int, int, int]] = {  # lowest, highest, what the field can hold
        "memory_bytes": (64 * MIB, 4096 * MIB, 2**63),
        "disk_bytes": (MIB, 4096 * MIB, 2**63),
        "processes": (16, 4000, 2**31),
        "open_files": (64, 65536, 2**31),
        "output_bytes": (0, 16 * MIB, 2**63),
        "result_bytes": (0, 16 * MIB, 2**63),
        "artifact_count": (0, 10_000, 2**31),
        "artifact_bytes": (0, 4096 * MIB, 2**63),
    }
    floats = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.0499, 1e300, 4096.0)
    wrong = {
        "limits.timeout": [
            limits(timeout=each) for each in [*durations, Duration(seconds=901), Duration(nanos=999_999)]
        ],
        "limits.cpu_time": [limits(cpu_time=each) for each in [*durations, Duration(seconds=3601)]],
        "limits.cpus": [limits(cpus=each) for each in floats],
    }
    for name, (low, high, end) in sizes.items():
        wrong[f"limits.{name}"] = [limits(**{name: value}) for value in (low - 1, -1, high + 1, end - 1, -end)]
    assert not_refused(execute, wrong) == []
    assert metric(server, "belljar_executions_running") == 0


def test_refusal_shows_value_and_ceiling_with_all_digits(execute: Execute) -> None:
    """One byte above a ceiling does not look like the ceiling."""
    description = execute(limits(memory_bytes=4096 * MIB + 1)).wrong["limits.memory_bytes"]
    assert "4294967297" in description
    assert "4294967296" in description


def test_lowest_and_highest_limits_work(execute: Execute) -> None:
    """What is allowed can be had, whatever the host's own limits are."""
    lowest = pb.Limits(
        memory_bytes=64 * MIB,
        processes=16,
        disk_bytes=MIB,
        open_files=64,
        output_bytes=0,
        artifact_count=0,
        artifact_bytes=0,
    )
    highest = pb.Limits(
        timeout=Duration(seconds=900),
        cpu_time=Duration(seconds=3600),
        memory_bytes=4096 * MIB,
        processes=4000,
        disk_bytes=4096 * MIB,
        open_files=65536,
        output_bytes=16 * MIB,
        result_bytes=16 * MIB,
        artifact_count=10_000,
        artifact_bytes=4096 * MIB,
    )
    for runtime in RUNTIMES:
        assert execute(ask(runtime=runtime, limits=lowest)).finished.result_json == "1"
    code = "import resource\nresource.getrlimit(resource.RLIMIT_NOFILE)[0]"
    assert execute(ask(code, limits=highest)).finished.result_json == "65536"


def test_everything_wrong_is_told_at_once(execute: Execute) -> None:
    """Also a duration that is none hides nothing else."""
    request = pb.ExecuteRequest(
        runtime="cobol", request_id="a b", limits=pb.Limits(timeout=Duration(nanos=2 * 10**9 - 1), memory_bytes=1)
    )
    found = execute(request)
    assert set(found.wrong) == {"limits.timeout", "limits.memory_bytes", "runtime", "code", "request_id"}


def test_a_thousand_wrong_paths_are_refused_in_a_status_that_the_client_can_take(execute: Execute) -> None:
    """The trailers that carry a status are small."""
    files = [pb.SourceFile(path="../" + "\N{PILE OF POO}" * 200 + str(number)) for number in range(1000)]
    found = execute(ask(files=files))
    assert found.is_refusal_of("files[0].path")
    assert any("more" in description for description in found.wrong.values())


def test_sizes_at_the_maximum_run_and_one_byte_more_is_refused(execute: Execute) -> None:
    """Code, sources, inputs, environment, labels, counts of files."""
    full = "x" * (128 * 1024 - 4)
    fits = [
        ask("#" * (4 * MIB - 2) + "\n1"),
        ask("1", files=[pb.SourceFile(path="a.py", content=b" " * (4 * MIB))]),
        ask("1", inputs_json='{"x":"' + "a" * (16 * MIB - 8) + '"}'),
        ask("1", env={"A": full, "B": full, "C": "12345"}),
        ask("1", env={f"A{number}": "" for number in range(128)}),
        ask("1", labels={f"a{number}": "x" * 256 for number in range(32)}),
        ask("1", files=[pb.SourceFile(path=f"d{number % 9}/m{number}.py") for number in range(1000)]),
        ask("1", input_files=[pb.InputFile(path=f"d{number % 9}/{number}", content=b"") for number in range(1000)]),
        ask("1", input_files=[pb.InputFile(path="a", content=b"x" * MIB)], limits=pb.Limits(disk_bytes=MIB)),
        ask("1", request_id="x" * 128),
    ]
    assert [call.kind for call in map(execute, fits)] == [""] * len(fits)
    too_much = {
        "code": [ask("#" * (4 * MIB + 1)), ask("#" + "é" * (2 * MIB))],
        "files[0].content": [ask(files=[pb.SourceFile(path="a.py", content=b" " * (4 * MIB + 1))])],
        "inputs_json": [ask(inputs_json='{"x":"' + "a" * (16 * MIB - 7) + '"}')],
        "env": [
            ask(env={"A": full, "B": full, "C": "123456"}),
            ask(env={f"A{number}": "" for number in range(129)}),
            ask(env={"A": "x" * MIB}),
        ],
        "labels": [ask(labels={f"a{number}": "" for number in range(33)})],
        "labels['a']": [ask(labels={"a": "x" * 257})],
        "files": [ask(files=[pb.SourceFile(path=f"x{number}") for number in range(1001)])],
        "input_files": [ask(input_files=[pb.InputFile(path=f"x{number}", content=b"") for number in range(1001)])],
        "input_files[0].artifact_id": [ask(input_files=[pb.InputFile(path="a", artifact_id="x" * MIB)])],
        "limits.disk_bytes": [
            ask(input_files=[pb.InputFile(path="a", content=b"x" * (MIB + 1))], limits=pb.Limits(disk_bytes=MIB))
        ],
        "request_id": [ask(request_id=each) for each in ("x" * 129, "x" * MIB, "a b", "a\n", "é")],
    }
    assert not_refused(execute, too_much) == []


def test_message_of_64_mib_is_refused_by_its_size(execute: Execute) -> None:
    """It is not even taken in."""
    request = ask(input_files=[pb.InputFile(path="a", content=b"x" * (64 * MIB))])
    assert execute(request).status is grpc.StatusCode.RESOURCE_EXHAUSTED


PATHS = {
    "/etc/passwd": "absolute",
    "": "empty",
    "..": "`..`",
    "a/../b": "`..`",
    "./a": "`.`",
    "a//b": "empty part",
    "a/": "empty part",
    "a\0b": "NUL",
    "x" * 256: "256 bytes",
    "é" * 128: "256 bytes",
    "/".join(["y" * 200] * 25): "at most 1024",
}


@pytest.mark.parametrize("where", ["files", "input_files"])
def test_paths_that_lead_elsewhere_or_nowhere_are_refused_with_the_reason(execute: Execute, where: str) -> None:
    """Absolute, dots, empty parts, NUL, too long, twice, and a file where a folder is needed."""

    def with_paths(*paths: str) -> pb.ExecuteRequest:
        if where == "files":
            return ask(files=[pb.SourceFile(path=path) for path in paths])
        return ask(input_files=[pb.InputFile(path=path, content=b"") for path in paths])

    for path, reason in PATHS.items():
        assert reason in execute(with_paths(path)).wrong.get(f"{where}[0].path", ""), path
    assert "twice" in execute(with_paths("a", "a")).wrong[f"{where}[1].path"]
    assert "folder" in execute(with_paths("a", "a/b")).wrong[f"{where}[1].path"]
    assert "folder" in execute(with_paths("a/b", "a")).wrong[f"{where}[1].path"]
    longest = "/".join(["y" * 255] * 4)[:1024]
    assert execute(with_paths("x" * 255, longest, "a b\n'\"%2e%2e", "...")).kind == ""


def test_environment_names_that_are_none_are_refused(execute: Execute) -> None:
    """Also what belongs to the server."""
    names = ["A=B", "A\0", "", "1A", "A B", "é", "BELLJAR_X", "belljar_x"]
    wrong = {"env": [ask(env={name: "1"}) for name in names], "env['A']": [ask(env={"A": "a\0b"})]}
    assert not_refused(execute, wrong) == []


def test_loader_and_interpreter_variables_reach_the_user_code_only(execute: Execute) -> None:
    """The worker starts as always; a child of the code sees them."""
    env = {
        "LD_PRELOAD": "/home/user/evil.so",
        "PYTHONPATH": "/home/user",
        "PYTHONSTARTUP": "/home/user/evil.py",
        "PYTHONHOME": "/nowhere",
        "NODE_OPTIONS": "--require /home/user/evil.js",
        "PATH": "/nowhere",
        "HOME": "/nowhere",
    }
    evil = [pb.InputFile(path=name, content=b"raise SystemExit(9)") for name in ("evil.py", "json.py", "worker.py")]
    python = "import os\nsorted(k for k in os.environ if k in %r)" % (sorted(env),)  # noqa: UP031  braces
    javascript = f"Object.keys(process.env).filter(k => {sorted(env)!r}.includes(k)).sort()"
    for runtime, code in (("python", python), ("javascript", javascript), ("typescript", javascript)):
        result = execute(ask(code, runtime, env=env, input_files=evil)).finished.result_json
        assert result.replace(" ", "").replace('"', "'") == repr(sorted(env)).replace(" ", ""), runtime


def test_inputs_that_are_no_json_object_are_refused(execute: Execute) -> None:
    """Too deep, twice the same key, numbers that JSON does not have, other kinds of document."""
    deep = "[" * 100_000 + "]" * 100_000
    texts = [
        *("[]", "null", "1", '"a"', "true", "{", " ", '{"a":1}x', "\ufeff{}", "{'a': 1}", '{"a":01}'),
        *('{"a":NaN}', '{"a":Infinity}', '{"a":-Infinity}', '{"a":1,"a":2}', '{"a":{"b":1,"b":2}}'),
        *(
            deep,
            f'{{"a":{deep}}}',
            '{"a":' * 100_000,
            '{"a":' + "[" * 200 + "]" * 200 + "}",
            '{"a":' + "9" * 4301 + "}",
        ),
    ]
    assert not_refused(execute, {"inputs_json": [ask(inputs_json=text) for text in texts]}) == []


def test_unusual_inputs_arrive_as_they_were_sent(execute: Execute) -> None:
    """Depth up to the limit, 400 digits, 64 bits, lone surrogates."""
    deepest = '{"a":' + "[" * 199 + "]" * 199 + "}"
    assert execute(ask("def main(args): return args", inputs_json=deepest)).finished.result_json == deepest
    digits = "9" * 400
    assert execute(ask("a + 1", inputs_json=f'{{"a":{digits}}}')).finished.result_json == "1" + "0" * 400
    whole = '{"z":9223372036854775807,"a":-9223372036854775808}'
    assert execute(ask("def main(args): return args", inputs_json=whole)).finished.result_json == whole
    for runtime, code in (("python", "len(a)"), ("javascript", "a.length"), ("typescript", "a.length")):
        assert execute(ask(code, runtime, inputs_json='{"a":"\\ud800"}')).finished.result_json == "1"


@pytest.mark.parametrize("runtime", ["javascript", "typescript"])
def test_proto_and_constructor_keys_are_data_and_pollute_nothing(execute: Execute, runtime: str) -> None:
    """In all three ways to take inputs."""
    inputs = '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":2}}}'
    whole = execute(ask("function main(args) { return [({}).polluted ?? 0, args] }", runtime, inputs_json=inputs))
    assert whole.finished.result_json == f"[0,{inputs}]"
    named = "function main({ __proto__: p, constructor }) { return [({}).polluted ?? 0, p, constructor] }"
    assert execute(ask(named, runtime, inputs_json=inputs)).finished.result_json == (
        '[0,{"polluted":1},{"prototype":{"polluted":2}}]'
    )
    script = execute(ask("return [({}).polluted ?? 0, constructor]", runtime, inputs_json=inputs))
    assert script.finished.result_json == '[0,{"prototype":{"polluted":2}}]'


CODES: dict[str, tuple[str, str, str]] = {  # name: (Python, JavaScript, TypeScript) result or error kind follows below
    "byte order mark": ("\ufeff1", "\ufeff1", "\ufeff1"),
    "carriage returns": (
        "x = 1\r\nif x:\r\n    x = 2\r\nx\r\n",
        "let x = 1\r\nx = 2\r\nx\r\n",
        "let x: number = 1\r\nx = 2\r\nx\r\n",
    ),
    "one line of 1 MB": (
        "len('" + "a" * 1_000_000 + "')",
        "'" + "a" * 1_000_000 + "'.length",
        "'" + "a" * 1_000_000 + "'.length",
    ),
    "nothing but a comment": ("# nothing", "// nothing", "// nothing"),
    "nothing but blanks": (" \n\t\n", " \n\t\n", " \n\t\n"),
}
RESULTS = {"byte order mark": "1", "carriage returns": "2", "one line of 1 MB": "1000000"}


@pytest.mark.parametrize("name", CODES)
def test_unusual_code_runs_as_what_it_is(execute: Execute, name: str) -> None:
    """In every runtime."""
    for runtime, code in zip(RUNTIMES, CODES[name], strict=True):
        assert execute(ask(code, runtime)).finished.result_json == RESULTS.get(name, "null"), runtime


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_code_nested_5000_deep_is_a_syntax_error_and_never_a_crash(execute: Execute, runtime: str) -> None:
    """Parsers recurse; the worker says so in words."""
    deep = ["(" * 5000 + "1" + ")" * 5000, "[" * 5000 + "]" * 5000, "1" + "+1" * 500_000]
    for code in deep:
        call = execute(ask(code, runtime))
        assert call.kind == "SYNTAX_ERROR", (code[:10], call.finished.error)
        assert call.finished.error.message


def test_mixed_tabs_are_told_with_their_line(execute: Execute) -> None:
    """It is the user's own line 3."""
    error = execute(ask("if 1:\n\tx = 1\n        y = 2\n")).finished.error
    assert (error.kind, error.line) == (pb.ERROR_KIND_SYNTAX_ERROR, 3)


def test_code_that_is_none_is_refused(execute: Execute) -> None:
    """No code, and code with a NUL."""
    codes = [ask(code, runtime) for runtime in RUNTIMES for code in ("", "1\0", "\0")]
    assert not_refused(execute, {"code": codes}) == []


def test_bytes_that_are_no_request_are_refused_as_the_clients_fault(execute: Execute) -> None:
    """Text that is not UTF-8 (a lone surrogate, half a sequence), cut messages, random bytes, unknown enum values."""
    python = b"\x12\x06python"
    for data in (python + b"\x1a\x02\xff\xfe", python + b"\x1a\x03\xed\xa0\x80", b"\xff" * 100, b"\x12\x80"):
        assert execute(data).is_refusal_of("request"), data
    whole = ask().SerializeToString()
    assert execute(whole + b"\x30\x63").is_refusal_of("entry")
    assert execute(whole + b"\x58\x63").is_refusal_of("disconnect_policy")
    assert execute(b"").is_refusal_of("runtime")
    assert execute(whole + b"\xfa\x3f\x03abc").finished.result_json == "1", "a field of a newer client is ignored"


def test_unknown_artifact_is_not_found_whatever_its_id_looks_like(execute: Execute) -> None:
    """An id is never a path."""
    for artifact_id in ("0" * 32, "../../etc/passwd", "/etc/passwd", "a\0b", "url.key", "\N{PILE OF POO}" * 30):
        call = execute(ask(input_files=[pb.InputFile(path="a", artifact_id=artifact_id)]))
        assert call.status is grpc.StatusCode.NOT_FOUND, artifact_id


def test_same_request_id_at_once_runs_once_and_both_see_all(execute: Execute) -> None:
    """And once more after the end, with the same events."""
    request = ask("import uuid, time\nprint('x')\ntime.sleep(0.5)\nstr(uuid.uuid4())", request_id="twice-at-once")
    calls: list[Call] = []
    threads = [threading.Thread(target=lambda: calls.append(execute(request))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    calls.append(execute(request))
    assert len({call.events[0].execution_id for call in calls}) == 1
    assert len({call.finished.result_json for call in calls}) == 1
    for call in calls:
        assert [event.sequence for event in call.events] == list(range(1, len(call.events) + 1))


def test_same_request_id_with_another_body_is_refused_during_and_after_the_first(
    execute: Execute, channel: grpc.Channel
) -> None:
    """The first one is not touched by it."""
    first = ask("import time\ntime.sleep(1)\n'mine'", request_id="another-body")
    stream = Stub(channel).Execute(first, timeout=60)
    next(stream)
    other = ask("'theirs'", request_id="another-body")
    assert execute(other).is_refusal_of("request_id")
    assert list(stream)[-1].finished.result_json == '"mine"'
    assert execute(other).is_refusal_of("request_id")
    assert execute(first).finished.result_json == '"mine"'


def test_request_id_of_a_refused_request_can_be_used_again(execute: Execute) -> None:
    """Nothing was started, so nothing is remembered."""
    assert execute(ask(request_id="corrected", limits=pb.Limits(cpus=0))).is_refusal_of("limits.cpus")
    assert execute(ask(request_id="corrected")).finished.result_json == "1"
