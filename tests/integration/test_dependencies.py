"""Requested packages against a real index: installed once, in a sandbox, kept, locked, and told plainly when not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from belljar_client import Client, ErrorKind, Finished, InvalidRequest, Output, Phase, PhaseChange, Result
from tests.conftest import BELLJAR, Server, running_server, wait_until
from tests.hostile.conftest import is_tidy, state_of
from tests.integration import indexes, versitygw
from tests.integration import npm as npm_registry
from tests.integration.pools import has_only_what_waits, pool, run_warm
from tests.integration.test_s3_service import make_bucket, settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the index serves."""
    made = tmp_path_factory.mktemp("index")
    for version in ("1.0", "1.1", "2.0"):
        indexes.wheel(made, "fruit", {"fruit/__init__.py": f"version = '{version}'\n"}, version=version)
    indexes.wheel(made, "basket", {"basket.py": "import fruit\nheld = fruit.version\n"}, requires="fruit<2")
    indexes.wheel(made, "crate", {"crate.py": ""}, requires="fruit>=2")
    indexes.wheel(made, "plot", {"plot.py": "import numpy\nversion = numpy.__version__\n"}, requires="numpy>=1")
    indexes.foreign_wheel(made, "glacier")
    indexes.sdist(made, "source", "pass")
    return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's images and runsc, with layers of requested packages of its own."""
    return own_data_dir(tmp_path_factory.mktemp("data"))


def own_data_dir(made: Path) -> Path:
    """Links to what set-up has made; what a server adds goes elsewhere."""
    shared = Path(os.environ.get("BELLJAR_DATA_DIR", "/var/lib/belljar"))
    for name in ("bin", "images", "layers", "registries.json"):
        if (shared / name).exists() and not (made / name).exists():
            (made / name).symlink_to(shared / name)
    return made


@pytest.fixture(scope="module")
def npm() -> Iterator[npm_registry.Registry]:
    """A registry for Node."""
    with npm_registry.registry() as registry:
        script = "require('fs').writeFileSync('touched', 'by a script')"
        registry.add("pear", {"index.js": "exports.n = 1;"}, version="1.5.0")
        registry.add("pear", {"index.js": "exports.n = 2;"}, version="2.0.0")
        registry.add(
            "@fruits/bowl",
            {"index.mjs": "import { n } from 'pear';\nexport const held = n;"},
            main="index.mjs",
            dependencies={"pear": "^1"},
        )
        registry.add("lively", {"index.js": "exports.n = 1;", "run.js": script}, scripts={"postinstall": "node run.js"})
        registry.add("reaching", {"index.js": ""}, dependencies={"far": "git+https://example.invalid/far.git"})
        yield registry


