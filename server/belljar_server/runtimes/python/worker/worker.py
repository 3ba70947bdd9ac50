"""The Python worker: warms up, waits for one JOB on fd 3, runs it, answers, and ends.

`runtimes/__init__.py` is its contract. Everything that is needed after user code has run is referred to before: user
code may change any module, and does not owe us its cooperation. Whatever it does, this process ends by `os._exit`;
what Python does before that, `leave.py` does, for a bounded time. Long, for those references stand with their users.
"""

from __future__ import annotations

import _imp
import _signal  # type: ignore[import-not-found]  # the functions in C: those of `signal` use what user code can change
import builtins
import contextlib
import fcntl
import gc
import math
import os
import signal
import site
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

HERE = os.path.dirname(os.path.abspath(__file__))
OPTIONS = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
"""Other folders than the image's, for tests."""
HOME = OPTIONS.get("--home", "/home/user")
CODE = OPTIONS.get("--code", "/code") + "/"
GUEST = OPTIONS.get("--guest", os.path.join(os.path.dirname(HERE), "guest"))

sys.path[:0] = [HERE, GUEST]

import framing  # noqa: E402
import jsonvalue  # noqa: E402
import leave  # noqa: E402
import warm  # noqa: E402
from output import Streams  # noqa: E402
from program import Source  # noqa: E402
from run import Ending, Failed, Gave, Job, Left, run  # noqa: E402

del sys.path[:2]
for _name in ("entry", "framing", "hints", "jsonvalue", "leave", "output", "program", "report", "run", "warm"):
    del sys.modules[_name]  # user code may have modules of these names

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

CHANNEL = 3
HIDDEN_CHANNEL = 512
"""The channel moves here, out of the way of code that closes all that it did not open."""
READ_BYTES = 1 << 16
"""Bytes of one read: a buffer that is a mapping of its own would be made and unmade each time (malloc(3))."""
DEPENDENCIES = "/deps"
"""Where the layer of requested packages is mounted, when there is one."""
FONTS = "/matplotlib/mpl-data/"
PACKAGES = [path for path in (DEPENDENCIES, *site.getsitepackages()) if os.path.isdir(path) and os.listdir(path)]
"""Where packages are, those that the request asks for first."""
RESERVE_SECONDS = 0.2
"""So long before the time limit the report is out, whatever still runs."""
MONITORING_TOOLS = 6
MAX_REPORT = 256 * 1024

exit_now = os._exit
read = os.read
write = os.write
pack_header = framing.HEADER.pack
getpid = os.getpid
monotonic = time.monotonic
is_frozen = _imp.is_frozen
settrace = sys.settrace
setprofile = sys.setprofile
set_switch_interval = sys.setswitchinterval
set_recursion_limit = sys.setrecursionlimit
gc_disable = gc.disable
collect, freeze = gc.collect, gc.freeze
set_timer = _signal.setitimer
get_handler = _signal.getsignal
set_handler = _signal.signal
monitoring: Any = getattr(sys, "monitoring", None)  # from Python 3.12 on
get_tool = monitoring.get_tool if monitoring else lambda _: None
set_events = monitoring.set_events if monitoring else lambda *_: None
signals = sorted(map(int, signal.valid_signals()))
real_timer, ignored = int(signal.ITIMER_REAL), int(signal.SIG_IGN)


