"""The image, with all privileges and with the fewest: every limit is enforced inside, and nothing is left outside."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar_client import Client, ErrorKind, Limits, Result
from belljar_client.downloads import download
from belljar_client.errors import BelljarClientError
from tests.conftest import run_until_done, wait_until
from tests.hostile.network import world as worlds
from tests.hostile.network.modes import assert_modes_are_enforced
from tests.image.podman import (
    ENGINE_DEFAULTS,
    PRIVILEGED,
    SMALLEST,
    Container,
    podman,
    run_options,
    running,
    volume,
)
from tests.integration import indexes

MIB = 1 << 20
PRIVILEGES = {"privileged": PRIVILEGED, "smallest": SMALLEST}


@pytest.fixture(scope="module")
def data() -> Iterator[str]:
    """One volume for all, so that snapshots are made once."""
    with volume() as name:
        yield name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a package index on this machine serves."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module", params=PRIVILEGES)
def container(request: pytest.FixtureRequest, data: str, shelf: Path) -> Iterator[Container]:
    """A container that serves, with either set of privileges."""
    with (
        indexes.python_index(shelf) as index,
        running(PRIVILEGES[request.param], data, DEPENDENCIES__PYTHON_INDEX=index) as started,
    ):
        yield started


@pytest.fixture
def client(container: Container) -> Iterator[Client]:
    """A client outside of the container."""
    with Client(container.address) as connected:
        yield connected


@pytest.mark.parametrize(
    ("runtime", "code"),
    [("python", "return 6 * 7"), ("javascript", "return 6 * 7"), ("typescript", "const x: number = 6\nreturn x * 7")],
)
def test_every_runtime_works(client: Client, runtime: str, code: str) -> None:
    """Called from outside."""
    assert client.execute(code, runtime=runtime).check().value == 42


@pytest.mark.parametrize(
    ("kind", "code", "limits"),
    [
        (ErrorKind.MEMORY_LIMIT, "x = []\nwhile True: x.append(bytearray(1 << 20))", Limits(memory_bytes=128 * MIB)),
        (
            ErrorKind.PROCESS_LIMIT,
            "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)",
            Limits(processes=16, memory_bytes=1536 * MIB),
        ),
        (ErrorKind.DISK_LIMIT, "open('big', 'wb').write(bytes(40 << 20))", Limits(disk_bytes=16 * MIB)),
        (ErrorKind.TIMEOUT, "while True: pass", Limits(cpu_time=1, timeout=60)),
        (ErrorKind.TIMEOUT, "import time; time.sleep(60)", Limits(timeout=1)),
    ],
    ids=["memory", "processes", "disk", "cpu", "time"],
)
def test_limit_is_enforced(client: Client, kind: ErrorKind, code: str, limits: Limits) -> None:
    """By the same evidence as on a host."""
    result = client.execute(code, limits=limits)
    assert result.error is not None
    assert result.error.kind is kind
    assert client.execute("1").check().value == 1


def test_artifact_is_downloadable_from_outside(client: Client, tmp_path: Path) -> None:
    """At the address that the result tells."""
    (artifact,) = client.execute("open('a.txt', 'w').write('hello')").check().artifacts
    download(artifact, tmp_path)
    assert (tmp_path / "a.txt").read_text() == "hello"


def test_requested_package_is_installed(client: Client, shelf: Path) -> None:
    """In a sandbox of the container, from an index that the server can reach; a package that no container has seen."""
    name = f"fruit{secrets.token_hex(4)}"
    indexes.wheel(shelf, name, {f"{name}.py": "held = 42\n"})
    assert client.execute(f"import {name}\nreturn {name}.held", dependencies=[name]).check().value == 42


@pytest.mark.parametrize("privileges", PRIVILEGES)
def test_network_modes_are_enforced(data: str, privileges: str, tmp_path: Path) -> None:
    """In a small internet that the container's only link leads to."""
    with (
        worlds.world() as world,
        worlds.servers(world.outside_path, tmp_path),
        running(PRIVILEGES[privileges], data, world, EGRESS__DNS_SERVERS=worlds.DNS_SERVERS) as container,
        Client(container.address) as client,
    ):
        assert_modes_are_enforced(client.execute)


