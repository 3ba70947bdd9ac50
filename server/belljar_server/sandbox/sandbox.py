"""A gVisor sandbox: boots with nothing to do, waits, runs one job, is destroyed.

The life of one: `start` starts runsc in cgroups of its own and waits for READY; `run` arms the limits, sends the job,
and follows the agent's frames until its END; `destroy` kills the cgroup and removes what is left. Whatever the frames
say, only three things count as evidence: the agent's wait status, the kernel's counters, and what this module did
itself. It is long because that life is one: who changes how a sandbox ends must see how it starts and runs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import secrets
import socket
import time
from collections.abc import Coroutine
from typing import Any

from belljar_server.errors import SandboxFailed
from belljar_server.guest import framing
from belljar_server.models import Limits, Stream, Traffic
from belljar_server.sandbox import Ending, Job, JobFile, Link, Listener, Stop
from belljar_server.sandbox.cgroup import Group, Tree
from belljar_server.sandbox.channel import Channel, ChannelClosed, parse
from belljar_server.sandbox.output import OutputPump
from belljar_server.sandbox.runsc import Launcher, Process, Runsc, describe
from belljar_server.sandbox.spec import LOADED_BYTES
from belljar_server.sandbox.start import Start, check_namespace

KILL_GRACE = 0.25
"""Seconds that the agent has to end user code and say so, before the whole sandbox is killed."""
HEARTBEAT_TIMEOUT = 5.0
"""Seconds in which a waiting sandbox must answer."""
STARTED_SECONDS = 10.0
"""A sandbox that has its whole job and does not start it in this time hangs and is killed."""
WATCH_INTERVAL = 0.1
"""Seconds between two looks at the kernel's counters while user code runs."""
COLLECT_PATIENCE = 30.0
"""Seconds that the agent may look for the next file; the hundred thousands that memory holds take five."""
HOST_TASKS_PER_GUEST_TASK = 4
HOST_TASKS_OF_SENTRY = 256
"""The backstop on host tasks; the limit that users see is enforced inside the sandbox and told as such."""
LARGEST_REPORT = 256 * 1024
LAST_WORDS = 300
LOADED_PROCESSES, LOADED_CPUS = 128, 1.0
"""What a sandbox with requested packages loaded may use beside `LOADED_BYTES` until it has its job."""
START_MESSAGE_BYTES = 4096
"""So much of what a sandbox that does not start writes to stderr is kept for the log."""