@pytest.fixture(scope="module")
def shop(folder: Path, data_dir: Path, npm: npm_registry.Registry) -> Iterator[Server]:
    """A server with these."""
    with (
        indexes.python_index(folder) as address,
        running_server(
            DATA_DIR=str(data_dir), DEPENDENCIES__PYTHON_INDEX=address, DEPENDENCIES__NPM_REGISTRY=npm.address
        ) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def client(shop: Server) -> Iterator[Client]:
    """Its client."""
    with Client(shop.address) as connected:
        yield connected


def installations(server: Server) -> int:
    """How many it has made."""
    return server.log_text().count('"event": "dependencies installed"')


def failure(result: Result) -> tuple[str, str]:
    """Message and hint of a failure that is the packages'."""
    assert result.error is not None
    assert result.error.kind == ErrorKind.DEPENDENCY_FAILED, result
    return result.error.message, result.error.hint


def test_a_package_is_installed_once_and_then_there(client: Client, shop: Server) -> None:
    """The first run tells of the installation, the second has none."""
    before = installations(shop)
    first = client.execute("import basket\nreturn basket.held", dependencies=["basket"]).check()
    assert (first.value, b"fruit==1.1" in first.install_log) == ("1.1", True)
    assert first.usage.install_time > 0
    second = client.execute("import basket\nreturn basket.held", dependencies=["basket"]).check()
    assert (second.value, second.install_log) == ("1.1", b"")
    assert (second.lockfile, installations(shop)) == (first.lockfile, before + 1)
    assert re.search(r"^fruit==1\.1 \\\n {4}--hash=sha256:[0-9a-f]{64}$", first.lockfile, re.MULTILINE)


def test_phase_says_that_packages_are_installed_only_when_they_are(client: Client, folder: Path) -> None:
    """INSTALLING comes before STARTING."""
    indexes.wheel(folder, "phased", {"phased.py": ""})
    for expected in ([Phase.INSTALLING, Phase.STARTING], [Phase.STARTING]):
        events = client.stream("1", dependencies=["phased"])
        phases = [event.phase for event in events if isinstance(event, PhaseChange)]
        assert [phase for phase in phases if phase in (Phase.INSTALLING, Phase.STARTING)] == expected


def test_third_run_finds_a_sandbox_that_waits(client: Client, shop: Server) -> None:
    """The set has its snapshots after the first run, and a pool entry as long as it is asked for."""
    code = "import fruit\nreturn fruit.version"
    client.execute(code, dependencies=["fruit==2.0"]).check()
    names = re.findall(r'"runtime": "(python-[0-9a-f]{16})", "snapshots": 0, "event": "starting cold"', shop.log_text())
    wait_until(lambda: pool(shop, names[-1])["waiting"] > 0, "one waits", 90)
    warm, ended = run_warm(client, code, dependencies=["fruit==2.0"])
    assert (warm, ended.value) == (True, "2.0")


IS_LOADED = "import sys\nbefore = {name!r} in sys.modules\nimport {name}\nreturn before, {name}.n"


def finds_it_loaded(client: Client, code: str, *wanted: str) -> bool:
    """Asks for a set, with a pause: every run wants the CPU that snapshots are made with."""
    time.sleep(1)
    return client.execute(code, dependencies=list(wanted)).check().value[0] is True


def test_a_set_that_is_asked_for_again_finds_its_modules_loaded(client: Client, folder: Path) -> None:
    """Not by the first two; and not where it could make a difference."""
    indexes.wheel(folder, "quick", {"quick/__init__.py": "import os\nn = os.environ.get('N')\n", "quick/part.py": ""})
    code = IS_LOADED.format(name="quick")
    for _ in range(2):
        assert client.execute(code, dependencies=["quick"]).check().value == [False, None]
    wait_until(lambda: finds_it_loaded(client, code, "quick"), "it is loaded", 100)
    assert client.execute(code, dependencies=["quick"], env={"N": "1"}).check().value == [False, "1"]
    assert client.execute(code, dependencies=["quick"], allow=["allowed.example"]).check().value == [True, None]
    assert client.execute(f"{code}, 'quick.part' in sys.modules", dependencies=["quick"]).check().value[2] is False


def test_copies_with_modules_loaded_have_nothing_random_in_common(client: Client, folder: Path) -> None:
    """Of numpy neither; there are but two hash seeds."""
    indexes.wheel(folder, "stats", {"stats.py": "import numpy.random\n"})
    wait_until(lambda: finds_it_loaded(client, DRAWN, "stats"), "it is loaded", 100)
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(client.execute, DRAWN, dependencies=["stats"]) for _ in range(4)]
        drawn = [run.result().check().value for run in runs]
    assert all(loaded for loaded, *_ in drawn)
    assert len({number for _, *numbers in drawn for number in numbers}) == 4 * 5


DRAWN = """
import random, sys, tempfile, uuid
loaded = "stats" in sys.modules
import numpy, stats
return loaded, random.random(), uuid.uuid4().hex, tempfile.mktemp(), uuid.getnode(), float(numpy.random.rand())
"""


AHEAD = """
try:
    open("/home/user/here", "w").close()
    ahead = False
except OSError:  # there is no disk before there is a job
    ahead = True
"""
TRICKS = {
    "lucky": ("import uuid\nuuid.uuid4()", "draws random numbers"),
    "drawing": ("import random\nrandom.random()", "more than to define modules"),
    "generator": ("import numpy\nnumpy.random.default_rng()", "draws random numbers"),
    "native": ("import ctypes\nctypes.CDLL(None).getrandom(bytes(8), 8, 0)", "draws random numbers"),
    "loud": ("print('hello')", "more than to define modules"),
    "threaded": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "modules",
    ),
    "forking": (
        "import os, time\nif os.fork() == 0:\n    time.sleep(99)\n    os._exit(0)",
        "more than to define modules",
    ),
    "littering": ("open('/dev/shm/litter', 'w').close()", "more than to define modules"),
    "leaving": (AHEAD + "import os\nif ahead: os._exit(0)", "ended before it was ready"),
    "hanging": (AHEAD + "import time\nwhile ahead: time.sleep(1)", "it hangs"),
    "hungry": (AHEAD + "if ahead: x = b'x' * (400 << 20)", "did not start"),
    "failing": (AHEAD + "if ahead: raise SystemExit", "cannot be imported"),
}
"""Modules that do more when they are imported than to be there, and what is said of them."""


