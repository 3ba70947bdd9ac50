"""Names from outside, and the queries that are read at all."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from belljar_server.config import Egress
from belljar_server.egress import build
from belljar_server.egress.dns import is_plain
from belljar_server.egress.names import MOST_NAMES, Names, TooManyNames
from belljar_server.egress.resolver import MOST_ADDRESSES, NoSuchName, ResolveFailed, Resolver
from belljar_server.errors import HostNotReady

Answer = Callable[[dns.message.Message], dns.message.Message]


@asynccontextmanager
async def name_server(answer: Answer) -> AsyncIterator[Resolver]:
    """A name server on loopback, UDP only, and what asks it."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)

        def readable() -> None:
            data, sender = sock.recvfrom(4096)
            sock.sendto(answer(dns.message.from_wire(data)).to_wire(), sender)

        loop.add_reader(sock, readable)
        try:
            yield Resolver([sock.getsockname()])
        finally:
            loop.remove_reader(sock)


def addresses(count: int) -> Answer:
    """Answers with so many addresses."""

    def answer(query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        texts = [f"203.0.{number // 250}.{number % 250}" for number in range(count)]
        reply.answer.append(dns.rrset.from_text_list(query.question[0].name, 60, "IN", "A", texts))
        return reply

    return answer


async def test_a_name_with_many_addresses_keeps_a_few() -> None:
    """Its owner decides how many there are."""
    async with name_server(addresses(60)) as resolver:
        assert len((await resolver.resolve("example.com")).addresses) == MOST_ADDRESSES


async def test_a_truncated_answer_is_taken_as_far_as_it_goes() -> None:
    """Nobody asks again over TCP, where an answer may have 64 KiB; here nobody listens."""

    def cut(query: dns.message.Message, count: int) -> dns.message.Message:
        reply = addresses(count)(query) if count else dns.message.make_response(query)
        reply.flags |= dns.flags.TC
        return reply

    async with name_server(lambda query: cut(query, 3)) as resolver:
        assert len((await resolver.resolve("example.com")).addresses) == 3
    async with name_server(lambda query: cut(query, 0)) as resolver:
        with pytest.raises(ResolveFailed, match="1232 bytes"):
            await resolver.resolve("example.com")


@pytest.mark.parametrize("code", [dns.rcode.FORMERR, dns.rcode.NOTIMP])
async def test_a_server_that_knows_no_edns_is_asked_without(code: dns.rcode.Rcode) -> None:
    """As old ones answer."""

    def answer(query: dns.message.Message) -> dns.message.Message:
        if query.edns < 0:
            return addresses(1)(query)
        reply = dns.message.make_response(query)
        reply.set_rcode(code)
        return reply

    async with name_server(answer) as resolver:
        assert len((await resolver.resolve("example.com")).addresses) == 1


async def test_more_names_than_are_kept_are_not_looked_up() -> None:
    """Each name costs memory until the end of the execution."""
    asked = []

    def answer(query: dns.message.Message) -> dns.message.Message:
        asked.append(query.question[0].name)
        return addresses(1)(query)

    async with name_server(answer) as resolver:
        names = Names(resolver)
        names._resolved = dict.fromkeys(map(str, range(MOST_NAMES)), await resolver.resolve("a.com"))
        with pytest.raises(TooManyNames):
            await names.resolve("b.com")
        assert await names.resolve("7") is names._resolved["7"]
    assert len(asked) == 1


async def test_a_name_without_addresses_does_not_exist() -> None:
    """Neither of version 4 nor of version 6."""
    async with name_server(dns.message.make_response) as resolver:
        with pytest.raises(NoSuchName):
            await resolver.resolve("example.com")


QUERY = dns.message.make_query("example.com", "A", use_edns=0).to_wire()


def header(flags: int = 0x0100, *, questions: int = 1, answers: int = 0, others: int = 0, additional: int = 0) -> bytes:
    """A message with this header."""
    return struct.pack("!6H", 7, flags, questions, answers, others, additional) + QUERY[12:]


def test_plain_queries_are_read() -> None:
    """With EDNS and without."""
    assert is_plain(QUERY)
    assert is_plain(header())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        QUERY[:11],
        QUERY + bytes(512),
        header(flags=0x8100),
        header(flags=0x2900),
        header(questions=0),
        header(questions=638),
        header(answers=1),
        header(others=1),
        header(additional=239),
    ],
)
def test_other_datagrams_are_dropped_unread(data: bytes) -> None:
    """Answers, updates, hundreds of questions or records: reading one takes a hundred milliseconds."""
    assert not is_plain(data)


@pytest.mark.parametrize(
    "text", ["8.8.8.8:99999", "8.8.8.8:0", "8.8.8.8:-1", "[::1]:70000", "dns.example.com", "8.8.8.8:x"]
)
def test_impossible_name_servers_are_refused_at_start(text: str) -> None:
    """By the name of the setting and with what was given."""
    with pytest.raises(HostNotReady, match=r"egress\.dns_servers") as refused:
        build.build(Egress(dns_servers=(text,)))
    assert text in str(refused.value)
