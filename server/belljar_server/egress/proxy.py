"""The proxy of one sandbox: takes every TCP connection that code makes, judges it, and makes it anew from the host.

The kernel hands over connections with the address that was meant. A stand-in address is a name that was asked for; any
other one was named by the code itself. Whatever it is, its real address is judged right before the connection is made
to that very address, so a name that points elsewhere the next moment gains nothing. The server's bytes flow at once
(some protocols begin with them), the client's after they were read as `inspection.py` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import time
from typing import Any

import structlog

from belljar_server.egress import relay
from belljar_server.egress.addresses import Address, carried
from belljar_server.egress.budget import Budget, Exhausted
from belljar_server.egress.dial import Dialer, reset
from belljar_server.egress.inspection import Inspection, Mismatch, answer
from belljar_server.egress.names import STAND_INS, Names
from belljar_server.egress.namespace import GATEWAY
from belljar_server.egress.resolver import NoSuchName, ResolveFailed
from belljar_server.egress.rules import Denial, Policy
from belljar_server.models import NetworkMode

log = structlog.get_logger()

ACCEPTED_AT_ONCE = 32
"""Connections of one sandbox that are taken before others have their turn."""
CLIENTS_SPEAK_FIRST = frozenset({80, 443, 3000, 5000, 8000, 8080, 8443, 8888})
FIRST_BYTES_SECONDS = 1.0
OTHER_FIRST_BYTES_SECONDS = 0.03
"""How long a refused client may take to say what it speaks; where servers may speak first it would wait for that."""
LINGER_SECONDS = 1.0
"""How long a client has to read what it was told."""
SWEEP_SECONDS = 1.0
FLOOD_SECONDS, NO_FILES_SECONDS = 0.01, 0.1
"""Pauses in taking connections."""


class _Denied(Exception):
    """A connection that is not let through."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.reason)
        self.denial = denial


