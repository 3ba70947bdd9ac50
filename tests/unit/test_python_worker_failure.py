"""How the Python worker tells failures, and that hostile code does not keep it from telling."""

from __future__ import annotations

import json
import time

import pytest

from belljar_server.guest import framing
from tests.unit.python_worker import Run, Worker, running_workers, waiting_worker

run = running_workers
worker = waiting_worker


# --- exceptions --------------------------------------------------------------------------------------------------


def test_an_exception_shows_the_users_frames_and_the_place(run: Run) -> None:
    """Message, traceback with source lines, file, line and column; nothing of the worker."""
    failure = run("def inner(x):\n    return 'ä' + x['k']\n\ndef main(args):\n    return inner({})\n").failure
    assert failure["kind"] == "EXCEPTION"
    assert failure["message"] == "KeyError: 'k'"
    assert (failure["file"], failure["line"], failure["column"]) == ("main.py", 2, 18)
    lines = [line for line in failure["traceback"].splitlines() if "^" not in line and "~" not in line]
    assert lines == [
        "Traceback (most recent call last):",
        '  File "main.py", line 5, in main',
        "    return inner({})",
        '  File "main.py", line 2, in inner',
        "    return 'ä' + x['k']",
        "KeyError: 'k'",
    ]


def test_the_place_is_in_the_users_source_when_the_library_raises(run: Run) -> None:
    """The line of json.loads's caller, not of json; the library's frames are in the traceback all the same."""
    failure = run(
        "import lib\ndef main(args):\n    return lib.f()",
        files={"lib.py": "import json\ndef f():\n    json.loads('[')"},
    ).failure
    assert failure["file"] == "lib.py"
    assert (failure["line"], failure["column"]) == (3, 5)
    assert 'File "lib.py", line 3, in f\n    json.loads' in failure["traceback"]
    assert "decoder.py" in failure["traceback"]
    assert failure["message"].startswith("json.decoder.JSONDecodeError: ")


@pytest.mark.parametrize(
    "code",
    [
        "async def main(args):\n    await f()\nasync def f():\n    1 / 0",
        "async def f():\n    1 / 0\nawait f()",
        "import asyncio\nasync def f():\n    1 / 0\ndef main(args):\n    return f()",
        "import os\ndef main(args):\n    os.kill(2**22 + 1, 0)",
        "def main(args):\n    return sorted([1, 'a'])",
    ],
)
def test_no_frame_of_ours_is_in_a_traceback(run: Run, code: str) -> None:
    """Neither the worker's, nor those of the event loop that it started."""
    traceback = run(code).failure["traceback"]
    assert traceback.splitlines()[1].strip().startswith('File "main.py"')
    assert "belljar" not in traceback
    assert "asyncio" not in traceback


def test_chains_notes_and_groups_are_told_as_python_does(run: Run) -> None:
    """`from`, context, notes and ExceptionGroup, each with the user's frames only."""
    code = """
def main(args):
    try:
        try:
            {}['a']
        except KeyError as e:
            raise ValueError('first') from e
    except ValueError:
        error = ExceptionGroup('several', [TypeError('one'), OSError(2, 'two')])
        error.add_note('a note')
        raise error
"""
    failure = run(code).failure
    assert failure["message"] == "ExceptionGroup: several (2 sub-exceptions)"
    assert failure["line"] == 11
    for text in ("KeyError: 'a'", "direct cause", "During handling", "a note", "TypeError: one", "[Errno 2] two"):
        assert text in failure["traceback"]
    assert "worker" not in failure["traceback"]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit('x')", "GeneratorExit: x"),
        ("assert 1 == 2, 'sums'", "AssertionError: sums"),
        ("raise type('', (Exception,), {})('x')", ": x"),
        ("raise type('A b', (Exception,), {'__module__': None})('x')", "A b: x"),
        ("raise type('Mine', (Exception,), {})('x')", "Mine: x"),
        ("raise type('Bad', (Exception,), {'__str__': lambda self: 1 / 0})()", "Bad: <exception str() failed>"),
        ("raise type('Bad', (Exception,), {'__str__': lambda self: exit(3)})()", "Bad: <exception str() failed>"),
        ("raise type('Bad', (Exception,), {'__class__': property(lambda self: 1 / 0)})('x')", "Bad: x"),
        ("raise type('Bad', (Exception,), {'__getattribute__': lambda *a: 1 / 0})('x')", "Bad: x"),
        ("raise type('Bad', (OSError,), {'errno': property(lambda self: 1 / 0)})('x')", "Bad: x"),
        ("raise Exception('\\ud800')", "Exception: \\ud800"),
        ("raise None", "TypeError: exceptions must derive from BaseException"),
    ],
)
def test_odd_exceptions_are_told(run: Run, statement: str, message: str) -> None:
    """Whatever class it is and whatever its methods do, it arrives as EXCEPTION with a message and the line."""
    failure = run(f"def main(args):\n    {statement}").failure
    assert (failure["kind"], failure["message"], failure["line"]) == ("EXCEPTION", message, 2)
    assert failure["traceback"].rstrip().endswith(message)


