"""Both clients against a server that speaks the contract: what comes back, and what goes wrong."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

import belljar_client as bc
from belljar.v1 import sandbox_pb2
from belljar_client.attempts import Attempts
from tests.unit.fake_sandbox_service import (
    FakeSandboxService,
    breaks,
    event,
    failed,
    plays,
    queued,
    serving,
    started,
    stderr,
    stdout,
    succeeded,
    waits,
)

PATIENCE = 10.0
"""Seconds within which what must happen has happened, on any machine."""


@pytest.fixture
def service() -> Iterator[FakeSandboxService]:
    """A fake server."""
    with serving() as service:
        yield service


@pytest.fixture(params=["sync", "async"])
def execute(request: pytest.FixtureRequest, service: FakeSandboxService) -> Any:
    """`execute` of either client, for what must be the same in both."""

    def run_sync(code: str = "x", **options: Any) -> bc.Result:
        with bc.Client(service.address) as client:
            return client.execute(code, **options)

    def run_async(code: str = "x", **options: Any) -> bc.Result:
        async def run() -> bc.Result:
            async with bc.AsyncClient(service.address) as client:
                return await client.execute(code, **options)

        return asyncio.run(run())

    return run_sync if request.param == "sync" else run_async


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_result_has_output_value_and_usage(execute: Any, service: FakeSandboxService) -> None:
    """Everything the server says arrives, in Python's terms."""
    usage = sandbox_pb2.Usage(peak_memory_bytes=7)
    usage.run_time.FromMilliseconds(1500)
    ending = succeeded(5, '{"b": 12345678901234567890123, "a": [1.5, null]}', usage=usage, warnings=["mind"])
    service.scripts = [plays(queued(1), started(2), stdout(3, b"out"), stderr(4, b"\xff"), ending)]
    result = execute("print()")
    assert result.succeeded
    assert result.check() is result
    assert result.execution_id == "e1"
    assert result.value == {"b": 12345678901234567890123, "a": [1.5, None]}
    assert list(result.value) == ["b", "a"]
    assert (result.stdout_text, result.stderr, result.stderr_text) == ("out", b"\xff", "�")
    assert (result.usage.run_time, result.usage.peak_memory_bytes) == (1.5, 7)
    assert result.warnings == ("mind",)


def test_failed_code_is_a_result_and_check_raises(execute: Any, service: FakeSandboxService) -> None:
    """How user code ended is no exception until it is asked for."""
    kind = sandbox_pb2.ERROR_KIND_EXCEPTION
    service.scripts = [plays(failed(1, kind, "ValueError: no", file="main.py", line=3, column=5, hint="do"))]
    result = execute()
    assert result.outcome == "failed"
    assert result.value is None
    expected = bc.ExecutionError(bc.ErrorKind.EXCEPTION, "ValueError: no", file="main.py", line=3, column=5, hint="do")
    assert result.error == expected
    with pytest.raises(bc.ExecutionFailed, match="EXCEPTION: ValueError: no") as caught:
        result.check()
    assert caught.value.result is result


def test_what_a_newer_server_sends_is_survived(execute: Any, service: FakeSandboxService) -> None:
    """Unknown events, phases, streams and error kinds neither crash nor get lost silently."""
    unknown_phase = event(2, phase=sandbox_pb2.PhaseChange(phase=99))  # type: ignore[arg-type]
    unknown_stream = event(3, output=sandbox_pb2.Output(stream=99, content=b"?"))  # type: ignore[arg-type]
    service.scripts = [plays(event(1), unknown_phase, unknown_stream, failed(4, 99, "new"))]
    result = execute()
    assert result.error == bc.ExecutionError(bc.ErrorKind.UNKNOWN, "new")


def test_large_result_names_its_artifact(execute: Any, service: FakeSandboxService) -> None:
    """A result that became an artifact is never mistaken for null."""
    artifact = sandbox_pb2.Artifact(id="r1", name="result.json", size_bytes=9_000_000)
    finished = sandbox_pb2.Finished(outcome=sandbox_pb2.OUTCOME_SUCCEEDED, result_artifact=artifact)
    service.scripts = [plays(event(1, finished=finished))]
    result = execute()
    with pytest.raises(bc.ResultTooLarge, match="9000000 bytes") as caught:
        _ = result.value
    assert caught.value.artifact.id == "r1"


