"""What code can see and reach: the sandbox, others, the kernel (HOSTILE.md 20, 22, 23)."""

from __future__ import annotations

import os
import platform
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from belljar_client import Limits, Result
from tests.conftest import CANARY, Server

Hit = Callable[..., Result]

CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
space = ctypes.create_string_buffer(4096)
def call(*arguments):
    ctypes.set_errno(0)
    if libc.syscall(*arguments) >= 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]
"""
# x86_64 numbers; each one with arguments that a kernel that allows it would take.
ESCAPES = {
    "ptrace of a child": "(101, 16, child, 0, 0)",
    "ptrace of itself": "(101, 0, 0, 0, 0)",
    "process_vm_readv": "(310, child, space, 0, space, 0, 0)",
    "userfaultfd": "(323, 1)",
    "io_uring_setup": "(425, 8, space)",
    "bpf": "(321, 0, space, 128)",
    "keyctl": "(250, 0, -3, 1)",
    "add_key": "(248, b'user', b'a', b'b', 1, -3)",
    "request_key": "(249, b'user', b'a', None, -3)",
    "mount tmpfs": "(165, b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
    "mount proc": "(165, b'proc', b'/tmp', b'proc', 0, None)",
    "bind mount": "(165, b'/', b'/tmp', None, 4096, None)",
    "umount": "(166, b'/home/user', 2)",
    "new mount calls": "(430, b'tmpfs', 0)",
    "open_tree": "(428, -100, b'/', 1)",
    "pivot_root": "(155, b'/tmp', b'/tmp')",
    "chroot": "(161, b'/tmp')",
    "user namespace": "(272, 0x10000000)",
    "user and mount namespace": "(272, 0x10020000)",
    "mount namespace": "(272, 0x20000)",
    "network namespace": "(272, 0x40000000)",
    "pid namespace": "(272, 0x20000000)",
    "clone into a user namespace": "(56, 0x10000011, 0, 0, 0, 0)",
    "setns": "(308, 0, 0)",
    "perf_event_open": "(298, space, 0, -1, -1, 0)",
    "open_by_handle_at": "(304, -100, space, 0)",
    "init_module": "(175, space, 10, b'')",
    "kexec_load": "(246, 0, 0, 0, 0)",
    "reboot": "(169, 0xFEE1DEAD, 672274793, 0x4321FEDC, 0)",
    "iopl": "(172, 3)",
    "swapon": "(167, b'/tmp', 0)",
    "acct": "(163, b'/tmp/x')",
    "fanotify": "(300, 0, 0)",
    "quotactl": "(179, 0, 0, 0, 0)",
    "memfd_secret": "(447, 0)",
    "setuid root": "(105, 0)",
    "setgid root": "(106, 0)",
    "capset": "(126, struct.pack('II', 0x20080522, 0), b'\\xff' * 24)",
    "mknod of memory": "(133, b'/tmp/mem', 0o20666, 0x101)",
    "mknod of a disk": "(133, b'/tmp/disk', 0o60666, 0x800)",
    "sethostname": "(170, b'x', 1)",
    "settimeofday": "(164, struct.pack('qq', 1, 0), None)",
}
REFUSALS = {"EPERM", "EACCES", "ENOSYS", "EOPNOTSUPP", "ENODEV"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
def test_every_way_out_that_is_known_is_refused(hit: Hit) -> None:
    """Each class of escape meets a refusal inside the sandbox already."""
    listed = "\n".join(f"told[{name!r}] = call(*{arguments})" for name, arguments in ESCAPES.items())
    code = f"""{CALLS}
import struct, time
child = os.fork()
if child == 0:
    time.sleep(60)
told = {{}}
{listed}
os.kill(child, 9)
told
"""
    told = hit(code).check().value
    assert {name: answer for name, answer in told.items() if answer not in REFUSALS} == {}
    assert len(told) == len(ESCAPES)


def test_processes_and_threads_work_beside_the_refusals(hit: Hit) -> None:
    """What ordinary programs need of clone is there: subprocesses, threads, worker threads, shells."""
    code = """
import multiprocessing, subprocess, threading
told = []
thread = threading.Thread(target=told.append, args=("thread",))
thread.start()
thread.join()
told.append(subprocess.run(["sh", "-c", "echo shell | cat"], capture_output=True, text=True).stdout.strip())
with multiprocessing.get_context("fork").Pool(2) as pool:
    told += pool.map(str.upper, ["a", "b"])
told
"""
    assert hit(code, limits=Limits(timeout=60)).check().value == ["thread", "shell", "A", "B"]
    node = """
