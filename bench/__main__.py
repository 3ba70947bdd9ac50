"""Prints one table. Numbers of a shared machine are noisy: read the ratios, not the milliseconds.

`python -m bench [--quick]`; quick makes a tenth of the executions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from belljar_client import AsyncClient, Finished, Limits, Output, download
from belljar_server import config, runtimes
from belljar_server.sandbox.spec import Environment, oci_spec
from belljar_server.sandbox.start import write_bundle
from belljar_server.setup import images
from belljar_server.setup import runsc as runsc_setup
from bench import network, packages
from bench.table import MIB, Row, serving, spread, timed

TRIVIAL = {
    "python": "def main(a, b):\n    return a + b\n",
    "javascript": "exports.main = ({ a, b }) => a + b;\n",
    "typescript": Path(__file__).with_name("fifty_lines.ts").read_text(),
}


def rss(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def bare_runsc(times: int) -> list[float]:
    """`runsc run` of an interpreter that does nothing, in the image that executions use."""
    settings = config.load(None)
    runtime = runtimes.load()["python"]
    image = images.find(settings.data_dir, runtime)
    spec = oci_spec(Environment(runtime, image.path, image.digest, image.version))
    spec["process"]["args"] = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
    binary = runsc_setup.find(settings)
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as scratch:
        bundle = write_bundle(Path(scratch) / "bundle", spec)
        taken = []
        for number in range(times):
            began = time.perf_counter()
            subprocess.run(
                [
                    binary, f"--root={scratch}/state", f"--platform={settings.sandbox.platform}", "--network=none",
                    "--ignore-cgroups", "--directfs=false", "--overlay2=none", "run", f"--bundle={bundle}",
                    f"bench{number:04}",
                ],
                check=True,
                input=b"",  # not /dev/null: runsc makes whatever it gets as stdin, stdout and stderr belong to nobody
                capture_output=True,
            )  # fmt: skip
            taken.append(time.perf_counter() - began)
        return taken


@dataclass(frozen=True)
class Bare:
    """What the same host does without Belljar, in seconds."""

    python: list[float]
    node: list[float]
    runsc: list[float]

    def rows(self) -> list[Row]:
        """As lines of the table."""
        return [
            Row("bare `python -c pass`", spread(self.python)),
            Row("bare `node -e 0`", spread(self.node))
            if self.node
            else Row("bare `node -e 0`", "no node on this host"),
            Row("bare `runsc run` of `python3 -c pass`", spread(self.runsc)),
        ]

    def of(self, runtime: str) -> list[float]:
        """The bare interpreter of a runtime."""
        return self.python if runtime == "python" else self.node


def measure_bare(times: int) -> Bare:
    """The things that executions are compared with."""
    node = timed(["node", "-e", "0"], times) if shutil.which("node") else []
    # Not `python3`, which may be a shim that only looks for an interpreter.
    return Bare(timed([os.path.realpath(sys.executable), "-c", "pass"], times), node, bare_runsc(times))


async def trivial(client: AsyncClient, runtime: str) -> Finished:
    """One run of the smallest useful program."""
    last: Finished | None = None
    async for event in client.stream(TRIVIAL[runtime], runtime=runtime, inputs={"a": 1, "b": 2}):
        if isinstance(event, Finished):
            last = event
    assert last is not None
    assert last.error is None, last.error
    return last


async def latency(client: AsyncClient, bare: Bare, times: int, kind: str, pause: float) -> list[Row]:
    """One trivial run per runtime, one after the other with a pause between."""
    rows = []
    for runtime in TRIVIAL:
        await trivial(client, runtime)
        taken = []
        for _ in range(times):
            await asyncio.sleep(pause)
            began = time.perf_counter()
            await trivial(client, runtime)
            taken.append(time.perf_counter() - began)
        middle = statistics.median(taken)
        ratios = [f"{middle / statistics.median(bare.runsc):.2f}x runsc run"]
        if bare.of(runtime):
            ratios.append(f"{middle / statistics.median(bare.of(runtime)):.2f}x bare")
        ordered = sorted(taken)
        ratios.append(f"p99 {ordered[int(len(ordered) * 0.99)] / middle:.1f}x p50")
        rows.append(Row(f"Execute over gRPC, {kind}, {runtime}", spread(taken), ", ".join(ratios)))
    return rows


def official_package(times: int) -> float:
    """Fresh sandboxes a second with the `gvisor` package, four threads, each running the same trivial Python."""
    import gvisor  # type: ignore[import-untyped]

    os.environ["PATH"] = f"{runsc_setup.find(config.load(None)).parent}:{os.environ['PATH']}"

    def one(_: int) -> None:
        with gvisor.Sandbox() as sandbox:
            out, errors = sandbox.exec("/usr/bin/python3", "-c", "print(1 + 2)")
            assert out == "3\n", errors

    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(times)))
    return times / (time.perf_counter() - began)


async def until_full(pid: int) -> None:
    """Returns when the sandboxes of a server have used next to no CPU for a second: every pool has what it wants."""
    used, before = 1.0, cgroup_value(pid, "cpuacct", "cpuacct.usage")
    while used > 0.02:
        await asyncio.sleep(1)
        now = cgroup_value(pid, "cpuacct", "cpuacct.usage")
        used, before = (now - before) / 1e9, now


async def burst(client: AsyncClient, pid: int) -> Row:
    """Twenty at once into a pool of twenty."""
    taken = []
    for _ in range(3):
        await until_full(pid)
        began = time.perf_counter()
        ends = await asyncio.gather(*(trivial(client, "python") for _ in range(20)))
        taken.append(time.perf_counter() - began)
        assert len(ends) == 20
    return Row("a burst of 20 into a pool of 20, all done", spread(taken))


def cgroup_value(pid: int, controller: str, file: str) -> float:
    """A number of the cgroup that holds all sandboxes of a server (the benchmark needs a cgroup v1 or hybrid host)."""
    for tree in Path(f"/proc/{pid}/root/sys/fs/cgroup/{controller}").rglob("belljar"):
        return float((tree / file).read_text())
    return float("nan")


async def idle(pid: int) -> list[Row]:
    """What waiting sandboxes cost."""
    await until_full(pid)
    before, began = cgroup_value(pid, "cpuacct", "cpuacct.usage"), time.perf_counter()
    await asyncio.sleep(10)
    used = (cgroup_value(pid, "cpuacct", "cpuacct.usage") - before) / 1e6 / (time.perf_counter() - began)
    sizes = waiting_memory(pid)
    count = sum(map(len, sizes.values()))
    text = ", ".join(f"{name} {statistics.mean(sizes[name]) / MIB:.0f} MiB" for name in sorted(sizes))
    return [
        Row(f"CPU of {count} waiting sandboxes together, heartbeats included", f"{used:.2f} ms a second"),
        Row("memory of a waiting sandbox (anonymous and shared)", text),
    ]


def waiting_memory(pid: int) -> dict[str, list[int]]:
    """For each environment what the kernel counts for its sandboxes, without the page cache of images."""
    sizes: dict[str, list[int]] = {}
    for tree in Path(f"/proc/{pid}/root/sys/fs/cgroup/memory").rglob("belljar"):
        for group in tree.glob("*/*/cgroup.procs"):
            if not (pids := group.read_text().split()):
                continue
            command = Path(f"/proc/{pids[0]}/cmdline").read_bytes().decode()
            stat = dict(line.split() for line in group.with_name("memory.stat").read_text().splitlines())
            environment = re.search(r"/bundles/([^/\0]+)-(?:warm|cold)", command)
            if environment:
                sizes.setdefault(environment[1], []).append(int(stat["rss"]) + int(stat["shmem"]))
    return sizes


def used_cpu(pid: int) -> float:
    """CPU seconds that all threads of a process have used so far, to the nanosecond (proc(5), schedstat)."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


