"""Input files, sources and environment reach the code as they were sent, and nothing else does."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest

from belljar_client import ArtifactId, Client, InvalidRequest, Limits, Result
from belljar_client.errors import BelljarClientError
from tests.conftest import CANARY

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

READ = {
    "python": "return [open('data/in.csv').read(), list(open('/home/user/raw.bin', 'rb').read())]",
    "javascript": "const { readFileSync: r } = require('fs');\nreturn [r('data/in.csv', 'utf8'), [...r('raw.bin')]]",
    "typescript": "import { readFileSync as r } from 'fs';\nreturn [r('data/in.csv', 'utf8'), [...r('raw.bin')]]",
}
ENVIRONMENT = {
    "python": "import os\nreturn dict(os.environ)",
    "javascript": "return process.env",
    "typescript": "return { ...process.env }",
}


@pytest.mark.parametrize("runtime", READ)
def test_input_files_are_there_and_are_no_artifacts(run: Run, runtime: str) -> None:
    """Below /home/user, nested, byte for byte; a file that the code only reads does not come back."""
    files = {"data/in.csv": "a,b\r\nné", "raw.bin": bytes(range(256)), "empty": b""}
    result = run(READ[runtime], runtime=runtime, input_files=files).check()
    assert result.value == ["a,b\r\nné" if runtime != "python" else "a,b\nné", list(range(256))]
    assert result.artifacts == ()
    assert result.usage.input_bytes >= 256 + 8


def test_changed_input_files_are_artifacts(run: Run) -> None:
    """Written, appended to, replaced or renamed: changed. Same size and same time do not hide a change."""
    code = """\
import os
for name in ('same', 'touched'): open(name).read()
open('appended', 'a').write('!')
stat = os.stat('rewritten')
open('rewritten', 'w').write('XXX')
os.utime('rewritten', ns=(stat.st_atime_ns, stat.st_mtime_ns))
open('new', 'w').write('new'); os.replace('new', 'replaced')
"""
    files = dict.fromkeys(("same", "touched", "appended", "rewritten", "replaced"), "abc")
    result = run(code, input_files=files).check()
    assert [artifact.name for artifact in result.artifacts] == ["appended", "rewritten", "replaced"]


def test_deleted_input_file_is_no_error(run: Run) -> None:
    """The files are the code's own."""
    result = run(
        "import os\nos.remove('d/in.txt')\nos.rmdir('d')\nreturn os.listdir()", input_files={"d/in.txt": "x"}
    ).check()
    assert (result.value, result.artifacts) == ([], ())


def test_artifact_of_one_execution_is_the_input_of_another(run: Run) -> None:
    """By id, without a download in between, from one language to another."""
    first = run("open('out.bin', 'wb').write(bytes(range(256)) * 5000)").check()
    code = """\
const { readFileSync } = require('fs');
const b = readFileSync('in/a.bin');
return [b.length, b[255], b.equals(readFileSync('b.bin'))]
"""
    files = {"in/a.bin": first.artifacts[0].id, "b.bin": first.artifacts[0]}
    second = run(code, runtime="javascript", input_files=files).check()
    assert (second.value, second.artifacts) == ([1_280_000, 255, True], ())


def test_large_result_is_the_input_of_another(run: Run) -> None:
    """A result that became an artifact has an id like any other."""
    first = run("return list(range(1000))", limits=Limits(result_bytes=10)).check()
    assert first.result_artifact is not None
    code = "import json\nreturn sum(json.load(open('r.json')))"
    assert run(code, input_files={"r.json": first.result_artifact}).check().value == 499_500


@pytest.mark.parametrize("artifact_id", ["no-such-artifact", "../../etc/passwd", "a" * 5000])
def test_artifact_that_does_not_exist_is_refused_by_field(client: Client, artifact_id: str) -> None:
    """Nothing is started; the message names the entry."""
    with pytest.raises(BelljarClientError) as refused:
        client.execute("1", input_files={"ok": "x", "gone": ArtifactId(artifact_id)})
    assert "input_files[1]" in str(refused.value)