def test_a_str_method_that_prints_only_prints(run: Run) -> None:
    """What it prints is output, delivered before the report."""
    ran = run("class E(Exception):\n    def __str__(self):\n        print('gotcha')\n        return 'x'\nraise E")
    assert ran.failure["message"] == "E: x"
    assert "gotcha\n" in ran.stdout


@pytest.mark.parametrize(
    "text", ["'x' * 10_000_000", "'\\0' * 10_000_000", "'\\u20ac' * 10_000_000", "'a\\n' * 5_000_000"]
)
def test_a_huge_message_is_cut(run: Run, text: str) -> None:
    """16 KiB of message and 64 KiB of traceback are enough, and both ends survive."""
    failure = run(f"def main(args):\n    raise ValueError({text})").failure
    assert len(failure["message"].encode()) <= 16 * 1024
    assert len(failure["traceback"].encode()) <= 64 * 1024
    assert failure["message"].startswith("ValueError: ")
    assert failure["line"] == 2


@pytest.mark.parametrize(
    "code",
    [
        "def f(n):\n    return f(n + 1)\ndef main(args):\n    return f(0)",
        "def f(n):\n    return g(n)\ndef g(n):\n    return f(n + 1)\ndef main(args):\n    return f(0)",
        "import sys\nsys.setrecursionlimit(30_000)\ndef f(n):\n    return f(n + 1)\ndef main(args):\n    return f(0)",
    ],
)
def test_endless_recursion_is_told_shortly(run: Run, code: str) -> None:
    """A RecursionError with a traceback that fits, whatever the recursion limit."""
    failure = run(code).failure
    assert failure["message"].startswith("RecursionError: ")
    assert len(failure["traceback"].encode()) <= 64 * 1024


def test_an_endless_chain_of_exceptions_is_cut(run: Run) -> None:
    """10,000 exceptions, each the context of the next, and a chain that is a circle."""
    chain = (
        "error = None\nfor i in range(10_000):\n    new = ValueError(i)\n    new.__context__ = error\n"
        "    error = new\nraise error"
    )
    assert run(chain).failure["message"] == "ValueError: 9999"
    circle = "a, b = ValueError('a'), ValueError('b')\na.__cause__ = b\nb.__cause__ = a\nraise a"
    assert run(circle).failure["message"] == "ValueError: a"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import errno\nraise OSError(errno.ENOSPC, 'full')", "ENOSPC"),
        ("try:\n    raise OSError(28, 'full')\nexcept OSError as e:\n    raise ValueError from e", "ENOSPC"),
        ("try:\n    raise OSError(28, 'full')\nexcept OSError as e:\n    raise ValueError from None", ""),
        ("try:\n    raise OSError(28, 'full')\nexcept OSError as e:\n    raise ValueError", "ENOSPC"),
        ("raise ExceptionGroup('g', [OSError(28, 'full')])", "ENOSPC"),
        ("raise BlockingIOError(11, 'fork')", "EAGAIN"),
        ('raise RuntimeError("can\'t start new thread")', "EAGAIN"),
        ("raise OSError(2, 'no')", ""),
    ],
)
def test_the_systems_refusal_is_named(run: Run, code: str, name: str) -> None:
    """A full disk and the limit of processes are told apart from other failures, also behind other exceptions."""
    assert run(code).failure["errno"] == name


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("import requests_of_mine", "requests_of_mine is not installed in this runtime: declare it in dependencies"),
        ("from pandas_of_mine.x import y", "pandas_of_mine is not installed"),
        ("import os.nothing", ""),
        ("Value = 1\nvalue", "did you mean Value?"),
        ("x = true", "In Python it is True."),
        ("def main(args):\n    return a", "a is an input"),
        ("input('?')", "inputs come as"),
        ("import socket\nraise socket.gaierror(-3, 'x')", "no network"),
        (
            (
                "import urllib.error\ntry:\n    raise OSError(101, 'x')\nexcept OSError as e:\n"
                "    raise urllib.error.URLError(e)"
            ),
            "no network",
        ),
        ("open('nothing.txt')", "/home/user"),
        ("open('/nothing.txt')", ""),
        ("1 / 0", ""),
    ],
)
def test_hints_say_what_helps(run: Run, code: str, hint: str) -> None:
    """Where there is something to say it is said, elsewhere nothing."""
    given = run(code, {"a": 1}).failure["hint"]
    assert hint in given
    assert bool(hint) == bool(given)


