"""Building, finding and replacing images, with small programs in place of mmdebstrap, unshare, npm and mkfs.erofs."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import platform
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from belljar_server import setup
from belljar_server.config import Settings
from belljar_server.errors import HostNotReady
from belljar_server.runtimes import ImageRecipe, NpmPackage, Runtime
from belljar_server.setup import erofs, images, npm, published, rootfs, system
from belljar_server.setup.cache import Cache

MMDEBSTRAP = """
for last; do :; done
echo mmdebstrap "$@" >> {log}
mkdir -p "$last/etc/ssl/certs" "$last/usr/share/ca-certificates/mozilla" "$last/usr/share/doc/x"
mkdir -p "$last/usr/lib/python3.13" "$last/dev" "$last/etc/apt"
echo certificate > "$last/usr/share/ca-certificates/mozilla/a.crt"
echo host > "$last/etc/hostname"; echo deb > "$last/etc/apt/sources.list"; echo doc > "$last/usr/share/doc/x/copyright"
echo x > "$last/usr/lib/python3.13/os.py"; chmod 4777 "$last/usr/lib/python3.13/os.py"
"""
MKFS = """
echo mkfs "$@" >> {log}
previous=; for last; do target=$previous; previous=$last; done
tar --create --file "$target" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$last" .
"""
UNSHARE = """
echo unshare "$@" >> {log}
case "$*" in *--version) echo "Interpreter v3.13.5";; esac
"""
NPM = """
case $1 in --version) echo 11.0.0; exit;; esac
for last; do :; done
echo npm "$last" >> {log}
cp "{packages}/$(echo "$last" | tr / _).tgz" .
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The calls of all the programs that stand in for the real ones, which are on PATH."""
    log, packages, folder = tmp_path / "calls", tmp_path / "packages", tmp_path / "path"
    log.touch()
    packages.mkdir()
    folder.mkdir()
    scripts = {"mmdebstrap": MMDEBSTRAP, "mkfs.erofs": MKFS, "unshare": UNSHARE, "npm": NPM, "ldconfig": "", "node": ""}
    for name, script in scripts.items():
        program = folder / name
        program.write_text("#!/bin/sh\nset -eu\n" + script.format(log=log, packages=packages))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(system, "FILES", {})
    monkeypatch.setattr(system, "debian_sources", lambda _: [])
    return log


def publish(log: Path, name: str, version: str, files: dict[str, bytes]) -> str:
    """Puts a package where the stand-in for npm finds it; returns its integrity."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            member.mode = 0o755 if path.endswith("node") else 0o644
            archive.addfile(member, io.BytesIO(content))
    (log.parent / "packages" / f"{name}@{version}.tgz".replace("/", "_")).write_bytes(buffer.getvalue())
    return "sha512-" + base64.b64encode(hashlib.sha512(buffer.getvalue()).digest()).decode()


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """A runtime with one worker file."""
    worker = tmp_path / "worker"
    worker.mkdir()
    (worker / "worker.py").write_text("print('hello')\n")
    recipe = ImageRecipe("small", copies=((worker, "/opt/belljar/small"),), compile_python=("/opt/belljar/small",))
    return Runtime("small", "3.13", "main.py", recipe, ("/usr/bin/python3", "/opt/belljar/small/worker.py"))


def build(data_dir: Path, *runtimes: Runtime) -> list[Path]:
    """Builds what is missing."""
    scratch = data_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return images.build_missing(data_dir, list(runtimes), scratch, lambda _: None)


def calls(log: Path, program: str) -> list[str]:
    """How a program was called."""
    return [line for line in log.read_text().splitlines() if line.split(" ")[0] == program]


def contents(image: Path) -> dict[str, tarfile.TarInfo]:
    """What is in an image, which here is a tarball."""
    with tarfile.open(image) as archive:
        return {member.name.removeprefix("./"): member for member in archive}


