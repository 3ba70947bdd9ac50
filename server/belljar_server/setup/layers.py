"""Preinstalled packages: layers built out of the runtimes' committed locks by set-up, found by the service.

uv and npm install what the lock says and verify every hash; no code of a package runs on this host outside of the
image's own file system, and npm's package scripts not at all. What was installed is kept in the cache by its inputs.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from belljar_server.errors import HostNotReady
from belljar_server.runtimes import Ecosystem, LayerRecipe, Runtime
from belljar_server.setup import erofs, images, published, rootfs, system, tools
from belljar_server.setup.cache import Cache, fingerprint
from belljar_server.setup.commands import Say, run

BUILDER_VERSION = 1
"""Raise it when this module builds something else from the same recipe."""
GLIBC = "2_40"
"""The platform tag that wheels may ask for; the images have a later one."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that is there and fits its recipe."""

    path: Path
    digest: str
    """SHA-256 of the file, as `sha256:hex`."""
    packages: tuple[tuple[str, str], ...]
    """Names and versions."""
    modules: frozenset[str]
    """Top-level names that can be imported from it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is written beside a layer."""

    key: str
    digest: str
    file: str
    packages: dict[str, str]
    modules: list[str]
    built_at: int
    """Seconds since the epoch."""


def find(data_dir: Path, runtime: Runtime) -> Layer | None:
    """The layer of a runtime, None when it wants none. Raises HostNotReady when it is missing or stale."""
    recipe = runtime.layer
    if recipe is None:
        return None
    manifest = published.read(Manifest, data_dir / "layers" / f"{recipe.name}.json")
    path = data_dir / "layers" / (manifest.file if manifest else "")
    if manifest is None or manifest.key != key(runtime) or not path.is_file():
        raise HostNotReady(f"there is no current layer {recipe.name} for {runtime.name}: run `belljar setup`")
    return Layer(path, manifest.digest, tuple(sorted(manifest.packages.items())), frozenset(manifest.modules))


def key(runtime: Runtime) -> str:
    """A hash over everything that goes into a runtime's layer from our side. Raises HostNotReady."""
    return fingerprint(_inputs(runtime))


def _inputs(runtime: Runtime) -> list[object]:
    recipe = _recipe(runtime)
    try:
        locked = [file.read_text() for file in _lock_files(recipe)]
    except OSError as error:
        raise HostNotReady(f"{error.filename}: {error.strerror}") from error
    settings = [recipe.ecosystem.value, recipe.target, recipe.unwanted, recipe.run_at_build]
    under_it = rootfs.inputs(runtime.image.debian) if recipe.ecosystem is Ecosystem.PYTHON else []
    return [BUILDER_VERSION, platform.machine(), runtime.version, under_it, settings, locked]


def build_missing(data_dir: Path, runtimes: list[Runtime], scratch: Path, say: Say) -> None:
    """Builds the layers that are missing or stale and removes old ones. Raises HostNotReady."""
    stale: dict[str, Runtime] = {}
    for runtime in runtimes:
        try:
            find(data_dir, runtime)
        except HostNotReady:
            stale.setdefault(_recipe(runtime).name, runtime)
    if not stale:
        return
    system.install_missing(say, system.missing_packages())
    cache = Cache(data_dir / "cache")
    for runtime in stale.values():
        _build(data_dir, runtime, cache, scratch, say)
    cache.prune()
    published.remove_superseded(data_dir / "layers")


def _build(data_dir: Path, runtime: Runtime, cache: Cache, scratch: Path, say: Say) -> None:
    started = time.monotonic()
    recipe = _recipe(runtime)
    made_from = key(runtime)
    say(f"layer {recipe.name}: building")
    installed = cache.get("layer", _inputs(runtime), lambda target: _install(target, runtime, cache, scratch, say))
    tree = scratch / recipe.name
    tree.mkdir()
    run(["tar", "--extract", "--file", installed, "--directory", tree])
    packages, modules = _packages(recipe, tree), _modules(recipe, tree)
    erofs.seal(tree)
    fresh = scratch / f"{recipe.name}.erofs"
    digest = erofs.make(tree, fresh)
    shutil.rmtree(tree)
    file = f"{recipe.name}-{digest[:16]}.erofs"
    size = fresh.stat().st_size / (1 << 20)
    manifest = Manifest(made_from, f"sha256:{digest}", file, packages, modules, int(time.time()))
    published.publish(data_dir / "layers", recipe.name, fresh, manifest)
    took = time.monotonic() - started
    say(f"layer {recipe.name}: {manifest.digest[:23]}…, {size:.0f} MiB, {len(packages)} packages, in {took:.1f} s")


