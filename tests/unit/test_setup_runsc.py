"""Finding and making runsc, with small programs in its place and a local server in place of the project's."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from belljar_server.config import Settings
from belljar_server.errors import HostNotReady
from belljar_server.setup import runsc

PINNED = "release-20260905.0"


def program(path: Path, script: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def fake_runsc(path: Path, version: str) -> Path:
    """What says that it is runsc of a version."""
    return program(path, f"echo 'runsc version {version}'\necho 'spec: 1.2.1'")


def fake_go(path: Path, version: str, *, builds: str = PINNED) -> Path:
    """A Go that says its version and "builds" a runsc; it notes how it was called beside itself."""
    script = f"""
if [ "$1" = version ]; then echo 'go version {version} linux/amd64'; exit; fi
echo "$CGO_ENABLED $GOTOOLCHAIN $*" > {path}.called
mkdir -p "$GOBIN"
printf '#!/bin/sh\\necho runsc version {builds}\\n' > "$GOBIN/runsc"
chmod 700 "$GOBIN/runsc"
"""
    return program(path, script)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a server on loopback that serves a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def publish(folder: Path, version: str, *, digest: str | None = None) -> bytes:
    """Lays a release out as the project does; returns the binary."""
    binary = f"#!/bin/sh\necho runsc version {version}\n".encode()
    place = folder / "20260905" / platform.machine()
    place.mkdir(parents=True)
    (place / "runsc").write_bytes(binary)
    (place / "runsc.sha512").write_text(f"{digest or hashlib.sha512(binary).hexdigest()}  runsc\n")
    return binary


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on PATH, before the system's own programs and nothing else."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of the test's own."""
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A scratch folder on the data folder's file system."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def with_runsc(settings: Settings, binary: Path) -> Settings:
    """The settings with sandbox.runsc set."""
    return settings.model_copy(update={"sandbox": settings.sandbox.model_copy(update={"runsc": binary})})


@pytest.mark.parametrize(
    ("version", "date"),
    [
        ("release-20260905.0", 20260905),
        ("release-20270101.12", 20270101),
        ("release-20260905.0-3-gabcdef", 20260905),
        ("0.0~20221219.0", None),
        ("0.0~20240729.0+ds1", None),
        ("VERSION_MISSING", None),
    ],
)
def test_release_date_tells_releases_from_other_versions(version: str, date: int | None) -> None:
    """Only what the project released has a date that can be compared."""
    assert runsc.release_date(version) == date


def test_runsc_of_the_settings_comes_first(tmp_path: Path, path: Path, settings: Settings) -> None:
    """The operator's own choice wins over PATH, also when it is a build without a release number."""
    fake_runsc(path / "runsc", PINNED)
    own = fake_runsc(tmp_path / "own" / "runsc", "mine-1")
    assert runsc.look(with_runsc(settings, own)) == runsc.Found(own, "mine-1", "the settings")


def test_old_runsc_of_the_settings_is_refused(tmp_path: Path, settings: Settings) -> None:
    """An older release is never used, whoever asks for it."""
    old = fake_runsc(tmp_path / "runsc", "release-20240729.0")
    with pytest.raises(HostNotReady, match=r"release-20240729\.0; release-20260905\.0 or later"):
        runsc.find(with_runsc(settings, old))


def test_missing_runsc_of_the_settings_is_named(tmp_path: Path, settings: Settings) -> None:
    """A path that does not exist is told as that, not papered over by another binary."""
    with pytest.raises(HostNotReady, match=r"sandbox\.runsc is .*nowhere, which does not exist"):
        runsc.find(with_runsc(settings, tmp_path / "nowhere"))


@pytest.mark.parametrize("version", [PINNED, "release-20270101.0"])
def test_runsc_on_path_is_used_when_it_is_new_enough(path: Path, settings: Settings, version: str) -> None:
    """The pinned release or a later one on PATH does."""
    binary = fake_runsc(path / "runsc", version)
    assert runsc.look(settings) == runsc.Found(binary, version, "PATH")


@pytest.mark.parametrize("version", ["release-20240729.0", "0.0~20240729.0+ds1-1"])
def test_old_runsc_on_path_is_not_used_and_named(path: Path, settings: Settings, version: str) -> None:
    """Distributions' packages are years old: the message says which was found and why it will not do."""
    fake_runsc(path / "runsc", version)
    with pytest.raises(HostNotReady) as refusal:
        runsc.find(settings)
    assert version in str(refusal.value)
    assert "belljar setup" in str(refusal.value)


def test_old_runsc_on_path_does_not_hide_the_one_that_setup_made(path: Path, settings: Settings) -> None:
    """After set-up the host is ready, whatever else is on PATH."""
    fake_runsc(path / "runsc", "0.0~20221219.0")
    made = fake_runsc(runsc.installed(settings), PINNED)
    assert runsc.look(settings) == runsc.Found(made, PINNED, "an earlier set-up")