def test_inputs_and_files_beyond_the_disk_are_refused(client: Client) -> None:
    """Before anything starts, with the number of bytes."""
    with pytest.raises(InvalidRequest) as refused:
        client.execute("1", input_files={"big": bytes(3 << 20)}, limits=Limits(disk_bytes=2 << 20))
    assert "limits.disk_bytes" in str(refused.value)


@pytest.mark.parametrize("runtime", ENVIRONMENT)
def test_environment_is_what_was_sent_and_little_else(run: Run, runtime: str) -> None:
    """Values of any text arrive; nothing of the server's environment or of the worker's does."""
    env = {"TOKEN": "s3cret", "EMPTY": "", "UNICODE": "é😀\n=x", "HOME": "/tmp", "lower_case": "1"}
    seen = run(ENVIRONMENT[runtime], runtime=runtime, env=env).check().value
    assert {name: seen.get(name) for name in env} == env
    assert set(seen) - set(env) <= {
        "PATH",
        "LANG",
        "TZ",
        "USER",
        "PYTHONDONTWRITEBYTECODE",
        "MPLBACKEND",
        "MPLCONFIGDIR",
    }
    assert CANARY not in json.dumps(seen)


def test_environment_reaches_children_of_the_code(run: Run) -> None:
    """A subprocess inherits it as everywhere."""
    code = "import subprocess\nreturn subprocess.run(['sh', '-c', 'echo $WORD'], capture_output=True, text=True).stdout"
    assert run(code, env={"WORD": "heard"}).check().value == "heard\n"


def test_environment_is_not_shared_between_executions(run: Run) -> None:
    """What one sets the next does not see, nor the files it wrote."""
    run(
        "import os\nos.environ['LEFT'] = '1'\nopen('left', 'w').write('x')\nopen('/tmp/left', 'w').write('x')",
        env={"SECRET": "1"},
    )
    seen = run("import os\nreturn [dict(os.environ), os.listdir('.'), os.listdir('/tmp')]").check().value
    assert not {"LEFT", "SECRET"} & set(seen[0])
    assert seen[1:] == [[], []]


@pytest.mark.parametrize(
    ("runtime", "env"),
    [
        ("python", {"PYTHONPATH": "/home/user", "PYTHONSTARTUP": "/home/user/evil.py", "PYTHONINSPECT": "1"}),
        ("python", {"LD_PRELOAD": "/home/user/evil.so", "PYTHONHOME": "/nowhere"}),
        ("javascript", {"NODE_OPTIONS": "--require /home/user/evil.js", "NODE_PATH": "/home/user"}),
    ],
)
def test_variables_that_steer_an_interpreter_do_not_reach_ours(run: Run, runtime: str, env: dict[str, str]) -> None:
    """The user's code sees them; the worker was started before and does not."""
    files = {"evil.py": "print('evil')", "evil.js": "console.log('evil')", "evil.so": "evil"}
    result = run(ENVIRONMENT[runtime], runtime=runtime, env=env, input_files=files).check()
    assert {name: result.value.get(name) for name in env} == env
    assert (result.stdout, result.stderr) == (b"", b"")


def test_time_zone_of_the_request_is_used(run: Run) -> None:
    """TZ is one of the variables that code nodes set."""
    code = "import datetime\nreturn datetime.datetime(2024, 7, 1, 12, tzinfo=datetime.timezone.utc).astimezone().hour"
    assert run(code, env={"TZ": "EST5"}).check().value == 7


def test_sources_are_no_artifacts_and_not_in_the_working_directory(run: Run) -> None:
    """`files` can be imported and read, and lie elsewhere than the user's files."""
    result = run("import os, lib.util\nreturn [os.listdir('.'), lib.util.x]", files={"lib/util.py": "x = 5"}).check()
    assert (result.value, result.artifacts) == ([[], 5], ())


def test_url_of_an_artifact_is_on_the_printed_http_address(run: Run, server_address: str) -> None:
    """Downloads go to the server that was started, on the port it has chosen."""
    artifact = run("open('x', 'w').write('x')").check().artifacts[0]
    assert artifact.download_url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(artifact.download_url, timeout=10) as answer:
        assert answer.read() == b"x"
