"""The name server of one sandbox: allowed names get a stand-in address, everything else does not exist.

Only A queries have an answer. So there is no IPv6, no encrypted ClientHello (its keys come by HTTPS records), and no
record that could carry data. A name is looked up outside before it is answered: one that does not exist there does not
exist here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct

import dns.exception
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from belljar_server.egress import rules
from belljar_server.egress.budget import Budget, Exhausted
from belljar_server.egress.names import Names, TooManyNames
from belljar_server.egress.namespace import IP_PKTINFO, IP_RECVORIGDSTADDR, SOL_IP
from belljar_server.egress.resolver import NoSuchName, ResolveFailed

LARGEST_QUERY = 512
TTL = 60
FLOOD_SECONDS = 0.01
"""Pause after a query beyond the budget."""
MOST_AT_ONCE = 64
"""Queries of one sandbox that wait for an answer from outside."""


class Responder:
    """Answers what comes in on the gateway's DNS socket. Mutable state: the queries that wait."""

    def __init__(self, sock: socket.socket, policy: rules.Policy, names: Names, budget: Budget) -> None:
        self._socket = sock
        self._policy = policy
        self._names = names
        self._budget = budget
        self._waiting: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        """Answers no more."""
        self._loop.remove_reader(self._socket)
        if self._resume:
            self._resume.cancel()
        for task in self._waiting:
            task.cancel()

    def _readable(self) -> None:
        try:
            data, control, _, sender = self._socket.recvmsg(LARGEST_QUERY, 256)
        except OSError:
            return
        asked = next((body[4:8] for level, kind, body in control if (level, kind) == (SOL_IP, IP_RECVORIGDSTADDR)), b"")
        if not asked:
            return
        exhausted = self._exhausted()
        if not is_plain(data):
            return
        try:
            query = dns.message.from_wire(data)
        except (dns.exception.DNSException, ValueError):
            return
        if len(query.question) != 1:
            return
        if exhausted:
            self._send(self._reply(query, dns.rcode.REFUSED), asked, sender)
            return
        if len(self._waiting) >= MOST_AT_ONCE:
            self._send(self._reply(query, dns.rcode.SERVFAIL), asked, sender)
            return
        task = self._loop.create_task(self._answer(query, asked, sender))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def _exhausted(self) -> bool:
        """Counts what came in, whatever it is."""
        try:
            self._budget.query()
        except Exhausted as error:
            self._budget.deny("", 0, rules.Denial(str(error)))
            self._pause()
            return True
        return False

    def _pause(self) -> None:
        """Reads nothing for a moment: the kernel drops what a flood has beyond its buffer."""
        self._loop.remove_reader(self._socket)
        if self._resume:
            self._resume.cancel()
        self._resume = self._loop.call_later(FLOOD_SECONDS, self._loop.add_reader, self._socket, self._readable)

    async def _answer(self, query: dns.message.Message, asked: bytes, sender: tuple[str, int]) -> None:
        self._send(await self._reply_to(query), asked, sender)

    async def _reply_to(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        text = question.name.to_text(omit_final_dot=True)
        name = rules.normalise(text)
        if not name or name.endswith(".arpa") or question.rdclass != dns.rdataclass.IN:
            return self._reply(query, dns.rcode.NXDOMAIN)
        denial = self._policy.name(name, None)
        if denial:
            if question.rdtype != dns.rdatatype.AAAA:  # its twin: libraries ask for both
                self._budget.deny(name, 0, denial)
            return self._reply(query, dns.rcode.NXDOMAIN)
        try:
            await self._names.resolve(name)
            address = self._names.stand_in(name)
        except NoSuchName:
            return self._reply(query, dns.rcode.NXDOMAIN)
        except ResolveFailed:
            return self._reply(query, dns.rcode.SERVFAIL)
        except TooManyNames as error:
            self._budget.deny(name, 0, rules.Denial(str(error)))
            return self._reply(query, dns.rcode.REFUSED)
        return self._reply(query, dns.rcode.NOERROR, address if question.rdtype == dns.rdatatype.A else None)

    @staticmethod
    def _reply(
        query: dns.message.Message, code: dns.rcode.Rcode, address: ipaddress.IPv4Address | None = None
    ) -> dns.message.Message:
        reply = dns.message.make_response(query, recursion_available=True)
        reply.set_rcode(code)
        if address:
            reply.answer.append(dns.rrset.from_text(query.question[0].name, TTL, "IN", "A", str(address)))
        return reply

    def _send(self, reply: dns.message.Message, asked: bytes, sender: tuple[str, int]) -> None:
        """From the address that was asked, whichever that was."""
        source = struct.pack("=I4s4s", 0, asked, bytes(4))
        try:
            self._socket.sendmsg([reply.to_wire()], [(SOL_IP, IP_PKTINFO, source)], 0, sender)
        except OSError:  # its sandbox is gone, or does not read: it asks again
            return


def is_plain(data: bytes) -> bool:
    """Whether it is a query with one question and at most one record beside it, as every resolver library writes it.

    Others are dropped unread: parsing hundreds of records takes long (RFC 1035, 4.1.1 has the header).
    """
    if not 12 <= len(data) < LARGEST_QUERY:
        return False
    _, flags, questions, answers, authorities, additional = struct.unpack_from("!6H", data)
    return not flags & 0xF800 and (questions, answers, authorities) == (1, 0, 0) and additional <= 1