async def own_cost(client: AsyncClient, pid: int) -> Row:
    """What an execution costs the server's own process while no sandbox is being restored."""
    taken = []
    for _ in range(4):
        await until_full(pid)
        before = used_cpu(pid)
        for _ in range(10):  # of twenty that wait: so few that nothing is restored meanwhile
            await trivial(client, "python")
        taken.append((used_cpu(pid) - before) / 10)
    return Row("CPU of the server's own process for one warm run", f"{statistics.median(taken) * 1e3:.1f} ms")


async def bare_grpc(client: AsyncClient, times: int) -> Row:
    """The round trip that every call pays, whatever it does."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await client.runtimes()
        taken.append(time.perf_counter() - began)
    return Row("a gRPC call that does nothing (ListRuntimes)", spread(taken))


async def phases(client: AsyncClient, times: int) -> list[Row]:
    """Where the time of one warm Python run goes, by the server's own clocks."""
    rows: dict[str, list[float]] = {"whole call": [], "queue": [], "send and prepare": [], "run": [], "collect": []}
    for _ in range(times):
        await asyncio.sleep(0.2)
        began = time.perf_counter()
        usage = (await trivial(client, "python")).usage
        rows["whole call"].append(time.perf_counter() - began)
        rows["queue"].append(usage.queue_time)
        rows["send and prepare"].append(usage.start_time)
        rows["run"].append(usage.run_time)
        rows["collect"].append(usage.collect_time)
    middle = {name: statistics.median(taken) * 1e3 for name, taken in rows.items()}
    middle["gRPC, client, event loop"] = middle["whole call"] - sum(
        ms for name, ms in middle.items() if name != "whole call"
    )
    text = ", ".join(f"{name} {ms:.2f}" for name, ms in middle.items() if name != "whole call")
    return [Row("phases of one warm Python run, p50 in ms", f"{middle['whole call']:.2f} =", text)]