def test_what_does_more_at_import_than_to_be_there_is_not_loaded_ahead(
    client: Client, shop: Server, folder: Path
) -> None:
    """It would be the same in all copies, or missing; each run imports it, which works as ever."""
    indexes.wheel(folder, "tricks", {f"{name}.py": f"{source}\nn = 1\n" for name, (source, _) in TRICKS.items()})
    codes = {name: IS_LOADED.format(name=name) for name in TRICKS}
    for code in codes.values():
        for _ in range(2):
            assert client.execute(code, dependencies=["tricks"]).check().value == [False, 1]
    said = [rf'"imports": \["import {name}"\][^\n]*{why}[^\n]*not preloaded' for name, (_, why) in TRICKS.items()]
    wait_until(lambda: all(re.search(each, shop.log_text()) for each in said), "all are told", 100)
    for code in codes.values():
        assert client.execute(code, dependencies=["tricks"]).check().value == [False, 1]


def test_a_lock_gives_the_very_same_packages(client: Client, folder: Path) -> None:
    """Also when there is a newer version by now."""
    indexes.wheel(folder, "tool", {"tool.py": "version = 1\n"}, version="1.0")
    first = client.execute("import tool\nreturn tool.version", dependencies=["tool"]).check()
    indexes.wheel(folder, "tool", {"tool.py": "version = 2\n"}, version="2.0")
    locked = client.execute("import tool\nreturn tool.version", lock=first.lockfile).check()
    assert (locked.value, locked.lockfile) == (1, first.lockfile)
    newer = client.execute("import tool\nreturn tool.version", dependencies=["tool>1"]).check()
    assert newer.value == 2


def test_a_lock_whose_hash_is_wrong_installs_nothing(client: Client) -> None:
    """What the registry sends must be what the lock says."""
    lock = f"fruit==1.0 --hash=sha256:{'0' * 64}"
    assert failure(client.execute("import fruit", lock=lock))[0].endswith("is not what the lock says")


def test_what_is_preinstalled_is_not_installed_again(client: Client, shop: Server) -> None:
    """Neither when it is named nor when something named needs it."""
    before = installations(shop)
    result = client.execute("import pandas\nreturn pandas.__version__", dependencies=["pandas>=2"]).check()
    assert (result.lockfile, installations(shop)) == ("", before)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["no-such-package"], "no-such-package is not in the registry"),
        (["bs4-of-mine"], "bs4-of-mine is not in the registry"),
        (["fruit==9"], "fruit==9: there is no such version"),
        (["basket", "crate"], "basket, crate: the versions that are asked for conflict"),
        (["glacier"], "glacier: there is no wheel for this platform"),
        (["source"], "source: there is no wheel for this platform"),
    ],
)
def test_failures_name_package_and_reason(client: Client, wanted: list[str], says: str) -> None:
    """With the installer's own last words, and the code is not run."""
    result = client.execute("print('ran')", dependencies=wanted)
    assert failure(result)[0] == says
    assert result.error is not None
    assert result.error.traceback
    assert result.stdout == b""


def test_a_name_that_is_imported_gets_the_name_that_is_installed(client: Client) -> None:
    """It is known that sklearn is scikit-learn."""
    assert failure(client.execute("1", dependencies=["sklearn"])) == (
        "sklearn is not in the registry",
        "Did you mean scikit-learn?",
    )


@pytest.mark.parametrize(
    ("runtime", "wanted", "near"), [("python", "friut", "fruit"), ("javascript", "@fruits/bowls", "@fruits/bowl")]
)
def test_a_name_with_a_slip_gets_near_names_that_the_registry_has(
    client: Client, runtime: str, wanted: str, near: str
) -> None:
    """Only those that are there."""
    message, hint = failure(client.execute("1", runtime=runtime, dependencies=[wanted]))
    assert (message, hint) == (f"{wanted} is not in the registry", f"Did you mean {near}?")


