"""Hostile packages, served by a real index: what they do when they are built or unpacked stays where they are."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar_client import Client, ErrorKind, Result
from tests.conftest import CANARY, Server, running_server, wait_until
from tests.hostile.conftest import is_tidy, state_of
from tests.integration import indexes
from tests.integration.test_dependencies import own_data_dir

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the index serves."""
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def builder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that builds what has no wheel, within small limits."""
    data_dir = own_data_dir(tmp_path_factory.mktemp("data"))
    with (
        indexes.python_index(folder) as address,
        running_server(
            DATA_DIR=str(data_dir),
            DEPENDENCIES__PYTHON_INDEX=address,
            DEPENDENCIES__BUILD="true",
            DEPENDENCIES__TIMEOUT="12",
            DEPENDENCIES__MEMORY_BYTES=str(512 << 20),
            DEPENDENCIES__DISK_BYTES=str(96 << 20),
            DEPENDENCIES__DOWNLOAD_BYTES=str(4 << 20),
            POOL__MAX="0",
        ) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def buyer(builder: Server) -> Iterator[Client]:
    """Its client."""
    with Client(builder.address) as connected:
        yield connected


@pytest.fixture(autouse=True)
def aftermath(builder: Server, buyer: Client, folder: Path) -> Iterator[None]:
    """The next installation works, and nothing is left of the one before."""
    yield
    indexes.sdist(folder, "harmless", "global seen; seen = 1")
    result = buyer.execute("import harmless\nreturn harmless.seen", dependencies=["harmless"])
    assert result.check().value == 1
    wait_until(lambda: is_tidy(builder), lambda: state_of(builder), 30)


def refused(result: Result) -> str:
    """Why the packages could not be installed."""
    assert result.error is not None
    assert result.error.kind == ErrorKind.DEPENDENCY_FAILED, result
    return result.error.message


SPY = """
global seen
seen = {"uid": os.getuid(), "env": sorted(os.environ), "values": " ".join(os.environ.values())}
def attempt(name, what):
    try:
        seen[name] = str(what())
    except Exception as error:
        seen[name] = type(error).__name__
import glob, socket
attempt("channel", lambda: os.open("/proc/1/fd/0", os.O_RDWR))
attempt("kill", lambda: os.kill(1, 9))
attempt("root", lambda: os.setuid(0))
attempt("image", lambda: open("/opt/belljar/installer/x", "w"))
attempt("host", lambda: socket.create_connection(("127.0.0.1", PORT), 3))
attempt("out", lambda: socket.create_connection(("192.0.2.1", 443), 3))
attempt("name", lambda: socket.getaddrinfo("example.com", 443))
attempt("mounts", lambda: [line.split()[1] for line in open("/proc/mounts")])
attempt("secrets", lambda: [open(f"/proc/{pid}/environ").read() for pid in (1, "self")])
"""


def test_a_build_sees_no_secret_and_reaches_nothing(buyer: Client, folder: Path) -> None:
    """Another user than the installer, no network, nothing of the server's environment."""
    reached: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: reached.append(listener.accept()), daemon=True).start()
        indexes.sdist(folder, "spy", SPY.replace("PORT", str(listener.getsockname()[1])))
        seen = buyer.execute("import spy\nreturn spy.seen", dependencies=["spy"]).check().value
        assert not reached
    assert seen["uid"] == 1000
    assert seen["channel"] == seen["kill"] == seen["root"] == "PermissionError"
    assert {seen["host"], seen["out"]} <= {"ConnectionRefusedError", "OSError", "TimeoutError"}
    assert seen["name"] == "gaierror"
    assert seen["image"] in ("OSError", "PermissionError")
    assert CANARY not in str(seen)


def test_a_build_may_ask_the_registry_for_what_it_lists_and_nothing_else(buyer: Client, folder: Path) -> None:
    """No other path, no file that was not shown, no address of the build's own."""
    spy = """
global seen
seen = []
import urllib.request, urllib.error
paths = "/ /files/999999/x.whl /files/0/../../x /simple/..%2f..%2fetc/ /npm/../secret /simple/a@b/"
for path in paths.split():
    try:
        seen.append(urllib.request.urlopen("http://127.0.0.1:4873" + path, timeout=10).status)
    except urllib.error.HTTPError as error:
        seen.append(error.code)
"""
    indexes.sdist(folder, "curious", spy)
    result = buyer.execute("import curious\nreturn curious.seen", dependencies=["curious"]).check()
    assert all(status in (404, 503) for status in result.value), result.value


def test_a_build_that_hangs_is_ended(buyer: Client, folder: Path) -> None:
    """After the time that installations have."""
    indexes.sdist(folder, "sleepy", "import time; time.sleep(3600)")
    assert "took longer than 12 s" in refused(buyer.execute("1", dependencies=["sleepy"]))


def test_a_build_that_forks_without_end_is_ended(buyer: Client, folder: Path) -> None:
    """By the limits of its sandbox, one or the other; the server goes on."""
    indexes.sdist(folder, "rabbit", "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass")
    result = buyer.execute("1", dependencies=["rabbit"])
    assert result.error is not None
    assert result.error.kind in (ErrorKind.DEPENDENCY_FAILED, ErrorKind.SANDBOX_FAILED)


def test_a_build_that_floods_its_log_is_cut_and_bounded(buyer: Client, folder: Path) -> None:
    """What the client gets is a little of it."""
    flood = "for _ in range(100):\n    os.write(1, b'x' * 1_000_000)\nraise SystemExit(3)"
    indexes.sdist(folder, "chatty", flood)
    result = buyer.execute("1", dependencies=["chatty"])
    assert "chatty" in refused(result)
    assert len(result.install_log) <= 256 * 1024


def test_a_build_that_leaves_processes_behind_leaves_none(buyer: Client, folder: Path) -> None:
    """They are gone before the image is made."""
    stay = "if os.fork() == 0:\n    os.setsid()\n    os.closerange(0, 64)\n    import time\n    time.sleep(3600)"
    indexes.sdist(folder, "daemon", stay)
    buyer.execute("import daemon", dependencies=["daemon"]).check()


def test_a_wheel_that_unpacks_to_more_than_the_disk_is_refused(buyer: Client, folder: Path) -> None:
    """A bomb: small to download, large when unpacked."""
    indexes.wheel(folder, "bomb", {"bomb.py": "", "zeros": bytes(300 << 20)})
    message = refused(buyer.execute("1", dependencies=["bomb"]))
    assert "of disk" in message or "of memory" in message


def test_a_download_above_the_limit_is_cut(buyer: Client, folder: Path) -> None:
    """Counted as it comes, whatever the registry says of its size."""
    indexes.wheel(folder, "heavy", {"heavy.py": "", "noise": os.urandom(8 << 20)})
    assert "downloads more than" in refused(buyer.execute("1", dependencies=["heavy"]))


@pytest.mark.parametrize("path", ["../../../../work/escaped.py", "/work/escaped.py", "a/../../../x.py"])
def test_a_wheel_with_a_path_outside_writes_nothing_there(buyer: Client, folder: Path, path: str) -> None:
    """The installer refuses it or keeps it inside; in any case there is only its own sandbox."""
    name = f"climber{abs(hash(path)) % 1000}"
    indexes.wheel(folder, name, {f"{name}.py": "n = 1", path: "n = 2"})
    result = buyer.execute(f"import os, {name}\nreturn os.path.exists('/work/escaped.py')", dependencies=[name])
    assert result.value is False or "could not be installed" in refused(result)
