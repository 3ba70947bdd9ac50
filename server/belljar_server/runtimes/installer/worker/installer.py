"""PID 1 of the sandbox that installs packages: runs uv or npm, makes an image of what they installed, hands it out.

There is no network here. The package managers ask a registry on the loopback address; `registry.py` carries each
question to the host, which alone knows where the registries are and what may be asked. Package managers, and with
them whatever a package runs when it is built, are uid 1000; this process is uid 0 and believes nothing they leave.
The host believes nothing that comes from here.

fd 0 is a stream socket to the host with the framing of `guest/framing.py`:

    host -> installer   JOB, then HEAD and BODY* for each FETCH
    installer -> host   READY; FETCH*; LOCK; IMAGE, DATA*, END; or FAILED

JOB is `{"ecosystem", "requirements", "lock", "preinstalled": {name: version}, "builds", "uuid"}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any, NoReturn

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "guest")]

import framing  # noqa: E402
import protocol  # noqa: E402
import python_packages  # noqa: E402
from npm_packages import install_npm  # noqa: E402
from registry import Registry  # noqa: E402

WORK = "/work"
LAYER = f"{WORK}/layer"
IMAGE = f"{WORK}/layer.erofs"
USER = 1000
TIMESTAMP = 1_700_000_000
"""The time of every file in an image, as in those that set-up builds."""


class StepFailed(Exception):
    """A program ended with an error; its own words were output."""


class Steps:
    """Runs programs as the user, one after the other."""

    def run(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> None:
        """Runs a program to its end and everything that it left behind too. Raises StepFailed."""
        clean = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": f"{WORK}/home",
            "TMPDIR": f"{WORK}/tmp",  # noqa: S108  in the sandbox
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "NO_COLOR": "1",
        }
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=2,
            env={**clean, **(env or {})},
            cwd=WORK,
            user=USER,
            group=USER,
            extra_groups=[],
            start_new_session=True,
            check=False,
        )
        with contextlib.suppress(OSError):  # what a build left running
            os.kill(-1, signal.SIGKILL)
        if done.returncode != 0:
            raise StepFailed(name)


def install(job: dict[str, Any], host: protocol.Host) -> None:
    """Does one job. Raises StepFailed, OSError."""
    for folder in ("home", "tmp", "layer"):
        os.mkdir(f"{WORK}/{folder}", 0o755)
        if folder != "layer":
            os.chown(f"{WORK}/{folder}", USER, USER)
    steps = Steps()
    if job["ecosystem"] == "python":
        python_packages.install_python(job, host, steps, WORK, LAYER)
    else:
        install_npm(job, host, steps, WORK, LAYER)
    same_bytes = ["-x-1", f"-T{TIMESTAMP}", f"-U{job['uuid']}", "--all-root"]
    # gVisor refuses inline data ("bad address") and compression.
    steps.run("image", ["/usr/bin/mkfs.erofs", "--quiet", "-E", "noinline_data", *same_bytes, IMAGE, LAYER])
    fd = os.open(IMAGE, os.O_RDONLY | os.O_NOFOLLOW)
    host.send(protocol.IMAGE, {"size": os.fstat(fd).st_size})
    while data := os.read(fd, framing.MAX_PAYLOAD):
        host.send_bytes(framing.DATA, data)
    host.send(framing.END, {})


def main() -> NoReturn:
    """Serves one job, then waits for the host to end this sandbox."""
    host = protocol.Host(socket.socket(fileno=0))
    os.set_inheritable(0, False)
    host.send(framing.READY, {})
    kind, payload = host.receive()
    if kind != framing.JOB:
        raise framing.BrokenFrame(f"expected a job, not {kind!r}")
    registry = Registry(host)
    registry.start()
    try:
        install(json.loads(payload), host)
    except StepFailed as error:
        host.send(protocol.FAILED, {"step": str(error)})
    except (OSError, ValueError) as error:
        host.send(protocol.FAILED, {"step": "files", "message": f"{type(error).__name__}: {error}"[:500]})
    registry.wait_for_end()
    os._exit(0)


if __name__ == "__main__":
    main()
