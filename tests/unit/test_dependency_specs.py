"""What may be asked for as a dependency: names with versions, and nothing that a package manager would take beside."""

from __future__ import annotations

import json

import pytest

from belljar_server.config import LimitSet, LimitSettings
from belljar_server.dependencies import specs
from belljar_server.dependencies.semver import satisfies
from belljar_server.errors import InvalidRequest
from belljar_server.models import ExecutionRequest, SourceFile
from belljar_server.policy import Draft, judge
from belljar_server.runtimes import Ecosystem

PYTHON, NPM = Ecosystem.PYTHON, Ecosystem.NPM
HASH = "--hash=sha256:" + "0" * 64
INTEGRITY = "sha512-" + "A" * 86 + "=="


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("pandas", "pandas"),
        ("pandas==2.3", "pandas==2.3"),
        (" polars >= 1 ", "polars>=1"),
        ("httpx[http2]>=0.27,<1", "httpx[http2]<1,>=0.27"),
        ('tomli>=2; python_version < "3.11"', 'tomli>=2; python_version < "3.11"'),
    ],
)
def test_python_names_with_versions_extras_and_markers_are_taken(text: str, canonical: str) -> None:
    """As PEP 508 has them."""
    assert specs.canonical(PYTHON, text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--index-url=x",
        "-e .",
        "./local",
        "/etc/passwd",
        "file:///etc/passwd",
        "git+ssh://host/x",
        "x @ git+https://host/x",
        "x @ file:///etc/passwd",
        "x@https://host/x.whl",
        "pandas\n--index-url x",
        "pandas\rx",
        "pandas; echo",
        "pandas==2.3 --hash=sha256:0",
        "p\u00e4ndas",
        "pandas\0",
        "a" * 10_000,
        "../x",
        "pandas==",
    ],
)
def test_anything_else_is_refused_for_python(text: str) -> None:
    """Options, URLs, paths, version control, line ends, what is too long."""
    with pytest.raises(specs.Refused):
        specs.canonical(PYTHON, text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("zod", "zod@*"),
        ("zod@4", "zod@4"),
        ("@scope/name@^1.2.3", "@scope/name@^1.2.3"),
        ("lodash@>=4 <5 || ~3.1", "lodash@>=4 <5 || ~3.1"),
        ("ms@1.x", "ms@1.x"),
        ("ms@1.2.3-beta.1", "ms@1.2.3-beta.1"),
        ("ms@latest", "ms@latest"),
        ("@a/b", "@a/b@*"),
        ("ms@1.0.0 - 2.0.0", "ms@1.0.0 - 2.0.0"),
    ],
)
def test_npm_names_with_ranges_are_taken(text: str, canonical: str) -> None:
    """As npm has them in package.json."""
    assert specs.canonical(NPM, text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "zod@",
        "zod@npm:other@1",
        "zod@file:../x",
        "zod@git+https://host/x",
        "zod@github:a/b",
        "a/b",
        "./x",
        "../x",
        "https://host/x.tgz",
        "zod@https://host/x.tgz",
        "--registry=x",
        "zod@4 --registry=x",
        "zod@4;x",
        "Zod",
        "zod@../../x",
        "zod@workspace:*",
        "zod@4\n",
        "@scope/../name",
        "a" * 300,
    ],
)
def test_anything_else_is_refused_for_npm(text: str) -> None:
    """Aliases, URLs, paths, git, options."""
    with pytest.raises(specs.Refused):
        specs.canonical(NPM, text)


@pytest.mark.parametrize(
    ("ecosystem", "wanted", "there"),
    [
        (PYTHON, "pandas>=2", True),
        (PYTHON, "Pandas", True),
        (PYTHON, "pandas<3", False),
        (PYTHON, "pandas[excel]", False),
        (PYTHON, "polars", False),
        (PYTHON, 'polars; sys_platform == "win32"', True),
        (NPM, "zod@4", True),
        (NPM, "zod@^4.1", True),
        (NPM, "zod@3", False),
        (NPM, "zod@latest", False),
        (NPM, "ms@*", False),
    ],
)
def test_what_is_preinstalled_is_not_installed_again(ecosystem: Ecosystem, wanted: str, *, there: bool) -> None:
    """When its version fits; what only another platform needs is not installed at all."""
    packages = {"pandas": "3.1.1", "zod": "4.1.12"}
    assert specs.is_preinstalled(ecosystem, wanted, packages) is there