@pytest.mark.parametrize("text", ["--index-url=x", "git+ssh://host/x", "x @ file:///etc/passwd", "a\nb", "a" * 10_000])
def test_anything_but_a_name_with_a_version_is_refused_by_its_field(client: Client, text: str) -> None:
    """Before anything starts."""
    with pytest.raises(InvalidRequest) as caught:
        client.execute("1", dependencies=["pandas", text])
    assert [violation.field for violation in caught.value.violations] == ["dependencies[1]"]


def test_twenty_requests_for_a_new_set_are_one_installation(client: Client, shop: Server, folder: Path) -> None:
    """All are answered, and all hear of it."""
    indexes.wheel(folder, "shared", {"shared.py": "n = 1\n"})
    before = installations(shop)
    with ThreadPoolExecutor(20) as threads:
        asked = [
            threads.submit(client.execute, "import shared\nreturn shared.n", dependencies=["shared"]) for _ in range(20)
        ]
        results = [each.result() for each in asked]
    assert [result.check().value for result in results] == [1] * 20
    assert installations(shop) == before + 1
    assert sum(b"shared==1.0" in result.install_log for result in results) >= 1


def test_cancelling_one_who_waits_does_not_cancel_the_others(client: Client, shop: Server, folder: Path) -> None:
    """The first goes away in the middle of it; the second gets what both asked for."""
    indexes.wheel(folder, "slow", {f"slow/m{n}.py": f"x = {n}\n" * 50 for n in range(300)} | {"slow/__init__.py": ""})
    before = installations(shop)
    first = client.stream("1", dependencies=["slow"])
    for event in first:
        if isinstance(event, PhaseChange) and event.phase is Phase.INSTALLING:
            break
    answers: list[Any] = []
    second = threading.Thread(
        target=lambda: answers.append(client.execute("import slow.m7\nreturn slow.m7.x", dependencies=["slow"]))
    )
    second.start()
    wait_until(lambda: shop.log_text() != "", "it logs")
    time.sleep(0.2)  # the second is on its way to the server; where it arrives decides nothing
    first.close()
    second.join(60)
    assert answers[0].check().value == 7
    assert installations(shop) <= before + 2
    wait_until(lambda: is_tidy(shop), lambda: state_of(shop), 30)


def test_the_last_who_goes_away_ends_the_installation(client: Client, shop: Server, folder: Path) -> None:
    """Nobody waits, nothing is left."""
    indexes.wheel(folder, "lonely", {f"lonely/m{n}.py": "x = 1\n" for n in range(500)})
    before = installations(shop)
    stream = client.stream("1", dependencies=["lonely"])
    for event in stream:
        if isinstance(event, PhaseChange) and event.phase is Phase.INSTALLING:
            break
    stream.close()
    wait_until(lambda: has_only_what_waits(shop), lambda: state_of(shop), 30)
    assert installations(shop) == before


def test_packages_do_not_shadow_the_language_nor_run_by_being_there(client: Client, folder: Path) -> None:
    """The standard library stays itself; .pth files, sitecustomize and commands on PATH do nothing."""
    indexes.wheel(
        folder,
        "sly",
        {
            "json.py": "raise SystemExit('json of a package')\n",
            "framing.py": "raise SystemExit('framing of a package')\n",
            "worker.py": "raise SystemExit('worker of a package')\n",
            "sly.pth": "import sys; sys.exit('a .pth was run')\n",
            "sitecustomize.py": "raise SystemExit('sitecustomize of a package')\n",
            "usercustomize.py": "raise SystemExit('usercustomize of a package')\n",
            "sly-1.0.data/scripts/ls": "#!/bin/sh\necho a command of a package\n",
            "sly.py": "here = True\n",
        },
    )
    code = """
import json, shutil, subprocess, sys
import sly
child = subprocess.run([sys.executable, "-c", "import json; print(json.dumps([1]))"], capture_output=True, text=True)
return [json.loads("[1]"), child.stdout, shutil.which("ls"), sly.here]
"""
    assert client.execute(code, dependencies=["sly"]).check().value == [[1], "[1]\n", "/usr/bin/ls", True]