def _install(target: Path, runtime: Runtime, cache: Cache, scratch: Path, say: Say) -> None:
    """Installs what the lock says into the image's tree, finishes it there, and packs the packages."""
    recipe = _recipe(runtime)
    root = scratch / f"{recipe.name}-root"
    images.unpack_debian(root, runtime.image, cache, scratch, say)
    place = root / recipe.target.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    install = _install_wheels if recipe.ecosystem is Ecosystem.PYTHON else _install_npm
    install(place, runtime, scratch, say)
    for pattern in recipe.unwanted:
        for path in sorted(place.glob(pattern)):
            rootfs.remove(path)
    if recipe.ecosystem is Ecosystem.PYTHON:
        say(f"layer {recipe.name}: compiling")
        rootfs.compile_python(root, [recipe.target])
    for command in recipe.run_at_build:
        rootfs.run_inside(root, list(command))
    run(["tar", "--create", "--file", target, "--sort=name", "--numeric-owner", "--directory", place, "."])
    shutil.rmtree(root)


def _install_wheels(place: Path, runtime: Runtime, scratch: Path, say: Say) -> None:
    uv = tools.uv(scratch, say)
    say(f"layer {_recipe(runtime).name}: installing with {uv.origin}")
    platform_tag = f"{platform.machine()}-manylinux_{GLIBC}"
    where: list[str | Path] = ["--target", place, "--python", tools.python(), "--python-version", runtime.version]
    rules = ["--python-platform", platform_tag, "--only-binary", ":all:", "--require-hashes", "--no-deps"]
    files: list[str | Path] = [
        "--link-mode",
        "copy",
        "--cache-dir",
        scratch / "uv-cache",
        "--requirement",
        _recipe(runtime).lock,
    ]
    run([*uv.argv, "pip", "install", "--quiet", *where, *rules, *files], env=uv.env)


def _install_npm(place: Path, runtime: Runtime, scratch: Path, say: Say) -> None:
    npm = tools.npm(scratch, say)
    recipe = _recipe(runtime)
    say(f"layer {recipe.name}: installing with {npm.origin}")
    project = scratch / f"{recipe.name}-project"
    project.mkdir()
    for file in _lock_files(recipe):
        shutil.copy(file, project)
    quiet = ["--silent", "--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts", "--install-strategy=hoisted"]
    run([*npm.argv, "ci", *quiet], env={**npm.env, "npm_config_cache": str(scratch / "npm-cache")}, cwd=project)
    shutil.move(project / "node_modules", place)


def _packages(recipe: LayerRecipe, tree: Path) -> dict[str, str]:
    """What is installed, by the packages' own word."""
    if recipe.ecosystem is Ecosystem.PYTHON:
        found = [re.fullmatch(r"(.+)-([^-]+)\.dist-info", path.name) for path in tree.iterdir()]
        return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}
    wanted = json.loads((recipe.lock / "package.json").read_text())["dependencies"]
    return {name: json.loads((tree / name / "package.json").read_text())["version"] for name in wanted}


def _modules(recipe: LayerRecipe, tree: Path) -> list[str]:
    """Top-level names that can be imported."""
    if recipe.ecosystem is Ecosystem.PYTHON:
        names = [path.name for path in tree.iterdir() if not path.name.endswith((".dist-info", ".libs"))]
        return sorted({name.partition(".")[0] for name in names if name.partition(".")[0].isidentifier()})
    return sorted(_packages(recipe, tree))


def _lock_files(recipe: LayerRecipe) -> list[Path]:
    if recipe.ecosystem is Ecosystem.PYTHON:
        return [recipe.lock]
    return [recipe.lock / "package.json", recipe.lock / "package-lock.json"]


def _recipe(runtime: Runtime) -> LayerRecipe:
    if runtime.layer is None:
        raise HostNotReady(f"{runtime.name} has no layer")
    return runtime.layer