class Proxy:
    """Serves the gateway's listening socket. Mutable state: the connections that are open."""

    def __init__(
        self,
        listener: socket.socket,
        policy: Policy,
        names: Names,
        budget: Budget,
        dialer: Dialer,
        *,
        audit: str | None,
    ) -> None:
        """`audit`: the execution under whose id every connection is logged, if at all."""
        self._listener = listener
        self._policy = policy
        self._names = names
        self._budget = budget
        self._dialer = dialer
        self._audit = audit
        self._buffer = bytearray(relay.PIECE)
        self._reader = relay.Reader()
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._accept)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        self._resume: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Ends every connection and takes no more."""
        self._loop.remove_reader(self._listener)
        for timer in (self._sweeper, self._resume):
            if timer:
                timer.cancel()
        for task, connection in self._connections.items():
            connection.stop()
            task.cancel()

    def _accept(self) -> None:
        refused = False
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    log.warning("no more files: connections of sandboxes wait; raise the server's limit on open files")
                    self._pause(NO_FILES_SECONDS)
                    return
                break
            client.setblocking(False)
            connection = _Connection(client)
            connection.name = self._names.name_of(connection.address)
            try:
                self._budget.connect()
            except Exhausted as error:
                self._budget.deny(connection.host, connection.port, Denial(str(error)))
                reset(client)
                refused = True
                continue
            task = self._loop.create_task(self._serve(connection))
            self._connections[task] = connection
            task.add_done_callback(self._ended)
        if refused:
            self._pause(FLOOD_SECONDS)

    def _pause(self, seconds: float) -> None:
        """Takes no connection for a moment, so that neither a flood nor a lack of files keeps the server busy."""
        self._loop.remove_reader(self._listener)
        self._resume = self._loop.call_later(seconds, self._loop.add_reader, self._listener, self._accept)

    def _ended(self, task: asyncio.Task[None]) -> None:
        connection = self._connections.pop(task)
        connection.end()
        self._budget.disconnect()
        if not task.cancelled() and task.exception():
            log.error("connection broke", exc_info=task.exception())
        if self._audit is not None:
            log.info("connection", execution_id=self._audit, **connection.account())

    def _sweep(self) -> None:
        """Ends connections over which nothing went for too long."""
        oldest = time.monotonic() - self._budget.limits.idle_timeout
        for task, connection in list(self._connections.items()):
            if connection.last_byte < oldest:
                connection.fate = "idle for too long"
                connection.stop()
                task.cancel()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    async def _serve(self, connection: _Connection) -> None:
        try:
            addresses = await self._judge(connection)
            connection.server, connection.real = await self._dialer.connect(addresses, connection.port)
        except _Denied as denied:
            await self._refuse(connection, denied.denial)
        except (OSError, NoSuchName, ResolveFailed) as error:
            connection.fate = f"failed: {error}"
        else:
            await self._relay(connection, connection.server)

    async def _judge(self, connection: _Connection) -> tuple[Address, ...]:
        """The addresses that may be connected to. Raises _Denied, NoSuchName, ResolveFailed."""
        name, address, port = connection.name, connection.address, connection.port
        if name is None:
            denial = self._policy.address(address, port)
            if address == GATEWAY.ip:
                denial = Denial("this is the sandbox's own gateway")
            elif address in STAND_INS and not self._policy.is_trusted(address):
                denial = Denial("this address was never given for a name")
            found: tuple[Address, ...] = (address,)
        else:
            denial = self._policy.name(name, port)
            found = () if denial else (await self._names.resolve(name)).addresses
        if denial:
            raise _Denied(denial)
        problems = [self._problem(each, port) for each in found]
        allowed = tuple(carried(each) for each, problem in zip(found, problems, strict=True) if problem is None)
        if not allowed:
            raise _Denied(next(problem for problem in problems if problem))
        return allowed

    def _problem(self, address: Address, port: int) -> Denial | None:
        denial = self._policy.resolved(address, port)
        if denial is None and not self._policy.is_trusted(address) and self._dialer.is_own(carried(address)):
            return Denial(f"{address} is an address of the host, which is never reached")
        return denial

    async def _relay(self, connection: _Connection, server: socket.socket) -> None:
        """Moves bytes both ways until both sides are done."""
        inspection = self._inspection(connection)

        def from_client(data: memoryview) -> bytes | memoryview:
            connection.touch(sent=data)
            self._budget.send(len(data))
            if inspection is None or inspection.over:
                up.reader = None
                return data
            return inspection.feed(bytes(data))

        def from_server(data: memoryview) -> memoryview:
            connection.touch(received=data)
            self._budget.receive(len(data))
            if inspection and inspection.awaits_server:
                up.push(inspection.server_says(bytes(data)))
            return data

        up = relay.Pump(connection.client, server, self._buffer, from_client, self._reader)
        down = relay.Pump(server, connection.client, self._buffer, from_server)
        connection.pumps = (up, down)
        up.start()
        down.start()
        try:
            await asyncio.gather(up.over, down.over)
            connection.fate, connection.orderly = "closed", True
        except Mismatch as error:
            connection.stop()
            await self._refuse(connection, Denial(f"the connection is for {connection.host}, but {error}"))
        except Exhausted as error:
            self._budget.deny(connection.host, connection.port, Denial(str(error)))
            connection.fate = str(error)
        except OSError as error:
            connection.fate = f"failed: {error}"

    def _inspection(self, connection: _Connection) -> Inspection | None:
        """Who reads what the client says; nobody where it makes no difference."""
        port, name = connection.port, connection.name or ""
        strict = bool(name) and self._policy.mode is not NetworkMode.FULL  # an address that is allowed has any host
        if not (strict or self._policy.denies_names):
            return None
        return Inspection(name, port, strict=strict, denied=lambda meant: self._policy.denies(meant, port) is not None)

    async def _refuse(self, connection: _Connection, denial: Denial) -> None:
        """Says no in the client's own language where it has one, and resets the connection where it has none."""
        self._budget.deny(connection.host, connection.port, denial)
        connection.fate = f"denied: {denial.reason}"
        if not connection.first:
            patience = FIRST_BYTES_SECONDS if connection.port in CLIENTS_SPEAK_FIRST else OTHER_FIRST_BYTES_SECONDS
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(patience):
                    connection.first = await self._loop.sock_recv(connection.client, 4096)
        said = answer(connection.first, f"{connection.host}:{connection.port}: {denial.reason}")
        if not said or connection.bytes_in:  # in the middle of an answer, ours would be taken for a part of it
            return
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self._loop.sock_sendall(connection.client, said)
                connection.orderly = True
                connection.client.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(connection.client, 65536):
                    pass


class _Connection:
    """One connection of the sandbox. Mutable state: its other half, what went over it, how it ended."""

    def __init__(self, client: socket.socket) -> None:
        address, self.port = client.getsockname()
        self.address = ipaddress.IPv4Address(address)
        self.client = client
        self.server: socket.socket | None = None
        self.name: str | None = None
        self.real: Address | None = None
        self.pumps: tuple[relay.Pump, ...] = ()
        self.first = b""
        """The first bytes that the client said, enough to tell what it speaks."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.began = self.last_byte = time.monotonic()
        self.fate = "cut"
        self.orderly = False
        """Whether everything there was to say went through."""

    @property
    def host(self) -> str:
        """What it is for, as the user knows it."""
        return self.name or str(self.address)

    def touch(self, *, sent: memoryview | None = None, received: memoryview | None = None) -> None:
        """Bytes went by."""
        self.last_byte = time.monotonic()
        if sent is not None:
            self.bytes_out += len(sent)
            self.first = self.first or bytes(sent[:64])
        if received is not None:
            self.bytes_in += len(received)

    def stop(self) -> None:
        """Moves no more bytes."""
        for pump in self.pumps:
            pump.stop()

    def end(self) -> None:
        """Closes both halves: in order when all went through, else so that both sides see that it did not."""
        self.stop()
        for half in (self.client, self.server):
            if half and self.orderly:
                half.close()
            elif half:
                reset(half)

    def account(self) -> dict[str, Any]:
        """What there is to say about it in a log."""
        return {
            "host": self.host,
            "port": self.port,
            "address": str(self.real) if self.real else None,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": round(time.monotonic() - self.began, 3),
            "fate": self.fate,
        }
