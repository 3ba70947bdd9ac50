"""What a sandbox that installs can reach: names and listed files, from the configured registries, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from belljar_server.config import Dependencies
from belljar_server.dependencies import lists, near, registry
from belljar_server.dependencies.registry import Answer, Question, Registries, TooLarge, Visit
from belljar_server.runtimes import Ecosystem

NOWHERE = Path("/nonexistent")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(registry, "FIRST_PAUSE", 0.001)


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A registry that answers as the test says; its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


@contextlib.asynccontextmanager
async def visiting(settings: Dependencies, most_bytes: int = 1 << 20) -> AsyncIterator[Visit]:
    """What one installation sees of the registries in the settings."""
    async with Registries(settings, NOWHERE) as registries:
        yield Visit(registries, most_bytes)


async def read(answer: Answer) -> bytes:
    """All of an answer."""
    return b"".join([piece async for piece in answer.body])


def listing(*names: str, base: str = "../../files/") -> web.Response:
    """A list of files as PEP 691 has it."""
    files = [{"filename": name, "url": f"{base}{name}", "hashes": {}} for name in names]
    return web.json_response({"files": files}, content_type=registry.JSON_LIST)


async def test_a_name_gets_its_list_and_a_listed_file_its_bytes() -> None:
    """With addresses that lead back to the sandbox's own side."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/simple/fruit/":
            return listing("fruit-1.0-py3-none-any.whl")
        assert request.path == "/files/fruit-1.0-py3-none-any.whl"
        return web.Response(body=b"wheel")

    async with serving(handler) as address, visiting(Dependencies(python_index=f"{address}/simple")) as visit:
        answer = await visit.answer(Question("/simple/fruit/"))
        (file,) = json.loads(await read(answer))["files"]
        assert file["url"] == "http://127.0.0.1:4873/files/0/fruit-1.0-py3-none-any.whl"
        answer = await visit.answer(Question("/files/0/fruit-1.0-py3-none-any.whl"))
        listed = visit.bytes
        assert (answer.status, await read(answer), visit.bytes - listed) == (200, b"wheel", 5)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/files/0/x.whl",
        "/files/-1/x.whl",
        "/files/0/../x",
        "/simple/",
        "/simple/../secret/",
        "/simple/a/b/",
        "/simple/%2e%2e/",
        "/simple/a?x=y",
        "/npm/../secret",
        "/npm/a/b",
        "/npm/@a%2f..%2fb",
        "/npm/a%0d%0ax",
        "http://host/",
    ],
)
async def test_anything_else_is_answered_without_asking_anybody(path: str) -> None:
    """There is no way to name a host, a path or a file that was not listed."""

    async def handler(_: web.Request) -> web.StreamResponse:
        raise AssertionError("asked")

    async with serving(handler) as address:
        settings = Dependencies(python_index=f"{address}/simple", npm_registry=address)
        async with visiting(settings) as visit:
            assert (await visit.answer(Question(path))).status == 404
            assert not visit.fault


async def test_the_first_index_that_has_a_name_is_the_one() -> None:
    """A public package of the same name never stands in for the private one."""

    async def private(request: web.Request) -> web.StreamResponse:
        return listing("mine-1.0-py3-none-any.whl") if request.path == "/mine/" else web.Response(status=404)

    async def public(request: web.Request) -> web.StreamResponse:
        return listing(f"{request.path.strip('/')}-9.0-py3-none-any.whl")

    async with serving(private) as first, serving(public) as second:
        settings = Dependencies(python_index=first, python_extra_indexes=(second,))
        async with visiting(settings) as visit:
            assert b"mine-1.0" in await read(await visit.answer(Question("/simple/mine/")))
            assert b"other-9.0" in await read(await visit.answer(Question("/simple/other/")))
            assert visit.missing == []


async def test_credentials_go_to_their_own_registry_and_nowhere_else(tmp_path: Path) -> None:
    """Not to the host of the files, and not into the sandbox."""
    seen: dict[str, list[str]] = {"index": [], "files": []}

    async def files(request: web.Request) -> web.StreamResponse:
        seen["files"].append(request.headers.get("Authorization", ""))
        return web.Response(body=b"x")

    secret = tmp_path / "secret"
    secret.write_text("ada:s3cret\n")
    async with serving(files) as other:

        async def index(request: web.Request) -> web.StreamResponse:
            seen["index"].append(request.headers.get("Authorization", ""))
            return listing("a-1.0-py3-none-any.whl", base=f"{other}/")

        async with serving(index) as address:
            settings = Dependencies(python_index=address, python_credentials_file=secret)
            async with visiting(settings) as visit:
                answer = await read(await visit.answer(Question("/simple/a/")))
                await read(await visit.answer(Question("/files/0/a-1.0-py3-none-any.whl")))
    assert seen == {"index": ["Basic YWRhOnMzY3JldA=="], "files": [""]}
    assert b"s3cret" not in answer
    assert other.encode() not in answer


