"""`belljar` as users run it: the installed command, a real server, real sandboxes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BELLJAR = Path(sys.executable).with_name("belljar")
EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 120.0
"""Seconds for one execution with a cold start, on any machine."""

Belljar = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(server_address: str) -> dict[str, str]:
    """The environment of a user whose BELLJAR_ADDRESS is set."""
    return os.environ | {"BELLJAR_ADDRESS": server_address}


@pytest.fixture
def belljar(environment: dict[str, str], tmp_path: Path) -> Belljar:
    """Runs the installed command in an empty directory."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(BELLJAR), *arguments]
        return subprocess.run(
            command,
            input=stdin,
            env=environment,
            cwd=tmp_path,
            timeout=PATIENCE,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("example", "artifact"), [("report.py", "report.csv"), ("report.js", "report.json"), ("report.ts", "report.md")]
)
def test_example_prints_logs_result_and_saves_its_artifact(
    belljar: Belljar, tmp_path: Path, example: str, artifact: str
) -> None:
    """What the demo shows works in every language."""
    inputs = str(EXAMPLES / "inputs.json")
    done = belljar("run", str(EXAMPLES / example), "--inputs", inputs, "--save", "out", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["result"] == {"title": "Orders of the week", "paid": {"Ada": 160, "Grace": 15.75}, "total": 175.75}
    assert [a["name"] for a in shown["artifacts"]] == [artifact]
    assert "order 1005: Grace 15.75 (paid)" in done.stderr
    assert "Grace" in (tmp_path / "out" / artifact).read_text()


def test_logs_come_while_the_code_runs(environment: dict[str, str], tmp_path: Path) -> None:
    """The first line is there although the code never ends; Ctrl-C ends it with 130."""
    (tmp_path / "endless.py").write_text("import time\nprint('first')\nwhile True: time.sleep(1)")
    process = subprocess.Popen(
        [BELLJAR, "run", "endless.py"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "belljar: cancelled\n")


def test_streams_stay_apart(belljar: Belljar) -> None:
    """Print goes to stdout, sys.stderr to stderr, and nothing else to stdout."""
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)"
    done = belljar("run", "-", "--runtime", "python", "--quiet", stdin=code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_inputs_become_a_result_without_losing_digits(belljar: Belljar, tmp_path: Path) -> None:
    """Text, JSON and integers beyond 64 bits, there and back."""
    (tmp_path / "sum.py").write_text("def main(a, b, name):\n    print('log')\n    return {'sum': a + b, 'name': name}")
    done = belljar(
        "run",
        "sum.py",
        "--input",
        "a=123456789012345678901234567890",
        "--input",
        "b=1",
        "--input",
        "name=Ada",
        "--result",
    )
    assert (done.returncode, done.stdout) == (0, '{"sum":123456789012345678901234567891,"name":"Ada"}\n')
    assert "log\n" in done.stderr


def test_files_sources_and_environment_reach_the_code(belljar: Belljar, tmp_path: Path) -> None:
    """An input file, a module to import and a variable."""
    (tmp_path / "data.csv").write_text("1,2,3")
    (tmp_path / "lib.py").write_text("def total(line):\n    return sum(map(int, line.split(',')))")
    (tmp_path / "app.py").write_text(
        "import os\nfrom lib import total\nreturn [total(open('in/data.csv').read()), os.environ['MODE']]"
    )
    options = ["--file", "data.csv=in/data.csv", "--source", "lib.py", "--env", "MODE=fast", "--result", "--quiet"]
    done = belljar("run", "app.py", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [6, "fast"]


@pytest.mark.parametrize(
    ("name", "code", "place"),
    [
        ("bad.py", "x = 1\n\ndef main(args):\n    raise ValueError('no')\n", "bad.py:4:"),
        ("bad.js", "const x = 1;\n\nfunction main() {\n  throw new TypeError('no');\n}\n", "bad.js:4:"),
        ("bad.ts", "enum E { A }\n\nfunction main(): void {\n  throw new TypeError('no' + E.A);\n}\n", "bad.ts:4:"),
    ],
)
def test_error_names_the_users_own_line(belljar: Belljar, tmp_path: Path, name: str, code: str, place: str) -> None:
    """The message begins with the local file and the line, as a compiler's does."""
    (tmp_path / name).write_text(code)
    done = belljar("run", name, "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(place), done.stderr
    assert "EXCEPTION" in done.stderr.splitlines()[0]


def test_time_limit_has_its_exit_code(belljar: Belljar, tmp_path: Path) -> None:
    """124, as timeout(1) has it; what was printed before is there."""
    (tmp_path / "slow.py").write_text("import time\nprint('before', flush=True)\ntime.sleep(600)")
    done = belljar("run", "slow.py", "--timeout", "1s")
    assert (done.returncode, done.stdout) == (124, "before\n")
    assert "TIMEOUT" in done.stderr


def test_exit_code_of_the_code_is_told_but_not_passed_on(belljar: Belljar, tmp_path: Path) -> None:
    """`sys.exit(69)` is a failure of the code, not a server that is away."""
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(69)")
    done = belljar("run", "exits.py", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["exit_code"] == 69


def test_limit_above_the_ceiling_is_refused_by_name(belljar: Belljar, tmp_path: Path) -> None:
    """Never lowered in silence."""
    (tmp_path / "x.py").write_text("1")
    done = belljar("run", "x.py", "--timeout", "1000h")
    assert done.returncode == 2
    assert "limits.timeout" in done.stderr


def test_runtimes_are_listed(belljar: Belljar) -> None:
    """All three, with their versions."""
    listed = json.loads(belljar("runtimes", "--json").stdout)
    assert {runtime["name"] for runtime in listed["runtimes"]} >= {"python", "javascript", "typescript"}
    assert listed["default_limits"]["timeout"] == 30.0
    assert belljar("runtimes").stdout.startswith("RUNTIME")


def test_a_denied_host_is_told_with_the_option_that_allows_it(belljar: Belljar) -> None:
    """What the code tried to reach, why it was not let, and what to add; nothing leaves this machine."""
    code = "import urllib.request\nurllib.request.urlopen('http://192.168.0.1/')"
    done = belljar("run", "-", "--runtime", "python", "--network", "full", stdin=code)
    assert done.returncode == 1
    assert "denied: 192.168.0.1:80: 192.168.0.1 is a private address, which is never reached" in done.stderr
    assert "NETWORK_DENIED" in done.stderr
    code = "import socket\nsocket.gethostbyname('api.example.com')"
    done = belljar("run", "-", "--runtime", "python", "--allow", "example.org", stdin=code)
    assert done.returncode == 1
    assert "denied: api.example.com: no rule in network.allow names it; --allow api.example.com" in done.stderr
    done = belljar("run", "-", "--runtime", "python", "--allow", "10.0.0.1", stdin="1")
    assert done.returncode == 2
    assert "network.allow[0]" in done.stderr
