"""One job, from its source to what it gives: a result, a failure, or an exit code."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from inspect import CO_COROUTINE
from types import CodeType, ModuleType
from typing import Any

import jsonvalue
from entry import EntryNotFound, arguments_for, check_variables, is_script
from program import Source, Survey, compile_module, compile_script, parse, survey
from report import Reporter, register

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

MOST_TRIES = 100
COMPILE_ERRORS = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Job:
    """What to run."""

    source: Source
    code: str
    """The folder of the sources, with a slash at the end."""
    entry: str
    inputs: dict[str, object]
    network: bool
    """Whether the sandbox has one."""


@dataclass(frozen=True, slots=True)
class Gave:
    """The code ended with a result, as JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The code failed; `error` is what REPORT says."""

    error: dict[str, object]


@dataclass(frozen=True, slots=True)
class Left:
    """The code raised SystemExit. `last_words` are what Python would print to stderr."""

    status: int
    last_words: str = ""


Ending = Gave | Failed | Left


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program that is compiled, and how it is to be run."""

    survey: Survey
    steps: tuple[CodeType, ...]
    is_script: bool


def run(job: Job, afterwards: Callable[[], None]) -> Ending:
    """Runs the code. `afterwards` is called when user code is over and nothing of it should get in the way any more."""
    reporter = Reporter(job.source, job.code, job.inputs)
    register(job.source)
    try:
        prepared = _prepare(job)
    except COMPILE_ERRORS as error:
        return Failed(reporter.not_compiled(error))
    module = _make_module(job.source, "__main__" if prepared.is_script else "main")
    reporter = Reporter(job.source, job.code, job.inputs, lambda: list(module.__dict__), job.network)
    try:
        result = _evaluate(prepared, module.__dict__, job)
        _insist(afterwards)
        return Gave(jsonvalue.dumps(result))
    except EntryNotFound as error:
        _insist(afterwards)
        return Failed(reporter.entry_not_found(error, prepared.survey.main))
    except jsonvalue.NotSerializable as error:
        return Failed(reporter.not_serializable(error))
    except SystemExit as error:
        _insist(afterwards)
        return _left(error)
    except BaseException as error:
        _insist(afterwards)
        return Failed(reporter.exception(error))


def _insist(afterwards: Callable[[], None]) -> None:
    """A trace function or a signal handler of the user's can still raise, until it is switched off."""
    for _ in range(MOST_TRIES):
        try:
            afterwards()
        except BaseException:
            continue
        return


def _prepare(job: Job) -> Prepared:
    tree = parse(job.source)
    seen = survey(tree, job.source.text)
    script = is_script(job.entry, returns=seen.returns, calls_main=seen.calls_main, has_main=seen.main is not None)
    steps = compile_script(tree, job.source, returns=seen.returns) if script else (compile_module(tree, job.source),)
    return Prepared(seen, steps, script)


def _make_module(source: Source, name: str) -> ModuleType:
    """The module that the code runs in; `__main__` in any case, so that nobody finds the worker there."""
    module = ModuleType(name)
    module.__file__ = source.path
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    sys.modules["__main__"] = module
    return module


def _evaluate(prepared: Prepared, variables: dict[str, Any], job: Job) -> object:
    """Runs the steps and, unless it is a script, main. Whatever can be awaited is."""
    if prepared.is_script:
        check_variables(job.inputs)
        variables.update(job.inputs)
    loop = _Loop()
    try:
        result: object = None
        for code in prepared.steps:
            result = eval(code, variables)  # noqa: S307  running it is what the worker is for
            if code.co_flags & CO_COROUTINE:
                result = loop.wait_for(result)
        if not prepared.is_script:
            main = variables.get("main")
            arguments = arguments_for(main, job.entry, job.inputs)
            result = main(*arguments.positional, **arguments.named)  # type: ignore[misc]
        return loop.wait_for(result) if _is_awaitable(result) else result
    finally:
        loop.close()


class _Loop:
    """An event loop that is made when something has to be awaited. Its state is that loop."""

    def __init__(self) -> None:
        self._runner: Any = None

    def wait_for(self, awaitable: Any) -> object:
        """What it gives. One loop serves the whole program, as with asyncio.run."""
        if self._runner is None:
            import asyncio

            self._runner = asyncio.Runner()
        return self._runner.run(_wait_for(awaitable))

    def close(self) -> None:
        """Ends what still runs in it."""
        if self._runner is not None:
            self._runner.close()


async def _wait_for(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _is_awaitable(value: object) -> bool:
    return any("__await__" in vars(base) for base in _bases(type(value)))


_bases: Callable[[type], Iterable[type]] = type.__dict__["__mro__"].__get__


def _left(error: SystemExit) -> Left:
    """What Python makes of SystemExit."""
    code = error.code
    if code is None:
        return Left(0)
    if isinstance(code, int):
        return Left(code & 0xFF)
    try:
        return Left(1, f"{code}\n")
    except BaseException:  # its __str__ is the user's
        return Left(1)