def test_a_package_is_read_only(client: Client) -> None:
    """What code does to it is gone with the sandbox, and cannot be done."""
    code = """
import fruit
try:
    open(fruit.__file__, "a")
except OSError as error:
    return type(error).__name__, error.errno
"""
    assert client.execute(code, dependencies=["fruit==1.0"]).check().value == ["PermissionError", 13]


@pytest.mark.parametrize("dependencies", [["fruit==1.0"], []])
def test_packages_are_there_with_a_network_too(client: Client, dependencies: list[str]) -> None:
    """Requested ones and preinstalled ones; what is denied is still denied."""
    wanted = "fruit" if dependencies else "pandas"
    code = f"""
import urllib.request
import {wanted}
try:
    urllib.request.urlopen("http://denied.example/", timeout=10)
except OSError as error:
    return {wanted}.__name__
"""
    result = client.execute(code, dependencies=dependencies, allow=["allowed.example"]).check()
    assert (result.value, bool(result.denied_connections)) == (wanted, True)


NODE = """\
import { held } from '@fruits/bowl';
import pear from 'pear';
import _ from 'lodash';
import { readdirSync } from 'node:fs';
return [held, pear.n, typeof _.chunk, readdirSync('.')];
"""


@pytest.mark.parametrize("runtime", ["javascript", "typescript"])
def test_npm_packages_are_imported_with_what_they_need(client: Client, runtime: str) -> None:
    """Each finds its own version; what is preinstalled is still there; nothing of it is an artifact."""
    result = client.execute(NODE, runtime=runtime, dependencies=["@fruits/bowl", "pear@2"]).check()
    assert (result.value, result.artifacts) == ([1, 2, "function", []], ())
    again = client.execute("return require('pear').n;", runtime=runtime, lock=result.lockfile).check()
    assert (again.value, again.lockfile) == (2, result.lockfile)


def test_npm_package_scripts_are_not_run(client: Client) -> None:
    """They are off unless a setting says otherwise."""
    code = "require('lively');\nreturn require('fs').readdirSync('/deps/node_modules/lively').sort();"
    result = client.execute(code, runtime="javascript", dependencies=["lively"]).check()
    assert result.value == ["index.js", "package.json", "run.js"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("no-such-package", "no-such-package is not in the registry"),
        ("pear@9", "pear@9: there is no such version"),
        ("reaching", "reaching@* could not be installed"),
    ],
)
def test_npm_failures_name_package_and_reason(client: Client, wanted: str, says: str) -> None:
    """A package that wants something from elsewhere cannot be installed: there is no way there."""
    assert failure(client.execute("return 1", runtime="javascript", dependencies=[wanted]))[0] == says


def test_a_registry_that_is_down_is_told_apart_and_waited_for(tmp_path: Path) -> None:
    """It is not the code's fault; what is kept still works; one that comes back in time was never away."""
    folder = tmp_path / "index"
    folder.mkdir()
    indexes.wheel(folder, "early", {"early.py": "n = 1\n"})
    with contextlib.ExitStack() as index:
        address = index.enter_context(indexes.python_index(folder))
        with (
            running_server(
                DATA_DIR=str(own_data_dir(tmp_path)),
                DEPENDENCIES__PYTHON_INDEX=address,
                DEPENDENCIES__TIMEOUT="15",
                POOL__MAX="0",
            ) as server,
            Client(server.address) as client,
        ):
            assert client.execute("import early\nreturn early.n", dependencies=["early"]).check().value == 1
            index.close()
            message, hint = failure(client.execute("1", dependencies=["late"]))
            assert "the registry cannot be reached" in message
            assert "try again" in hint
            assert client.execute("import early\nreturn early.n", dependencies=["early"]).check().value == 1
            indexes.wheel(folder, "patient", {"patient.py": "n = 2\n"})
            ended = None
            for event in client.stream("import patient\nreturn patient.n", dependencies=["patient"]):
                if isinstance(event, Output) and b"trying again" in event.content:
                    index.enter_context(indexes.python_index(folder, int(address.split(":")[2].split("/")[0])))
                ended = event
            assert isinstance(ended, Finished)
            assert ended.result_json == "2"


