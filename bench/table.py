"""A line of the table, and a server to measure."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


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
def serving(prefix: tuple[str, ...] = (), **settings: str) -> Iterator[tuple[str, int]]:
    """A server on a free port, with settings by their variables' names: its address and pid.

    `prefix` is a command line that prepares something and then execs what follows it.
    """
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as scratch:
        environ = os.environ | {
            "BELLJAR_GRPC__LISTEN": "127.0.0.1:0",
            "BELLJAR_HTTP__LISTEN": "127.0.0.1:0",
            "BELLJAR_RUNTIME_DIR": f"{scratch}/run",
            "BELLJAR_LOG__LEVEL": "error",
            "BELLJAR_EGRESS__WAITING": "0",
            **{f"BELLJAR_{name}": value for name, value in settings.items()},
        }
        process = subprocess.Popen(
            [*prefix, str(Path(sys.executable).with_name("belljar")), "serve"],
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
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