def test_ten_mebibytes_in_one_message_arrive(execute: Any, service: FakeSandboxService) -> None:
    """GRPC's own limit of 4 MiB is not ours."""
    service.scripts = [plays(succeeded(1, f'"{"x" * (10 << 20)}"'))]
    assert len(execute().value) == 10 << 20


def test_request_carries_every_option(execute: Any, service: FakeSandboxService, tmp_path: Path) -> None:
    """Each argument ends up in the field that the contract has for it."""
    (tmp_path / "local.csv").write_bytes(b"1,2")
    artifact = bc.Artifact(bc.ArtifactId("a9"), "n", "t", 0, "", "", dt.datetime.now(dt.UTC))
    execute(
        "code",
        runtime="typescript",
        inputs={"b": 2**70, "a": "é"},
        entry="main_named",
        files={"util.py": b"\0", "lib/x.py": "é"},
        input_files={"t": "text", "p": tmp_path / "local.csv", "a": artifact, "i": bc.ArtifactId("a8")},
        env={"K": "V"},
        limits=bc.Limits(timeout=0.25, memory_bytes=1 << 40, cpus=0.5, processes=20),
        labels={"l": "m"},
        request_id="r",
        disconnect_policy="continue",
    )
    [sent] = service.requests
    assert (sent.runtime, sent.code, sent.request_id) == ("typescript", "code", "r")
    assert sent.inputs_json == '{"b": 1180591620717411303424, "a": "é"}'
    assert sent.entry == sandbox_pb2.ENTRY_MAIN_NAMED
    assert sent.disconnect_policy == sandbox_pb2.DISCONNECT_POLICY_CONTINUE
    assert [(f.path, f.content) for f in sent.files] == [("util.py", b"\0"), ("lib/x.py", "é".encode())]
    assert [(f.path, f.content or f.artifact_id) for f in sent.input_files] == [
        ("t", b"text"),
        ("p", b"1,2"),
        ("a", "a9"),
        ("i", "a8"),
    ]
    assert (dict(sent.env), dict(sent.labels)) == ({"K": "V"}, {"l": "m"})
    assert sent.limits.timeout.ToMilliseconds() == 250
    assert (sent.limits.memory_bytes, sent.limits.cpus, sent.limits.processes) == (1 << 40, 0.5, 20)
    assert not sent.limits.HasField("disk_bytes")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"inputs": {"x": float("nan")}}, "inputs"),
        ({"inputs": {"x": object()}}, "inputs"),
        ({"inputs": {"x": "\ud800"}}, "inputs"),
        ({"inputs": [1]}, "inputs"),
        ({"inputs": {}, "inputs_json": "{}"}, "inputs"),
        ({"code": "\ud800"}, "code"),
        ({"entry": "guess"}, "entry"),
        ({"disconnect_policy": "maybe"}, "disconnect_policy"),
        ({"limits": bc.Limits(timeout=float("inf"))}, "limits.timeout"),
        ({"limits": bc.Limits(timeout=1e30)}, "limits.timeout"),
        ({"limits": bc.Limits(memory_bytes=1 << 64)}, "limits.memory_bytes"),
        ({"limits": bc.Limits(processes="many")}, "limits.processes"),  # type: ignore[arg-type]
        ({"env": {"A": 1}}, "env['A']"),
        ({"files": {"a": None}}, "files['a']"),
        ({"input_files": {"a": 1}}, "input_files['a']"),
    ],
)
def test_what_a_message_cannot_carry_is_refused_by_name(
    execute: Any, service: FakeSandboxService, options: dict[str, Any], field: str
) -> None:
    """Such a request raises the error that the server's refusal would, and never leaves."""
    with pytest.raises(bc.InvalidRequest) as caught:
        execute(**options)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not service.requests