const { Worker } = require('worker_threads');
const { execFileSync } = require('child_process');
const source = "require('worker_threads').parentPort.postMessage('worker')";
const said = await new Promise((resolve) => new Worker(source, { eval: true }).on('message', resolve));
[said, execFileSync('sh', ['-c', 'echo shell']).toString().trim()]
"""
    assert hit(node, "javascript", limits=Limits(timeout=60)).check().value == ["worker", "shell"]


@pytest.mark.parametrize("runtime", ["python", "javascript"])
def test_devices_and_kernel_interfaces_are_not_there(hit: Hit, runtime: str) -> None:
    """No memory, disk, hypervisor, vsock, kernel log or control file can be opened."""
    paths = [
        *("/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/vsock", "/dev/vhost-vsock", "/dev/fuse"),
        *("/dev/sda", "/dev/vda", "/dev/loop0", "/dev/loop-control", "/dev/userfaultfd", "/dev/net/tun", "/dev/kmsg"),
        *("/proc/kcore", "/proc/kmsg", "/proc/kallsyms", "/proc/sysrq-trigger", "/proc/1/mem", "/proc/1/environ"),
        *("/sys/kernel/debug", "/sys/fs/cgroup/cgroup.procs", "/sys/firmware/efi", "/proc/sys/kernel/core_pattern"),
        *("/run/docker.sock", "/var/run/docker.sock", "/run/belljar", "/var/lib/belljar", "/etc/shadow", "/mnt/home"),
    ]
    python = """
def main(paths):
    opened = []
    for path in paths:
        for mode in ("rb", "r+b"):
            try:
                with open(path, mode, buffering=0):
                    opened.append(path)
            except OSError:
                pass
    return opened
"""
    node = """
const fs = require('fs');
function main({ paths }) {
  return paths.filter((path) => ['r', 'r+'].some((flag) => {
    try { fs.closeSync(fs.openSync(path, flag)); return true; } catch { return false; }
  }));
}
"""
    opened = hit(python if runtime == "python" else node, runtime, inputs={"paths": paths}).check().value
    assert opened == []


def test_nothing_runs_as_root_and_nothing_is_setuid(hit: Hit) -> None:
    """The user is nobody special, without a capability and without a way to get one."""
    code = """
import os, re
status = open("/proc/self/status").read()
found = [os.path.join(folder, name) for folder, _, names in os.walk("/") for name in names
         if not folder.startswith(("/proc", "/sys")) and not os.path.islink(os.path.join(folder, name))
         and os.lstat(os.path.join(folder, name)).st_mode & 0o6000]
writable = [folder for folder, _, _ in os.walk("/") if not folder.startswith(("/proc", "/sys"))
            and os.access(folder, os.W_OK)]
{"ids": os.getresuid() + os.getresgid(), "groups": os.getgroups(),
 "capabilities": re.findall(r"^Cap(?:Inh|Prm|Eff|Amb):\\s*(\\w+)", status, re.M),
 "no_new_privs": "NoNewPrivs:\\t1" in status, "setuid": found, "writable": sorted(writable)}
"""
    seen = hit(code).check().value
    assert seen["ids"] == [1000] * 6
    assert seen["groups"] in ([], [1000])
    assert set(seen["capabilities"]) == {"0" * 16}
    assert seen["no_new_privs"]
    assert seen["setuid"] == []
    ours = {"/home/user", "/tmp", "/dev/shm", "/dev/shm/matplotlib", "/dev/pts", "/dev/mqueue"}
    assert set(seen["writable"]) <= ours, seen["writable"]


EVERYTHING = """
import os, socket
told = [socket.gethostname(), str(os.uname()), str(dict(os.environ)), str(os.listdir("/proc"))]
for folder in ("/proc", "/proc/self", "/proc/1", "/proc/sys/kernel", "/proc/net", "/etc", "/run", "/sys/class/net"):
    try:
        names = os.listdir(folder)
    except OSError:
        continue
    for name in names:
        path = f"{folder}/{name}"
        if os.path.isfile(path) and name not in ("kmsg", "mem", "pagemap"):
            try:
                told.append(f"{path}: {open(path, 'rb').read(20_000).decode('latin-1')}")
            except OSError:
                pass
chr(10).join(told)
"""


def test_nothing_of_the_host_is_visible(hit: Hit, server: Server) -> None:
    """No environment, path, host name, process, address or kernel of the host shows in anything that can be read."""
    seen = hit(EVERYTHING).check().value
    assert "belljar" in seen  # it did read the host name of the sandbox
    grpc_port = server.address.rpartition(":")[2]
    assert not re.search(rf"(?m)(?<![\w.+-]){re.escape(socket.gethostname())}(?![\w.+-])", seen.partition("/proc")[0])
    host = {
        "the canary": CANARY,
        "its kernel": platform.release(),
        "the run-time directory": str(server.runtime_dir),
        "the data directory": os.environ.get("BELLJAR_DATA_DIR", "/var/lib/belljar"),
        "the port": f":{grpc_port}",
        "the process": f"{server.process.pid} (belljar)",
        "the boot id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }
    assert [what for what, value in host.items() if value in seen] == []


@pytest.mark.parametrize("runtime", ["python", "javascript"])
def test_environment_is_ours_and_the_requests_alone(hit: Hit, runtime: str) -> None:
    """Nothing of the server's environment comes through."""
    code = "import os\ndict(os.environ)" if runtime == "python" else "({ ...process.env })"
    seen = hit(code, runtime, env={"MINE": "1"}).check().value
    assert seen["MINE"] == "1"
    ours = {"PATH", "HOME", "LANG", "TZ", "USER", "MINE", "PWD", "NODE_PATH"}
    assert set(seen) <= ours | {"PYTHONDONTWRITEBYTECODE", "MPLBACKEND", "MPLCONFIGDIR"}