class Channel:
    """The socket to the agent. Its state is where that is; user code can have closed it."""

    def __init__(self) -> None:
        try:
            self._fd = fcntl.fcntl(CHANNEL, fcntl.F_DUPFD_CLOEXEC, HIDDEN_CHANNEL)
        except OSError:  # so many files may not be open
            self._fd = fcntl.fcntl(CHANNEL, fcntl.F_DUPFD_CLOEXEC, CHANNEL)
        os.close(CHANNEL)
        self._identity = self._look()
        self.seal = b""
        """What this process's report begins with, so that the agent knows it."""

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame. Raises EOFError when the agent has gone."""
        unpacker = framing.Unpacker(framing.MAX_TRUSTED_PAYLOAD)
        while True:
            data = os.read(self._fd, READ_BYTES)
            if not data:
                raise EOFError
            for kind, payload in unpacker.feed(data):
                return kind, payload

    def send(self, *frames: tuple[bytes, bytes]) -> None:
        """Sends frames at once. Raises OSError."""
        if self._look() != self._identity:
            raise OSError("the channel is closed")
        view = memoryview(b"".join([pack_header(kind, len(payload)) + payload for kind, payload in frames]))
        while view:
            view = view[write(self._fd, view) :]

    def wait_for_end(self) -> None:
        """Returns when the agent is gone: it ends this process before. Raises OSError."""
        while read(self._fd, 1):
            pass

    def tell_lost(self) -> None:
        """Says in the logs why nothing came. When it is the agent that is gone, nobody reads this."""
        why = f"the code has closed the worker's channel (file descriptor {self._fd})"
        with contextlib.suppress(OSError):
            write(2, f"belljar: the result could not be delivered: {why}\n".encode())

    def _look(self, fstat: Callable[[int], os.stat_result] = os.fstat) -> tuple[int, int]:
        info = fstat(self._fd)
        return info.st_dev, info.st_ino


def main() -> NoReturn:
    """Serves one job."""
    channel = Channel()
    streams = Streams()
    streams.install()
    prepare(streams, warm_up=bool(os.environ.pop("BELLJAR_WARM", "")))
    version = "{}.{}.{}".format(*sys.version_info)
    channel.send((framing.READY, jsonvalue.encode(jsonvalue.dumps({"version": version}))))
    kind, payload = channel.receive()
    while kind == framing.WAKE:
        warm.make_forks_cheap()
        rehearse(streams, warm.REHEARSED)
        freeze()
        ready = jsonvalue.dumps({"version": version, "nonces": warm.nonces()})
        channel.send((framing.READY, jsonvalue.encode(ready)))
        kind, payload = channel.receive()
    if kind != framing.JOB:
        raise framing.BrokenFrame(f"expected a job, not {kind!r}")
    worker_pid = getpid()
    channel.seal = payload[: framing.SEAL_BYTES]
    message = jsonvalue.loads(payload[framing.SEAL_BYTES :].decode())
    end = monotonic() + message.get("timeout", math.inf) - RESERVE_SECONDS
    ending = run(accept(message), silence)
    del payload, message
    finish(ending, channel if getpid() == worker_pid else None, streams, end)


def prepare(streams: Streams, *, warm_up: bool) -> None:
    """Makes this look like the Python that users know, and does once what a job will do."""
    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.dont_write_bytecode = True
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    jsonvalue.allow_digits(0)  # inputs can be integers of any size, so code may also print them
    show_fonts()
    if warm_up:
        warm.import_usual()
        preload(streams, os.environ.pop("BELLJAR_PRELOAD", "").split())
        preload_requested(streams, os.environ.pop("BELLJAR_PRELOAD_REQUESTED", "").splitlines())
        collect()
    freeze()  # what is loaded by now lives to the end: nobody looks at it again
    for _ in range(5 if warm_up else 1):
        rehearse(streams, warm.REHEARSED)
    warm.make_forks_cheap()
    freeze()


def rehearse(streams: Streams, messages: list[str]) -> bool:
    """Takes small programs the whole way that the job will take, and leaves no trace; tells whether none failed."""
    path, argv, folder = list(sys.path), list(sys.argv), os.getcwd()
    recursion_limit, switch_interval = sys.getrecursionlimit(), sys.getswitchinterval()
    on_interrupt = signal.getsignal(signal.SIGINT)
    failed = False
    for message in messages:
        ending = run(accept(jsonvalue.loads(message)), silence)
        failed = failed or not isinstance(ending, Gave)
        report_of(ending, ())
        leave.close_all((CODE,))
        sys.path[:], sys.argv = path, argv
    streams.flush()
    sys.modules.pop("main", None)
    os.chdir(folder)
    gc.enable()
    sys.setrecursionlimit(recursion_limit)
    sys.setswitchinterval(switch_interval)
    signal.signal(signal.SIGINT, on_interrupt)
    return not failed


def preload(streams: Streams, packages: list[str]) -> None:
    """Imports packages and uses them. Raises what they raise: then there is no snapshot, rather than a poor one."""
    if packages:
        warm.import_packages(packages, PACKAGES)
        freeze()
        if not rehearse(streams, warm.EXERCISES):
            raise RuntimeError("a preinstalled package does not work")
        warm.REHEARSED.append(warm.EXERCISES[0])


def preload_requested(streams: Streams, statements: list[str]) -> None:
    """Imports what was asked for as a request's code would. Raises when that must not be in a snapshot, or fails."""
    if not statements:
        return
    sys.path[:0] = [HERE, GUEST]
    import preload

    del sys.path[:2], sys.modules["preload"], sys.modules["refusals"]
    job = warm.job("script", "\n".join(preload.there(statements, PACKAGES)))

    def prepare() -> Callable[[], bool]:
        accepted = accept(jsonvalue.loads(job))
        return lambda: isinstance(run(accepted, lambda: None), Gave)

    if preload.check(prepare):
        warm.import_packages([warm.NUMPY_RANDOM], PACKAGES)
    if not rehearse(streams, [job]):
        raise preload.NotPreloaded("it can be imported once only")
    if "pandas" in sys.modules:
        if not rehearse(streams, warm.EXERCISES[:1]):
            raise preload.NotPreloaded("pandas does not work with it")
        warm.REHEARSED.append(warm.EXERCISES[0])