def test_refusal_lists_every_violation(execute: Any, service: FakeSandboxService) -> None:
    """The BadRequest details are decoded, and the call is not made again."""
    violations = (("limits.timeout", "1000 s, at most 900 s"), ("env", "too many"))
    service.scripts = [breaks(code=grpc.StatusCode.INVALID_ARGUMENT, violations=violations)]
    with pytest.raises(bc.InvalidRequest, match="at most 900 s; env: too many") as caught:
        execute()
    assert caught.value.violations == tuple(bc.Violation(*violation) for violation in violations)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, bc.NotFound),
        (grpc.StatusCode.INVALID_ARGUMENT, bc.InvalidRequest),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, bc.Overloaded),
        (grpc.StatusCode.INTERNAL, bc.ServerFault),
        (grpc.StatusCode.UNIMPLEMENTED, bc.ServerFault),
    ],
)
def test_status_decides_the_exception(
    execute: Any, service: FakeSandboxService, code: grpc.StatusCode, expected: type[Exception]
) -> None:
    """One table, the same in both clients; none of these is worth another attempt."""
    service.scripts = [breaks(code=code, text="why")]
    with pytest.raises(expected, match="why"):
        execute()
    assert len(service.requests) == 1


def test_malformed_details_are_ignored(execute: Any, service: FakeSandboxService) -> None:
    """Details that are no google.rpc.Status do not hide the status itself."""

    async def script(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff\xff"),))
        yield

    service.scripts = [script]
    with pytest.raises(bc.NotFound, match="gone"):
        execute()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_call_is_made_again_where_nothing_was_started(
    execute: Any, service: FakeSandboxService, code: grpc.StatusCode
) -> None:
    """A server that says so with RetryInfo is asked again, also when it had queued the execution."""
    service.scripts = [
        breaks(code=code, retry_after=0.01),
        breaks(queued(1, execution_id="e0"), code=code, retry_after=0.01),
        plays(queued(1), succeeded(2, "3")),
    ]
    assert execute().value == 3
    assert len(service.requests) == 3


def test_attempts_are_bounded(execute: Any, service: FakeSandboxService) -> None:
    """Three, and the error says when to come back."""
    service.scripts = [breaks(code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.01)]
    with pytest.raises(bc.Overloaded) as caught:
        execute()
    assert caught.value.retry_after == 0.01
    assert len(service.requests) == 3


def test_wait_beyond_the_deadline_is_not_begun(execute: Any, service: FakeSandboxService) -> None:
    """A RetryInfo of 20 s with a deadline of 5 s fails at once, with the reason and not with the deadline."""
    service.scripts = [breaks(code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=20.0)]
    with pytest.raises(bc.Overloaded):
        execute(deadline=5.0)
    assert len(service.requests) == 1


def test_absurd_retry_after_is_for_the_caller(execute: Any, service: FakeSandboxService) -> None:
    """Without a deadline, nobody is kept waiting for an hour."""
    service.scripts = [breaks(retry_after=3600.0)]
    with pytest.raises(bc.Unavailable) as caught:
        execute()
    assert caught.value.retry_after == 3600.0


def test_no_server_is_unavailable() -> None:
    """A refused connection means that nothing was started."""
    with bc.Client(f"127.0.0.1:{closed_port()}") as client, pytest.raises(bc.Unavailable):
        client.execute("x")


@pytest.mark.parametrize("shown", [(), (queued(1),), (queued(1), started(2)), (started(1), stdout(2, b"x"))])
def test_lost_stream_is_not_repeated(execute: Any, service: FakeSandboxService, shown: tuple[Any, ...]) -> None:
    """Once the server has the request, a break means that the code may have run: without request_id, only once."""
    service.scripts = [breaks(*shown)]
    with pytest.raises(bc.ConnectionLost) as caught:
        execute()
    assert caught.value.execution_id == ("e1" if shown else "")
    assert len(service.requests) == 1


def test_retry_info_after_the_start_is_not_believed(execute: Any, service: FakeSandboxService) -> None:
    """A status after the code was started cannot mean that nothing was."""
    service.scripts = [breaks(started(1), retry_after=0.01)]
    with pytest.raises(bc.ConnectionLost):
        execute()
    assert len(service.requests) == 1


def test_stream_without_last_event_is_lost(execute: Any, service: FakeSandboxService) -> None:
    """An OK status alone is no result."""
    service.scripts = [plays(started(1))]
    with pytest.raises(bc.ConnectionLost, match="ended before"):
        execute()


def test_lost_stream_with_request_id_is_picked_up_without_repeating(execute: Any, service: FakeSandboxService) -> None:
    """The replay starts at the first event; what was seen already is left out."""
    events = [started(1), stdout(2, b"a"), stdout(3, b"b"), stdout(4, b"c"), succeeded(5, "1")]
    service.scripts = [breaks(*events[:2]), breaks(*events[:4]), plays(*events)]
    result = execute(request_id="r")
    assert result.stdout == b"abc"
    assert [sent.request_id for sent in service.requests] == ["r", "r", "r"]


def test_replay_of_another_execution_is_refused(execute: Any, service: FakeSandboxService) -> None:
    """A server that forgot the first execution must not have its second one glued to the first one's output."""
    service.scripts = [breaks(started(1)), waits(started(1, execution_id="e2"), stdout(2, b"x", execution_id="e2"))]
    with pytest.raises(bc.ConnectionLost, match="does not remember execution e1"):
        execute(request_id="r")
    assert service.cancelled.wait(PATIENCE)


def test_error_after_the_last_event_does_not_matter(execute: Any, service: FakeSandboxService) -> None:
    """Who has the result does not care how the connection ended."""
    service.scripts = [breaks(succeeded(1, "1"))]
    assert execute().value == 1


def test_deadline_ends_the_call_and_cancels_it(execute: Any, service: FakeSandboxService) -> None:
    """The deadline is gRPC's timeout, so the server knows it too."""
    service.scripts = [waits(started(1))]
    with pytest.raises(bc.DeadlineExceeded) as caught:
        execute(deadline=0.5)
    assert caught.value.execution_id == "e1"
    assert service.cancelled.wait(PATIENCE)
    [remaining] = service.remaining
    assert remaining is not None
    assert 0 < remaining <= 0.6


def test_deadline_spans_all_attempts() -> None:
    """A second attempt has what the first one left, and none begins after the end."""
    now = 100.0
    attempts = Attempts(deadline=2.0, clock=lambda: now)
    assert attempts.begin() == 2.0
    now = 101.5
    assert attempts.begin() == 0.5
    now = 102.0
    with pytest.raises(bc.DeadlineExceeded):
        attempts.begin()
    assert repr(attempts) == "<Attempts 3 of 3 made, execution unknown, sequence 0, started=False, finished=False>"


def test_stream_yields_events_as_they_come(service: FakeSandboxService) -> None:
    """The first ones arrive while the code still runs; closing early cancels it."""
    service.scripts = [waits(queued(1), started(2), stdout(3, b"hi"))]
    with bc.Client(service.address) as client:
        events = client.stream("x")
        first, second, third = next(events), next(events), next(events)
        assert isinstance(first, bc.PhaseChange)
        assert first.phase is bc.Phase.QUEUED
        assert isinstance(second, bc.Started)
        assert (second.warm, second.queue_time, second.sequence) == (True, 0.25, 2)
        assert second.time == dt.datetime.fromtimestamp(1_700_000_002, dt.UTC)
        assert isinstance(third, bc.Output)
        assert (third.stream, third.content) == (bc.Stream.STDOUT, b"hi")
        assert not service.cancelled.is_set()
        events.close()
        assert service.cancelled.wait(PATIENCE)


def test_wrong_request_raises_before_the_first_event(service: FakeSandboxService) -> None:
    """`stream` checks its arguments when it is called, not when it is read."""
    with bc.Client(service.address) as client, pytest.raises(bc.InvalidRequest):
        client.stream("x", entry="guess")  # type: ignore[arg-type]


def test_closing_the_client_cancels_what_runs(service: FakeSandboxService) -> None:
    """Leaving the `with` block with an open stream ends the execution."""
    service.scripts = [waits(started(1))]
    with bc.Client(service.address) as client:
        events = client.stream("x")
        next(events)
    assert service.cancelled.wait(PATIENCE)
    with pytest.raises(bc.Cancelled):
        next(events)
    assert repr(client).endswith(", closed>")


def test_async_stream_closed_early_cancels(service: FakeSandboxService) -> None:
    """Leaving `aclosing` ends the execution while the client lives on."""

    async def run() -> None:
        async with bc.AsyncClient(service.address) as client:
            async with aclosing(client.stream("x")) as events:
                async for seen in events:
                    assert isinstance(seen, bc.Started)
                    break
            assert await asyncio.to_thread(service.cancelled.wait, PATIENCE)
            service.scripts = [plays(succeeded(1, "1"))]
            assert (await client.execute("x")).value == 1

    service.scripts = [waits(started(1))]
    asyncio.run(run())


def test_cancelled_task_cancels_the_execution(service: FakeSandboxService) -> None:
    """Asyncio's own cancellation passes through unchanged and reaches the server."""

    async def run() -> None:
        async with bc.AsyncClient(service.address) as client:
            task = asyncio.create_task(client.execute("x"))
            assert await asyncio.to_thread(service.called.wait, PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(service.cancelled.wait, PATIENCE)

    service.scripts = [waits(started(1))]
    asyncio.run(run())


def test_many_executions_at_once_keep_apart(service: FakeSandboxService) -> None:
    """One channel carries 50 streams, each with its own answer."""

    async def echo(request: Any, context: Any) -> Any:
        await asyncio.sleep(0)
        yield succeeded(1, request.inputs_json, execution_id=request.inputs_json)

    async def run() -> list[bc.Result]:
        async with bc.AsyncClient(service.address) as client:
            return await asyncio.gather(*(client.execute("x", inputs={"n": n}) for n in range(50)))

    service.scripts = [echo]
    assert [result.value["n"] for result in asyncio.run(run())] == list(range(50))


def test_runtimes_come_with_limits(service: FakeSandboxService) -> None:
    """Names, versions and both sets of limits; a failure is tried again, since asking starts nothing."""
    service.runtimes.runtimes.add(name="python", version="3.13.5", main_file="main.py", image_digest="sha256:0")
    service.runtimes.default_limits.timeout.FromSeconds(30)
    service.runtimes.max_limits.memory_bytes = 1 << 32
    service.runtimes.waived_limits.append("cpus")
    service.list_failures = [grpc.StatusCode.UNAVAILABLE]
    with bc.Client(service.address) as client:
        runtimes = client.runtimes()
    assert list(runtimes) == [bc.Runtime("python", "3.13.5", "main.py", "sha256:0")]
    assert (len(runtimes), runtimes[0].name) == (1, "python")
    assert runtimes.default_limits == bc.Limits(timeout=30.0)
    assert runtimes.max_limits == bc.Limits(memory_bytes=1 << 32)
    assert runtimes.waived_limits == ("cpus",)

    async def run() -> bc.Runtimes:
        async with bc.AsyncClient(service.address) as client:
            return await client.runtimes()

    service.list_failures = [grpc.StatusCode.UNAVAILABLE]
    assert asyncio.run(run()) == runtimes


def test_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address given wins over BELLJAR_ADDRESS, which wins over the default."""
    monkeypatch.delenv("BELLJAR_ADDRESS", raising=False)
    with bc.Client() as client:
        assert client.address == "127.0.0.1:50051"
    monkeypatch.setenv("BELLJAR_ADDRESS", "127.0.0.1:1")
    with bc.Client() as client:
        assert client.address == "127.0.0.1:1"
    assert bc.AsyncClient("127.0.0.1:2").address == "127.0.0.1:2"


def test_leaked_client_warns() -> None:
    """Who forgets to close is told."""
    client = bc.Client("127.0.0.1:1")
    with pytest.warns(ResourceWarning, match="never closed"):
        client.__del__()
    client.close()


def test_unopened_async_client_says_how() -> None:
    """Using it without `async with` is a clear error."""
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(bc.AsyncClient("127.0.0.1:1").runtimes())