def test_only_the_sandboxes_own_processes_are_there(hit: Hit) -> None:
    """The agent, the worker, and nobody else."""
    code = "import os\nsorted(int(name) for name in os.listdir('/proc') if name.isdigit()) + [os.getpid()]"
    first, *others = hit(code).check().value
    assert first == 1
    assert len(set(others)) == 1


def test_image_cannot_be_changed(hit: Hit) -> None:
    """Root file system, agent and worker are read-only for everybody."""
    code = """
import errno, os
told = set()
for path in ("/opt/belljar/guest/agent.py", "/opt/belljar/new", "/usr/bin/python3", "/etc/hosts", "/new", "/code/new"):
    for action in (lambda: open(path, "ab"), lambda: os.chmod(path, 0o777), lambda: os.rename(path, path + "x"),
                   lambda: os.unlink(path), lambda: os.symlink("/tmp", path)):
        try:
            action()
            told.add(path)
        except OSError as error:
            told.add(errno.errorcode[error.errno])
sorted(told)
"""
    assert set(hit(code).check().value) <= {"EACCES", "EPERM", "EROFS", "ENOENT", "EEXIST"}


@pytest.mark.parametrize("runtime", ["python", "javascript"])
def test_nothing_of_one_execution_is_left_for_the_next(hit: Hit, runtime: str) -> None:
    """Files, shared memory, environment, modules and sockets of one are not there for another."""
    token = secrets.token_hex(8)
    leave = f"""
import os, socket, sys, builtins
for folder in ("/tmp", "/dev/shm", "/home/user", "/dev/mqueue"):
    try:
        open(folder + "/residue", "w").write("{token}")
    except OSError:
        pass
os.environ["RESIDUE"] = builtins.residue = "{token}"
sys.modules["residue"] = sys
quiet = socket.socket(socket.AF_UNIX)
quiet.bind("\\0residue")
quiet.listen()
"""
    look = """
import os, socket, sys, builtins
found = [path for path in ("/tmp/residue", "/dev/shm/residue", "/home/user/residue", "/dev/mqueue/residue")
         if os.path.exists(path)]
found += [name for name in os.environ if name == "RESIDUE"]
found += ["module"] * ("residue" in sys.modules) + ["builtin"] * hasattr(builtins, "residue")
found += os.listdir("/tmp") + os.listdir("/home/user") + sorted(set(os.listdir("/dev/shm")) - {"matplotlib"})
try:
    socket.socket(socket.AF_UNIX).connect("\\0residue")
    found.append("socket")
except OSError:
    pass
found
"""
    if runtime == "javascript":
        leave = f"""
const fs = require('fs');
for (const folder of ['/tmp', '/dev/shm', '/home/user']) fs.writeFileSync(`${{folder}}/residue`, '{token}');
globalThis.residue = process.env.RESIDUE = '{token}'; Object.prototype.residue = 1; null
"""
        look = """
const fs = require('fs');
const found = ['/tmp', '/dev/shm', '/home/user'].flatMap((folder) => fs.readdirSync(folder));
if ('residue' in globalThis || 'RESIDUE' in process.env || 'residue' in {}) found.push('global');
found
"""
    hit(leave, runtime).check()
    assert hit(look, runtime).check().value == []


UNIQUE = {
    "python": """
import os, random, secrets, tempfile, uuid
[random.random(), secrets.token_hex(), str(uuid.uuid4()), str(uuid.uuid1()), os.urandom(8).hex(),
 tempfile.mktemp(), random.Random().random()]
""",
    "javascript": """
const crypto = require('crypto');
[Math.random(), crypto.randomUUID(), crypto.randomBytes(8).toString('hex'), crypto.getRandomValues(new Uint8Array(8))]
  .map(String)
""",
}


@pytest.mark.parametrize("runtime", UNIQUE)
def test_no_two_executions_draw_the_same_random_numbers(hit: Hit, runtime: str) -> None:
    """Random numbers, ids and temporary names of eight executions are pairwise different."""
    drawn = [hit(UNIQUE[runtime], runtime).check().value for _ in range(8)]
    for values in zip(*drawn, strict=True):
        assert len({str(value) for value in values}) == 8, values
