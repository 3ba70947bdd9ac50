"""What the world does to a server: kills it, stops it, fills its disk, takes away what it stands on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from belljar.v1 import sandbox_pb2 as pb
from belljar.v1 import sandbox_pb2_grpc
from belljar_client import Client, ErrorKind, InvalidRequest, Limits, Outcome, Overloaded, Result, Unavailable
from tests.conftest import BELLJAR, Server, running_server, wait_until
from tests.hostile.conftest import footprint, is_tidy, metric

pytestmark = pytest.mark.integration

DATA_DIR = Path(os.environ.get("BELLJAR_DATA_DIR", "/var/lib/belljar"))
MIB = 1 << 20
GONE_SECONDS = 10.0
"""Two seconds are promised; the rest is for a machine that has other things to do."""
FOR_EVER = "import time\nprint('here', flush=True)\ntime.sleep(600)"
READ_ONLY_CGROUPS = (
    *("unshare", "-m", "sh", "-c"),
    "for m in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do mount -o remount,ro,bind $m; done; exec \"$@\"",
    "sh",
)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short path, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="bj-", dir="/run") as path:
        yield Path(path)


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """A data directory with the images of the real one and everything else its own."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("bin", "images", "layers", "snapshots"):
        if (DATA_DIR / name).exists():
            (data / name).symlink_to(DATA_DIR / name)
    return data


@pytest.fixture
def small_disk(own_data: Path) -> Iterator[Path]:
    """Its place for artifacts, on a disk of 16 MiB."""
    place = own_data / "artifacts"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def refused_start(prefix: tuple[str, ...] = (), **settings: str) -> tuple[int, str]:
    """Exit code and words of a server that does not start."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BELLJAR_")}
    chosen: dict[str, Any] = {
        "GRPC__LISTEN": "127.0.0.1:0",
        "HTTP__LISTEN": "127.0.0.1:0",
        "DATA_DIR": str(DATA_DIR),
    } | settings
    with tempfile.TemporaryDirectory(prefix="bj-", dir="/run") as runtime_dir:
        chosen = {"RUNTIME_DIR": runtime_dir} | chosen
        environ |= {f"BELLJAR_{name}": value for name, value in chosen.items()}
        done = subprocess.run(
            [*prefix, BELLJAR, "serve"], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr
        assert list(Path(runtime_dir).iterdir()) == [], "what did not start leaves nothing"
    return done.returncode, done.stderr


class Held(NamedTuple):
    """An execution whose client is there as long as this is: a call that nothing refers to is cancelled by grpc."""

    channel: grpc.Channel
    call: Iterator[pb.ExecuteResponse]
    execution_id: str


def started(server: Server, code: str = FOR_EVER, **fields: object) -> Held:
    """Starts an execution and waits until its code prints."""
    channel = grpc.insecure_channel(server.address)
    request = pb.ExecuteRequest(runtime="python", code=code, **fields)  # type: ignore[arg-type]
    call = sandbox_pb2_grpc.SandboxServiceStub(channel).Execute(request)
    return Held(channel, call, next(event.execution_id for event in call if event.HasField("output")))


def in_background(work: Callable[[], Result]) -> Callable[[], Result]:
    """Runs it in a thread; what is returned waits for the result."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result() -> Result:
        thread.join(60)
        assert results, "it has failed or goes on"
        return results[0]

    return result


