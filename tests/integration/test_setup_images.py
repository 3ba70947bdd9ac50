"""Real images out of real packages: needs root, the Debian mirror, mmdebstrap and mkfs.erofs."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar_server.runtimes import ImageRecipe, Runtime
from belljar_server.setup import images

pytestmark = pytest.mark.integration


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """A runtime with one Python file, compiled in the image."""
    (tmp_path / "worker.py").write_text("print('hello')\n")
    copies = ((tmp_path / "worker.py", "/opt/belljar/small/worker.py"),)
    recipe = ImageRecipe("small", copies=copies, compile_python=("/opt/belljar/small",))
    return Runtime("small", "3.13", "main.py", recipe, ("/usr/bin/python3",))


@pytest.mark.timeout(600)
def test_two_builds_from_nothing_give_the_same_bytes(tmp_path: Path, runtime: Runtime) -> None:
    """Two hosts that build the same recipe have the same image, so snapshots and caches can be shared by digest."""
    digests = set()
    for name in ("one", "two"):
        scratch = tmp_path / name / "scratch"
        scratch.mkdir(parents=True)
        images.build_missing(tmp_path / name, [runtime], scratch, lambda _: None)
        image = images.find(tmp_path / name, runtime)
        assert image.version.startswith("3.13.")
        digests.add(image.digest)
    assert len(digests) == 1
