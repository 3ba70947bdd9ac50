"""What becomes of an execution when its client cancels, goes away, runs out of time, or reads slowly."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from belljar.v1 import sandbox_pb2 as pb
from belljar.v1 import sandbox_pb2_grpc
from belljar_client import Client
from tests.conftest import Server, running_server, wait_until
from tests.hostile.conftest import footprint, is_tidy, metric

pytestmark = pytest.mark.integration

GONE_SECONDS = 5.0
"""A second is promised; the rest is for a machine that has other things to do."""
FOR_EVER = "import time\nprint('here', flush=True)\ntime.sleep(600)"
BUSY = "print('here', flush=True)\nwhile True: pass"
Phase = pb.Phase


@pytest.fixture(scope="module")
def cold() -> Iterator[Server]:
    """A server that has no sandbox unless somebody asked for one."""
    with running_server(POOL__MAX="0") as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_is_left(cold: Server) -> Iterator[None]:
    """Every test leaves the server as it was."""
    yield
    wait_until(lambda: metric(cold, "belljar_sandboxes_live") == 0, "no sandbox is left")
    wait_until(lambda: is_tidy(cold), f"the server is tidy: {footprint(cold)}")
    assert metric(cold, "belljar_executions_running") == metric(cold, "belljar_executions_waiting") == 0


@pytest.fixture
def stub(cold: Server) -> Iterator[sandbox_pb2_grpc.SandboxServiceStub]:
    """The contract on a connection of its own."""
    with grpc.insecure_channel(cold.address) as channel:
        yield sandbox_pb2_grpc.SandboxServiceStub(channel)


def request(code: str, **fields: object) -> pb.ExecuteRequest:
    """A Python request."""
    return pb.ExecuteRequest(runtime="python", code=code, **fields)  # type: ignore[arg-type]


def ending(server: Server, label: str) -> dict[str, object] | None:
    """The canonical log line of the execution with this label."""
    for line in server.log_text().splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("event") == "execution" and (entry.get("labels") or {}).get("test") == label:
            return dict(entry)
    return None


def until_output(call: Iterator[pb.ExecuteResponse]) -> str:
    """Follows a call until its code has printed; gives the id of the execution."""
    return next(event.execution_id for event in call if event.HasField("output"))


def assert_cancelled(server: Server, label: str) -> None:
    """It ends soon, as cancelled."""
    wait_until(lambda: ending(server, label) is not None, "the execution is over", GONE_SECONDS)
    line = ending(server, label)
    assert line is not None
    assert (line["outcome"], line["kind"]) == ("cancelled", "CANCELLED")
    wait_until(lambda: metric(server, "belljar_sandboxes_live") == 0, "its sandbox is gone", GONE_SECONDS)


@pytest.mark.parametrize("code", [FOR_EVER, BUSY], ids=["sleeping", "busy"])
def test_cancelled_call_ends_its_sandbox(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub, code: str, request_label: str
) -> None:
    """Whatever the code does just now."""
    call = stub.Execute(request(code, labels={"test": request_label}))
    until_output(call)
    call.cancel()
    assert_cancelled(cold, request_label)


@pytest.fixture
def request_label(request: pytest.FixtureRequest) -> str:
    """A label by which the log tells the execution of this test."""
    return str(request.node.name)


def test_client_that_is_killed_ends_its_sandbox(cold: Server, request_label: str) -> None:
    """Its kernel closes the connection for it."""
    program = (
        "import sys\nfrom belljar_client import Client\n"
        f"for event in Client(sys.argv[1]).stream({FOR_EVER!r}, labels={{'test': {request_label!r}}}):\n"
        "    print(type(event).__name__, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program, cold.address], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert any(line == "Output\n" for line in client.stdout)
        client.kill()
    assert_cancelled(cold, request_label)


def test_deadline_ends_the_sandbox_and_tells_the_client(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub, request_label: str
) -> None:
    """GRPC's own deadline is a cancellation."""
    call = stub.Execute(request(FOR_EVER, labels={"test": request_label}), timeout=2)
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_cancelled(cold, request_label)


def test_client_that_leaves_while_the_sandbox_starts_or_files_go_in_leaves_nothing(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub
) -> None:
    """At every moment before user code."""
    content = pb.InputFile(path="a", content=b"x" * (8 << 20))
    for number in range(12):
        label = f"early-{number}"
        call = stub.Execute(request("1", labels={"test": label}, input_files=[content]))
        next(call)
        threading.Event().wait(number * 0.04)
        call.cancel()
        wait_until(lambda label=label: ending(cold, label) is not None, "the execution is over", GONE_SECONDS)  # type: ignore[misc]


