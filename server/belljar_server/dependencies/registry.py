"""All that a sandbox that installs can reach: questions about packages, answered from the configured registries.

The sandbox has no network. It names a package, or a file that an answer has listed, and gets the registry's words with
every address in them replaced; it never names a host. Credentials stay here. What comes from a registry is data for
the sandbox: this side reads lists of files (JSON or HTML) and never opens one.

Long, for it is one boundary seen from both sides: what may be asked outside, and what is answered inside.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
import structlog
import yarl

from belljar_server.config import Dependencies as DependencySettings
from belljar_server.dependencies import lists
from belljar_server.errors import HostNotReady
from belljar_server.runtimes import Ecosystem

log = structlog.get_logger()

INSIDE = "http://127.0.0.1:4873"
"""What the installer's own side of this is called in the sandbox."""
MOST_LIST_BYTES = 64 << 20
PIECE = 1 << 18
FIRST_PAUSE, LAST_PAUSE = 0.5, 8.0
"""Seconds before the second try of what failed, and at most before later ones, which wait twice as long each."""
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""A registry that sends nothing for so long has failed."""
JSON_LIST = "application/vnd.pypi.simple.v1+json"
JSON_PACKAGE = "application/vnd.npm.install-v1+json"
LISTS = f"{JSON_LIST}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

_PYTHON_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,200}[a-z0-9])?")
_NPM_NAME = re.compile(r"(@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*", re.IGNORECASE)
_FILE_NAME = re.compile(r"[A-Za-z0-9._+!-]{1,255}")
_RANGE = re.compile(r"bytes=\d{1,12}-\d{0,12}|bytes=-\d{1,12}")
_RANGE_WORDS = re.compile(r"[a-z0-9 /*-]{1,60}")
_FILE = re.compile(r"/files/(\d{1,9})/([A-Za-z0-9._+!-]{1,265})")


@dataclass(frozen=True, slots=True)
class Question:
    """What the sandbox asks."""

    path: str
    range: str = ""
    head_only: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to the sandbox. `size` is -1 when it is not known."""

    status: int
    headers: dict[str, str]
    size: int
    body: AsyncIterator[bytes]