async def test_a_fault_is_tried_again_until_it_is_none() -> None:
    """A registry that comes back was never away; as long as it is, it is told why."""
    answers = [503, 429, 500, 503, 502, 503, 200]
    heard: list[str] = []
    seen: list[str] = []

    async def handler(_: web.Request) -> web.StreamResponse:
        seen.append(visit.fault)
        status = answers.pop(0)
        return listing("a-1.0-py3-none-any.whl") if status == 200 else web.Response(status=status)

    async with serving(handler) as address, Registries(Dependencies(python_index=address), NOWHERE) as registries:
        visit = Visit(registries, 1 << 20, heard.append)
        assert (await visit.answer(Question("/simple/a/"))).status == 200
    assert seen == ["", "status 503", "status 429", "status 500", "status 503", "status 502", "status 503"]
    assert (visit.fault, heard) == ("", ["status 503"])


async def test_near_names_are_those_that_the_registry_has() -> None:
    """Of what is likely, a bounded number is asked for."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(status=200 if request.path in ("/scikit-image/", "/@fruits/pear") else 404)

    async with serving(handler) as address:
        settings = Dependencies(python_index=address, npm_registry=address)
        async with Registries(settings, NOWHERE) as registries:
            for wrong in ("sickit-image", "scikit-images", "scikit-imagee", "python-scikit-image"):
                assert await near.existing(registries, Ecosystem.PYTHON, wrong) == ["scikit-image"], wrong
            for wrong in ("@fruits/pears", "@fruits/paer", "@fruits/pear.js"):
                assert await near.existing(registries, Ecosystem.NPM, wrong) == ["@fruits/pear"], wrong
            assert len(near.candidates(Ecosystem.PYTHON, "x" * 200)) <= near.MOST_ASKED
    assert len(asked) <= 7 * near.MOST_ASKED


async def test_a_name_that_nobody_has_is_noted() -> None:
    """So that the client hears which one it is."""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404)

    async with (
        serving(handler) as address,
        visiting(Dependencies(python_index=address, npm_registry=address)) as visit,
    ):
        assert (await visit.answer(Question("/simple/nope/"))).status == 404
        assert (await visit.answer(Question("/npm/@scope%2fnope"))).status == 404
        assert visit.missing == ["nope", "@scope/nope"]


async def test_more_than_may_be_downloaded_is_cut() -> None:
    """Counted as it comes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return listing("a-1.0-py3-none-any.whl") if "whl" not in request.path else web.Response(body=bytes(3 << 20))

    async with serving(handler) as address, visiting(Dependencies(python_index=f"{address}/x/y/")) as visit:
        await visit.answer(Question("/simple/a/"))
        answer = await visit.answer(Question("/files/0/a-1.0-py3-none-any.whl"))
        with pytest.raises(TooLarge):
            await read(answer)
        assert visit.too_large


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": 1}', b'{"files": [1]}', b"[" * 100_000])
async def test_a_list_that_is_none_is_the_registrys_fault(content: bytes) -> None:
    """Not the package's."""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, content_type=registry.JSON_LIST)

    async with serving(handler) as address, visiting(Dependencies(python_index=address)) as visit:
        assert (await visit.answer(Question("/simple/a/"))).status == 503
        assert "cannot be read" in visit.fault


def test_html_lists_are_read_too() -> None:
    """As PEP 503, 592, 658 and 714 have them."""
    page = b"""<!DOCTYPE html><a href="../a-1.whl#sha256=00" data-requires-python="&gt;=3.9" data-yanked="bad">a</a>
        <a href="b.whl" data-core-metadata="sha256=1">b</a><a>c</a>"""
    assert lists.from_html(page) == [
        {"url": "../a-1.whl#sha256=00", "hashes": {"sha256": "00"}, "requires-python": ">=3.9", "yanked": "bad"},
        {"url": "b.whl", "hashes": {}, "core-metadata": True},
        {"url": "", "hashes": {}},
    ]


@pytest.mark.parametrize(
    ("url", "base", "may"),
    [
        ("https://files/x", "https://index/", True),
        ("http://files/x", "http://index/", True),
        ("https://files/x", "http://index/", True),
        ("http://files/x", "https://index/", False),
        ("file:///etc/passwd", "https://index/", False),
        ("ftp://files/x", "http://index/", False),
    ],
)
def test_a_list_may_name_web_addresses_only(url: str, base: str, *, may: bool) -> None:
    """And none without TLS where it came with it."""
    assert lists.is_web(url, base) is may
