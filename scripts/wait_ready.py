"""Waits until a starting service says on its HTTP port that sandboxes start: wait_ready.py STDOUT_FILE PID."""

import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 60.0


def is_ready(stdout: Path) -> bool:
    """Whether the service printed its addresses and /readyz answers with 200."""
    printed = re.search(r"HTTP on (\S+)", stdout.read_text())
    if not printed:
        return False
    try:
        with urllib.request.urlopen(f"http://{printed[1]}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def is_running(pid: int) -> bool:
    """Whether the process has not ended yet (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> int:
    """0 when ready, 1 when it ended or took too long."""
    stdout, pid = Path(sys.argv[1]), int(sys.argv[2])
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and is_running(pid):
        if is_ready(stdout):
            return 0
        time.sleep(0.05)
    return 1


if __name__ == "__main__":
    os.environ["no_proxy"] = "*"
    sys.exit(main())