async def throughput(client: AsyncClient, times: int) -> Row:
    """Fresh sandboxes a second, four clients."""
    left = iter(range(times))

    async def worker() -> None:
        for _ in left:
            await trivial(client, "python")

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(4)))
    return Row(f"executions a second, 4 clients, {times} runs", f"{times / (time.perf_counter() - began):.1f}")


async def logs(client: AsyncClient) -> list[Row]:
    """What the code prints, to the client."""
    code = "import os\nblock = b'x' * 65535 + b'\\n'\nfor _ in range(256):\n    os.write(1, block)\n"
    size, first, last = 0, 0.0, 0.0
    async for event in client.stream(code, limits=Limits(output_bytes=16 * MIB)):
        if isinstance(event, Output):
            size += len(event.content)
            first, last = first or time.perf_counter(), time.perf_counter()
    timed_code = (
        f"import sys, time\nbegan = time.perf_counter()\n{code}print(time.perf_counter() - began, file=sys.stderr)\n"
    )
    bare = subprocess.run(  # noqa: ASYNC221  nothing else may run beside it
        [sys.executable, "-c", timed_code], check=True, capture_output=True, text=True
    )
    rate, bare_rate = size / MIB / (last - first), 16 / float(bare.stderr)
    waited = []
    for _ in range(5):
        printed = 0.0
        code = "import time\nprint(time.time())\nend = time.time() + 0.5\nwhile time.time() < end: pass\n"
        async for event in client.stream(code):
            if isinstance(event, Output):
                printed = time.time() - float(event.content)
        waited.append(printed)
    return [
        Row("log throughput to the client, 16 MiB", f"{rate:.0f} MiB/s", f"{rate / bare_rate:.2f}x a bare pipe"),
        Row("print to client while the code goes on computing", spread(waited)),
    ]