class Registries:
    """The registries of this server. State: an HTTP session."""

    def __init__(self, settings: DependencySettings, addresses: Path) -> None:
        """`addresses` is the file in which set-up noted what this machine's own tools are configured to use."""
        noted: dict[str, Any] = {}
        if addresses.exists():
            noted = json.loads(addresses.read_text())
        python = (
            [settings.python_index, *settings.python_extra_indexes]
            if settings.python_index
            else noted.get("python", [])
        )
        self.python = [address.rstrip("/") + "/" for address in python]
        self.npm = (settings.npm_registry or noted.get("npm", "")).rstrip("/") + "/"
        self._credentials = {
            _origin(self.python[0] if self.python else ""): _basic(settings.python_credentials_file),
            _origin(self.npm): _bearer(settings.npm_token_file),
        }
        try:
            self._tls = ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            raise HostNotReady(f"dependencies.ca_file {settings.ca_file}: {error.strerror}") from error
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=32)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def get(
        self, url: str, accept: str, hear: Callable[[str], None], part: str = "", method: str = "GET"
    ) -> aiohttp.ClientResponse:
        """Asks a registry, again after a fault until it answers: who asks decides how long that may take.

        `hear` is told each fault, and nothing when there is none any more. Raises Unreachable when the server stops.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                response = await self.ask(url, accept, part, method)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = type(error).__name__
            else:
                if response.status == 501 or (response.status < 500 and response.status != 429):
                    hear("")
                    return response
                problem = f"status {response.status}"
                response.release()
            log.error("registry cannot be reached", host=urlsplit(url).hostname, problem=problem)
            hear(problem)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def ask(self, url: str, accept: str, part: str = "", method: str = "GET") -> aiohttp.ClientResponse:
        """Asks once. Raises aiohttp.ClientError, TimeoutError, OSError; Unreachable when the server stops."""
        if self._session is None:
            raise Unreachable("the server is stopping")
        headers = {"Accept": accept, "Accept-Encoding": "gzip" if "json" in accept else "identity"}
        if part:
            headers["Range"] = part
        credentials = self._credentials.get(_origin(url))
        if credentials:
            headers["Authorization"] = credentials
        address = yarl.URL(url, encoded=True)
        return await self._session.request(method, address, headers=headers, allow_redirects=True)

    async def has(self, ecosystem: Ecosystem, name: str) -> bool:
        """Whether a registry says that it has a package of this name; one that fails says nothing."""
        addresses = [f"{self.npm}{quote(name, safe='@')}"]
        if ecosystem is Ecosystem.PYTHON:
            addresses = [f"{index}{name}/" for index in self.python if _PYTHON_NAME.fullmatch(name)]
        for address in addresses:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, Unreachable):
                response = await self.ask(address, LISTS if ecosystem is Ecosystem.PYTHON else JSON_PACKAGE)
                response.close()  # what it says of it nobody reads
                if response.status == 200:
                    return True
        return False


class Unreachable(Exception):
    """A registry did not answer, or not sensibly."""


class Visit:
    """What one installation asks. State: the files that were listed to it, what it took, and what is wrong."""

    def __init__(
        self, registries: Registries, most_bytes: int, on_fault: Callable[[str], None] = lambda _: None
    ) -> None:
        """`on_fault` is told when a registry cannot be reached."""
        self._registries = registries
        self._most_bytes = most_bytes
        self._on_fault = on_fault
        self._files: list[str] = []
        self._faults: dict[str, str] = {}
        self.bytes = 0
        self.missing: list[str] = []
        """Packages that no registry has."""
        self.too_large = False

    @property
    def fault(self) -> str:
        """Why a registry cannot be reached; empty when all can."""
        return next(iter(self._faults.values()), "")

    def _hear(self, url: str, problem: str) -> None:
        if problem and not self._faults:
            self._on_fault(problem)
        self._faults[url] = problem
        if not problem:
            del self._faults[url]

    async def _get(self, url: str, accept: str, part: str = "", method: str = "GET") -> aiohttp.ClientResponse:
        return await self._registries.get(url, accept, lambda problem: self._hear(url, problem), part, method)

    async def answer(self, question: Question) -> Answer:
        """The answer to what the sandbox asks. Never raises for what a registry does."""
        path = question.path
        self._faults.pop(path, None)  # asked again
        if self.too_large:
            return text(413, "too much was downloaded")  # which nobody asks again for
        try:
            if path.startswith("/simple/"):
                return await self._python(path.removeprefix("/simple/").rstrip("/"))
            if path.startswith("/npm/"):
                return await self._npm(unquote(path.removeprefix("/npm/")))
            match = _FILE.fullmatch(path)
            if match and int(match[1]) < len(self._files):
                return await self._file(int(match[1]), question, metadata=match[2].endswith(".metadata"))
        except Unreachable as error:
            self._hear(path, str(error))
            return text(503, "the registry cannot be reached")
        except TooLarge:
            return text(413, "too much was downloaded")
        return text(404, "there is no such thing")

    async def _python(self, name: str) -> Answer:
        if not _PYTHON_NAME.fullmatch(name):
            return text(404, "no name")
        for index in self._registries.python:
            async with await self._get(f"{index}{name}/", LISTS) as response:
                if response.status in (404, 410):
                    continue
                content = await self._list(response)
                listed = await asyncio.to_thread(self._listed, content, response.content_type, str(response.url))
                return whole(JSON_LIST, {"meta": {"api-version": "1.0"}, "name": name, "files": listed})
        self.missing.append(name)
        return text(404, "not found")

    def _listed(self, content: bytes, kind: str, base: str) -> list[dict[str, Any]]:
        try:
            files = lists.from_json(content) if kind == JSON_LIST else lists.from_html(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Unreachable(f"a list that cannot be read: {type(error).__name__}") from error
        listed = []
        for file in files:
            url = urljoin(base, str(file.get("url", ""))).partition("#")[0]
            name = unquote(urlsplit(url).path.rpartition("/")[2])
            if lists.is_web(url, base) and _FILE_NAME.fullmatch(name):
                listed.append(file | {"filename": name, "url": f"{INSIDE}{self._list_file(url, name)}"})
        return listed

    async def _npm(self, name: str) -> Answer:
        if not _NPM_NAME.fullmatch(name):
            return text(404, "no name")
        address = f"{self._registries.npm}{quote(name, safe='@')}"
        async with await self._get(address, JSON_PACKAGE) as response:
            if response.status in (404, 410):
                self.missing.append(name)
                return text(404, "not found")
            content = await self._list(response)
            package = await asyncio.to_thread(self._package, content, str(response.url))
        return whole("application/json", package)

    def _package(self, content: bytes, base: str) -> dict[str, Any]:
        try:
            package: dict[str, Any] = json.loads(content)
            for version in package["versions"].values():
                url = urljoin(base, version["dist"]["tarball"])
                name = unquote(urlsplit(url).path.rpartition("/")[2])
                allowed = lists.is_web(url, base) and _FILE_NAME.fullmatch(name)
                version["dist"]["tarball"] = f"{INSIDE}{self._list_file(url, name)}" if allowed else f"{INSIDE}/none"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Unreachable(f"a list that cannot be read: {type(error).__name__}") from error
        return package

    def _list_file(self, url: str, name: str) -> str:
        self._files.append(url)
        return f"/files/{len(self._files) - 1}/{name}"

    async def _list(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise Unreachable(f"status {response.status}")
        pieces = bytearray()
        try:
            async for piece in response.content.iter_chunked(PIECE):
                pieces += piece
                self._count(piece)
                if len(pieces) > MOST_LIST_BYTES:
                    raise Unreachable("a list that is too long")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unreachable(type(error).__name__) from error
        return bytes(pieces)

    async def _file(self, number: int, question: Question, *, metadata: bool) -> Answer:
        url = self._files[number] + (".metadata" if metadata else "")
        part = question.range if _RANGE.fullmatch(question.range) else ""
        method = "HEAD" if question.head_only else "GET"
        response = await self._get(url, "*/*", part, method)
        if response.status not in (200, 206):
            response.release()
            if response.status not in (404, 405, 410, 416, 501):
                raise Unreachable(f"status {response.status}")
            return text(404 if response.status in (404, 410) else response.status, "not found")
        headers = {"Content-Type": "application/octet-stream"}
        for name in ("Accept-Ranges", "Content-Range"):
            value = response.headers.get(name, "")
            if _RANGE_WORDS.fullmatch(value):
                headers[name] = value
        size = response.content_length
        return Answer(response.status, headers, -1 if size is None else size, self._body(url, response))

    def _count(self, piece: bytes) -> None:
        self.bytes += len(piece)
        if self.bytes > self._most_bytes:
            self.too_large = True
            raise TooLarge

    async def _body(self, url: str, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Raises Unreachable when it breaks off, TooLarge when it is more than may come. The installer asks again."""
        async with response:
            try:
                async for piece in response.content.iter_chunked(PIECE):
                    self._count(piece)
                    yield piece
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = f"a file broke off: {type(error).__name__}"
                self._hear(url, problem)
                raise Unreachable(problem) from error


class TooLarge(Exception):
    """More was downloaded than one installation may."""


def text(status: int, words: str) -> Answer:
    """A short answer in words."""
    content = words.encode()
    return Answer(status, {"Content-Type": "text/plain"}, len(content), _once(content))


def whole(kind: str, message: object) -> Answer:
    """An answer that is there already."""
    content = json.dumps(message).encode()
    return Answer(200, {"Content-Type": kind}, len(content), _once(content))


async def _once(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _basic(file: Path | None) -> str:
    if file is None:
        return ""
    name, _, password = _secret("dependencies.python_credentials_file", file).partition(":")
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def _bearer(file: Path | None) -> str:
    return f"Bearer {_secret('dependencies.npm_token_file', file)}" if file else ""


def _secret(name: str, file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise HostNotReady(f"{name} {file}: {error.strerror}") from error
