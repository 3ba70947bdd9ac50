"""Code that forges what the worker says, or changes what the worker is made of (HOSTILE.md 16 and 18)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from belljar_client import ErrorKind, Limits, Outcome, Result
from tests.conftest import Server

Hit = Callable[..., Result]

FRAMES = """
import os, struct
def frame(kind, payload=b""):
    return kind + struct.pack("!I", len(payload)) + payload
def send(data):
    for fd in os.listdir("/proc/self/fd"):  # the channel is one of them
        if int(fd) > 2:
            try:
                os.write(int(fd), data)
            except OSError:
                pass
"""
FORGED = {
    "four gigabytes": 'b"p" + struct.pack("!I", 0xFFFFFFFF)',
    "half a frame": 'b"p" + struct.pack("!I", 1000) + b"x"',
    "wait status": 'frame(b"x", b\'{"status": 0, "tasks": 0}\')',
    "negative count": 'frame(b"z", b\'{"skipped": [], "left_out": -1}\')',
    "artifact": 'frame(b"a", b\'{"name": "Li4vLi4vZXRj", "size": -1}\') + frame(b"d", b"x") + frame(b"e", b"{}")',
    "fault": 'frame(b"!", b\'{"message": "forged", "errno": "ENOSPC"}\')',
    "started again": 'frame(b"s", b"{}")',
    "unknown kind": 'frame(b"\\0", b"x" * 1000)',
    "noise": "os.urandom(100_000)",
    "deep report": 'frame(b"p", b"[" * 1_000_000)',
    "report in another encoding": 'frame(b"p", b"\\xff\\xfe" * 1000)',
    "report of odd types": 'frame(b"p", b\'{"ok": 1, "error": ["x"]}\')',
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_frame_changes_nothing_but_ones_own_result(hit: Hit, what: str) -> None:
    """What is no result or report ends the channel of that worker; the wait status still tells how it ended."""
    code = f"{FRAMES}open('kept', 'w').write('k')\nsend({FORGED[what]})\n"
    failed = hit(f"{code}os._exit(3)\n")
    assert failed.error
    assert (failed.error.kind, failed.exit_code) == (ErrorKind.EXITED, 3)
    assert [artifact.name for artifact in failed.artifacts] == ["kept"]
    ended = hit(f"{code}os._exit(0)\n").check()
    assert ended.result_json is None
    assert len(ended.warnings) == 1


def test_forged_success_does_not_hide_how_the_process_ended(hit: Hit) -> None:
    """A forged report and result are believed only with exit code 0, that is, as the code's own result."""
    code = f"{FRAMES}send(frame(b'r', b'\"forged\"') + frame(b'p', b'{{\"ok\": true}}'))\n"
    raised = hit(f"{code}raise ValueError('real')\n")
    assert (raised.outcome, raised.result_json, raised.exit_code) == (Outcome.FAILED, None, 1)
    killed = hit(f"{code}os.kill(os.getpid(), 9)\n")
    assert killed.error
    assert (killed.error.kind, killed.signal, killed.result_json) == (ErrorKind.SIGNALED, 9, None)
    slow = hit(f"{code}while True: pass\n", limits=Limits(timeout=1))
    assert slow.error
    assert (slow.error.kind, slow.result_json) == (ErrorKind.TIMEOUT, None)


@pytest.mark.parametrize("kind", ["TIMEOUT", "MEMORY_LIMIT", "CANCELLED", "SANDBOX_FAILED", "OUTPUT_LIMIT", "SIGNALED"])
def test_kinds_that_take_evidence_cannot_be_claimed(hit: Hit, server: Server, kind: str) -> None:
    """A report that claims what only the server can know is an exception like any other."""
    report = (
        f'{{"ok": false, "error": {{"kind": "{kind}", "message": "claimed", "line": 99999999999, "column": 1e999}}}}'
    )
    result = hit(f"{FRAMES}send(frame(b'p', {report.encode()!r}))\nos._exit(1)\n")
    assert result.error
    assert (result.error.kind, result.error.message, result.error.line) == (ErrorKind.EXCEPTION, "claimed", 0)
    assert '"event": "sandbox failed"' not in server.log_text()


SEALED = """
import sys
above = sys._getframe()
while "channel" not in above.f_locals:
    above = above.f_back
seal = above.f_locals["channel"].seal
"""