def show_fonts() -> None:
    """Gives matplotlib the list of fonts that was made with its layer: looking for them takes it a second."""
    folder = os.environ.get("MPLCONFIGDIR", "")
    for packages in PACKAGES if folder else ():
        try:
            lists = [name for name in os.listdir(packages + FONTS) if name.startswith("fontlist-")]
            os.mkdir(folder, 0o700)
            for name in lists:
                os.symlink(packages + FONTS + name, f"{folder}/{name}")
        except OSError:  # no matplotlib, or not in a sandbox
            continue


def accept(message: dict[str, Any]) -> Job:
    """Enters the environment of the job."""
    os.chdir(HOME)
    os.environ.update(message["env"])
    if "TZ" in message["env"]:
        time.tzset()
    # What code writes to its own folder can be imported, but does not replace what others import.
    sys.path[:] = [CODE.rstrip("/"), *sys.path, *PACKAGES, HOME]
    sys.argv = [CODE + message["main_file"]]
    warm.reseed()
    let_files_come_first()
    source = Source(CODE + message["main_file"], message["code"].removeprefix("\ufeff"))
    return Job(source, CODE, message["entry"], jsonvalue.loads(message["inputs"]), message.get("network", False))


def let_files_come_first() -> None:
    """Forgets modules that are loaded and that the request has files for, which plain Python would find first.

    Not those that Python finds without looking for files, nor asyncio, which runs what the code gives to be awaited.
    """
    found = {*sys.builtin_module_names, "__main__", "asyncio"}
    for entry in os.listdir(CODE):
        name = entry.removesuffix(".py")
        is_module = entry != name or os.path.isfile(f"{CODE}{name}/__init__.py")
        if is_module and name in sys.modules and name not in found and not is_frozen(name):
            for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[loaded]


def silence() -> None:
    """User code is over: nothing that it has installed runs from here on."""
    settrace(None)
    setprofile(None)
    set_switch_interval(0.005)
    set_recursion_limit(3000)
    gc_disable()
    for tool in range(MONITORING_TOOLS):
        if get_tool(tool) is not None:
            set_events(tool, 0)
    for number in signals:
        if callable(get_handler(number)):
            set_handler(number, ignored)
    set_timer(real_timer, 0)


def finish(ending: Ending, channel: Channel | None, streams: Streams, end: float) -> NoReturn:
    """Reports and ends the process. Without a channel it is a child that user code has forked: it only ends.

    `end`: when, by the monotonic clock, nothing is waited for any longer.
    """
    status = 1
    try:
        status = _finish(ending, channel, streams, end)
    except OSError:
        if channel:
            channel.tell_lost()
    finally:
        exit_now(status)


def _finish(ending: Ending, channel: Channel | None, streams: Streams, end: float) -> int:
    last_words = ending.last_words if isinstance(ending, Left) else ""
    if isinstance(ending, Failed) and channel is None:
        last_words = str(ending.error["traceback"] or ending.error["message"])
    streams.flush(last_words)
    left = () if leave.attempt(lambda: leave.wait_for_threads(end - monotonic())) else ("thread",)
    streams.flush()
    status = {Gave: 0, Failed: 1}.get(type(ending), getattr(ending, "status", 0))
    if channel is None or (isinstance(ending, Left) and status != 0):
        depart(streams)
        return status
    last: list[tuple[bytes, bytes]] = []
    if isinstance(ending, Gave):
        for piece in jsonvalue.pieces(ending.text):
            if last:
                channel.send(*last)
            last = [(framing.RESULT, piece)]
    channel.send(*last, (framing.REPORT, channel.seal + report_of(ending, left)))
    depart(streams)
    leave.attempt(lambda: channel.send((framing.LEFT, channel.seal)))
    leave.attempt(channel.wait_for_end)
    return status


def depart(streams: Streams) -> None:
    """Does what user code wants done at its end. It may take as long as the agent waits; the report is out."""
    leave.attempt(leave.run_exit_handlers)
    leave.attempt(lambda: leave.close_all((CODE, HOME + "/")))
    streams.flush()


def report_of(ending: Ending, left: tuple[str, ...]) -> bytes:
    """What REPORT says; texts that grow too long by JSON's escapes are left out."""
    words: dict[str, object] = {"ok": True, "leaving": True, "left": list(left)}
    if not isinstance(ending, Failed):
        return jsonvalue.encode(jsonvalue.dumps(words))
    report = jsonvalue.encode(jsonvalue.dumps(words | {"ok": False, "error": ending.error}))
    if len(report) <= MAX_REPORT:
        return report
    short = ending.error | {"traceback": "", "message": str(ending.error["message"])[:1000]}
    return jsonvalue.encode(jsonvalue.dumps(words | {"ok": False, "error": short}))


if __name__ == "__main__":
    main()
