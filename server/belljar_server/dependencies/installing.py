"""The host's side of the sandbox that installs packages: starts it, answers its questions, takes the image it makes.

The sandbox has no network, no tenant's code, no secret, and limits of its own. Nothing that comes out of it is opened
here: the lock is text that is read strictly, the image is bytes that go to a file and are mounted by gVisor only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar_server.config import Dependencies as DependencySettings
from belljar_server.dependencies import specs
from belljar_server.dependencies.registry import Question, TooLarge, Unreachable, Visit
from belljar_server.errors import SandboxFailed
from belljar_server.guest import framing
from belljar_server.models import Stream
from belljar_server.runtimes import Ecosystem
from belljar_server.sandbox.cgroup import Group, Tree
from belljar_server.sandbox.channel import Channel, ChannelClosed, parse
from belljar_server.sandbox.output import OutputPump
from belljar_server.sandbox.runsc import Launcher, Process, Runsc, describe

# Frames of an installer, beside those of `guest/framing.py`; `runtimes/installer/worker/protocol.py` says what each is.
FETCH, HEAD, BODY, BROKEN, LOCK, IMAGE, FAILED = b"g", b"H", b"B", b"X", b"c", b"i", b"F"

IsKept = Callable[[str], Awaitable[bool]]
"""Whether the layer of a lock is there already."""
FETCHES_AT_ONCE = 16
MOST_WAITING = 1000
MOST_QUESTIONS = 20_000
"""Questions of one installation; the largest sets take some thousands."""
TASKS = 4096
"""Host tasks of one installation: the backstop against a build that forks without end."""
MOST_WORDS = 64 * 1024
"""Of the installer's output so much is kept for the error."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to install."""

    ecosystem: Ecosystem
    requirements: tuple[str, ...]
    """Canonical, without what is preinstalled."""
    lock: str
    """Canonical; then `requirements` say nothing."""
    preinstalled: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Installed:
    """What came out."""

    lock: str
    digest: str
    """SHA-256 of the image; empty when it is kept already."""
    size: int


class InstallFailed(Exception):
    """The packages could not be installed, and that is what the request has to hear."""

    def __init__(self, reason: str, hint: str = "", last_lines: str = "") -> None:
        super().__init__(reason)
        self.hint = hint
        self.last_lines = last_lines


@dataclass(frozen=True, slots=True)
class Kit:
    """What installations are made with."""

    runsc: Runsc
    bundle: Path
    launcher: Launcher
    tree: Tree
    settings: DependencySettings