def test_something_else_called_runsc_is_not_taken_for_it(path: Path, settings: Settings) -> None:
    """A program of the same name that says something else is an error, not a version."""
    program(path / "runsc", "echo hello")
    with pytest.raises(HostNotReady, match="that is not runsc"):
        runsc.find(settings)


def test_official_release_is_installed_when_it_can_be_reached(
    tmp_path: Path, path: Path, settings: Settings, scratch: Path
) -> None:
    """The project's own binary is the best source; it is executable and whole where the service looks for it."""
    binary = publish(tmp_path / "releases", PINNED)
    fake_go(path / "go", "go1.26.8")
    said: list[str] = []
    with serving(tmp_path / "releases") as url:
        found = runsc.find_or_install(settings, scratch, said.append, url)
    assert found == runsc.Found(runsc.installed(settings), PINNED, "the official release, SHA-512 verified")
    assert found.path.read_bytes() == binary
    assert found.path.stat().st_mode & 0o777 == 0o755
    assert not (path / "go.called").exists()
    assert os.listdir(found.path.parent) == ["runsc"]


def test_release_with_another_hash_is_refused_and_nothing_is_built_instead(
    tmp_path: Path, path: Path, settings: Settings, scratch: Path
) -> None:
    """A binary that is not the published one is an alarm, not a reason to look elsewhere."""
    publish(tmp_path / "releases", PINNED, digest="0" * 128)
    fake_go(path / "go", "go1.26.8")
    with serving(tmp_path / "releases") as url, pytest.raises(HostNotReady, match="published SHA-512"):
        runsc.find_or_install(settings, scratch, lambda _: None, url)
    assert not runsc.installed(settings).exists()
    assert not (path / "go.called").exists()


def test_release_that_says_another_version_is_refused(
    tmp_path: Path, path: Path, settings: Settings, scratch: Path
) -> None:
    """What is installed has run once and said that it is the pinned release."""
    publish(tmp_path / "releases", "release-20240729.0")
    with serving(tmp_path / "releases") as url, pytest.raises(HostNotReady, match=r"expected release-20260905\.0"):
        runsc.find_or_install(settings, scratch, lambda _: None, url)
    assert not runsc.installed(settings).exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "empty"])
def test_runsc_is_built_when_the_release_cannot_be_reached(
    tmp_path: Path, path: Path, settings: Settings, scratch: Path, url: str
) -> None:
    """No connection and no such file both end in a build of the pinned module with Go, without cgo."""
    go = fake_go(path / "go", "go1.26.8")
    said: list[str] = []
    with serving(tmp_path) as empty:
        found = runsc.find_or_install(settings, scratch, said.append, empty if url == "empty" else url)
    assert found.version == PINNED
    assert "go1.26.8 on PATH" in found.origin
    called = Path(f"{go}.called").read_text()
    assert called.startswith("0 local install -ldflags ")
    assert f"gvisor.dev/gvisor/runsc@{runsc.MODULE_VERSION}" in called
    assert any("cannot be downloaded here" in line for line in said)
    assert runsc.find(settings) == found.path


def test_build_that_says_another_version_is_refused(path: Path, settings: Settings, scratch: Path) -> None:
    """A module proxy that gives something else does not get its binary installed."""
    fake_go(path / "go", "go1.26.8", builds="VERSION_MISSING")
    with pytest.raises(HostNotReady, match="VERSION_MISSING"):
        runsc.find_or_install(settings, scratch, lambda _: None, "http://127.0.0.1:1")
    assert not runsc.installed(settings).exists()


def test_failed_build_quotes_what_go_said(path: Path, settings: Settings, scratch: Path) -> None:
    """The reader sees the tool's own last words, not only an exit code."""
    program(
        path / "go", "[ $1 = version ] && echo go version go1.27 linux/amd64 && exit; echo no such module >&2; exit 3"
    )
    with pytest.raises(HostNotReady, match=r"exit code 3\n  no such module"):
        runsc.find_or_install(settings, scratch, lambda _: None, "http://127.0.0.1:1")


def test_second_run_finds_what_the_first_one_made(path: Path, settings: Settings, scratch: Path) -> None:
    """Nothing is downloaded or built twice."""
    go = fake_go(path / "go", "go1.26.8")
    first = runsc.find_or_install(settings, scratch, lambda _: None, "http://127.0.0.1:1")
    go.unlink()
    second = runsc.find_or_install(settings, scratch, lambda _: None, "http://127.0.0.1:1")
    assert (second.path, second.version, second.origin) == (first.path, first.version, "an earlier set-up")