def processes_of(directory: Path) -> list[str]:
    """Command lines that name a directory: all runscs of a server."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(directory) in command:
                found.append(command)
    return found


def cgroups_of(server: Server) -> list[Path]:
    """Where a server has its groups."""
    return [
        Path(parent)
        for file in server.runtime_dir.glob("*/cgroups.json")
        for parent, *_ in json.loads(file.read_text())
    ]


def health(server: Server) -> int:
    """What the health service says."""
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return int(answer.status)


# --- killed


PHASES = {
    "queued": (FOR_EVER, pb.PHASE_QUEUED),
    "starting": (FOR_EVER, pb.PHASE_STARTING),
    "running": (FOR_EVER, pb.PHASE_RUNNING),
    "collecting": ("for i in range(800): open(f'f{i}', 'wb').write(b'x' * 200_000)", pb.PHASE_COLLECTING),
}


@pytest.mark.parametrize("phase", PHASES)
def test_killed_server_leaves_nothing_and_the_next_one_tells_what_was_lost(short_dir: Path, phase: str) -> None:
    """In every phase: processes go by themselves, the rest with the next start."""
    code, wanted = PHASES[phase]
    settings: dict[str, Any] = {"RUNTIME_DIR": str(short_dir), "POOL__MAX": "0", "EXECUTION__MAX_RUNNING": "1"}
    with running_server(**settings) as first:
        with Client(first.address) as client:
            kept = client.execute("open('kept', 'w').write('kept')").check().artifacts[0]
        wait_until(lambda: not list(short_dir.glob("*/executions/*")), "its end is noted")
        held = [started(first)] if phase == "queued" else []
        ids = {each.execution_id for each in held}
        channel = grpc.insecure_channel(first.address)
        call = sandbox_pb2_grpc.SandboxServiceStub(channel).Execute(pb.ExecuteRequest(runtime="python", code=code))
        ids.add(next(event.execution_id for event in call if event.phase.phase == wanted))
        old_groups, old = cgroups_of(first), first.children()
        assert old_groups
        first.process.kill()
        first.process.wait()
        wait_until(lambda: not processes_of(short_dir), "its processes are gone by themselves", GONE_SECONDS)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in old), "all of them", GONE_SECONDS)
        for each in (channel, *(one.channel for one in held)):
            each.close()
    with running_server(**settings) as second:
        assert not any(group.exists() for group in old_groups)
        assert len([entry for entry in short_dir.iterdir() if entry.is_dir()]) == 1
        lines = [json.loads(line) for line in second.log_text().splitlines() if line.startswith("{")]
        assert {line["execution_id"] for line in lines if line["event"] == "execution lost"} == ids
        with Client(second.address) as client:
            assert client.execute("1").value == 1
        url = urllib.parse.urlsplit(kept.download_url)._replace(netloc=second.http_address).geturl()
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.read() == b"kept"


def test_lost_execution_is_told_to_who_repeats_it_and_not_run_again(short_dir: Path) -> None:
    """One terminal event, of the same execution, from the next server; its request_id stays taken by its request."""
    runs = "import time\nprint('runs', flush=True)\ntime.sleep(600)"
    settings: dict[str, Any] = {"RUNTIME_DIR": str(short_dir), "POOL__MAX": "0"}
    with running_server(**settings) as first:
        lost = started(first, runs, request_id="order-1")
        first.process.kill()
        first.process.wait()
        lost.channel.close()
    with running_server(**settings) as second, grpc.insecure_channel(second.address) as channel:
        execute = sandbox_pb2_grpc.SandboxServiceStub(channel).Execute
        for _ in range(2):
            (told,) = execute(pb.ExecuteRequest(runtime="python", code=runs, request_id="order-1"))
            assert told.execution_id == lost.execution_id
            assert told.finished.outcome == pb.OUTCOME_FAILED
            assert told.finished.error.kind == pb.ERROR_KIND_SANDBOX_FAILED
            assert told.finished.error.message == "the server was killed while it ran this execution"
        with pytest.raises(grpc.RpcError) as refused:
            list(execute(pb.ExecuteRequest(runtime="python", code="1", request_id="order-1")))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        (*_, other) = execute(pb.ExecuteRequest(runtime="python", code="1", request_id="order-2"))
        assert other.finished.result_json == "1"


def test_servers_side_by_side_do_not_touch_each_other(short_dir: Path) -> None:
    """Same directories, same host: the end of one, and the start of another, change nothing for the third."""
    settings: dict[str, Any] = {"RUNTIME_DIR": str(short_dir), "POOL__MAX": "0"}
    with running_server(**settings) as one, running_server(**settings) as two, Client(two.address) as client:
        result = in_background(lambda: client.execute("import time\ntime.sleep(4)\nopen('a', 'w').write('a')\n'mine'"))
        wait_until(lambda: metric(two, "belljar_executions_running") == 1, "it runs")
        lost = started(one)
        one.process.kill()
        one.process.wait()
        with running_server(**settings) as three:
            assert lost.execution_id in three.log_text()
            with Client(three.address) as other:
                assert other.execute("1").value == 1
        lost.channel.close()
        assert result().check().value == "mine"
        assert len(result().artifacts) == 1
        assert "lost" not in two.log_text()
        assert two.stop() == 0


# --- stopped


def test_sigterm_lets_running_work_finish_and_takes_no_more() -> None:
    """Also its artifacts; whoever asks meanwhile is told to go elsewhere."""
    with running_server(POOL__MAX="0") as server, Client(server.address, attempts=1) as client:
        code = "import time\nprint('here', flush=True)\ntime.sleep(2)\nopen('a', 'w').write('a')\n'done'"
        result = in_background(lambda: client.execute(code))
        wait_until(lambda: metric(server, "belljar_executions_running") == 1, "it runs")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: '"stopping"' in server.log_text(), "it stops")
        with pytest.raises(Unavailable) as refused:
            client.execute("1")
        assert refused.value.retry_after is not None
        assert health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
        finished = result()
        assert (finished.outcome, finished.value) == (Outcome.SUCCEEDED, "done")
        assert len(finished.artifacts) == 1
        assert server.process.wait(30) == 0


def test_sigterm_ends_what_does_not_finish_and_tells_it() -> None:
    """What runs, what is queued; each with a terminal event, and the exit code is 0."""
    with running_server(POOL__MAX="0", SHUTDOWN_GRACE="1", EXECUTION__MAX_RUNNING="1") as server:
        with Client(server.address) as client:
            running = started(server)
            queued = in_background(lambda: client.execute(FOR_EVER))
            wait_until(lambda: metric(server, "belljar_executions_waiting") == 1, "the other one waits")
            server.process.send_signal(signal.SIGTERM)
            (*_, last) = running.call
            running.channel.close()
            assert last.finished.outcome == pb.OUTCOME_CANCELLED
            assert last.finished.error.kind == pb.ERROR_KIND_CANCELLED
            assert "server" in last.finished.error.message
            result = queued()
            assert result.outcome is Outcome.CANCELLED
            assert result.error is not None
            assert result.error.kind is ErrorKind.CANCELLED
            assert "server" in result.error.message
        assert server.process.wait(30) == 0
        assert list(server.runtime_dir.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_stops_at_once_with_exit_code_zero(number: int) -> None:
    """And leaves nothing, also when it is not ready yet."""
    with running_server(ready=False) as server:
        groups = cgroups_of(server)
        assert server.stop(number) == 0
        assert list(server.runtime_dir.iterdir()) == []
        assert not any(group.exists() for group in groups)


# --- does not start


@pytest.mark.parametrize("setting", ["GRPC__LISTEN", "HTTP__LISTEN"])
def test_port_in_use_is_told_by_its_setting(setting: str) -> None:
    """It does not share the port, and leaves nothing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        chosen: dict[str, Any] = {setting: address}
        code, said = refused_start(**chosen)
    assert code == 1
    assert address in said