def test_health_check_of_the_image_passes(container: Container) -> None:
    """What an engine asks every ten seconds."""
    environ = ["--env", f"BELLJAR_ADDRESS={container.address}"]
    assert "is serving" in podman("exec", *environ, container.name, "belljar", "health").stdout
    (inspected,) = json.loads(podman("image", "inspect", container_image(container)).stdout)
    assert inspected["Healthcheck"]["Test"] == ["CMD", "belljar", "health"]
    assert inspected["Config"]["StopSignal"] == "SIGTERM"


def test_doctor_finds_nothing_missing(container: Container) -> None:
    """The privileges and the cgroups of this container will do."""
    findings = json.loads(podman("exec", container.name, "belljar", "doctor", "--json", check=False).stdout)
    found = {finding["name"]: finding["status"] for finding in findings if finding["status"] != "warn"}
    assert {found[name] for name in ("kernel", "privileges", "cgroups", "sandboxes")} == {"ok"}


@pytest.mark.parametrize("privileges", PRIVILEGES)
def test_stop_lets_executions_end(data: str, privileges: str) -> None:
    """What runs ends with its result, and the server with 0."""
    results: list[Result] = []
    with running(PRIVILEGES[privileges], data) as container, Client(container.address) as client:
        code = "import time\nprint('begun', flush=True)\ntime.sleep(3)\nreturn 'done'"
        begun = threading.Event()
        thread = threading.Thread(target=lambda: results.append(run_until_done(client, code, begun)))
        thread.start()
        assert begun.wait(60)
        podman("stop", "--time=60", container.name)
        thread.join(60)
        assert results[0].check().value == "done"
        (state,) = json.loads(podman("container", "inspect", container.name).stdout)
        assert state["State"]["ExitCode"] == 0


@pytest.mark.parametrize("privileges", PRIVILEGES)
def test_killed_container_starts_again_and_sweeps(data: str, privileges: str) -> None:
    """The execution that was running is told as lost, and the next one works."""
    with running(PRIVILEGES[privileges], data) as container, Client(container.address) as client:
        begun = threading.Event()
        failures: list[BelljarClientError] = []

        def run_for_ever() -> None:
            try:
                run_until_done(client, "import time\nprint('begun', flush=True)\ntime.sleep(25)", begun)
            except BelljarClientError as error:
                failures.append(error)

        thread = threading.Thread(target=run_for_ever)
        thread.start()
        assert begun.wait(60)
        podman("kill", "--signal=KILL", container.name)
        thread.join(60)
        assert len(failures) == 1
        podman("start", container.name)
        container.wait_until_serving()
        wait_until(lambda: "execution lost" in container.logs(), container.logs)
        assert client.execute("return 42").check().value == 42


def test_defaults_of_the_engine_are_refused_until_limits_are_waived(data: str) -> None:
    """It says which limits cannot be enforced; with those waived it serves, and says so in the log."""
    settings = {"INSECURE_PUBLIC_PLAINTEXT": "true"}
    refused = podman("run", "--rm", *run_options(ENGINE_DEFAULTS, data, settings), check=False)
    assert refused.returncode == 1
    assert "this host cannot enforce" in refused.stderr
    assert "limits.memory_bytes" in refused.stderr
    waived = {"LIMITS__WAIVED": '["memory_bytes", "cpus", "cpu_time"]', "EGRESS__MODES": '["none"]'}
    with running(ENGINE_DEFAULTS, data, None, **waived) as container, Client(container.address) as client:
        assert "limit is not enforced" in container.logs()
        assert client.execute("return 42").check().value == 42


def test_public_address_is_refused_until_it_is_meant(data: str) -> None:
    """The image listens on all addresses, so it starts only where the settings say that this is right."""
    refused = podman("run", "--rm", *run_options(PRIVILEGED, data, {}), check=False)
    assert refused.returncode == 78
    assert "insecure_public_plaintext" in refused.stderr


def container_image(container: Container) -> str:
    (inspected,) = json.loads(podman("container", "inspect", container.name).stdout)
    image: str = inspected["Image"]
    return image
