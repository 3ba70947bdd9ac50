"""What packages cost: preinstalled ones beside a bare interpreter, requested ones beside a bare `uv pip install`."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.integration import indexes

from belljar_client import AsyncClient, Result
from bench.table import MIB, Row, serving, spread, timed

GROUPBY = """\
import pandas as pd
frame = pd.DataFrame({"key": ["a", "b"] * 500, "value": range(1000)})
frame.groupby("key").value.sum().to_dict()
"""
SMALL, LARGE = "humanize", "polars"
"""A package of 150 kB, and one of 50 MB."""
OTHER = "humanize<4.12"
"""Another set like the small one."""
LOADED = 15.0
"""Seconds in which a set that was asked for twice has its snapshots, with what is imported loaded."""
SETTLED = 40.0
"""Seconds in which a server with an empty data_dir has its snapshots."""
UV = str(Path(sys.executable).with_name("uv"))


def data_dir(folder: Path) -> Path:
    """One with this host's images and runsc, and nothing requested before."""
    shared = Path(os.environ.get("BELLJAR_DATA_DIR", "/var/lib/belljar"))
    for name in ("bin", "images", "layers", "registries.json"):
        (folder / name).symlink_to(shared / name)
    return folder


def bare_pandas(folder: Path, times: int) -> list[float]:
    """A new interpreter of this host each time, with pandas."""
    argv = [UV, "pip", "install", "--quiet", "--target", str(folder), "--python", sys.executable, "pandas"]
    subprocess.run(argv, check=True)
    interpreter = os.path.realpath(sys.executable)
    return timed([interpreter, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{GROUPBY}"], times)


def bare_install(package: str) -> float:
    """A bare `uv pip install` without its cache."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [UV, "pip", "install", "--quiet", "--no-cache", "--python", sys.executable, "--target", folder, package]
        return timed(argv, 1)[0]


async def run(client: AsyncClient, code: str, *dependencies: str) -> tuple[float, Result]:
    """One run, and how long it took."""
    began = time.perf_counter()
    result = (await client.execute(code, dependencies=list(dependencies))).check()
    return time.perf_counter() - began, result


async def preinstalled(client: AsyncClient, times: int) -> list[Row]:
    """Pandas, import included."""
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_pandas(Path(folder), max(3, times // 5))
    await run(client, GROUPBY)
    taken = []
    for _ in range(times):
        await asyncio.sleep(0.5)
        taken.append((await run(client, GROUPBY))[0])
    ratio = statistics.median(taken) / statistics.median(bare)
    return [
        Row("bare `python`: pandas groupby, import included", spread(bare)),
        Row("the same, preinstalled, warm, 2 a second", spread(taken), f"{ratio:.2f}x bare"),
    ]


async def requested(client: AsyncClient) -> list[Row]:
    """A set that nobody asked for before, then again."""
    rows = []
    for package in (SMALL, LARGE):
        code = f"import {package}"
        bare = bare_install(package)
        first, result = await run(client, code, package)
        beside = f"{result.usage.install_time:.2f} s of it installing; bare `uv pip install` {bare:.2f} s"
        rows.append(Row(f"first run with {package}", f"{first:.2f} s", beside))
        second, _ = await run(client, code, package)
        rows.append(Row("the second run, at once", f"{second * 1e3:.0f} ms"))
        await asyncio.sleep(LOADED)
        later, without = [], []
        for _ in range(8):
            await asyncio.sleep(1.5)
            later.append((await run(client, code, package))[0])
            without.append((await run(client, "1"))[0])
        more = (statistics.median(later) - statistics.median(without)) * 1e3
        rows.append(Row("the third and later ones", spread(later), f"{more:+.1f} ms to a run without, import included"))
    await run(client, "import humanize", OTHER)
    await asyncio.sleep(LOADED)
    second, _ = await run(client, "import humanize", OTHER)
    rows.append(Row(f"the second run of another small set, {LOADED:g} s after the first", f"{second * 1e3:.0f} ms"))
    began = time.perf_counter()
    results = await asyncio.gather(*(run(client, "import tomli_w", "tomli-w") for _ in range(20)))
    told = sum(bool(result.install_log) for _, result in results)
    taken = time.perf_counter() - began
    rows.append(Row("20 requests for one new set at once, all answered", f"{taken:.2f} s", f"{told} heard of it"))
    return rows


async def layers(scratch: Path) -> list[Row]:
    """What the size of a layer costs, the registry being on this machine."""
    index = scratch / "index"
    index.mkdir()
    indexes.wheel(index, "small", {"small.py": ""})
    indexes.wheel(index, "large", {f"large/{number}.bin": os.urandom(MIB) for number in range(100)})
    taken = {}
    with (
        indexes.python_index(index) as registry,
        serving(DATA_DIR=str(data_dir(scratch)), DEPENDENCIES__PYTHON_INDEX=registry, POOL__MAX="0") as (address, _),
    ):
        async with AsyncClient(address) as client:
            for name in ("small", "large"):
                _, result = await run(client, "1", name)
                taken[name] = result.usage.install_time
    beside = f"{taken['large']:.2f} s and {taken['small']:.2f} s installing from an index on this machine"
    more = taken["large"] - taken["small"]
    return [Row("100 MiB more in a layer: fetched, unpacked, its image built and published", f"{more:.2f} s", beside)]


async def measure(times: int) -> list[Row]:
    """All rows."""
    with (
        tempfile.TemporaryDirectory(prefix="belljar-bench-") as folder,
        tempfile.TemporaryDirectory(prefix="belljar-bench-") as other,
        serving(DATA_DIR=str(data_dir(Path(folder)))) as (address, _),
    ):
        async with AsyncClient(address) as client:
            await asyncio.sleep(SETTLED)
            rows = await preinstalled(client, times) + await requested(client)
        return rows + await layers(Path(other))
