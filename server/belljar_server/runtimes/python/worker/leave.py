"""What Python does when code has ended: waits for threads, runs exit handlers, closes files.

The worker's process is never taken down like that, so this is done by hand, and within bounds. Everything here may run
user code, which may raise anything; each step is tried whatever became of the one before.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import io
import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any
from weakref import ref

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

THREADS_SECONDS = 1.0
"""Seconds that threads have after the code that started them."""

run_exit_handlers: Callable[[], None] = atexit._run_exitfuncs
collect = gc.collect
get_objects = gc.get_objects
modules = sys.modules
writers = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def wait_for_threads(seconds: float) -> bool:
    """Waits for all that are no daemons, those of executors too. Tells whether they have ended."""
    threading = modules.get("threading")
    if threading is None:
        return True
    main, alive = threading.main_thread(), threading.enumerate()
    if all(thread is main or thread.daemon for thread in alive):
        return True
    ended = allocate_lock()
    ended.acquire()

    def shut_down() -> None:
        try:
            threading._shutdown()
        finally:
            ended.release()

    start_new_thread(shut_down, ())
    return ended.acquire(timeout=max(0.0, min(seconds, THREADS_SECONDS)))


def close_all(folders: tuple[str, ...]) -> None:
    """Lets go of the modules from these folders and of what they have, and flushes the files that are open still."""
    let_go = [
        ref(modules.pop(name)) for name in [name for name, module in modules.items() if _is_from(module, folders)]
    ]
    _flush_files()  # before the collector, which may close what is below a file before the file
    attempt(collect)  # destructors find everything as it was
    for each in let_go:
        attempt(partial(_empty, each))
    _flush_files()


def _flush_files() -> None:
    for thing in get_objects():
        if issubclass(type(thing), writers):
            attempt(thing.flush)


def _is_from(module: object, folders: tuple[str, ...]) -> bool:
    file = module.__dict__.get("__file__") if type(module) is ModuleType else None
    return type(file) is str and file.startswith(folders)


def _empty(module: ref[ModuleType]) -> None:
    """As Python does with a module that somebody still has: names stay, values go."""
    variables = vars(module())
    for name in list(variables):
        if name != "__builtins__":
            variables[name] = None


def attempt(step: Callable[[], Any]) -> Any:
    """What it gives, or None when it raises."""
    try:
        return step()
    except BaseException:
        return None