@pytest.mark.parametrize("report", ["b'[' * 200_000", "b'{}'", "b'[]'", "b'\\xff'", "b'{\"ok\": 1}'", "b'1' * 5000"])
def test_sealed_nonsense_is_the_codes_own_fault(hit: Hit, server: Server, report: str) -> None:
    """Code that finds the worker's seal in its memory can say that it has ended; nonsense under it breaks nothing."""
    result = hit(f"{FRAMES}{SEALED}send(frame(b'p', seal + {report}))\nos._exit(3)\n")
    assert result.error
    assert (result.error.kind, result.exit_code) == (ErrorKind.EXITED, 3)
    assert '"event": "sandbox failed"' not in server.log_text()


NOT_JSON = [b"{nope", b"\xff\xfe", b"NaN", b"[" * 100_000, b"1 2", b'"\x00"', b"[1,]"]


@pytest.mark.parametrize("text", NOT_JSON, ids=[repr(text[:6]) for text in NOT_JSON])
def test_forged_result_that_is_no_json_never_reaches_the_client(hit: Hit, text: bytes) -> None:
    """Clients may parse every result they get."""
    result = hit(
        f"{FRAMES}send(frame(b'r', {text[:1] if len(text) > 99 else text!r} * {max(1, len(text) // 100 * 100)})"
        f" + frame(b'p', b'{{\"ok\": true}}'))\nos._exit(0)\n"
    )
    assert result.error
    assert result.error.kind is ErrorKind.RESULT_NOT_SERIALIZABLE
    assert (result.result_json, result.exit_code) == (None, 1)


@pytest.mark.parametrize(
    "frames",
    ["frame(b'r') * 20_000", "frame(b'r', b'1') * 20_000", "frame(b'r', bytes(1 << 20))"],
    ids=["empty", "of one byte", "of a megabyte"],
)
def test_endless_results_are_ended_and_hold_up_nobody(hit: Hit, run: Hit, frames: str) -> None:
    """A worker that sends results without end is ended by its time, while others are served."""
    from concurrent.futures import ThreadPoolExecutor

    code = f"{FRAMES}flood = {frames}\nwhile True:\n    send(flood)\n"
    with ThreadPoolExecutor(1) as thread:
        flood = thread.submit(hit, code, limits=Limits(timeout=3, cpu_time=60))
        assert run("1", limits=Limits(timeout=30)).check().value == 1
        result = flood.result()
    assert result.error
    assert result.error.kind is ErrorKind.TIMEOUT


def test_forked_child_does_not_report_for_the_worker(hit: Hit) -> None:
    """A child that runs to the end of the code, raises or returns is not the worker."""
    assert hit("import os\n'child' if os.fork() == 0 else 'parent'\n").check().value == "parent"
    code = "import os\nif os.fork() == 0:\n    raise ValueError('in the child')\nos.wait()\n7\n"
    result = hit(code).check()
    assert result.value == 7
    assert b"ValueError: in the child" in result.stderr


AGENT = """
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
told = {}
def refused(name, action):
    try:
        action()
        told[name] = "done"
    except OSError as error:
        told[name] = errno.errorcode[error.errno]
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
space = ctypes.create_string_buffer(64)
for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
    refused(f"signal {number:d}", lambda: os.kill(1, number))
refused("attach", lambda: call(101, 16, 1, 0, 0))
refused("read memory", lambda: call(310, 1, space, 1, space, 1, 0))
refused("write memory", lambda: call(311, 1, space, 1, space, 1, 0))
for path in ("mem", "environ", "maps", "root", "cwd", "exe", "fd/0", "fd/4", "task/1/fd/0", "map_files"):
    for mode in (os.O_RDONLY, os.O_RDWR):
        refused(f"{path} {mode}", lambda: os.open(f"/proc/1/{path}", mode))
refused("list fd", lambda: os.listdir("/proc/1/fd"))
refused("pidfd_getfd", lambda: call(438, os.pidfd_open(1), 0, 0))
refused("nice", lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
refused("affinity", lambda: os.sched_setaffinity(1, {0}))
told
"""


def test_agent_cannot_be_signalled_traced_read_or_opened(hit: Hit) -> None:
    """PID 1 is out of reach: no signal, no memory, none of its descriptors, in any way."""
    told = hit(AGENT).check().value
    assert len(told) > 25
    assert set(told.values()) <= {"EPERM", "EACCES", "ENOENT", "ESRCH", "ENOSYS"}, told