def test_client_that_leaves_while_artifacts_are_collected_does_not_keep_them_coming(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub, request_label: str
) -> None:
    """The code is over, but storing what it left may take long."""
    code = "for i in range(900):\n    open(f'f{i}', 'wb').write(b'x' * 200_000)"
    call = stub.Execute(request(code, labels={"test": request_label}))
    assert any(event.phase.phase == Phase.PHASE_COLLECTING for event in call)
    call.cancel()
    wait_until(lambda: ending(cold, request_label) is not None, "the execution is over", GONE_SECONDS)


def test_continue_goes_on_without_its_client_and_can_be_seen_again(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub, request_label: str
) -> None:
    """The same request_id picks it up, from its first event."""
    code = "import time\nprint('one', flush=True)\ntime.sleep(1)\nprint('two')\nopen('left', 'w').write('x')\n'done'"
    asked = request(
        code, request_id="goes-on", disconnect_policy=pb.DISCONNECT_POLICY_CONTINUE, labels={"test": request_label}
    )
    call = stub.Execute(asked)
    execution_id = until_output(call)
    call.cancel()
    events = list(stub.Execute(asked, timeout=60))
    assert {event.execution_id for event in events} == {execution_id}
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert b"".join(event.output.content for event in events) == b"one\ntwo\n"
    assert events[-1].finished.result_json == '"done"'
    assert [artifact.name for artifact in events[-1].finished.artifacts] == ["left"]


def test_continue_without_request_id_runs_to_its_end(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub, request_label: str
) -> None:
    """Nobody can ask for it any more, but the log tells."""
    code = "import time\nprint('here', flush=True)\ntime.sleep(0.5)"
    call = stub.Execute(request(code, disconnect_policy=pb.DISCONNECT_POLICY_CONTINUE, labels={"test": request_label}))
    until_output(call)
    call.cancel()
    wait_until(lambda: ending(cold, request_label) is not None, "the execution is over")
    line = ending(cold, request_label)
    assert line is not None
    assert line["outcome"] == "succeeded"


def test_execution_with_two_clients_ends_when_the_last_one_leaves(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub, request_label: str
) -> None:
    """The first one to leave takes nothing from the other."""
    asked = request(FOR_EVER, request_id="two-clients", labels={"test": request_label})
    first, second = stub.Execute(asked), stub.Execute(asked)
    until_output(first)
    until_output(second)
    first.cancel()
    with Client(cold.address) as other:
        assert other.execute("1").value == 1
    assert ending(cold, request_label) is None
    second.cancel()
    assert_cancelled(cold, request_label)


def test_full_queue_is_freed_by_clients_that_leave_it() -> None:
    """Waiting costs a place only as long as somebody waits."""
    with (
        running_server(POOL__MAX="0", EXECUTION__MAX_RUNNING="1", EXECUTION__MAX_QUEUED="4") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = sandbox_pb2_grpc.SandboxServiceStub(channel)
        running = stub.Execute(request(FOR_EVER))
        until_output(running)
        waiting = [stub.Execute(request("1")) for _ in range(4)]
        assert [next(call).phase.phase for call in waiting] == [Phase.PHASE_QUEUED] * 4
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Execute(request("2")))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in waiting:
            call.cancel()
        wait_until(lambda: metric(server, "belljar_executions_waiting") == 0, "the queue is empty", GONE_SECONDS)
        next_one = stub.Execute(request("3"))
        assert next(next_one).phase.phase == Phase.PHASE_QUEUED
        running.cancel()
        assert list(next_one)[-1].finished.result_json == "3"


def test_two_hundred_executions_of_which_every_tenth_is_cancelled_leave_nothing(
    cold: Server, stub: sandbox_pb2_grpc.SandboxServiceStub
) -> None:
    """At random moments; every other one ends with its own result, every one exactly once."""
    chance = random.Random(20261121)  # noqa: S311  the same moments each time

    def one(number: int) -> None:
        code = f"import time\nprint({number})\ntime.sleep(0.02)\n{number}"
        call = stub.Execute(request(code, labels={"test": f"storm-{number}"}), timeout=100)
        if number % 10 == 0:
            timer = threading.Timer(moments[number], call.cancel)
            timer.start()
        try:
            finished = [event.finished for event in call if event.HasField("finished")]
        except grpc.RpcError as error:
            if number % 10 or error.code() is not grpc.StatusCode.CANCELLED:
                raise
        else:
            assert [each.result_json for each in finished] == [str(number)]

    moments = {number: chance.uniform(0, 1.5) for number in range(0, 200, 10)}
    began = time.monotonic()
    with ThreadPoolExecutor(12) as clients:
        for done in [clients.submit(one, number) for number in range(200)]:
            done.result()
    assert time.monotonic() - began < 110
    wait_until(lambda: metric(cold, "belljar_executions_running") == 0, "all are over")
    lines = [json.loads(line) for line in cold.log_text().splitlines() if '"storm-' in line]
    told = [line["labels"]["test"] for line in lines if line["event"] == "execution"]
    assert len(told) == len(set(told))
    assert {f"storm-{number}" for number in range(200) if number % 10} <= set(told)