def test_missing_images_are_told_with_what_to_do(own_data: Path) -> None:
    """Not at the first request but at the start."""
    (own_data / "images").unlink()
    code, said = refused_start(DATA_DIR=str(own_data))
    assert code == 1
    assert "belljar setup" in said
    assert "image" in said


@pytest.mark.parametrize("what", ["/bin/false", "/nowhere/runsc", "/bin/echo"])
def test_runsc_that_is_none_is_told_at_the_start(what: str) -> None:
    """By its path."""
    code, said = refused_start(SANDBOX__RUNSC=what)
    assert code == 1
    assert what in said


def test_read_only_data_directory_is_told_at_the_start(own_data: Path) -> None:
    """By what could not be written."""
    subprocess.run(["mount", "--bind", own_data, own_data], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", own_data], check=True)
        code, said = refused_start(DATA_DIR=str(own_data), POOL__MAX="0")
    finally:
        subprocess.run(["umount", "-l", own_data], check=True)
    assert code == 1
    assert str(own_data) in said
    assert "ead-only" in said


def test_limits_that_cannot_be_enforced_are_named_and_nothing_starts() -> None:
    """With how to accept that."""
    code, said = refused_start(prefix=READ_ONLY_CGROUPS)
    assert code == 1
    for name in ("limits.memory_bytes", "limits.cpus", "limits.cpu_time", "limits.waived"):
        assert name in said
    code, said = refused_start(prefix=READ_ONLY_CGROUPS, LIMITS__WAIVED='["cpus", "cpu_time"]')
    assert code == 1
    assert "limits.memory_bytes" in said
    assert "limits.cpus" not in said


def test_waived_limits_are_warned_of_at_start_and_in_each_result() -> None:
    """What does not need a cgroup still holds: time, cancellation, and the end of the sandbox."""
    waived = {"memory_bytes", "cpus", "cpu_time"}
    settings: dict[str, Any] = {"LIMITS__WAIVED": json.dumps(sorted(waived)), "POOL__MAX": "0"}
    with running_server(prefix=READ_ONLY_CGROUPS, **settings) as server, Client(server.address) as client:
        lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]
        assert {line["limit"] for line in lines if line["event"] == "limit is not enforced"} == waived
        assert set(client.runtimes().waived_limits) == waived
        warnings = client.execute("1").check().warnings
        assert {name for name in waived if any(f"limits.{name} " in warning for warning in warnings)} == waived
        late = client.execute("while True: pass", limits=Limits(timeout=0.5))
        assert late.error is not None
        assert late.error.kind is ErrorKind.TIMEOUT
        started(server).channel.close()
        wait_until(lambda: metric(server, "belljar_sandboxes_live") == 0, "the cancelled one is gone")
        wait_until(lambda: not processes_of(server.runtime_dir), "and its processes")
        assert server.stop() == 0


