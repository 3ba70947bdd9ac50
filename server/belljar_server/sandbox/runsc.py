"""Starting runsc; the only module that spawns processes for sandboxes.

The spawning itself is done by `launcher.py`, a process of its own: this one has threads and must not fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from belljar_server.errors import SandboxFailed
from belljar_server.sandbox import launcher


@dataclass(frozen=True, slots=True)
class Runsc:
    """The binary and the flags that every call of it has."""

    binary: Path
    root: Path
    """Where runsc keeps its state files."""
    platform: str

    def identity(self) -> str:
        """What tells this runsc from another one: its version, and the file. Takes 20 ms. Raises SandboxFailed."""
        try:
            info = self.binary.stat()
            asked = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxFailed(f"runsc {self.binary}: {error}") from error
        return json.dumps([asked.stdout, info.st_size, info.st_mtime_ns])

    @property
    def flags(self) -> list[str]:
        """What every call has in common; a snapshot is bound to it."""
        return [
            f"--platform={self.platform}",
            "--network=none",  # of what a sandbox with network is restored from, too
            "--ignore-cgroups",
            "--directfs=false",  # the sentry runs as nobody, without capabilities
            "--overlay2=none",
        ]

    def run(self, sandbox_id: str, bundle: Path, *, network: bool = False) -> list[str]:
        """Command line that boots a sandbox and stays until its end."""
        return [*self._base(network=network), "run", f"--bundle={bundle}", sandbox_id]

    def restore(self, sandbox_id: str, bundle: Path, image: Path, *, network: bool = False) -> list[str]:
        """Command line that restores a sandbox from a snapshot and stays until its end."""
        return [*self._base(network=network), "restore", f"--image-path={image}", f"--bundle={bundle}", sandbox_id]

    def checkpoint(self, sandbox_id: str, image: Path) -> list[str]:
        """Command line that writes a snapshot of a running sandbox, and ends it."""
        return [*self._base(), "checkpoint", f"--image-path={image}", sandbox_id]

    def _base(self, *, network: bool = False) -> list[str]:
        """With `network` the sandbox speaks to the links of the namespace that it is started in."""
        return [str(self.binary), f"--root={self.root}", *self.flags, *(["--network=sandbox"] if network else [])]

    def forget(self, sandbox_id: str) -> None:
        """Removes what runsc leaves in its state directory; runsc itself would take 100 ms for it."""
        for name in os.listdir(self.root):
            if sandbox_id in name:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.root / name)


class Process:
    """One runsc that the launcher started."""

    def __init__(self, pid: int, status: asyncio.Future[int]) -> None:
        self.pid = pid
        self._status = status

    async def wait(self) -> int:
        """The raw wait status, once it has ended. Raises SandboxFailed when the launcher died."""
        return await asyncio.shield(self._status)

    def kill(self) -> None:
        """SIGKILL to runsc alone; its sandbox has asked the kernel to follow."""
        if not self._status.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Launcher:
    """The launcher process and the socket to it. Mutable state: the runs that wait for a pid or for their end."""

    def __init__(self) -> None:
        self._starting: dict[str, asyncio.Future[int]] = {}
        self._running: dict[str, asyncio.Future[int]] = {}
        self._sock: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._opening = asyncio.Lock()
        self._is_stopped = False

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def _open(self) -> None:
        """Starts the process, also again after it died: the sandboxes of the dead one died with it."""
        async with self._opening:
            if self._sock is None and not self._is_stopped:
                await self._spawn()

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", launcher.__file__, stdin=theirs.fileno(), start_new_session=True
            )
        self._sock = ours
        asyncio.get_running_loop().add_reader(ours, self._readable)

    async def __aexit__(self, *_: object) -> None:
        self._is_stopped = True
        self._lost("the launcher was stopped")
        if self._process:
            await self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether sandboxes can be started."""
        return self._sock is not None

    async def start(
        self,
        run_id: str,
        argv: list[str],
        cgroups: list[str],
        stdio: tuple[int, int, int],
        network: int | None = None,
    ) -> Process:
        """Starts `argv` inside the cgroups, and the network namespace if there is one. Raises SandboxFailed."""
        try:
            await self._open()
        except OSError as error:
            raise SandboxFailed(f"the launcher process cannot be started: {error}") from error
        if self._sock is None:
            raise SandboxFailed("the launcher process is gone")
        loop = asyncio.get_running_loop()
        self._starting[run_id] = started = loop.create_future()
        self._running[run_id] = ended = loop.create_future()
        request = json.dumps({"id": run_id, "argv": argv, "cgroups": cgroups}).encode()
        try:
            while self._sock:
                try:
                    socket.send_fds(self._sock, [request], [*stdio, *([] if network is None else [network])])
                    break
                except BlockingIOError:  # many starts at once: the launcher forks one after the other
                    await asyncio.sleep(0.002)
            pid = await started
        except OSError as error:
            self._running.pop(run_id, None)
            raise SandboxFailed(f"the launcher process is gone: {error}") from error
        finally:
            self._starting.pop(run_id, None)
        return Process(pid, ended)

    def _readable(self) -> None:
        if self._sock is None:
            return
        try:
            packet = self._sock.recv(launcher.LARGEST_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._lost("the launcher process died")
            return
        message = json.loads(packet)
        run_id = message["id"]
        if "pid" in message:
            self._settle(self._starting.get(run_id), message["pid"])
        elif "status" in message:
            self._settle(self._running.pop(run_id, None), message["status"])
        else:
            self._running.pop(run_id, None)
            future = self._starting.get(run_id)
            if future and not future.done():
                future.set_exception(SandboxFailed(f"runsc could not be started: {message['error']}"))

    @staticmethod
    def _settle(future: asyncio.Future[int] | None, value: int) -> None:
        if future and not future.done():
            future.set_result(value)

    def _lost(self, reason: str) -> None:
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._sock = None
        for future in (*self._starting.values(), *self._running.values()):
            if not future.done():
                future.set_exception(SandboxFailed(reason))
                future.exception()  # not everybody waits for the end of a run
        self._starting.clear()
        self._running.clear()


def describe(status: int) -> str:
    """A wait status in words, for logs."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
