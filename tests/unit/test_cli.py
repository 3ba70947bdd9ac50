"""The command line against a server that speaks the contract: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from belljar.v1 import sandbox_pb2
from belljar_client.cli import main
from belljar_client.cli.exits import MEANINGS, Exit
from tests.unit.fake_sandbox_service import (
    FakeDownloads,
    FakeSandboxService,
    breaks,
    failed,
    plays,
    queued,
    serving,
    serving_downloads,
    started,
    stderr,
    stdout,
    succeeded,
    waits,
)

PATIENCE = 20.0
"""Seconds within which what must happen has happened, on any machine."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSandboxService]:
    """A fake server, named by the environment."""
    with serving() as service:
        monkeypatch.setenv("BELLJAR_ADDRESS", service.address)
        yield service


@pytest.fixture
def downloads() -> Iterator[FakeDownloads]:
    """A fake object store."""
    with serving_downloads() as downloads:
        yield downloads


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with code, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hello.py").write_text("print('hi')")
    return tmp_path / "hello.py"


@pytest.fixture
def belljar(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `belljar` in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def spawn(*arguments: str) -> subprocess.Popen[bytes]:
    """`belljar` as a process of its own, for signals and pipes."""
    command = [sys.executable, "-c", "import sys; from belljar_client.cli import main; sys.exit(main())", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_logs_go_to_their_own_streams(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """Stdout has what the code wrote there and nothing else; the summary with the result is on stderr."""
    service.scripts = [plays(queued(1), started(2), stdout(3, b"out"), stderr(4, b"err\n"), succeeded(5, '{"n": 1}'))]
    code, out, err = belljar("run", "hello.py")
    assert (code, out) == (0, "out")
    assert err == 'err\nbelljar: succeeded after 0 ms, result {"n": 1}\n'
    [request] = service.requests
    assert (request.runtime, request.code, request.inputs_json) == ("python", "print('hi')", "{}")


def test_logs_appear_while_the_code_runs(service: FakeSandboxService, hello: Path) -> None:
    """The first bytes can be read before the end, also when stdout is a pipe and no line is complete."""
    service.scripts = [waits(started(1), stdout(2, b"early"))]
    process = spawn("run", "hello.py")
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"early"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)


def test_interrupt_cancels_on_the_server(service: FakeSandboxService, hello: Path) -> None:
    """Ctrl-C ends the execution, says so and exits with 130, without a traceback."""
    service.scripts = [waits(started(1), stdout(2, b"."))]
    process = spawn("run", "hello.py")
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, b"belljar: cancelled\n")
    assert service.cancelled.wait(PATIENCE)


def test_reader_gone_cancels_quietly(service: FakeSandboxService, hello: Path) -> None:
    """`belljar run … | head` ends the execution with 141 and no traceback."""

    async def endless(request: object, context: object) -> object:
        yield started(1)
        for number in range(2, 1 << 20):
            yield stdout(number, b"x" * 65536)

    service.scripts = [endless]  # type: ignore[list-item]
    process = spawn("run", "hello.py")
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(PATIENCE) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert service.cancelled.wait(PATIENCE)


def test_result_alone_on_stdout(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """With --result stdout is the result as it was sent; the code's own stdout moves to stderr."""
    service.scripts = [plays(started(1), stdout(2, b"log\n"), succeeded(3, '{"big": 12345678901234567890.10}'))]
    code, out, err = belljar("run", "hello.py", "--result", "--quiet")
    assert (code, out, err) == (0, '{"big": 12345678901234567890.10}\n', "log\n")


def test_json_has_everything_and_loses_no_digit(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """With --json stdout is one object, also when the code failed."""
    artifact = sandbox_pb2.Artifact(id="a1", name="x.csv", size_bytes=3, download_url="http://u")
    service.scripts = [
        plays(started(1), stdout(2, b"log\n"), succeeded(3, "1.10", artifacts=[artifact], warnings=["w"]))
    ]
    code, out, err = belljar("run", "hello.py", "--json")
    assert code == 0
    assert '"result": 1.10,' in out
    shown = json.loads(out)
    assert set(shown) == {
        "execution_id",
        "outcome",
        "exit_code",
        "signal",
        "result",
        "error",
        "artifacts",
        "result_artifact",
        "usage",
        "warnings",
        "truncated",
        "denied_connections",
    }
    assert (shown["outcome"], shown["artifacts"][0]["name"], shown["warnings"]) == ("succeeded", "x.csv", ["w"])
    assert "log\n" in err
    service.scripts = [plays(failed(1, sandbox_pb2.ERROR_KIND_EXITED, "exit 3", exit_code=3))]
    code, out, _ = belljar("run", "hello.py", "--json")
    shown = json.loads(out)
    assert (code, shown["exit_code"], shown["error"]["kind"], shown["result"]) == (1, 3, "EXITED", None)


def test_error_is_shown_as_a_compiler_does(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """Local file, line, column, kind, message; then traceback and hint; escape sequences do not reach the terminal."""
    place = {"file": "main.py", "line": 3, "column": 5, "traceback": "Traceback\n  x\x1b[2J\n", "hint": "try"}
    service.scripts = [plays(failed(1, sandbox_pb2.ERROR_KIND_EXCEPTION, "ValueError: \u202eno", **place))]  # type: ignore[arg-type]
    code, out, err = belljar("run", "hello.py", "--quiet")
    assert (code, out) == (1, "")
    assert err == "hello.py:3:5: EXCEPTION ValueError: \\u202eno\nTraceback\n  x\\x1b[2J\nhint: try\n"


def test_error_in_another_source_names_its_local_file(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """`--source PATH=NAME` is undone in messages."""
    Path("lib.py").write_text("x")
    service.scripts = [plays(failed(1, sandbox_pb2.ERROR_KIND_SYNTAX_ERROR, "bad", file="pkg/util.py", line=2))]
    _, _, err = belljar("run", "hello.py", "--source", "lib.py=pkg/util.py", "--quiet")
    assert err == "lib.py:2: SYNTAX_ERROR bad\n"
    assert [(f.path, f.content) for f in service.requests[0].files] == [("pkg/util.py", b"x")]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("SYNTAX_ERROR", 1),
        ("EXCEPTION", 1),
        ("EXITED", 1),
        ("SIGNALED", 1),
        ("TIMEOUT", 124),
        ("MEMORY_LIMIT", 123),
        ("PROCESS_LIMIT", 123),
        ("DISK_LIMIT", 123),
        ("OUTPUT_LIMIT", 123),
        ("CANCELLED", 130),
        ("SANDBOX_FAILED", 70),
    ],
)
def test_exit_code_tells_why_code_failed(
    belljar: Run, service: FakeSandboxService, hello: Path, kind: str, expected: int
) -> None:
    """The kind decides, never the code's own exit code, which could be any of ours."""
    number = sandbox_pb2.ErrorKind.Value(f"ERROR_KIND_{kind}")
    service.scripts = [plays(failed(1, number, "m", exit_code=69))]
    assert belljar("run", "hello.py")[0] == expected


@pytest.mark.parametrize(
    ("code", "retry_after", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, None, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.01, 75),
        (grpc.StatusCode.UNAVAILABLE, 0.01, 69),
        (grpc.StatusCode.UNAVAILABLE, None, 76),
        (grpc.StatusCode.INTERNAL, None, 70),
    ],
)
def test_exit_code_tells_why_there_is_no_result(
    belljar: Run,
    service: FakeSandboxService,
    hello: Path,
    code: grpc.StatusCode,
    retry_after: float | None,
    expected: int,
) -> None:
    """Nothing on stdout, one line on stderr."""
    service.scripts = [breaks(code=code, text="why", retry_after=retry_after)]
    exit_code, out, err = belljar("run", "hello.py", "--json")
    assert (exit_code, out) == (expected, "")
    assert "why" in err
    assert err.count("\n") == 1


def test_no_server_says_so(belljar: Run, hello: Path) -> None:
    """An address where nobody listens: 69."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code, _, err = belljar("run", "hello.py", "--address", address)
    assert code == 69
    assert "Unavailable" in err


def test_refusal_lists_the_fields(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """What the server refuses is shown field by field."""
    violations = (("limits.timeout", "at most 900 s"), ("code", "NUL"))
    service.scripts = [breaks(code=grpc.StatusCode.INVALID_ARGUMENT, violations=violations)]
    code, _, err = belljar("run", "hello.py", "--timeout", "1h")
    assert (code, err) == (2, "error: the request is refused\n  limits.timeout: at most 900 s\n  code: NUL\n")


def test_arguments_become_the_request(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """Units, pairs, files and labels end up where they belong."""
    Path("data.csv").write_bytes(b"1")
    Path("a=b").write_bytes(b"2")
    Path("app.mts").write_text("export {}")
    options = [
        "--input",
        "n=1",
        "--input",
        "s=text",
        "--input",
        'o={"k": [1.10]}',
        "--input",
        "e=a=b",
        "--input",
        "x=NaN",
    ]
    options += [
        "--file",
        "data.csv",
        "--file",
        "data.csv=in/d.csv",
        "--file",
        "a=b",
        "--env",
        "K=V=W",
        "--label",
        "l=m",
    ]
    options += ["--timeout", "500ms", "--memory", "1.5G", "--disk", "64MiB", "--cpus", "0.5", "--processes", "20"]
    code, _, _ = belljar("run", "app.mts", "--entry", "main_args", "--request-id", "r1", *options)
    assert code == 0
    [request] = service.requests
    assert request.runtime == "typescript"
    assert request.inputs_json == '{"n": 1, "s": "text", "o": {"k": [1.10]}, "e": "a=b", "x": "NaN"}'
    assert [(f.path, f.content) for f in request.input_files] == [("data.csv", b"1"), ("in/d.csv", b"1"), ("a=b", b"2")]
    assert (dict(request.env), dict(request.labels), request.request_id) == ({"K": "V=W"}, {"l": "m"}, "r1")
    assert request.entry == sandbox_pb2.ENTRY_MAIN_ARGS
    limits = request.limits
    assert limits.timeout.ToMilliseconds() == 500
    assert (limits.memory_bytes, limits.disk_bytes) == (1536 << 20, 64 << 20)
    assert (limits.cpus, limits.processes) == (0.5, 20)


def test_inputs_file_is_sent_as_it_is(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """Whether it is a JSON object is for the server to say."""
    Path("in.json").write_text('{ "a": 1e400 }')
    belljar("run", "hello.py", "--inputs", "in.json")
    assert service.requests[0].inputs_json == '{ "a": 1e400 }'


def test_code_comes_from_stdin(service: FakeSandboxService, hello: Path) -> None:
    """`-` with a runtime."""
    command = [sys.executable, "-c", "import sys; from belljar_client.cli import main; sys.exit(main())"]
    process = subprocess.run(
        [*command, "run", "-", "--runtime", "javascript"],
        input="console.log('é')".encode(),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
        timeout=PATIENCE,
        capture_output=True,
    )
    assert process.stdout == b""
    assert (service.requests[0].runtime, service.requests[0].code) == ("javascript", "console.log('é')")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "-"], "--runtime"),
        (["run", "hello.rb"], "--runtime"),
        (["run", "missing.py"], "missing.py"),
        (["run", "latin.py"], "not UTF-8"),
        (["run", "-", "--runtime", "python", "--inputs", "-"], "stdin"),
        (["run", "hello.py", "--input", "a"], "name=value"),
        (["run", "hello.py", "--input", "a=1", "--input", "a=2"], "given twice"),
        (["run", "hello.py", "--input", "a=1", "--inputs", "f"], "not allowed with"),
        (["run", "hello.py", "--json", "--result"], "not allowed with"),
        (["run", "hello.py", "--timeout", "soon"], "500ms"),
        (["run", "hello.py", "--timeout", "-5"], "--timeout"),
        (["run", "hello.py", "--memory", "lots"], "512M"),
        (["run", "hello.py", "--file", "nowhere.csv"], "nowhere.csv"),
        (["run", "hello.py", "--file", "hello.py", "--file", "hello.py"], "two files"),
        (["run", "hello.py", "--file", "=x"], "path=name"),
        (["fly"], "invalid choice"),
        ([], "usage"),
    ],
)
def test_wrong_arguments_exit_2_and_say_what_is_right(
    belljar: Run, service: FakeSandboxService, hello: Path, arguments: list[str], expected: str
) -> None:
    """Nothing is sent."""
    Path("latin.py").write_bytes(b"\xe9")
    code, out, err = belljar(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert not service.requests


def test_artifacts_are_listed_and_saved(
    belljar: Run, service: FakeSandboxService, downloads: FakeDownloads, hello: Path
) -> None:
    """Name, size, type and URL on stderr; with --save the files are there, hostile names inside the directory."""
    artifacts = [downloads.artifact("out/r.csv", b"1,2"), downloads.artifact("../\x1b[2Jup", b"x" * 2048)]
    service.scripts = [plays(succeeded(1, artifacts=artifacts))]
    code, out, err = belljar("run", "hello.py", "--save", "saved", "--json")
    assert code == 0
    assert f"artifact: out/r.csv (3 B, text/plain) http://127.0.0.1:{downloads.port}/0\n" in err
    assert "artifact: ../\\x1b[2Jup (2.0 KiB," in err
    assert "\x1b" not in err
    assert Path("saved/out/r.csv").read_bytes() == b"1,2"
    assert Path("saved/_/_[2Jup").stat().st_size == 2048
    assert [a["saved_to"] for a in json.loads(out)["artifacts"]] == [
        str(Path.cwd() / "saved/out/r.csv"),
        str(Path.cwd() / "saved/_/_[2Jup"),
    ]


def test_artifact_that_cannot_be_saved_has_its_own_exit_code(
    belljar: Run, service: FakeSandboxService, downloads: FakeDownloads, hello: Path
) -> None:
    """The others are saved all the same; a failure of the code counts more."""
    artifacts = [downloads.artifact("bad", b"1", sha256="0"), downloads.artifact("good", b"2")]
    service.scripts = [plays(succeeded(1, artifacts=artifacts))]
    code, _, err = belljar("run", "hello.py", "--save", "saved")
    assert code == 74
    assert "not saved: 'bad'" in err
    assert Path("saved/good").read_bytes() == b"2"


def test_result_that_became_an_artifact_is_named(
    belljar: Run, service: FakeSandboxService, downloads: FakeDownloads, hello: Path
) -> None:
    """With --result nothing false is printed, and --save gets it."""
    ending = succeeded(1)
    ending.finished.ClearField("result_json")
    ending.finished.result_artifact.CopyFrom(downloads.artifact("result.json", b"[1]"))
    service.scripts = [plays(ending)]
    code, out, err = belljar("run", "hello.py", "--result", "--save", "saved")
    assert (code, out) == (0, "")
    assert "too large to print" in err
    assert Path("saved/result.json").read_bytes() == b"[1]"


def test_warnings_and_dropped_output_are_said(belljar: Run, service: FakeSandboxService, hello: Path) -> None:
    """Also with --quiet: what is missing matters."""
    truncated = sandbox_pb2.Truncated(stdout=True, stdout_dropped_bytes=3 << 20)
    service.scripts = [plays(succeeded(1, warnings=["too many files"], truncated=truncated))]
    _, _, err = belljar("run", "hello.py", "--quiet")
    assert err == "warning: too many files\nwarning: stdout is not complete: 3.0 MiB were dropped\n"


def test_runtimes_as_table_and_json(belljar: Run, service: FakeSandboxService) -> None:
    """For people and for programs."""
    service.runtimes.runtimes.add(name="python", version="3.13.5", main_file="main.py")
    service.runtimes.default_limits.timeout.FromSeconds(30)
    service.runtimes.max_limits.timeout.FromSeconds(900)
    service.runtimes.default_limits.memory_bytes = 512 << 20
    service.runtimes.waived_limits.append("memory_bytes")
    code, out, _ = belljar("runtimes")
    assert code == 0
    assert [line.split() for line in out.splitlines()][1] == ["python", "3.13.5", "main.py"]
    assert ["timeout", "30", "s", "900", "s"] in [line.split() for line in out.splitlines()]
    assert "512.0 MiB  - (not enforced on this server)" in out
    code, out, _ = belljar("runtimes", "--json", "--address", service.address)
    assert json.loads(out)["runtimes"][0]["name"] == "python"


def test_help_teaches(belljar: Run) -> None:
    """Every command is listed, `run` shows examples and every exit code with its meaning."""
    code, out, _ = belljar("--help")
    assert code == 0
    for command in ("run", "runtimes", "serve", "setup", "doctor", "cache"):
        assert f"\n    {command} " in out
    code, out, _ = belljar("run", "--help")
    assert code == 0
    assert "examples:" in out
    assert set(MEANINGS) == set(Exit)
    for exit_code, meaning in MEANINGS.items():
        assert f"  {exit_code:<5}{meaning}" in out


def test_version_is_printed(belljar: Run) -> None:
    """The version of the distribution."""
    code, out, _ = belljar("--version")
    assert code == 0
    assert out.startswith("belljar 0.")


@pytest.mark.parametrize("command", ["serve", "setup", "doctor"])
def test_server_commands_without_the_server_name_the_extra(
    belljar: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """With the client alone, one line says what to install."""
    monkeypatch.setitem(sys.modules, "belljar_server.__main__", None)
    code, _, err = belljar(command, "--anything")
    assert code == 2
    assert "pip install 'belljar[server]'" in err


def test_server_commands_get_their_arguments_untouched(belljar: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also --help, which is theirs to answer."""
    seen: list[list[str]] = []

    class ServerMain:
        @staticmethod
        def main(argv: list[str]) -> int:
            seen.append(argv)
            return 3

    monkeypatch.setitem(sys.modules, "belljar_server.__main__", ServerMain)
    assert belljar("serve", "--help", "-x")[0] == 3
    assert seen == [["serve", "--help", "-x"]]


def test_health_tells_a_server_that_serves_from_one_that_does_not(belljar: Run) -> None:
    """SERVING is 0; NOT_SERVING, no server, and a server that knows no health are told as what they are."""
    with health_server() as (servicer, address):
        for status, expected in (("SERVING", (0, f"{address} is serving\n")), ("NOT_SERVING", (69, ""))):
            servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
            code, out, _ = belljar("health", "--address", address)
            assert (code, out) == expected
    code, _, err = belljar("health", "--address", address, "--timeout", "2s")
    assert code == 69
    assert "Unavailable" in err


def test_health_of_something_else_is_no_health(service: FakeSandboxService, belljar: Run) -> None:
    """A gRPC server without the protocol is not taken for a sick one."""
    code, _, err = belljar("health")
    assert code == 70
    assert "health protocol" in err


@contextmanager
def health_server() -> Iterator[tuple[health.HealthServicer, str]]:
    """The reference implementation of the protocol on a free port."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