def test_waived_limit_that_can_be_enforced_is_enforced() -> None:
    """Waiving accepts what the host lacks; it switches nothing off."""
    with running_server(LIMITS__WAIVED='["memory_bytes"]', POOL__MAX="0") as server, Client(server.address) as client:
        result = client.execute("x = bytearray(1 << 30)", limits=Limits(memory_bytes=64 * MIB))
        assert result.error is not None
        assert result.error.kind is ErrorKind.MEMORY_LIMIT
        assert not result.warnings


# --- the disk


def test_full_disk_refuses_new_work_early_and_recovers_by_itself(small_disk: Path, own_data: Path) -> None:
    """Nothing starts whose artifacts would find no room; what runs ends, and says what is missing."""
    settings: dict[str, Any] = {"DATA_DIR": str(own_data), "ARTIFACTS__MIN_FREE_BYTES": str(4 * MIB), "POOL__MAX": "0"}
    with running_server(**settings) as server, Client(server.address, attempts=1) as client:
        code = (
            "import time\nopen('small', 'w').write('small')\nprint('here', flush=True)\ntime.sleep(2)\n"
            "open('large', 'wb').write(bytes(8 << 20))\n'done'"
        )
        result = in_background(lambda: client.execute(code))
        wait_until(lambda: metric(server, "belljar_executions_running") == 1, "it runs")
        filler = small_disk / "filler"
        filler.write_bytes(bytes(13 * MIB))
        with pytest.raises(Overloaded, match="full") as refused:
            client.execute("1")
        assert refused.value.retry_after is not None
        finished = result().check()
        assert finished.value == "done"
        assert [artifact.name for artifact in finished.artifacts] == ["small"]
        assert any("large" in warning for warning in finished.warnings)
        filler.unlink()
        again = client.execute("open('large', 'wb').write(bytes(8 << 20))").check()
        assert [(artifact.name, artifact.size_bytes) for artifact in again.artifacts] == [("large", 8 * MIB)]
        assert not list(small_disk.glob("*.part"))


def test_result_that_finds_no_room_is_a_failure_not_an_empty_success(small_disk: Path, own_data: Path) -> None:
    """Large results go to the disk; a client must not take none for one."""
    with running_server(DATA_DIR=str(own_data), POOL__MAX="0") as server, Client(server.address) as client:
        (small_disk / "filler").write_bytes(bytes(14 * MIB))
        result = client.execute("'x' * (6 << 20)")
        assert result.outcome is Outcome.FAILED
        assert result.error is not None
        assert "could not be stored" in result.error.message