def test_built_image_is_found_with_digest_and_exact_version(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """The service finds what set-up built, by the hash of its bytes."""
    (path,) = build(tmp_path / "data", runtime)
    found = images.find(tmp_path / "data", runtime)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == images.Image(path, f"sha256:{digest}", "3.13.5")
    assert path.name == f"small-{digest[:16]}.erofs"
    manifest = json.loads((tmp_path / "data/images/small.json").read_text())
    assert manifest["versions"] == {"/usr/bin/python3": "3.13.5"}


def test_second_build_does_nothing(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """A host that is ready stays as it is: no program is started."""
    build(tmp_path / "data", runtime)
    log.write_text("")
    assert build(tmp_path / "data", runtime) == []
    assert log.read_text() == ""


def test_same_inputs_give_the_same_digest_on_two_hosts(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """Nothing of the place or the hour of the build is in an image."""
    build(tmp_path / "one", runtime)
    build(tmp_path / "two", runtime)
    assert images.find(tmp_path / "one", runtime).digest == images.find(tmp_path / "two", runtime).digest


def test_changed_worker_makes_the_image_stale_and_rebuilds_without_fetching(
    tmp_path: Path, log: Path, runtime: Runtime
) -> None:
    """Whoever edits a worker waits seconds, and a service with a stale image does not start."""
    data = tmp_path / "data"
    build(data, runtime)
    before = images.find(data, runtime)
    (tmp_path / "worker" / "worker.py").write_text("print('changed')\n")
    with pytest.raises(HostNotReady, match="belljar setup"):
        images.find(data, runtime)
    log.write_text("")
    build(data, runtime)
    assert images.find(data, runtime).digest != before.digest
    assert not calls(log, "mmdebstrap")


@pytest.mark.parametrize(
    "change",
    [
        {"debian": ("git",)},
        {"compile_python": ()},
        {"copies": ()},
        {"run_at_build": (("/bin/true",),)},
    ],
)
def test_changed_recipe_makes_another_key(runtime: Runtime, change: dict[str, Any]) -> None:
    """Every part of a recipe counts."""
    assert images.key(dataclasses.replace(runtime.image, **change)) != images.key(runtime.image)


def test_changed_agent_makes_another_key(tmp_path: Path, runtime: Runtime) -> None:
    """The agent is in every image, so a new one makes all of them stale."""
    guest = tmp_path / "guest"
    guest.mkdir()
    (guest / "agent.py").write_text("1\n")
    before = images.key(runtime.image, guest)
    (guest / "agent.py").write_text("2\n")
    assert images.key(runtime.image, guest) != before


def test_compiled_python_beside_a_worker_does_not_count(tmp_path: Path, runtime: Runtime) -> None:
    """Running the unit tests leaves __pycache__ behind; that must not make images stale."""
    before = images.key(runtime.image)
    cache = tmp_path / "worker" / "__pycache__"
    cache.mkdir()
    (cache / "worker.cpython-311.pyc").write_bytes(b"x")
    assert images.key(runtime.image) == before


def test_missing_image_says_what_to_do(tmp_path: Path, runtime: Runtime) -> None:
    """A host without images gets one sentence and one command."""
    with pytest.raises(HostNotReady, match="no image small for small: run `belljar setup`"):
        images.find(tmp_path, runtime)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}'])
def test_damaged_manifest_is_a_missing_image(tmp_path: Path, log: Path, runtime: Runtime, damage: str) -> None:
    """Whatever stands in the manifest, the answer is a sentence, and set-up mends it."""
    build(tmp_path, runtime)
    (tmp_path / "images/small.json").write_text(damage)
    with pytest.raises(HostNotReady, match="belljar setup"):
        images.find(tmp_path, runtime)
    build(tmp_path, runtime)
    assert images.find(tmp_path, runtime).version == "3.13.5"


def test_image_that_was_deleted_is_built_again(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """A manifest without its file is stale."""
    (path,) = build(tmp_path, runtime)
    path.unlink()
    assert build(tmp_path, runtime) == [path]


def test_runtimes_with_one_recipe_share_an_image(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """Two languages on one engine cost one image; each knows its own interpreter's version."""
    other = Runtime("other", "1", "main.x", runtime.image, ("/usr/local/bin/other",))
    assert len(build(tmp_path, runtime, other)) == 1
    assert images.find(tmp_path, runtime).path == images.find(tmp_path, other).path


def test_two_recipes_of_one_name_are_refused(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """One would overwrite the other at every set-up."""
    other = Runtime("other", "1", "main.x", ImageRecipe("small", ("git",)), ("/usr/bin/python3",))
    with pytest.raises(HostNotReady, match="different recipes for the image small"):
        build(tmp_path, runtime, other)


def test_image_has_accounts_certificates_and_nothing_of_the_host(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """What maintainer scripts would have done is done; host name, mirrors and documentation are not in."""
    (path,) = build(tmp_path, runtime)
    inside = contents(path)
    assert {"etc/passwd", "etc/ssl/certs/ca-certificates.crt", "opt/belljar/guest/agent.py"} <= set(inside)
    assert {"proc", "dev/shm", "tmp", "home/user", "code", "run", "deps"} <= set(inside)
    assert not {"etc/apt", "usr/share/doc"} & set(inside)
    with tarfile.open(path) as archive:
        hostname = archive.extractfile("./etc/hostname")
        assert hostname is not None
        assert hostname.read() == b"belljar\n"


def test_image_has_no_setuid_bit_and_nothing_writable_for_all(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """The tree is sealed: only /tmp and /var/tmp, which are sticky, can be written by others."""
    (path,) = build(tmp_path, runtime)
    inside = contents(path)
    assert inside["usr/lib/python3.13/os.py"].mode == 0o755
    assert sorted(name for name, member in inside.items() if member.mode & 0o002) == ["tmp", "var/tmp"]


def test_seal_removes_pipes_and_sockets_and_keeps_links(tmp_path: Path) -> None:
    """Only files, folders and links are data."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/shadow")
    (tmp_path / "file").touch(0o600)
    erofs.seal(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_tree_hash_sees_content_names_modes_and_link_targets(tmp_path: Path) -> None:
    """Two trees with the same hash are the same tree."""
    seen = set()

    def look() -> None:
        seen.add(erofs.tree_hash(tmp_path))

    (tmp_path / "a").write_text("1")
    look()
    (tmp_path / "a").write_text("2")
    look()
    (tmp_path / "a").rename(tmp_path / "b")
    look()
    (tmp_path / "b").chmod(0o755)
    look()
    (tmp_path / "l").symlink_to("b")
    look()
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("a")
    look()
    assert len(seen) == 6


def test_tree_hash_does_not_see_times(tmp_path: Path) -> None:
    """An image's UUID, and with it every snapshot, must not change with the hour."""
    (tmp_path / "a").write_text("1")
    before = erofs.tree_hash(tmp_path)
    os.utime(tmp_path / "a", (1, 1))
    assert erofs.tree_hash(tmp_path) == before


def npm_recipe(runtime: Runtime, package: NpmPackage, project: Path | None = None) -> Runtime:
    """The runtime with a binary out of an npm package."""
    recipe = ImageRecipe("small", npm_binaries={platform.machine(): (package,)}, npm_project=project)
    return Runtime(runtime.name, runtime.version, runtime.main_file, recipe, runtime.worker)


def test_npm_binary_is_checked_and_put_in_place(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """One file of the tarball goes in, executable; the rest does not."""
    integrity = publish(log, "node-bin", "1.2.3", {"package/bin/node": b"ELF", "package/README": b"text"})
    package = NpmPackage("node-bin", "1.2.3", integrity, "package/bin/node", "/usr/local/bin/node")
    (path,) = build(tmp_path / "data", npm_recipe(runtime, package))
    inside = contents(path)
    assert inside["usr/local/bin/node"].mode == 0o755
    assert not any("README" in name for name in inside)


def test_npm_package_with_another_content_is_refused(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """The recipe's integrity decides, not what the registry says today; nothing of it is kept."""
    publish(log, "node-bin", "1.2.3", {"package/bin/node": b"evil"})
    package = NpmPackage("node-bin", "1.2.3", "sha512-" + "A" * 86 + "==", "package/bin/node", "/usr/local/bin/node")
    with pytest.raises(HostNotReady, match=r"node-bin@1\.2\.3 should have sha512-A"):
        build(tmp_path / "data", npm_recipe(runtime, package))
    assert not list((tmp_path / "data/cache").glob("npm-*"))
    assert not list((tmp_path / "data/images").glob("*"))


def test_npm_package_without_the_binary_is_refused(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """A package whose layout changed is told by name."""
    integrity = publish(log, "node-bin", "1.2.3", {"package/other": b"x"})
    package = NpmPackage("node-bin", "1.2.3", integrity, "package/bin/node", "/usr/local/bin/node")
    with pytest.raises(HostNotReady, match="has no file package/bin/node"):
        build(tmp_path / "data", npm_recipe(runtime, package))


def test_recipe_for_another_machine_is_refused(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """No binary for this machine is told before anything is fetched."""
    recipe = ImageRecipe("small", npm_binaries={"riscv64": ()})
    with pytest.raises(HostNotReady, match="cannot be built for"):
        build(tmp_path, Runtime("x", "1", "main.x", recipe, ("/x",)))
    assert log.read_text() == ""


def lock_file(project: Path, **packages: dict[str, object]) -> Path:
    """A project with a lock file of these packages."""
    project.mkdir(exist_ok=True)
    entries = {"": {"name": "project"}, **{f"node_modules/{name}": entry for name, entry in packages.items()}}
    (project / "package-lock.json").write_text(json.dumps({"lockfileVersion": 3, "packages": entries}))
    return project


def test_npm_project_is_unpacked_from_its_lock_for_this_machine_only(
    tmp_path: Path, log: Path, runtime: Runtime
) -> None:
    """Packages for other systems, other C libraries and development stay out; no package script runs."""
    used = publish(log, "used", "1.0.0", {"package/index.js": b"1", "package/../../evil": b"x"})
    here: dict[str, object] = {"version": "1.0.0", "integrity": used}
    entry: dict[str, object] = {"version": "1.0.0", "integrity": "sha512-x"}
    project = lock_file(
        tmp_path / "project",
        used=here | {"os": ["linux"], "libc": ["glibc"], "cpu": ["x64", "arm64"]},
        musl=entry | {"libc": ["musl"]},
        mac=entry | {"os": ["darwin"]},
        not_here=entry | {"os": ["!linux"]},
        tests=entry | {"dev": True},
    )
    with pytest.raises(HostNotReady, match="outside"):
        images.build_missing(
            tmp_path / "data",
            [Runtime("x", "1", "main.x", ImageRecipe("x", npm_project=project), ("/x",))],
            tmp_path,
            lambda _: None,
        )
    assert [line.removeprefix("npm ") for line in calls(log, "npm")] == ["used@1.0.0"]


def test_npm_project_lands_below_its_folder(tmp_path: Path, log: Path) -> None:
    """The worker finds its libraries in /opt/belljar/npm/node_modules."""
    integrity = publish(log, "@scope/used", "1.0.0", {"whatever/lib/index.js": b"1"})
    entry: dict[str, object] = {"version": "1.0.0", "integrity": integrity}
    project = lock_file(tmp_path / "project", **{"@scope/used": entry})
    runtime = Runtime("x", "1", "main.x", ImageRecipe("x", npm_project=project), ("/x",))
    (path,) = build(tmp_path / "data", runtime)
    assert "opt/belljar/npm/node_modules/@scope/used/lib/index.js" in contents(path)


@pytest.mark.parametrize("place", ["../evil", "node_modules/../../evil"])
def test_lock_that_points_elsewhere_is_refused(tmp_path: Path, place: str) -> None:
    """A lock file decides about paths below node_modules and nothing else."""
    (tmp_path / "package-lock.json").write_text(
        json.dumps({"packages": {place: {"version": "1", "integrity": "sha512-x"}}})
    )
    with pytest.raises(HostNotReady, match="expected below node_modules"):
        npm.read_lock(tmp_path, "x86_64")


def test_lock_without_hashes_is_refused(tmp_path: Path) -> None:
    """A package that nobody vouched for does not get into an image."""
    project = lock_file(tmp_path / "project", used={"version": "1.0.0"})
    with pytest.raises(HostNotReady, match="no sha512 integrity for node_modules/used"):
        npm.read_lock(project, "x86_64")


def test_superseded_image_stays_for_a_while_and_then_goes(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """A server that is starting still finds its image; disks do not fill up with old ones."""
    (first,) = build(tmp_path, runtime)
    (tmp_path / "worker" / "worker.py").write_text("2\n")
    (second,) = build(tmp_path, runtime)
    assert first.exists()
    long_ago = time.time() - 2 * published.SUPERSEDED_KEPT
    os.utime(first, (long_ago, long_ago))
    (tmp_path / "worker" / "worker.py").write_text("3\n")
    build(tmp_path, runtime)
    assert not first.exists()
    assert second.exists()


def test_superseded_image_in_use_stays(tmp_path: Path, log: Path, runtime: Runtime) -> None:
    """A server that runs for weeks goes on starting sandboxes from the image that it found."""
    (first,) = build(tmp_path, runtime)
    with images.in_use(images.find(tmp_path, runtime).path):
        (tmp_path / "worker" / "worker.py").write_text("2\n")
        build(tmp_path, runtime)
        long_ago = time.time() - 2 * published.SUPERSEDED_KEPT
        os.utime(first, (long_ago, long_ago))
        (tmp_path / "worker" / "worker.py").write_text("3\n")
        build(tmp_path, runtime)
        assert first.exists()


def test_mirror_that_lacks_the_suite_falls_back_to_the_default(
    tmp_path: Path, log: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host's own mirror comes first; a partial one does not end the set-up."""
    mmdebstrap = tmp_path / "path" / "mmdebstrap"
    mmdebstrap.write_text(
        mmdebstrap.read_text().replace(
            "set -eu\n", 'set -eu\ncase "$*" in *mirror.example*) echo 404 >&2; exit 25;; esac\n'
        )
    )
    monkeypatch.setattr(system, "debian_sources", lambda suite: [f"deb http://mirror.example {suite} main"])
    said: list[str] = []
    (tmp_path / "scratch").mkdir()
    images.build_missing(tmp_path / "data", [runtime], tmp_path / "scratch", said.append)
    assert any("own mirror did not do (404)" in line for line in said)
    assert len(calls(log, "mmdebstrap")) == 1


def test_cache_drops_what_was_not_used_for_a_month(tmp_path: Path) -> None:
    """Old package sets and what a killed set-up left go; what is used stays."""
    cache = Cache(tmp_path / "cache")
    used = cache.get("a", [1], lambda path: path.touch())
    old = cache.get("a", [2], lambda path: path.touch())
    os.utime(old, (1, 1))
    (tmp_path / "cache" / ".a-x.new").touch()
    cache.prune()
    assert list((tmp_path / "cache").iterdir()) == [used]


def test_packages_of_an_image_are_sorted_and_unique() -> None:
    """Recipes that ask for the same packages share one cached tree."""
    assert rootfs.packages(["python3", "git"]) == sorted({*rootfs.BASE_PACKAGES, "git"})


def test_setup_refuses_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing said on a machine without gVisor is that."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(HostNotReady, match="this machine is riscv64"):
        setup.prepare(Settings(data_dir=tmp_path), lambda _: None)


def test_certificates_of_the_operator_make_another_image(tmp_path: Path) -> None:
    """They are taken over by set-up, and a server with other settings than its images refuses to start."""
    recipe = ImageRecipe("x")
    assert images.key(recipe) != images.key(recipe, added=b"certificate")
    images.check_certificates(tmp_path, None)
    wrong = tmp_path / "wrong.pem"
    for text in ("", "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n"):
        wrong.write_text(text)
        with pytest.raises(HostNotReady, match="no certificates"):
            images.take_over_certificates(tmp_path, wrong)
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if not bundle.exists():
        pytest.skip("this machine has no bundle of certificates")
    with pytest.raises(HostNotReady, match="run `belljar setup`"):
        images.check_certificates(tmp_path, bundle)
    images.take_over_certificates(tmp_path, bundle)
    images.check_certificates(tmp_path, bundle)
    with pytest.raises(HostNotReady, match="run `belljar setup`"):
        images.check_certificates(tmp_path, None)
