"""Reading what a Python package index lists of a package: the files with what is told about them. Pure."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

_KEPT = ("hashes", "requires-python", "yanked", "core-metadata", "dist-info-metadata", "size", "upload-time")


def from_json(content: bytes) -> list[dict[str, Any]]:
    """The files of a list as PEP 691 has it."""
    return [
        {"url": file["url"]} | {key: file[key] for key in _KEPT if key in file} for file in json.loads(content)["files"]
    ]


def from_html(content: bytes) -> list[dict[str, Any]]:
    """The files of a list as PEP 503 has it."""
    links = _Links()
    links.feed(content.decode(errors="replace"))
    files = []
    for attributes in links.found:
        url = attributes.get("href") or ""
        algorithm, _, digest = url.partition("#")[2].partition("=")
        metadata = attributes.get("data-core-metadata", attributes.get("data-dist-info-metadata"))
        files.append(
            {
                "url": url,
                "hashes": {algorithm: digest} if algorithm in ("sha256", "sha384", "sha512") and digest else {},
                **(
                    {"requires-python": attributes["data-requires-python"]}
                    if attributes.get("data-requires-python")
                    else {}
                ),
                **({"yanked": attributes["data-yanked"] or True} if "data-yanked" in attributes else {}),
                **({"core-metadata": True} if metadata else {}),
            }
        )
    return files


class _Links(HTMLParser):
    """State: the attributes of all links so far."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag begins."""
        if tag == "a":
            self.found.append(dict(attrs))


def is_web(url: str, base: str) -> bool:
    """Whether a list may name this address: no other scheme, and none without TLS where the list came with it."""
    scheme = urlsplit(url).scheme
    return scheme == "https" or (scheme == "http" and urlsplit(base).scheme == "http")
