"""A small process beside the server that starts runsc; run as a script, standard library only.

The server has threads (gRPC), so it must not fork and run code before exec. This process has one thread, so in its
children it can do what must happen before runsc runs: join the sandbox's cgroups and network namespace (whatever runsc
starts is then inside from its first instruction), ask the kernel to kill it when this process dies, and make it the
first victim of the out-of-memory killer.

It speaks JSON packets on a SOCK_SEQPACKET socket, fd 0: `{"id", "argv", "cgroups"}` with three file descriptors for
stdin, stdout and stderr, and a fourth for the network namespace if it has one, comes in; `{"id", "pid"}` or `{"id",
"error"}`, and later `{"id", "status"}` go out. When the server dies the socket ends, this process with it, and the
kernel kills every runsc.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000
LARGEST_PACKET = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


def start(request: dict[str, Any], fds: list[int]) -> int:
    """Forks and execs one runsc; returns its pid. A child that cannot says why on its stderr and exits with 127."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            become_runsc(request, fds, parent)
        except OSError as error:
            os.write(2, f"{error.filename or request['argv'][0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    return pid


def become_runsc(request: dict[str, Any], fds: list[int], parent: int) -> None:
    """In the child: everything that must hold before runsc's first instruction. Raises OSError."""
    os.setsid()
    if len(fds) > 3 and _libc.setns(fds[3], CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns", "network namespace")
    for target, fd in enumerate(fds[:3]):
        os.dup2(fd, target)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)
    for path in request["cgroups"]:
        with open(path, "wb", buffering=0) as procs:
            procs.write(b"0")
    with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
        score.write(b"1000")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.execve(  # noqa: S606  no shell is the point
        request["argv"][0], request["argv"], {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
    )


def main() -> None:  # noqa: C901  one loop
    """Serves until the server's end of the socket goes away."""
    server = socket.socket(fileno=0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, str] = {}

    def tell(message: dict[str, Any]) -> None:
        try:
            server.send(json.dumps(message).encode())
        except OSError:
            sys.exit(0)

    while True:
        ready = select.select([server.fileno(), reader], [], [])[0]
        if reader in ready:
            os.read(reader, 4096)
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                tell({"id": running.pop(pid), "status": status})
        if server.fileno() in ready:
            packet, fds, _, _ = socket.recv_fds(server, LARGEST_PACKET, 4, socket.MSG_CMSG_CLOEXEC)
            if not packet:
                return
            request = json.loads(packet)
            try:
                pid = start(request, fds)
            except OSError as error:
                tell({"id": request["id"], "error": str(error)})
            else:
                running[pid] = request["id"]
                tell({"id": request["id"], "pid": pid})
            for fd in fds:
                os.close(fd)


if __name__ == "__main__":
    main()
