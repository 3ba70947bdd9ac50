"""Running the programs that set a host up: no shell, and errors that quote the program's own last words."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from belljar_server.errors import HostNotReady

Say = Callable[[str], None]
"""Takes one line about what is being done."""

LAST_LINES = 15


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 900.0,
) -> str:
    """Runs a program to its end and returns what it printed; `env` comes on top of this process's environment.

    Raises HostNotReady when it cannot be started, fails, or takes longer than `timeout` seconds.
    """
    command = [str(part) for part in argv]
    shown = shlex.join(command)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HostNotReady(f"`{shown}` did not end within {timeout:.0f} s") from error
    except OSError as error:
        raise HostNotReady(f"`{shown}` cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        raise HostNotReady(
            "\n".join([f"`{shown}` failed with {_ending(done.returncode)}", *(f"  {line}" for line in said)])
        )
    return done.stdout.decode(errors="replace")


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"
