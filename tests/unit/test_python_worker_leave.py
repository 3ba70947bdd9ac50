"""What Python does when code has ended is done here too: nothing that was written is lost, and nothing holds it up."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.unit.python_worker import SEAL, Run, Worker, running_workers, waiting_worker

__all__ = ["running_workers", "waiting_worker"]

WRITERS = {
    "global": "f = open('a', 'w')\nfor i in range(20000): f.write('row\\n')\n1",
    "short": "f = open('a', 'w')\nf.write('row\\n' * 20000)\n1",
    "binary": "f = open('a', 'wb')\nf.write(b'row\\n' * 20000)\n1",
    "both ways": "f = open('a', 'w+b')\nf.write(b'row\\n' * 20000)\n1",
    "in a cycle": "class C: pass\nc = C()\nc.c = c\nc.f = open('a', 'w')\nc.f.write('row\\n' * 20000)\ndel c\n1",
    "in a list": "files = [open('a', 'w')]\nfiles[0].write('row\\n' * 20000)\n1",
    "in a module": "import helper\nhelper.f.write('row\\n' * 20000)\n1",
    "kept by a library": "import json\njson.f = open('a', 'w')\njson.f.write('row\\n' * 20000)\n1",
    "main": "f = open('a', 'w')\ndef main(args):\n    f.write('row\\n' * 20000)\n    return 1",
    "after an exception": "f = open('a', 'w')\nf.write('row\\n' * 20000)\n1 / 0",
    "local, after an exception": "def g():\n    f = open('a', 'w')\n    f.write('row\\n' * 20000)\n    1 / 0\ng()",
    "after sys.exit": "import sys\nf = open('a', 'w')\nf.write('row\\n' * 20000)\nsys.exit(0)",
    "after sys.exit with a status": "import sys\nf = open('a', 'w')\nf.write('row\\n' * 20000)\nsys.exit(3)",
    "a thread": "import threading\nf = open('a', 'w')\n"
    "threading.Thread(target=lambda: (__import__('time').sleep(.2), f.write('row\\n' * 20000))).start()\n1",
    "an executor": "from concurrent.futures import ThreadPoolExecutor\nfrom time import sleep\n"
    "def work():\n    sleep(.2)\n    open('a', 'w').write('row\\n' * 20000)\nThreadPoolExecutor(2).submit(work)\n1",
    "an exit handler": "import atexit\natexit.register(lambda: open('a', 'w').write('row\\n' * 20000))\n1",
    "a destructor": "class C:\n    def __del__(self): open('a', 'w').write('row\\n' * 20000)\nc = C()\n1",
    "a forked child": "import os\nif os.fork() == 0:\n    f = open('a', 'w')\n    f.write('row\\n' * 20000)\n"
    "else:\n    os.wait()\n1",
}


@pytest.mark.parametrize("how", WRITERS)
def test_what_was_written_is_in_the_file(run: Run, how: str) -> None:
    """As after `python3 main.py`."""
    ran = run(WRITERS[how], files={"helper.py": "f = open('a', 'w')\n"})
    assert (ran.home / "a").read_text() == "row\n" * 20000
    assert ran.status == {"after sys.exit with a status": 3}.get(how, 1 if "exception" in how else 0)


def test_an_archive_that_was_not_closed_has_its_end(run: Run) -> None:
    """Closing writes more than what is in the buffer."""
    ran = run(
        "import gzip, zipfile\ng = gzip.open('a.gz', 'wt')\ng.write('row')\n"
        "z = zipfile.ZipFile('b.zip', 'w')\nz.writestr('x', 'y')\n1"
    )
    assert gzip.decompress((ran.home / "a.gz").read_bytes()) == b"row"
    assert (ran.home / "b.zip").read_bytes().endswith(b"PK\x05\x06" + (ran.home / "b.zip").read_bytes()[-18:])
    assert ran.result == 1


def test_what_is_printed_at_the_end_arrives(run: Run) -> None:
    """By threads, exit handlers and destructors, in the order in which Python calls them."""
    code = """
import atexit, sys, threading, time
class C:
    def __del__(self):
        print("destructor")
c = C()
atexit.register(print, "exit handler")
atexit.register(print, "last registered, first called", end=" ")
threading.Thread(target=lambda: (time.sleep(.1), print("thread"))).start()
held = open(1, "w", closefd=False)
held.write("held\\n")
"code"
"""
    ran = run(code)
    assert ran.result == "code"
    assert set(ran.stdout.split("\n")) == {
        "thread",
        "last registered, first called exit handler",
        "destructor",
        "held",
        "",
    }
    assert ran.stdout.index("thread") < ran.stdout.index("exit handler") < ran.stdout.index("destructor")


def test_threads_that_do_not_end_are_told(run: Run) -> None:
    """The result does not wait for them for long, and files are closed all the same."""
    thread = "import threading\nthreading.Thread(target=threading.Event().wait{}).start()\n"
    ran = run(f"{thread.format('')}f = open('a', 'w')\nf.write('x')\n1")
    assert (ran.result, ran.left) == (1, ["thread"])
    assert (ran.home / "a").read_text() == "x"
    assert run(f"{thread.format(', daemon=True')}1").left == []


@pytest.mark.parametrize(
    "code",
    [
        "import atexit, os\natexit.register(os._exit, 7)",
        "import atexit, time\natexit.register(time.sleep, 100)",
        "import os\nclass C:\n    def __del__(self): os._exit(7)\nc = C()",
        "import atexit, os\natexit.register(os.kill, os.getpid(), 9)",
    ],
)
def test_the_report_is_out_before_what_may_end_the_process(worker: Worker, code: str) -> None:
    """Exit handlers and destructors change neither result nor report."""
    assert worker.frame() is not None
    worker.send_job(f"{code}\n1", "{}", "detect", {})
    kinds: list[tuple[bytes, bytes]] = []
    while not kinds or kinds[-1][0] != b"p":
        frame = worker.frame()
        assert frame
        kinds.append(frame)
    assert [kind for kind, _ in kinds] == [b"r", b"p"]
    assert json.loads(kinds[-1][1].removeprefix(SEAL))["ok"] is True