@pytest.mark.parametrize("raised", ["socket.gaierror(-3, 'x')", "OSError(101, 'x')"])
def test_with_a_network_no_hint_says_that_there_is_none(run: Run, raised: str) -> None:
    """A name that does not exist, or an address that is not there, is then just that."""
    assert run(f"import socket\nraise {raised}", network=True).failure["hint"] == ""


# --- leaving early -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["import sys\nsys.exit()", "exit(0)", "raise SystemExit", "def main(args): exit(False)"]
)
def test_a_clean_exit_is_ok_without_a_result(run: Run, code: str) -> None:
    """sys.exit() is the end of the program, not a failure."""
    ran = run(f"print('out')\n{code}")
    assert (ran.ok, ran.status, ran.result_json, ran.stdout) == (True, 0, None, "out\n")


@pytest.mark.parametrize(
    ("code", "status", "stderr"),
    [
        ("import sys\nsys.exit(3)", 3, ""),
        ("import sys\nsys.exit(-1)", 255, ""),
        ("import sys\nsys.exit('sorry')", 1, "sorry\n"),
        ("import sys\nsys.exit(True)", 1, ""),
        ("import sys\nasync def main(args): sys.exit(4)", 4, ""),
        ("import os\nos._exit(5)", 5, ""),
        ("import os\nos.abort()", -6, ""),
        ("import os\nos.kill(os.getpid(), 9)", -9, ""),
        ("import os\nos.execv('/bin/sh', ['sh', '-c', 'exit 7'])", 7, ""),
    ],
)
def test_other_exits_keep_their_status_and_what_was_printed(run: Run, code: str, status: int, stderr: str) -> None:
    """The process ends as the code wanted, without a report, and no line that it printed is lost."""
    ran = run(f"print('one')\nprint('two')\nprint('three', end='')\n{code}")
    assert (ran.ok, ran.error, ran.status) == (False, None, status)
    assert (ran.stdout, ran.stderr) == ("one\ntwo\nthree", stderr)


# --- code that works against us ----------------------------------------------------------------------------------

