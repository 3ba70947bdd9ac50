"""What a request may ask for: names with versions, as pip and npm write them, and nothing else. Pure.

A URL, a path, an option, a version control address is refused here, before anything starts; the sandbox that installs
would have no way to reach one either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from belljar_server.dependencies.semver import satisfies
from belljar_server.runtimes import Ecosystem

MOST_CHARACTERS = 256
MOST_LOCK_CHARACTERS = 1 << 20
PYTHON = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_version": "3.13",
    "sys_platform": "linux",
}
"""What markers may ask about the sandbox, beside what they are not told here: the exact version and the machine."""

_NPM_NAME = re.compile(r"(?:@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*")
_NPM_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_NPM_RANGE = re.compile(r"[0-9vxX*.^~<>=| A-Za-z+-]+")
_NPM_WORD = re.compile(
    r"(?:[\^~]|[<>]?=?)v?(?:[0-9]+|[xX*])(?:\.(?:[0-9]+|[xX*])){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
)
_LOCK_LINE = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9.!+_-]+)")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
_INTEGRITY = re.compile(r"sha512-[A-Za-z0-9+/]{86}==")
_PLACE = re.compile(rf"node_modules/{_NPM_NAME.pattern}(?:/node_modules/{_NPM_NAME.pattern})*")


class Refused(ValueError):
    """It is not something that can be asked for; the text says why."""


def canonical(ecosystem: Ecosystem, text: str) -> str:
    """A dependency as it goes to the package manager. Raises Refused."""
    if len(text) > MOST_CHARACTERS:
        raise Refused(f"has {len(text)} characters; at most {MOST_CHARACTERS} are allowed")
    if not text.isprintable() or not text.isascii():
        raise Refused("has characters that no name or version has")
    return _python(text) if ecosystem is Ecosystem.PYTHON else "@".join(split_npm(text))


def _python(text: str) -> str:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise Refused(f"is no PEP 508 requirement: {str(error).splitlines()[0]}") from None
    if requirement.url:
        raise Refused("has a URL; a name with a version is wanted, from the registry of this server")
    return str(requirement)


def split_npm(text: str) -> tuple[str, str]:
    """Name and range of an npm dependency; without a range it is any version. Raises Refused."""
    name, _, wanted = text[1:].partition("@")
    name, wanted = text[:1] + name, wanted.strip()
    if not _NPM_NAME.fullmatch(name) or len(name) > 214:
        raise Refused("is no npm package name with a version range, as in `zod@4` or `@scope/name@^1.2`")
    if not wanted and text.endswith("@"):
        raise Refused("ends with @; a version range is wanted behind it")
    if wanted and not _NPM_TAG.fullmatch(wanted) and not _is_range(wanted):
        raise Refused("has no version range behind the @; URLs, paths, aliases and git addresses are not allowed")
    return name, wanted or "*"


def _is_range(text: str) -> bool:
    if not _NPM_RANGE.fullmatch(text):
        return False
    words = re.sub(r"([<>]=?|=|\^|~)\s+", r"\1", text).replace("||", " ").replace(" - ", " ").split()
    return bool(words) and all(_NPM_WORD.fullmatch(word) for word in words)


def is_preinstalled(ecosystem: Ecosystem, dependency: str, packages: Mapping[str, str]) -> bool:
    """Whether a canonical dependency asks for what is there already, or for nothing on this platform."""
    if ecosystem is Ecosystem.NPM:
        name, wanted = split_npm(dependency)
        return name in packages and satisfies(packages[name], wanted)
    requirement = Requirement(dependency)
    if requirement.marker and not requirement.marker.evaluate({**PYTHON, "extra": ""}):
        return True
    there = packages.get(canonicalize_name(requirement.name))
    if there is None or requirement.extras:
        return False
    try:
        return requirement.specifier.contains(Version(there))
    except InvalidVersion:
        return False


def canonical_lock(ecosystem: Ecosystem, text: str) -> str:
    """A lock, read strictly and written anew: pinned versions with hashes from the registry. Raises Refused."""
    if len(text) > MOST_LOCK_CHARACTERS:
        raise Refused(f"has {len(text)} characters; at most {MOST_LOCK_CHARACTERS} are allowed")
    return _python_lock(text) if ecosystem is Ecosystem.PYTHON else _npm_lock(text)


def _python_lock(text: str) -> str:
    """Requirements with hashes, as `uv pip compile --generate-hashes` writes them."""
    found: dict[str, str] = {}
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        match = _LOCK_LINE.fullmatch(words[0])
        hashes = sorted(set(words[1:]))
        if not match or not hashes or not all(_HASH.fullmatch(word) for word in hashes):
            raise Refused(f"has the line {line[:80]!a}, expected name==version with --hash=sha256:… and nothing else")
        name = canonicalize_name(match[1])
        if name in found:
            raise Refused(f"has {name} twice")
        found[name] = " \\\n    ".join([f"{name}=={match[2]}", *hashes])
    return "".join(f"{found[name]}\n" for name in sorted(found))


def _npm_lock(text: str) -> str:
    """A package-lock.json of version 3 whose packages all come from a registry by their SHA-512."""
    try:
        packages = json.loads(text)["packages"]
        root = packages.get("", {}).get("dependencies", {})
        kept: dict[str, object] = {
            "": {"dependencies": {str(name): _range(str(name), wanted) for name, wanted in root.items()}}
        }
        for place, entry in packages.items():
            if place:
                kept[place] = _npm_entry(place, entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("is no package-lock.json of version 3") from None
    return json.dumps({"lockfileVersion": 3, "requires": True, "packages": kept}, sort_keys=True, indent=1) + "\n"


def _range(name: str, wanted: object) -> str:
    split_npm(f"{name}@{wanted}")
    return str(wanted)


_KEPT = (
    "dependencies",
    "optionalDependencies",
    "peerDependencies",
    "peerDependenciesMeta",
    "engines",
    "os",
    "cpu",
    "libc",
)
_FLAGS = ("optional", "peer", "dev", "devOptional", "inBundle", "hasInstallScript")


def _npm_entry(place: str, entry: dict[str, object]) -> dict[str, object]:
    bundled = entry.get("inBundle") is True
    if not _PLACE.fullmatch(place) or entry.get("link"):
        raise Refused(f"has a package at {place[:80]!a}, expected below node_modules")
    version, integrity = entry.get("version"), entry.get("integrity")
    if not isinstance(version, str) or not _NPM_WORD.fullmatch(version):
        raise Refused(f"has no version for {place}")
    if not bundled and (not isinstance(integrity, str) or not _INTEGRITY.fullmatch(integrity)):
        raise Refused(f"has no sha512 integrity for {place}")
    kept: dict[str, object] = {"version": version, **({} if bundled else {"integrity": integrity})}
    if isinstance(entry.get("name"), str) and _NPM_NAME.fullmatch(str(entry["name"])):
        kept["name"] = entry["name"]
    kept |= {key: entry[key] for key in _KEPT if isinstance(entry.get(key), (dict, list))}
    return kept | {key: True for key in _FLAGS if entry.get(key) is True}


def locked_packages(ecosystem: Ecosystem, lock: str) -> dict[str, str]:
    """Names and versions of a canonical lock; of npm those at the top."""
    if ecosystem is Ecosystem.PYTHON:
        pins = [line.split()[0].partition("==") for line in lock.splitlines() if line and not line.startswith(" ")]
        return {name: version for name, _, version in pins}
    packages = json.loads(lock)["packages"]
    return {
        place.removeprefix("node_modules/"): entry["version"]
        for place, entry in packages.items()
        if place and place.count("node_modules/") == 1
    }