def test_old_resolutions_serve_while_they_are_made_anew(tmp_path: Path) -> None:
    """After the time to live a newer version comes, one run later."""
    folder = tmp_path / "index"
    folder.mkdir()
    indexes.wheel(folder, "news", {"news.py": "n = 1\n"}, version="1.0")
    code = "import news\nreturn news.n"
    with (
        indexes.python_index(folder) as address,
        running_server(
            DATA_DIR=str(own_data_dir(tmp_path)),
            DEPENDENCIES__PYTHON_INDEX=address,
            DEPENDENCIES__RESOLVE_TTL="0",
            POOL__MAX="0",
        ) as server,
        Client(server.address) as client,
    ):
        assert client.execute(code, dependencies=["news"]).check().value == 1
        indexes.wheel(folder, "news", {"news.py": "n = 2\n"}, version="2.0")
        assert client.execute(code, dependencies=["news"]).check().value == 1
        wait_until(lambda: installations(server) == 2, "it is resolved again", 60)
        assert client.execute(code, dependencies=["news"]).check().value == 2


def test_layers_above_the_budget_go_and_come_again(tmp_path: Path) -> None:
    """The least recently used first; whoever asks again waits once more."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("one", "two", "three"):
        indexes.wheel(folder, name, {f"{name}.py": f"n = {name!r}\n"})
    with (
        indexes.python_index(folder) as address,
        running_server(
            DATA_DIR=str(own_data_dir(tmp_path)),
            DEPENDENCIES__PYTHON_INDEX=address,
            DEPENDENCIES__CACHE_BYTES="0",
            POOL__MAX="0",
        ) as server,
        Client(server.address) as client,
    ):
        for name in ("one", "two", "three", "one"):
            assert client.execute(f"import {name}\nreturn {name}.n", dependencies=[name]).check().value == name


def test_sets_are_installed_ahead_listed_and_removed(tmp_path: Path) -> None:
    """`belljar cache` does what a server would, without one."""
    folder = tmp_path / "index"
    folder.mkdir()
    indexes.wheel(folder, "ahead", {"ahead.py": "n = 1\n"})
    sets = tmp_path / "sets.toml"
    sets.write_text(
        '[[set]]\nruntime = "python"\ndependencies = ["ahead"]\n'
        '[[set]]\nruntime = "python"\ndependencies = ["pandas"]\n'
    )
    with indexes.python_index(folder) as address, tempfile.TemporaryDirectory(prefix="belljar-") as runtime_dir:
        environ = os.environ | {
            "BELLJAR_DATA_DIR": str(own_data_dir(tmp_path)),
            "BELLJAR_RUNTIME_DIR": runtime_dir,
            "BELLJAR_DEPENDENCIES__PYTHON_INDEX": address,
        }

        def cache(*arguments: str) -> str:
            done = subprocess.run(
                [BELLJAR, "cache", *arguments], env=environ, capture_output=True, text=True, check=False, timeout=100
            )
            assert done.returncode == 0, done
            return done.stdout

        warmed = cache("warm", str(sets))
        assert "python: ahead: ahead 1.0" in warmed
        assert "python: pandas: preinstalled" in warmed
        assert "ahead 1.0" in cache("list")
        assert cache("prune") == "1 layers removed\n"
        assert cache("list", "--json") == "[]\n"


def test_another_replica_fetches_from_the_bucket_what_one_has_installed(tmp_path: Path) -> None:
    """It asks no index: there is none any more."""
    folder = tmp_path / "index"
    folder.mkdir()
    indexes.wheel(folder, "common", {"common.py": "n = 1\n"})
    with versitygw.running(tmp_path / "s3") as gateway:
        asyncio.run(make_bucket(gateway.url))
        replicas = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            chosen = settings(gateway, tmp_path / name)
            replicas.append(chosen | {"DATA_DIR": str(own_data_dir(tmp_path / name / "data")), "POOL__MAX": "0"})
        with (
            indexes.python_index(folder) as address,
            running_server(**replicas[0], DEPENDENCIES__PYTHON_INDEX=address) as server,
            Client(server.address) as client,
        ):
            first = client.execute("import common\nreturn common.n", dependencies=["common"]).check()
        nowhere = f"http://127.0.0.1:{indexes.free_port()}/simple/"
        with (
            running_server(**replicas[1], DEPENDENCIES__PYTHON_INDEX=nowhere) as server,
            Client(server.address) as client,
        ):
            assert client.execute("import common\nreturn common.n", lock=first.lockfile).check().value == 1
            assert installations(server) == 0