SABOTAGE = {
    "builtins": "import builtins\nchange = setattr\nfor n in list(vars(builtins)):\n"
    "    if n not in ('True', '__import__', '__build_class__'): change(builtins, n, None)",
    "json": "import json\n"
    "json.dumps = json.loads = json.JSONEncoder = json.encoder.c_make_encoder = json.scanner = None",
    "traceback": "import traceback, linecache\nlinecache.getlines = linecache.getline = linecache.checkcache = None\n"
    "traceback.TracebackException.__init__ = traceback.StackSummary.format = None\nlinecache.cache.clear()",
    "os and io": "import os, io, sys, signal, fcntl, gc\n"
    "for m in (os, io, signal, fcntl, gc):\n    for n in list(vars(m)):\n"
    "        if not n.startswith('__'): setattr(m, n, None)",
    "streams": "import sys\nsys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None",
    "closed streams": "import sys\nsys.stdout.close()\nsys.stderr.close()",
    "closed files": "import os\nos.closerange(0, 256)",
    "evil stream": "import sys\nclass S:\n    def __getattr__(self, name): raise SystemExit(9)\n"
    "sys.stdout = sys.stderr = S()",
    "trace": "import sys\ndef t(*a): return t\nsys.settrace(t)\nsys.setprofile(t)",
    "signals": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(0, 0.001, 0.001)",
    "deleted streams": "import sys\ndel sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__",
    "atexit": "import atexit, os, sys\natexit.register(lambda: os.write(1, b'atexit ran'))\nsys.exitfunc = 1",
    "threads": "import threading\nthreading.Thread(target=threading.Event().wait).start()",
    "modules": "import sys\nfor n in list(sys.modules): sys.modules[n] = None",
    "recursion": "import sys\nsys.setrecursionlimit(60)",
    "garbage": "import gc\nclass D:\n    def __del__(self): raise SystemExit(9)\nx = D(); x.x = x; del x\n"
    "gc.set_threshold(1)",
    "hooks": "import sys\nsys.excepthook = sys.unraisablehook = sys.displayhook = lambda *a: 1 / 0",
    "nonblocking": "import os\nfor fd in (1, 2): os.set_blocking(fd, False)",
}


@pytest.mark.parametrize("name", sorted(SABOTAGE))
def test_sabotage_does_not_change_the_result(run: Run, name: str) -> None:
    """Whatever the code breaks, its own result arrives."""
    ran = run(f"{SABOTAGE[name]}\nresult = [1, {{'a': 'b'}}]\nresult")
    assert ran.error is None
    assert ran.result_json == '[1,{"a":"b"}]'
    assert (ran.ok, ran.status) == (True, 0)
    assert ("atexit ran" in ran.stdout) == (name == "atexit")


@pytest.mark.parametrize("name", sorted(SABOTAGE))
def test_sabotage_does_not_hide_a_failure(run: Run, name: str) -> None:
    """Whatever the code breaks, its exception and its place arrive."""
    code = f"{SABOTAGE[name]}\nx = [1]\nx.nothing"
    failure = run(code).failure
    assert failure["kind"] == "EXCEPTION"
    assert failure["message"] == "AttributeError: 'list' object has no attribute 'nothing'"
    assert failure["line"] == code.count("\n") + 1


def test_a_trace_function_that_raises_in_our_code_is_the_codes_own_exception(run: Run) -> None:
    """It runs between the code and the report; the report still arrives."""
    code = (
        "import sys\ndef t(frame, event, arg):\n"
        "    if 'worker' in frame.f_code.co_filename: raise ValueError('traced')\nsys.{}(t)\n1"
    )
    for function in ("settrace", "setprofile"):
        assert run(code.format(function)).failure["message"] == "ValueError: traced"


def test_a_child_that_comes_back_does_not_report(run: Run) -> None:
    """After os.fork both return from the code; one process is the worker."""
    ran = run(
        "import os\nprint('before')\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('x')\n"
        "'parent' if pid else 'child'"
    )
    assert (ran.result, ran.stdout) == ("parent", "before\nx\nx\n")
    ran = run(
        "import os\npid = os.fork()\nif not pid: raise ValueError('child')\n"
        "os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])"
    )
    assert ran.result == 1
    assert 'File "main.py", line 3' in ran.stderr