PYTHON_PATCHES = {
    "json": "import json, json.encoder\njson.dumps = json.encoder.JSONEncoder.encode = lambda *a, **k: '1'",
    "builtins": "import builtins\nfor name in ('isinstance', 'issubclass', 'len', 'type', 'str', 'print', 'dict'):\n"
    "    setattr(builtins, name, None)",
    "streams": "import sys\nsys.stdout = None\nsys.stderr = 5\nsys.__stdout__ = None",
    "os": "import os\nfor name in ('write', 'read', '_exit', 'getpid', 'fstat', 'close'):\n    setattr(os, name, None)",
    "modules": "import sys\nsys.modules.clear()",
    "trace": "import sys\nsys.setprofile(lambda *a: None)\nsys.settrace(lambda *a: None)\nsys.setrecursionlimit(60)",
    "atexit": "import atexit, os\natexit.register(os._exit, 7)\nimport threading\nthreading._shutdown = None",
    "signals": "import signal\nsignal.signal(14, lambda *a: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, 5, 0.001)",
    "struct": "import struct, io, re, socket\nstruct.Struct = struct.pack = io.StringIO = re.compile = None",
    "import": "import builtins, importlib\nbuiltins.__import__ = None\nimportlib.import_module = None",
    "garbage": "import gc\ngc.collect = None\ngc.callbacks.append(lambda *a: 1 / 0)",
    "hooks": "import sys\nsys.excepthook = sys.unraisablehook = sys.displayhook = None\nsys.exit = None",
}


@pytest.mark.parametrize("what", PYTHON_PATCHES)
def test_python_that_patches_its_world_gets_its_own_result_and_error(hit: Hit, what: str) -> None:
    """The worker does not use what user code can replace."""
    patch = PYTHON_PATCHES[what]
    good = hit(f"def main():\n    return {{'a': [1, 'ü']}}\n{patch}\n", limits=Limits(timeout=20)).check()
    assert good.value == {"a": [1, "ü"]}
    bad = hit(f"def main():\n    raise TypeError('mine')\n{patch}\n", limits=Limits(timeout=20))
    assert bad.error
    assert (bad.error.kind, bad.error.message, bad.error.line) == (ErrorKind.EXCEPTION, "TypeError: mine", 2)


NODE_PATCHES = {
    "JSON": "JSON.stringify = () => '1'; JSON.parse = () => { throw 1; };",
    "Object.prototype": "Object.prototype.ok = false; Object.prototype.code = 5; Object.prototype.offset = 3;"
    " Object.defineProperty(Object.prototype, '0', { get() { throw 8; } });",
    "Array.prototype": "Array.prototype.push = Array.prototype.map = null; Array.prototype[Symbol.iterator] = null;",
    "Promise": "Promise.prototype.then = () => { throw 6; }; globalThis.Promise = null; Reflect.apply = null;",
    "functions": "Function.prototype.call = Function.prototype.apply = Function.prototype.bind = null;",
    "process": "process.exit = process.reallyExit = process.emit = () => {}; process.nextTick = null;"
    " process.listenerCount = () => 1;",
    "fs": "const fs = require('fs'); fs.writeSync = fs.readSync = () => { throw 7; };",
    "Buffer": "Buffer.from = () => { throw 3; }; Buffer.allocUnsafe = null; Atomics.wait = null;",
    "text": "String.prototype.slice = String.prototype.charCodeAt = null; Number.isInteger = null; Object.keys = null;",
    "errors": "Error.prepareStackTrace = () => { throw 1; }; Error.stackTraceLimit = 0;",
    "timers": "setImmediate = setTimeout = queueMicrotask = null;",
}


@pytest.mark.parametrize("what", NODE_PATCHES)
def test_node_that_patches_its_world_gets_its_own_result_and_error(hit: Hit, what: str) -> None:
    """What the worker does after user code runs in a realm of its own."""
    patch = NODE_PATCHES[what]
    good = hit(f"{patch}\nfunction main() {{ return {{ a: [1, 'ü'] }}; }}", "javascript", limits=Limits(timeout=20))
    assert good.check().value == {"a": [1, "ü"]}
    bad = hit(f"{patch}\nfunction main() {{ throw new TypeError('mine'); }}", "javascript", limits=Limits(timeout=20))
    assert bad.error
    assert bad.error.kind is ErrorKind.EXCEPTION
    assert "mine" in bad.error.message


def test_worker_that_user_code_takes_apart_is_never_a_success(hit: Hit) -> None:
    """Reaching into the worker's own frames can lose the result, which is then told as a failure."""
    code = "import sys\nframe = sys._getframe()\nwhile frame.f_back:\n    frame = frame.f_back\n"
    result = hit(f"{code}frame.f_globals['finish'] = None\n9\n")
    assert (result.outcome, result.result_json) == (Outcome.FAILED, None)
