"""The Compose file in podman-compose: from nothing to a result and an artifact in the store beside it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.hostile.network.world import World, world
from tests.image.podman import BELLJAR, IMAGE, START_SECONDS, podman
from tests.integration import versitygw
from tests.integration.gotool import binary

ROOT = Path(__file__).parents[2]
STORE = f"docker.io/versity/versitygw:{versitygw.VERSION}"
"""The store's image, as the Compose file names it."""
BASE = os.environ.get("BASE", "localhost/belljar-base:trixie")
ENGINE = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
network_config_dir = "{networks}"
"""
"""What `podman` tells podman by options, and a bridge that answers to the names of services."""

OnHost = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store_image(tmp_path: Path) -> Iterator[None]:
    """The store's image; where it cannot be pulled, the same program at the same version stands in for it."""
    pulled = podman("image", "exists", STORE, check=False).returncode == 0
    if pulled or podman("pull", "--quiet", STORE, check=False).returncode == 0:
        yield
        return
    context = tmp_path / "store"
    context.mkdir()
    shutil.copy(binary("github.com/versity/versitygw/cmd/versitygw", versitygw.VERSION), context / "versitygw")
    (context / "Containerfile").write_text(f"FROM {BASE}\nCOPY versitygw /usr/local/bin/versitygw\n")
    podman("build", "--isolation=chroot", f"--tag={STORE}", str(context))
    yield
    podman("image", "rm", STORE)


@pytest.fixture
def place() -> Iterator[World]:
    """A host of its own: the bridge, its rules and the published ports are in a namespace, not on this machine."""
    with world() as made:
        yield made


@pytest.fixture
def on_host(place: World, tmp_path: Path) -> OnHost:
    """Runs a command on that host, as its operator."""
    (tmp_path / "networks").mkdir()
    (tmp_path / "containers.conf").write_text(ENGINE.format(networks=tmp_path / "networks"))
    environ = os.environ | {
        "CONTAINERS_CONF": str(tmp_path / "containers.conf"),
        "STORAGE_DRIVER": "vfs",
        "BELLJAR_IMAGE": IMAGE,
        "BELLJAR_S3_SECRET": secrets.token_hex(20),
    }

    def run(*command: str, check: bool = True, told: str = "") -> subprocess.CompletedProcess[str]:
        argv = ["nsenter", f"--net={place.host_path}", *command]
        return subprocess.run(
            argv, check=check, env=environ, cwd=ROOT, input=told, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.mark.usefixtures("store_image")
def test_compose_file_leads_to_a_result_and_an_artifact_in_its_store(on_host: OnHost, tmp_path: Path) -> None:
    """Inside by `exec`, as the file's head says; outside through the published ports, also to the store."""
    project = f"belljar-test-{secrets.token_hex(4)}"
    compose = ("podman-compose", "-p", project, "-f", "deploy/compose.yaml")
    try:
        on_host(*compose, "up", "-d")
        wait_until(
            lambda: on_host(BELLJAR, "health", check=False).returncode == 0,
            lambda: str(on_host("podman", "logs", f"{project}_belljar_1", check=False)),
            START_SECONDS,
        )
        inside = ("exec", "-T", "belljar", "belljar", "run", "-", "--runtime", "python", "--result")
        said = on_host(*compose, *inside, told="return 6 * 7").stdout
        assert "42" in said.splitlines()  # among what podman-compose itself has to say
        (tmp_path / "code.py").write_text("open('a.txt', 'w').write('hello')")
        ran = on_host(BELLJAR, "run", str(tmp_path / "code.py"), "--json", "--save", str(tmp_path / "saved"))
        (artifact,) = json.loads(ran.stdout)["artifacts"]
        assert artifact["download_url"].startswith("http://127.0.0.1:7070/artifacts/")
        assert (tmp_path / "saved" / "a.txt").read_text() == "hello"
    finally:
        on_host(*compose, "down", "--volumes", check=False)
        on_host("podman", "network", "rm", "--force", f"{project}_default", check=False)
