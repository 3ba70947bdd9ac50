"""Making a host ready: runsc, the images and their layers, once. A second run does nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from belljar_server import runtimes
from belljar_server.config import Settings
from belljar_server.errors import HostNotReady
from belljar_server.runtimes.installer import INSTALLER
from belljar_server.setup import images, layers, registries, runsc, system, trial
from belljar_server.setup.cache import fingerprint
from belljar_server.setup.commands import Say

TRIED = "tried"
"""File in data_dir that says with which runsc and images set-up has run sandboxes."""
MACHINES = ("x86_64", "aarch64")
NEEDED_BYTES = 2 << 30
"""Free space that a set-up from nothing needs: what is fetched, unpacked and built, at its largest."""


def prepare(settings: Settings, say: Say, *, build_only: bool = False) -> bool:
    """Makes the host ready and tells what it does; returns False when there was nothing to do. Raises HostNotReady.

    With `build_only` no sandbox is started and no snapshot made: those are for the machine that will serve.
    """
    check_machine()
    loaded = runtimes.load()
    if is_ready(settings, list(loaded.values())):
        return False
    if os.geteuid() != 0:
        raise HostNotReady("`belljar setup` needs root: it unpacks file systems and writes to data_dir")
    with _alone(settings.built, say):
        _check_space(settings.built)
        images.take_over_certificates(settings.built, settings.egress.ca_bundle)
        if needs_network(settings):
            _install_libraries(settings, say)
        with _scratch(settings.built) as scratch:
            binary = runsc.find_or_install(settings, scratch, say)
            say(f"runsc: {binary.version} at {binary.path}, from {binary.origin}")
            images.build_missing(settings.built, [*loaded.values(), INSTALLER], scratch, say)
            registries.note(settings.built, scratch, say)
            layers.build_missing(settings.built, list(loaded.values()), scratch, say)
        if build_only:
            return True
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        say("sandboxes: running the smallest program of each runtime, and making its snapshot")
        for name, seconds in trial.run_each(settings, binary.path, list(loaded.values())).items():
            say(f"sandboxes: {name} in {seconds * 1000:.0f} ms")
        (settings.data_dir / TRIED).write_text(_what_is_there(settings, list(loaded.values())))
    return True


def is_ready(settings: Settings, loaded: list[runtimes.Runtime]) -> bool:
    """Whether runsc and all images are there and current, and sandboxes have run with just these."""
    try:
        images.check_certificates(settings.built, settings.egress.ca_bundle)
        if needs_network(settings) and system.missing_libraries() and shutil.which("apt-get"):
            return False
        return (settings.data_dir / TRIED).read_text() == _what_is_there(settings, loaded)
    except (HostNotReady, OSError):
        return False


def needs_network(settings: Settings) -> bool:
    """Whether requests may have a network, which takes more of the host."""
    return settings.egress.modes is None or bool(settings.egress.modes - {"none"})


def _install_libraries(settings: Settings, say: Say) -> None:
    """Raises HostNotReady only when the settings name network modes: else there are none, and the rest works."""
    try:
        system.install_missing(say, system.missing_libraries())
    except HostNotReady as error:
        if settings.egress.modes is not None:
            raise
        say(f"networks: {error}. Until then no request can have one")


def _what_is_there(settings: Settings, loaded: list[runtimes.Runtime]) -> str:
    binary = runsc.look(settings)
    digests = [images.find(settings.built, runtime).digest for runtime in [*loaded, INSTALLER]]
    digests += [layer.digest for runtime in loaded if (layer := layers.find(settings.built, runtime))]
    return fingerprint([str(binary.path), binary.version, settings.sandbox.platform, digests])


def check_machine() -> None:
    """Raises HostNotReady on a machine that gVisor or our images do not run on."""
    if sys.platform != "linux":
        raise HostNotReady(f"gVisor needs Linux, this is {sys.platform}")
    if platform.machine() not in MACHINES:
        raise HostNotReady(
            f"this machine is {platform.machine()}; gVisor and our images exist for {' and '.join(MACHINES)}"
        )


@contextlib.contextmanager
def _alone(data_dir: Path, say: Say) -> Iterator[None]:
    """One set-up at a time; a second one waits, and then finds the work done."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "setup.lock").open("w")
    except OSError as error:
        raise HostNotReady(f"{error.filename}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(data_dir: Path) -> Iterator[Path]:
    """A folder on the file system of data_dir, so that results can be renamed into place; gone afterwards."""
    parent = data_dir / "tmp"
    parent.mkdir(exist_ok=True)
    for left in parent.glob("setup-*"):
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix="setup-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _check_space(data_dir: Path) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < NEEDED_BYTES:
        raise HostNotReady(f"{data_dir} has {free >> 20} MiB free, set-up needs {NEEDED_BYTES >> 20} MiB")