def test_a_closed_channel_ends_in_failure_not_in_a_wrong_file(run: Run) -> None:
    """The report is not written into a file that has got the channel's number."""
    code = "import os\nos.closerange(3, 4096)\nfor i in range(1500): os.open('f', os.O_RDWR | os.O_CREAT)\n1"
    ran = run(f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n{code}")
    assert (ran.ok, ran.error, ran.status) == (False, None, 1)
    assert (ran.home / "f").read_text() == ""
    assert "the result could not be delivered: the code has closed the worker's channel" in ran.stderr


def test_inputs_by_the_names_of_ours_stay_inputs(run: Run) -> None:
    """A script's variables may shadow builtins; the worker's own names are out of reach."""
    assert run("[len, print, result]", {"len": 1, "print": 2, "result": 3}).result == [1, 2, 3]


def test_the_agent_going_away_ends_a_waiting_worker(worker: Worker) -> None:
    """A worker without an agent does not stay."""
    assert worker.frame() is not None
    worker.sock.close()
    assert worker.wait() != 0


# --- output ------------------------------------------------------------------------------------------------------


def test_output_arrives_while_the_code_computes(worker: Worker) -> None:
    """A line, and text without a line end, are there long before the code is over, though nothing flushes them."""
    assert worker.frame() is not None
    code = (
        "import os\nprint('line')\nprint('more')\nprint('partial', end='')\n"
        "while not os.path.exists('go'): pass\nprint(' and on', end='')\nwhile not os.path.exists('end'): pass\n"
    )
    worker.send_job(code, "{}", "detect", {})
    worker.wait_for_output("line\nmore\npartial")
    (worker.home / "go").touch()
    worker.wait_for_output("line\nmore\npartial and on")
    (worker.home / "end").touch()
    assert worker.finish().ok


def test_any_text_and_any_bytes_can_be_printed(run: Run) -> None:
    """Printing never fails, and bytes go out as they are."""
    ran = run(
        "import sys\nprint('\\ud800 é')\nsys.stdout.buffer.write(bytearray(b'raw\\n'))\nprint('err', file=sys.stderr)"
    )
    assert (ran.stdout, ran.stderr) == ("\\ud800 é\nraw\n", "err\n")


def test_streams_of_the_codes_own_are_flushed(run: Run) -> None:
    """Wrapped and replaced streams lose nothing, as with an ordinary end of Python."""
    code = "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='latin-1')\nprint('wrapped')\n1"
    ran = run(code)
    assert (ran.result, ran.stdout) == (1, "wrapped\n")


def test_order_is_natural_around_child_processes(run: Run) -> None:
    """What was printed before a child started stands before what the child prints."""
    code = """
import os, subprocess, sys
for i in range(3):
    print('parent', i)
    print('partial', end=' ')
    subprocess.run(['echo', 'run'])
    os.system('echo system')
    if not os.fork():
        print('fork')
        os._exit(0)
    os.wait()
"""
    lines = "".join(f"parent {i}\npartial run\nsystem\nfork\n" for i in range(3))
    ran = run(code)
    assert (ran.stdout, ran.stderr) == (lines, "")


def test_warnings_and_thread_exceptions_go_to_stderr(run: Run) -> None:
    """As in ordinary Python, with the user's source lines."""
    ran = run(
        "import threading, warnings\nwarnings.warn('careful')\nt = threading.Thread(target=lambda: 1 / 0)\n"
        "t.start()\nt.join()"
    )
    assert ran.ok
    assert "main.py:2: UserWarning: careful" in ran.stderr
    assert "ZeroDivisionError" in ran.stderr
    assert "belljar" not in ran.stderr


def test_a_million_prints_are_quick_and_complete(run: Run) -> None:
    """Nothing is lost, and no system call for each keeps it slow."""
    started = time.monotonic()
    ran = run("for i in range(1_000_000): print(i)")
    assert ran.stdout == "".join(f"{i}\n" for i in range(1_000_000))
    assert time.monotonic() - started < 30


# --- warm start --------------------------------------------------------------------------------------------------


def test_a_warm_worker_has_the_library_and_is_reseeded(run: Run) -> None:
    """Modules are there before the job, random numbers are not the snapshot's, the variable is not passed on."""
    code = (
        "import sys, os, random\n"
        "['asyncio' in sys.modules, 'ssl' in sys.modules, os.environ.get('BELLJAR_WARM'), random.random()]"
    )
    first, second = (run(code, worker_env={"BELLJAR_WARM": "1"}).result for _ in range(2))
    assert first[:3] == second[:3] == [True, True, None]
    assert first[3] != second[3]


def test_a_frame_that_is_no_job_is_refused(worker: Worker) -> None:
    """The worker does not guess."""
    assert worker.frame() is not None
    worker.sock.sendall(framing.pack(framing.DATA, json.dumps({}).encode()))
    assert worker.finish().status == 1
