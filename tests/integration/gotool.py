"""Programs in Go that tests use: built once by `go install` at a pinned version, and kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

_BUILD_SECONDS = 600.0


def binary(module: str, version: str) -> Path:
    """The program of a Go module path, built on first use. Raises RuntimeError saying what is missing."""
    name = module.rpartition("/")[2]
    cache = Path(os.environ.get("BELLJAR_TEST_CACHE", "/var/cache/belljar-test")) / "bin"
    built = cache / f"{name}-{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build(module, version, built)
    return built


def _build(module: str, version: str, built: Path) -> None:
    go = shutil.which("go") or ("/usr/local/go/bin/go" if Path("/usr/local/go/bin/go").exists() else None)
    name = module.rpartition("/")[2]
    if go is None:
        raise RuntimeError(f"the tests build {name} with Go 1.25 or later, and there is no `go` on PATH")
    scratch = built.with_name(f"{built.name}.build")
    done = subprocess.run(
        [go, "install", f"{module}@{version}"],
        env=os.environ | {"GOBIN": str(scratch), "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} could not be built:\n{done.stderr[-2000:]}")
    (scratch / name).replace(built)
    scratch.rmdir()