async def artifacts(client: AsyncClient) -> list[Row]:
    """Files from the sandbox to the store, and from the store to the client."""
    code = "with open('big', 'wb') as file:\n    for _ in range(200):\n        file.write(b'x' * (1 << 20))\n"
    limits = Limits(disk_bytes=512 * MIB, memory_bytes=1024 * MIB, artifact_bytes=512 * MIB)
    result = (await client.execute(code, limits=limits)).check()
    rows = [Row("one artifact of 200 MiB, sandbox to store", f"{200 / result.usage.collect_time:.0f} MiB/s")]
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        await asyncio.to_thread(download, result.artifacts[0], Path(scratch))
        rows.append(Row("the same, store to client", f"{200 / (time.perf_counter() - began):.0f} MiB/s"))
    code = "for number in range(1000):\n    open(f'{number}', 'w').write('x' * 100)\n"
    small = (await client.execute(code)).check()
    rows.append(Row("1,000 artifacts of 100 bytes", f"{small.usage.collect_time * 1e3:.0f} ms to collect"))
    return rows


async def timeouts(client: AsyncClient) -> Row:
    """How long after its time limit a busy tree of processes is gone, and the client told."""
    code = "import os\nfor _ in range(3):\n    os.fork()\nwhile True:\n    pass\n"
    late, told = [], []
    for _ in range(5):
        async for event in client.stream(code, limits=Limits(timeout=0.5)):
            if isinstance(event, Finished):
                late.append(event.usage.run_time - 0.5)
                told.append(event.usage.run_time + event.usage.collect_time - 0.5)
    return Row("8 busy processes: timeout to all gone", spread(late), f"client told after {spread(told)}")


async def measure(*, quick: bool) -> list[Row]:
    """All rows."""
    times, many = (5, 100) if quick else (50, 1000)
    bare = measure_bare(times)
    rows = bare.rows()
    with serving(POOL__MAX="0") as (address, _):
        async with AsyncClient(address) as client:
            rows += await latency(client, bare, max(5, times // 3), "cold", pause=0)
    with serving() as (address, pid):
        async with AsyncClient(address) as client:
            await asyncio.sleep(5)
            rows += await latency(client, bare, times, "warm, 5 a second", pause=0.2)
            rows += await phases(client, times)
            rows.append(await bare_grpc(client, times))
            before = rss(pid)
            sustained = await throughput(client, many)
            official = official_package(max(8, many // 50))
            ratio = f"{float(sustained.value) / official:.1f}x the `gvisor` package ({official:.2f} a second)"
            rows.append(Row(sustained.what, sustained.value, ratio))
            rows.append(Row("server RSS before and after these runs", f"{before:.0f} MiB, {rss(pid):.0f} MiB"))
            rows += await logs(client)
            rows += await artifacts(client)
            rows.append(await timeouts(client))
    with serving(
        POOL__MIN="20",
        POOL__MAX="20",
        POOL__MEMORY_BYTES=str(8 << 30),
        EGRESS__MODES='["none"]',
        EXECUTION__MAX_RUNNING="40",
    ) as (
        address,
        pid,
    ):
        async with AsyncClient(address) as client:
            rows.append(await burst(client, pid))
            rows.append(await own_cost(client, pid))
    with serving(POOL__MIN="10", POOL__MAX="10", POOL__MEMORY_BYTES=str(8 << 30), EGRESS__MODES='["none"]') as (
        address,
        pid,
    ):
        rows += await idle(pid)
    rows += await asyncio.to_thread(lambda: list(network.measure(times)))
    return rows + await packages.measure(times)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the executions")
    parser.add_argument("--packages", action="store_true", help="only what packages cost")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()
    if options.packages:
        rows = asyncio.run(packages.measure(5 if options.quick else 50))
    else:
        rows = asyncio.run(measure(quick=options.quick))
    if options.json:
        print(json.dumps([row.__dict__ for row in rows], indent=2))
        return
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Linux {platform.release()}, python -m bench\n")
    print("| work | measured | beside it |\n|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.value} | {row.beside} |")


if __name__ == "__main__":
    main()
