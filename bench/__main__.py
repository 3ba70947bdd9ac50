"""Prints one table. Numbers of a shared machine are noisy: read the ratios, not the milliseconds.

`python -m bench [--quick]`; quick makes a tenth of the executions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from belljar_client import AsyncClient, Finished, Limits, Output, download
from belljar_server import config, runtimes
from belljar_server.sandbox.sandbox import write_bundle
from belljar_server.sandbox.spec import Environment, oci_spec
from belljar_server.setup import images
from belljar_server.setup import runsc as runsc_setup

MIB = 1 << 20
TRIVIAL = {
    "python": "def main(a, b):\n    return a + b\n",
    "javascript": "exports.main = ({ a, b }) => a + b;\n",
    "typescript": Path(__file__).with_name("fifty_lines.ts").read_text(),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    value: str
    beside: str = ""


def spread(seconds: list[float]) -> str:
    """p50 and p90 in milliseconds."""
    ordered = sorted(seconds)
    return f"p50 {statistics.median(ordered) * 1e3:.1f} ms, p90 {ordered[int(len(ordered) * 0.9)] * 1e3:.1f} ms"


def timed(argv: list[str], times: int) -> list[float]:
    """How long a command takes, each time."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return taken


@contextmanager
def serving() -> Iterator[tuple[str, int]]:
    """A server on a free port: its address and pid."""
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as scratch:
        environ = os.environ | {
            "BELLJAR_GRPC__LISTEN": "127.0.0.1:0",
            "BELLJAR_HTTP__LISTEN": "127.0.0.1:0",
            "BELLJAR_RUNTIME_DIR": f"{scratch}/run",
            "BELLJAR_LOG__LEVEL": "warning",
        }
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("belljar")), "serve"], env=environ, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if "gRPC on " not in line:
                sys.exit(f"the server did not start: {line}")
            yield line.split("gRPC on ")[1].split(",")[0], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


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
                    "--ignore-cgroups", "--directfs=false", "--overlay2=none", "run", f"--bundle={bundle}", f"bench{number:04}",
                ],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            taken.append(time.perf_counter() - began)
        return taken


async def each(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """How long it takes, one after the other."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - began)
    return taken


async def latency(client: AsyncClient, times: int) -> list[Row]:
    """One trivial run per runtime, beside the bare interpreters and runsc itself."""
    rows = []
    python = timed(["python3", "-c", "pass"], times)
    rows.append(Row("bare `python3 -c pass`", spread(python)))
    node = timed(["node", "-e", "0"], times) if shutil.which("node") else []
    if node:
        rows.append(Row("bare `node -e 0`", spread(node)))
    runsc = bare_runsc(times)
    rows.append(Row("bare `runsc run` of `python3 -c pass`", spread(runsc)))
    beside = {"python": python, "javascript": node, "typescript": node}
    for runtime, code in TRIVIAL.items():

        async def run(code: str = code, runtime: str = runtime) -> None:
            (await client.execute(code, runtime=runtime, inputs={"a": 1, "b": 2})).check()

        await run()
        taken = await each(run, times)
        ratios = [f"{statistics.median(taken) / statistics.median(runsc):.2f}x runsc run"]
        if beside[runtime]:
            ratios.append(f"{statistics.median(taken) / statistics.median(beside[runtime]):.2f}x bare")
        rows.append(Row(f"Execute over gRPC, {runtime}", spread(taken), ", ".join(ratios)))
    return rows


async def throughput(client: AsyncClient, times: int) -> Row:
    """Fresh sandboxes a second, four clients."""
    left = iter(range(times))

    async def worker() -> None:
        for _ in left:
            (await client.execute(TRIVIAL["python"], inputs={"a": 1, "b": 2})).check()

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
    bare = subprocess.run(
        [sys.executable, "-c", "import time\nt=time.perf_counter()\n" + code + "import sys\nprint(time.perf_counter()-t,file=sys.stderr)"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
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
    times, many = (5, 100) if quick else (30, 1000)
    with serving() as (address, pid):
        async with AsyncClient(address) as client:
            rows = await latency(client, times)
            before = rss(pid)
            rows.append(await throughput(client, many))
            rows.append(Row("server RSS before and after these runs", f"{before:.0f} MiB, {rss(pid):.0f} MiB"))
            rows += await logs(client)
            rows += await artifacts(client)
            rows.append(await timeouts(client))
    return rows


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the executions")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()
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
