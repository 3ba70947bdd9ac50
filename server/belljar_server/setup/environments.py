"""What sandboxes can be started from on this host: every runtime with its image and its layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from belljar_server.runtimes import Runtime
from belljar_server.sandbox.spec import Environment, Layer
from belljar_server.setup import images, layers


def find(data_dir: Path, runtime: Runtime) -> Environment:
    """A runtime's environment with nothing loaded. Raises HostNotReady when a part of it is missing or stale."""
    image = images.find(data_dir, runtime)
    plain = Environment(runtime, image.path, image.digest, image.version)
    layer = layers.find(data_dir, runtime)
    if layer is None or runtime.layer is None:
        return plain
    mounted = Layer(layer.path, layer.digest, runtime.layer.target)
    return replace(plain, layers=(mounted,), packages=layer.packages, modules=layer.modules)


def preloaded(plain: Iterable[Environment]) -> list[Environment]:
    """The environments that have packages loaded, of those runtimes that want one."""
    return [replace(each, preload=each.runtime.preload) for each in plain if each.runtime.preload]


def files(environments: Iterable[Environment]) -> list[Path]:
    """All that is mounted in sandboxes of these environments."""
    return [file for each in environments for file in (each.image, *(layer.image for layer in each.layers))]