class RunscSandbox:
    """One sandbox. Mutable state: why it was stopped, what it reported so far, whether it is destroyed."""

    def __init__(self, runsc: Runsc, group: Group, main_file: str) -> None:
        self.id = group.name
        self.warm = False
        """Whether it waited before it was asked for; the pool tells."""
        self.nonces: tuple[str, ...] = ()
        """What each of the language's random generators gave after a restore; no two sandboxes have one in common."""
        self._runsc = runsc
        self._group = group
        self._main_file = main_file
        self._loop = asyncio.get_running_loop()
        ours, self._theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._listener: Listener | None = None
        self._early = bytearray()
        self._held: list[tuple[Stream, bytes]] | None = None
        self._pumps = (OutputPump(Stream.STDOUT, self._on_output), OutputPump(Stream.STDERR, self._on_output))
        self._process: Process | None = None
        self._link: Link | None = None
        self._stop: Stop | None = None
        self._over = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._destroyed: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Its id and where it is in its life."""
        state = (
            "destroyed"
            if self._destroyed
            else "over"
            if self._over.is_set()
            else "running"
            if self._listener
            else "waiting"
        )
        return f"<RunscSandbox {self.id} {state}>"

    @classmethod
    async def start(cls, start: Start, launcher: Launcher, tree: Tree, *, background: bool = False) -> RunscSandbox:
        """Starts a sandbox and waits until its worker is warm. Raises SandboxFailed; then nothing is left of it."""
        try:
            group = tree.create(secrets.token_hex(8))
        except OSError as error:
            raise SandboxFailed(f"cgroup {error.filename}: {error.strerror}") from error
        try:
            sandbox = cls(start.runsc, group, start.environment.runtime.main_file)
        except OSError as error:  # out of file descriptors
            await group.destroy()
            raise SandboxFailed(f"no channel to a sandbox: {error.strerror}") from error
        try:
            group.weigh(background=background)
            if start.environment.imports:  # code of packages runs before any job does
                sandbox._limit(LOADED_BYTES, LOADED_PROCESSES, LOADED_CPUS)
            async with asyncio.timeout(start.timeout):
                await sandbox._begin(start, launcher)
        except TimeoutError:
            await sandbox.destroy()
            raise SandboxFailed(f"the sandbox did not start within {start.timeout:g} s") from None
        except OSError as error:
            await sandbox.destroy()
            raise SandboxFailed(f"the sandbox did not start: {error}") from error
        except BaseException:
            await asyncio.shield(sandbox.destroy())
            raise
        return sandbox

    async def _begin(self, start: Start, launcher: Launcher) -> None:
        stdio = (self._theirs.fileno(), self._pumps[0].write_fd, self._pumps[1].write_fd)
        if start.environment.network and start.make_link:
            self._link = await start.make_link()
        namespace = self._link.namespace if self._link else None
        self._process = await launcher.start(self.id, start.argv(self.id), self._group.procs_files, stdio, namespace)
        self._theirs.close()
        for pump in self._pumps:
            pump.start()
        try:
            if start.snapshot:
                await self._channel.send_json(framing.WAKE, {"disk_bytes": start.disk_bytes})
            kind, payload = await self._channel.receive()
        except ChannelClosed as error:
            raise SandboxFailed(await self._why_not_started(error)) from error
        if kind != framing.READY:
            for pump in self._pumps:
                pump.drain()
            said = self._early.decode(errors="replace").strip().rpartition("\n")[2]
            raise SandboxFailed(f"the agent failed: {payload[:START_MESSAGE_BYTES]!r}; it said {said[:LAST_WORDS]!a}")
        if namespace is not None:
            check_namespace([self._process.pid, *self._group.pids()], namespace)
        nonces = parse(payload).get("nonces")
        self.nonces = tuple(str(nonce) for nonce in nonces) if isinstance(nonces, list) else ()

    def is_waiting(self) -> bool:
        """Whether it has neither died nor said anything since it was ready, as far as can be seen without waiting."""
        return self._channel.is_quiet()

    async def is_alive(self) -> bool:
        """Whether a waiting sandbox still answers."""
        try:
            async with asyncio.timeout(HEARTBEAT_TIMEOUT):
                await self._channel.send_json(framing.PING, {})
                kind, _ = await self._channel.receive()
        except (ChannelClosed, TimeoutError):
            return False
        return kind == framing.PONG

    async def ended(self) -> None:
        """Returns when runsc has ended, for whatever reason."""
        if self._process:
            with contextlib.suppress(SandboxFailed):
                await self._process.wait()

    def foreground(self) -> None:
        """Somebody waits for it now."""
        self._group.weigh(background=False)

    async def _why_not_started(self, error: ChannelClosed) -> str:
        status = "still running"
        with contextlib.suppress(TimeoutError, SandboxFailed):
            async with asyncio.timeout(2):
                status = describe(await self._process.wait()) if self._process else "not started"
        for pump in self._pumps:
            pump.drain()
        text = self._early.decode(errors="replace").strip()
        return f"the sandbox did not start ({error}; runsc: {status}): {text}"

    async def run(self, job: Job, listener: Listener) -> Ending:
        """Runs the job to its end, whatever that is. Never raises for what the sandbox or the code did."""
        self._listener = listener
        self._held = []
        progress = _Progress()
        try:
            await self._send(job)
            self._deadline = self._loop.call_later(STARTED_SECONDS, self._group.kill)
            await self._follow(job.limits, listener, progress)
        except (SandboxFailed, OSError) as error:  # OSError: the control files of its cgroup
            progress.fault = progress.fault or str(error)
            progress.cut_short = progress.wait_status is not None
        finally:
            self._end_watch()
        if progress.wait_status is None:
            await self._wait_for_end()
        for pump in self._pumps:
            pump.drain()
            pump.close()
        return self._ending(progress)

    def stop(self, reason: Stop) -> None:
        """Ends user code now; `run` returns soon after. The first reason counts."""
        if self._stop or (self._over.is_set() and reason not in (Stop.CANCELLED, Stop.SHUTDOWN)):
            return
        self._stop = reason
        self._spawn(self._end_user_code(reason))

    async def destroy(self) -> None:
        """Leaves nothing of it on the host. Safe to call twice, and goes on when the caller is cancelled."""
        if self._destroyed is None:
            self._destroyed = self._loop.create_task(self._destroy())
        await asyncio.shield(self._destroyed)

    async def _destroy(self) -> None:
        self._end_watch()
        self._channel.close()
        self._theirs.close()
        self._group.limit_cpu(None)
        self._group.weigh(background=True)  # the kernel takes milliseconds to free its memory
        self._kill()
        for pump in self._pumps:
            pump.close()
        if self._process:
            with contextlib.suppress(SandboxFailed):
                await self._process.wait()
        await self._group.destroy()
        if self._link:
            self._link.close()
        self._runsc.forget(self.id)

    def _kill(self) -> None:
        """SIGKILL to all of it; by way of runsc, which takes the rest along, on a host without writable cgroups."""
        if self._group.exists:
            self._group.kill()
        elif self._process:
            self._process.kill()

    async def _send(self, job: Job) -> None:
        limits = job.limits
        self._limit(limits.memory_bytes, limits.processes, limits.cpus)
        if self._link and job.network:
            self._link.open(job.network, job.execution_id)
        prepare = {
            name: getattr(limits, name)
            for name in ("disk_bytes", "processes", "open_files", "artifact_count", "artifact_bytes")
        }
        await self._channel.send_json(framing.PREPARE, prepare)
        for source in job.sources:
            await self._send_header("code", source.path, len(source.content))
            for start in range(0, len(source.content), framing.MAX_PAYLOAD):
                await self._channel.send(framing.DATA, source.content[start : start + framing.MAX_PAYLOAD])
        for file in job.files:
            await self._send_header("home", file.path, file.size)
            await self._send_content(file)
        work = {
            "code": job.code,
            "inputs": job.inputs_json,
            "entry": job.entry,
            "env": dict(job.env),
            "main_file": self._main_file,
            "memory_bytes": limits.memory_bytes,
            "timeout": limits.timeout,
            "network": job.network is not None,
        }
        await self._channel.send_json(framing.JOB, work)

    def _limit(self, memory_bytes: int, processes: int, cpus: float) -> None:
        try:
            self._group.limit_memory(memory_bytes)
            self._group.limit_tasks(processes * HOST_TASKS_PER_GUEST_TASK + HOST_TASKS_OF_SENTRY)
            self._group.limit_cpu(cpus)
        except OSError as error:
            raise SandboxFailed(f"a limit could not be set: {error}") from error

    async def _send_content(self, file: JobFile) -> None:
        left = file.size
        async for chunk in file.open():
            left -= len(chunk)
            await self._channel.send(framing.DATA, chunk)
        if left:
            raise SandboxFailed(f"the content of {file.path!r} has {-left:+} bytes compared to its size")

    async def _send_header(self, root: str, path: str, size: int) -> None:
        await self._channel.send_json(framing.FILE, {"root": root, "path": path, "size": size})

    async def _follow(self, limits: Limits, listener: Listener, progress: _Progress) -> None:
        """Takes the agent's frames in the order they must come, until END."""
        while True:
            kind, payload = await self._channel.receive()
            if kind == framing.FAULT:
                message = parse(payload)
                progress.fault = f"the agent failed: {message.get('message')}"
                progress.fault_errno = str(message.get("errno", ""))
                return
            if kind == framing.STARTED and not progress.started:
                progress.started = True
                if self._deadline:
                    self._deadline.cancel()
                progress.started_at = time.monotonic()
                progress.cpu_before = self._group.cpu_time()
                listener.on_prepared()
                listener.on_running()
                self._release_held(listener)
                self._deadline = self._loop.call_later(limits.timeout, self.stop, Stop.TIMEOUT)
                self._spawn(self._watch(limits, progress.cpu_before))
            elif kind == framing.RESULT and progress.running:
                await listener.on_result(payload)
            elif kind == framing.REPORT and progress.running and progress.report is None:
                progress.report = payload[:LARGEST_REPORT]
            elif kind == framing.EXIT and progress.running:
                self._on_exit(parse(payload), progress)
                listener.on_collecting()
                break
            else:
                raise ChannelClosed(f"the sandbox sent {kind!r} out of order")
        await self._collect(listener, progress)

    def _on_exit(self, message: dict[str, Any], progress: _Progress) -> None:
        self._over.set()
        progress.ended_at = time.monotonic()
        progress.wait_status = int(message["status"])
        progress.tasks = int(message["tasks"])
        progress.leaving = message["leaving"] is True
        progress.cpu_after = self._group.cpu_time()
        self._group.limit_cpu(None)
        self._shut_link(progress)
        for pump in self._pumps:  # nobody is left to write
            pump.drain()

    async def _collect(self, listener: Listener, progress: _Progress) -> None:
        while True:
            try:
                async with asyncio.timeout(COLLECT_PATIENCE):
                    kind, payload = await self._channel.receive()
            except TimeoutError:
                raise ChannelClosed(f"no file came out for {COLLECT_PATIENCE:g} s") from None
            if kind == framing.DATA:
                await listener.on_artifact_data(payload)
            elif kind == framing.ARTIFACT:
                message = parse(payload)
                await listener.on_artifact(_decode_name(message.get("name")), int(message["size"]))
            elif kind == framing.ARTIFACT_END:
                await listener.on_artifact_end(complete=parse(payload).get("complete") is True)
            elif kind == framing.END:
                message = parse(payload)
                progress.skipped = tuple((_decode_name(name), str(reason)) for name, reason in message["skipped"])
                progress.left_out = int(message["left_out"])
                return
            else:
                raise ChannelClosed(f"the sandbox sent {kind!r} among its artifacts")

    async def _watch(self, limits: Limits, cpu_before: float) -> None:
        """Looks at the kernel's counters: CPU time used up, or an out-of-memory kill that left a sandbox half alive."""
        used = 0.0
        while True:
            await asyncio.sleep(min(WATCH_INTERVAL, max(0.005, (limits.cpu_time - used) / limits.cpus)))
            if self._over.is_set():
                return
            used = self._group.cpu_time() - cpu_before
            if used >= limits.cpu_time:
                self.stop(Stop.CPU_TIME)
                return
            if self._group.oom_kills():
                self.stop(Stop.MEMORY)
                return

    async def _end_user_code(self, reason: Stop) -> None:
        """Asks the agent, which then still hands out the artifacts; kills the sandbox when it does not answer."""
        self._group.limit_cpu(None)  # a throttled sandbox dies late
        if reason in (Stop.TIMEOUT, Stop.CPU_TIME, Stop.OUTPUT):
            with contextlib.suppress(ChannelClosed, TimeoutError):
                async with asyncio.timeout(KILL_GRACE):
                    await self._channel.send_json(framing.KILL, {})
                    await self._over.wait()
                    return
        self._kill()

    async def _wait_for_end(self) -> None:
        """After the channel broke: everything the code printed is in the pipes once runsc is gone."""
        self._kill()
        if self._process:
            with contextlib.suppress(SandboxFailed):
                await self._process.wait()

    def _shut_link(self, progress: _Progress) -> None:
        if self._link:
            progress.traffic = self._link.shut()

    def _ending(self, progress: _Progress) -> Ending:
        self._shut_link(progress)
        now = time.monotonic()
        ended = progress.ended_at or now
        cpu_after = progress.cpu_after or self._group.cpu_time()
        return Ending(
            wait_status=progress.wait_status,
            report=progress.report,
            stop=self._stop,
            oom_kills=self._group.oom_kills(),
            tasks=progress.tasks,
            leaving=progress.leaving,
            fault=progress.fault,
            fault_errno=progress.fault_errno,
            started=progress.started,
            cut_short=progress.cut_short,
            skipped=progress.skipped,
            left_out=progress.left_out,
            run_time=ended - progress.started_at if progress.started else 0.0,
            collect_time=now - ended,
            cpu_time=max(0.0, cpu_after - progress.cpu_before) if progress.started else 0.0,
            peak_memory_bytes=self._group.peak_memory(),
            traffic=progress.traffic,
        )

    def _on_output(self, stream: Stream, data: bytes) -> None:
        """Output before the job is not the user's; output before STARTED only overtook it on another descriptor."""
        if self._listener is None:
            self._early += data[: START_MESSAGE_BYTES - len(self._early)]
        elif self._held is not None:
            self._held.append((stream, data))
        else:
            self._listener.on_output(stream, data)

    def _release_held(self, listener: Listener) -> None:
        held, self._held = self._held or [], None
        for stream, data in held:
            listener.on_output(stream, data)

    def _end_watch(self) -> None:
        self._over.set()
        if self._deadline:
            self._deadline.cancel()
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Progress:
    """What is known so far of a job that runs."""

    def __init__(self) -> None:
        self.started = False
        self.cut_short = False
        self.started_at = 0.0
        self.ended_at = 0.0
        self.wait_status: int | None = None
        self.report: bytes | None = None
        self.tasks = 0
        self.leaving = False
        self.fault = ""
        self.fault_errno = ""
        self.cpu_before = 0.0
        self.cpu_after = 0.0
        self.skipped: tuple[tuple[bytes, str], ...] = ()
        self.left_out = 0
        self.traffic = Traffic()

    @property
    def running(self) -> bool:
        return self.started and self.wait_status is None


def _decode_name(name: object) -> bytes:
    try:
        return base64.b64decode(str(name), validate=True)
    except binascii.Error as error:
        raise ChannelClosed(f"the sandbox sent a name that is no base64: {error}") from error