@pytest.mark.parametrize(
    ("version", "wanted", "is_in"),
    [
        ("1.2.3", "*", True),
        ("1.2.3", "x", True),
        ("1.2.3", "1", True),
        ("1.2.3", "1.2.x", True),
        ("1.2.3", "1.3", False),
        ("1.2.3", "^1.0", True),
        ("2.0.0", "^1.0", False),
        ("0.2.9", "^0.2.3", True),
        ("0.3.0", "^0.2.3", False),
        ("0.0.4", "^0.0.3", False),
        ("1.2.9", "~1.2.3", True),
        ("1.3.0", "~1.2.3", False),
        ("1.9.0", "~1", True),
        ("1.2.3", ">=1 <2", True),
        ("2.0.0", ">= 1 < 2", False),
        ("2.0.0", ">1", True),
        ("1.5.0", ">1", False),
        ("1.5.0", "<=1", True),
        ("3.0.0", "1 || 3", True),
        ("1.5.0", "1.2 - 1.6.0", True),
        ("2.0.0", "1.2 - 1.6.0", False),
        ("1.2.3", "=1.2.3", True),
        ("1.2.3", "v1.2.3", True),
        ("1.2.3", "latest", False),
        ("1.2.3", "", False),
        ("1.2.3-beta", "*", False),
    ],
)
def test_ranges_mean_what_they_mean_to_npm(version: str, wanted: str, *, is_in: bool) -> None:
    """The examples of node-semver's own documentation among them."""
    assert satisfies(version, wanted) is is_in


def test_python_lock_is_written_anew() -> None:
    """Sorted, with canonical names and nothing but pins and hashes."""
    text = f"# by hand\nZope.Interface==7 {HASH}\nabc==1 \\\n    {HASH} {HASH}\n"
    assert specs.canonical_lock(PYTHON, text) == f"abc==1 \\\n    {HASH}\nzope-interface==7 \\\n    {HASH}\n"
    assert specs.locked_packages(PYTHON, specs.canonical_lock(PYTHON, text)) == {"abc": "1", "zope-interface": "7"}


@pytest.mark.parametrize(
    "text",
    [
        "abc==1",
        f"abc>=1 {HASH}",
        f"--index-url x\nabc==1 {HASH}",
        f"abc==1 {HASH} --index-url x",
        f"abc @ file:///x {HASH}",
        f"-r other.txt\nabc==1 {HASH}",
        f"abc==1 {HASH}\nabc==2 {HASH}",
        "abc==1 --hash=md5:0",
        "x" * (1 << 20 | 1),
    ],
)
def test_python_locks_with_anything_else_are_refused(text: str) -> None:
    """Options, missing hashes, other sources."""
    with pytest.raises(specs.Refused):
        specs.canonical_lock(PYTHON, text)


def npm_lock(**entry: object) -> str:
    """A lock with one package."""
    whole = {"version": "2.1.3", "integrity": INTEGRITY} | entry
    packages = {"": {"dependencies": {"ms": "2"}}, "node_modules/ms": whole}
    return json.dumps({"lockfileVersion": 3, "packages": packages})


def test_npm_lock_loses_addresses_and_scripts() -> None:
    """Where a file came from is this server's business."""
    text = specs.canonical_lock(NPM, npm_lock(resolved="https://host/x.tgz", bin={"ms": "x"}, scripts={"install": "x"}))
    assert json.loads(text)["packages"]["node_modules/ms"] == {"version": "2.1.3", "integrity": INTEGRITY}
    assert specs.locked_packages(NPM, text) == {"ms": "2.1.3"}
    assert specs.canonical_lock(NPM, text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        npm_lock(integrity=None),
        npm_lock(integrity="sha1-x"),
        npm_lock(version="file:../x"),
        npm_lock(link=True),
        json.dumps({"packages": {"": {"dependencies": {"ms": "file:/etc"}}}}),
        json.dumps({"packages": {"../x": {"version": "1.0.0", "integrity": INTEGRITY}}}),
    ],
)
def test_npm_locks_with_anything_else_are_refused(text: str) -> None:
    """Links, files, what has no hash, what is no lock."""
    with pytest.raises(specs.Refused):
        specs.canonical_lock(NPM, text)


def judged(**draft: object) -> ExecutionRequest:
    """What the policy says of a request."""
    settings = LimitSettings(default=LimitSet())
    asked = Draft(runtime="python", code="1", **draft)  # type: ignore[arg-type]
    return judge(asked, settings, ["python", "shell"], ecosystems={"python": PYTHON})


def test_policy_names_the_dependency_that_is_wrong() -> None:
    """By its place in the request, before anything starts."""
    with pytest.raises(InvalidRequest) as caught:
        judged(dependencies=("pandas", "git+ssh://host/x"), files=(SourceFile("a.py", b""),))
    assert [violation.field for violation in caught.value.violations] == ["dependencies[1]"]
    with pytest.raises(InvalidRequest) as caught:
        judged(lock="pandas")
    assert [violation.field for violation in caught.value.violations] == ["lock"]


def test_policy_bounds_their_number_and_lets_a_lock_win() -> None:
    """A lock says all; dependencies beside it are not even looked at."""
    with pytest.raises(InvalidRequest):
        judged(dependencies=("a",) * 65)
    for beside in (("pandas",), ("git+ssh://host/x",), ("a",) * 65):
        request = judged(dependencies=beside, lock=f"abc==1 {HASH}")
        assert (request.dependencies, request.lock) == ((), f"abc==1 \\\n    {HASH}\n")
    assert judged(dependencies=("pandas",), lock="# nothing\n").dependencies == ()