def test_disk_that_becomes_read_only_refuses_new_work_until_it_is_not(small_disk: Path, own_data: Path) -> None:
    """Clear words, and no restart."""
    with running_server(DATA_DIR=str(own_data), POOL__MAX="0") as server, Client(server.address, attempts=1) as client:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        with pytest.raises(Overloaded, match="read-only"):
            client.execute("1")
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        assert len(client.execute("open('a', 'w').write('a')").check().artifacts) == 1


# --- what it stands on


def test_killed_launcher_fails_what_runs_and_is_replaced() -> None:
    """The executions of the dead one are told as the server's fault; the next one finds a new launcher."""
    with running_server(POOL__MAX="0") as server, Client(server.address) as client:
        result = in_background(lambda: client.execute(FOR_EVER))
        wait_until(lambda: metric(server, "belljar_sandboxes_live") == 1, "it runs")
        wait_until(lambda: len(server.children()) > 3, "it runs")
        for pid in server.children():
            if b"launcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        failed = result()
        assert failed.error is not None
        assert failed.error.kind is ErrorKind.SANDBOX_FAILED
        assert client.execute("1").value == 1
        wait_until(lambda: metric(server, "belljar_ready") == 1, "it is ready")
        wait_until(lambda: is_tidy(server), f"nothing is left: {footprint(server)}")
        assert server.stop() == 0


@pytest.mark.parametrize("instead", ["/bin/false", None], ids=["false", "missing"])
def test_broken_runsc_is_not_ready_and_recovers(tmp_path: Path, instead: str | None) -> None:
    """An execution says that it was not the code; health says it to the load balancer; nobody restarts anything."""
    runsc, good = tmp_path / "runsc", DATA_DIR / "bin" / "runsc"
    shutil.copy2(good, runsc)
    with running_server(SANDBOX__RUNSC=str(runsc), POOL__MAX="0") as server, Client(server.address) as client:
        assert health(server) == health_pb2.HealthCheckResponse.SERVING
        runsc.rename(tmp_path / "good")
        if instead:
            shutil.copy2(instead, runsc)
        failed = client.execute("1")
        assert failed.error is not None
        assert failed.error.kind is ErrorKind.SANDBOX_FAILED
        assert "before the code ran" in failed.error.message
        wait_until(lambda: health(server) == health_pb2.HealthCheckResponse.NOT_SERVING, "health tells")
        with pytest.raises(urllib.error.HTTPError) as unready:
            urllib.request.urlopen(f"http://{server.http_address}/readyz", timeout=10)
        assert unready.value.code == 503
        unready.value.close()
        (tmp_path / "good").rename(runsc)
        wait_until(lambda: health(server) == health_pb2.HealthCheckResponse.SERVING, "it recovers", 60)
        assert client.execute("1").value == 1
        wait_until(lambda: metric(server, "belljar_sandboxes_live") == 0, "no sandbox is left")


def test_killed_sandbox_before_user_code_is_replaced_without_a_word() -> None:
    """Whatever takes a booting sandbox away, another one runs the code, once."""
    with running_server(POOL__MAX="0") as server, Client(server.address) as client:
        content = bytes(24 * MIB)
        result = in_background(lambda: client.execute("1 + 1", input_files={"a": content}))
        killed = threading.Event()

        def kill_first() -> bool:
            for pid in server.children():
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                if b"--bundle=" in command and b"boot" not in command.split(b"\0"):
                    os.kill(pid, signal.SIGKILL)
                    killed.set()
                    return True
            return False

        wait_until(kill_first, "a sandbox boots")
        assert result().check().value == 2
        assert "tried again" in server.log_text()


def test_refusals_stay_refusals_while_the_server_cannot_start_sandboxes(tmp_path: Path) -> None:
    """A wrong request is the client's fault at any time."""
    runsc = tmp_path / "runsc"
    shutil.copy2(DATA_DIR / "bin" / "runsc", runsc)
    with running_server(SANDBOX__RUNSC=str(runsc), POOL__MAX="0") as server, Client(server.address) as client:
        shutil.copy2("/bin/false", tmp_path / "false")
        (tmp_path / "false").rename(runsc)
        with pytest.raises(InvalidRequest):
            client.execute("1", limits=Limits(cpus=-1.0))