class Installation:
    """One installation. Mutable state: the questions under way, and the last words."""

    def __init__(self, kit: Kit, visit: Visit, on_output: Callable[[bytes], None]) -> None:
        self._kit = kit
        self._visit = visit
        self._on_output = on_output
        self._fetches: set[asyncio.Task[None]] = set()
        self._at_once = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._words = bytearray()
        self._questions = 0
        self._pump = OutputPump(Stream.INSTALL, self._hear)

    async def install(self, wanted: Wanted, is_kept: IsKept, target: Path) -> Installed:
        """Resolves and installs; writes the image to `target`, unless what it resolves to is kept already.

        Raises InstallFailed, SandboxFailed.
        """
        settings = self._kit.settings
        try:
            group = self._kit.tree.create(secrets.token_hex(8))
        except OSError as error:
            raise SandboxFailed(f"cgroup {error.filename}: {error.strerror}") from error
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        process: Process | None = None
        try:
            group.limit_memory(settings.memory_bytes)
            group.limit_tasks(TASKS)
            async with asyncio.timeout(settings.timeout):
                argv = self._kit.runsc.run(group.name, self._kit.bundle)
                stdio = (theirs.fileno(), self._pump.write_fd, self._pump.write_fd)
                process = await self._kit.launcher.start(group.name, argv, group.procs_files, stdio)
                theirs.close()
                self._pump.start()
                return await self._follow(channel, wanted, is_kept, target)
        except (KeyError, TypeError, ValueError) as error:
            raise SandboxFailed(f"the installer sent what it never should: {error!r}") from error
        except TimeoutError:
            if self._visit.fault:
                raise self._unreachable(f", tried again for {settings.timeout:g} s") from None
            raise self._failed(f"took longer than {settings.timeout:g} s") from None
        except ChannelClosed as error:
            raise await self._why_it_ended(group, process, error) from error
        finally:
            for task in self._fetches:
                task.cancel()
            await asyncio.shield(self._end(group, process, channel, theirs))

    async def _end(self, group: Group, process: Process | None, channel: Channel, theirs: socket.socket) -> None:
        channel.close()
        theirs.close()
        if group.exists:
            group.kill()
        elif process:
            process.kill()
        self._pump.close()
        if process:
            with contextlib.suppress(SandboxFailed):
                await process.wait()
        await group.destroy()
        self._kit.runsc.forget(group.name)

    async def _follow(self, channel: Channel, wanted: Wanted, is_kept: IsKept, target: Path) -> Installed:
        kind, _ = await channel.receive()
        if kind != framing.READY:
            raise ChannelClosed(f"the installer sent {kind!r} instead of READY")
        await channel.send_json(framing.JOB, self._job(wanted))
        kind, payload = await self._next(channel)
        if kind != LOCK:
            raise ChannelClosed(f"the installer sent {kind!r} instead of a lock")
        lock = self._read_lock(wanted.ecosystem, payload)
        if await is_kept(lock):
            return Installed(lock, "", 0)
        kind, payload = await self._next(channel)
        if kind != IMAGE:
            raise ChannelClosed(f"the installer sent {kind!r} instead of an image")
        size = int(parse(payload)["size"])
        return Installed(lock, await self._receive(channel, size, target), size)

    def _job(self, wanted: Wanted) -> dict[str, object]:
        packages: object = list(wanted.requirements)
        if wanted.ecosystem is Ecosystem.NPM:
            packages = dict(specs.split_npm(each) for each in wanted.requirements)
        return {
            "ecosystem": wanted.ecosystem.value,
            "requirements": packages,
            "lock": wanted.lock,
            "preinstalled": dict(wanted.preinstalled),
            "builds": self._kit.settings.build,
            "uuid": str(uuid.uuid4()),
        }

    async def _next(self, channel: Channel) -> tuple[bytes, bytes]:
        """The next frame that is no question to a registry; questions are answered meanwhile. Raises InstallFailed."""
        while True:
            kind, payload = await channel.receive()
            if kind == FAILED:
                raise self._explain(parse(payload))
            if kind != FETCH:
                return kind, payload
            self._questions += 1
            if self._questions > MOST_QUESTIONS or len(self._fetches) > MOST_WAITING:
                raise self._failed(f"asks the registry more than {MOST_QUESTIONS} questions, or {MOST_WAITING} at once")
            task = asyncio.create_task(self._answer(channel, parse(payload)))
            self._fetches.add(task)
            task.add_done_callback(self._fetches.discard)

    def _read_lock(self, ecosystem: Ecosystem, payload: bytes) -> str:
        try:
            lock = specs.canonical_lock(ecosystem, payload.decode())
        except (specs.Refused, UnicodeDecodeError) as error:
            raise self._failed(f"resolved to what cannot be locked: it {error}") from error
        count, most = len(specs.locked_packages(ecosystem, lock)), self._kit.settings.max_packages
        if count > most:
            raise self._failed(f"is {count} packages; at most {most} are allowed")
        return lock

    async def _receive(self, channel: Channel, size: int, target: Path) -> str:
        """Writes the image as it comes; gives its SHA-256. Raises InstallFailed, ChannelClosed."""
        digest = hashlib.sha256()
        most = self._kit.settings.layer_bytes
        if size > most:
            raise self._failed(f"is {size} bytes when installed; at most {most} are allowed")
        left = size
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            while left:
                kind, data = await channel.receive()
                if kind != framing.DATA or len(data) > left:
                    raise ChannelClosed(f"the installer sent {kind!r} in its image")
                digest.update(data)
                _write(fd, data)
                left -= len(data)
            await asyncio.to_thread(os.fsync, fd)
        except OSError as error:
            raise SandboxFailed(f"a layer cannot be written: {error.strerror}") from error
        finally:
            os.close(fd)
        return digest.hexdigest()

    async def _answer(self, channel: Channel, message: dict[str, Any]) -> None:
        """Asks the registry on behalf of the sandbox."""
        number = int(message.get("id", 0)) & 0xFFFFFFFF
        question = Question(str(message.get("path")), str(message.get("range", "")), message.get("head") is True)
        async with self._at_once:
            try:
                answer = await self._visit.answer(question)
                head = {"id": number, "status": answer.status, "size": answer.size, "headers": answer.headers}
                await channel.send_json(HEAD, head)
                prefix = struct.pack("!I", number)
                async for piece in answer.body:
                    await channel.send(BODY, prefix + piece)
                await channel.send(BODY, prefix)
            except (Unreachable, TooLarge):
                with contextlib.suppress(ChannelClosed):
                    await channel.send_json(BROKEN, {"id": number})
            except ChannelClosed:
                return

    def _hear(self, _: Stream, data: bytes) -> None:
        self._words += data
        del self._words[:-MOST_WORDS]
        self._on_output(data)

    async def _why_it_ended(self, group: Group, process: Process | None, error: ChannelClosed) -> Exception:
        status = 0
        with contextlib.suppress(TimeoutError, SandboxFailed):
            async with asyncio.timeout(2):
                status = await process.wait() if process else 0
        self._pump.drain()
        if group.oom_kills():
            return self._failed(
                f"needs more than the {self._kit.settings.memory_bytes} bytes of memory that it may take"
            )
        words = self._words.decode(errors="replace").strip()[-2000:]
        return SandboxFailed(f"the sandbox that installs ended ({error}; runsc: {describe(status)}): {words}")

    def _explain(self, message: dict[str, Any]) -> InstallFailed:
        """The reason, first by what this side knows, then by the installer's own words."""
        self._pump.drain()  # what was printed before may be heard after
        visit = self._visit
        if visit.too_large:
            return self._failed(f"downloads more than the {self._kit.settings.download_bytes} bytes that are allowed")
        if visit.fault:
            return self._unreachable()
        if "No space left" in str(message.get("message")) or b"No space left" in self._words:
            return self._failed(f"needs more than the {self._kit.settings.disk_bytes} bytes of disk that it may take")
        return self._failed("")

    def _unreachable(self, more: str = "") -> InstallFailed:
        hint = "This is not the code's fault; try again."
        return self._failed(f"the registry cannot be reached: {self._visit.fault}{more}", hint)

    def _failed(self, reason: str, hint: str = "") -> InstallFailed:
        words = self._words.decode(errors="replace")
        lines = [line.rstrip() for line in words.splitlines() if line.strip()][-LAST_LINES:]
        return InstallFailed(reason, hint, "\n".join(lines))


LAST_LINES = 20


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
