"""How code failed, as the REPORT's `error`: message, traceback and place in the user's own source, hint, errno.

Works on exceptions that user code has made to do harm: `__str__` that raises, megabytes of text, chains without end, a
standard library that was changed. What the `traceback` module cannot do then is done plainly.
"""

from __future__ import annotations

import builtins
import errno
import linecache
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from traceback import TracebackException
from types import CodeType, TracebackType
from typing import Any

import hints
from entry import EntryNotFound
from hints import is_a, stored, type_name
from jsonvalue import NotSerializable
from program import Source, character_column, lines_of

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

MAX_MESSAGE = 16 * 1024
MAX_TRACEBACK = 64 * 1024
MAX_HINT = 1024
MAX_FRAMES = 2000
"""Frames of one traceback, the outermost and the innermost ones; more are left out before they cost memory."""
MAX_LINKED = 50
"""Exceptions that one came from."""
OUR_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
TOO_COMPLEX = (RecursionError, MemoryError)
REFUSALS = {errno.ENOSPC: "ENOSPC", errno.EAGAIN: "EAGAIN"}

_cause = BaseException.__dict__["__cause__"]
_context = BaseException.__dict__["__context__"]
_suppressed = BaseException.__dict__["__suppress_context__"].__get__
_traceback_of = BaseException.__dict__["__traceback__"]
_members = BaseExceptionGroup.__dict__["exceptions"].__get__
_positions = CodeType.co_positions
_cache = linecache.cache


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the user's source; zeros where it is not known."""

    file: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Reporter:
    """Tells failures of one program. `known` gives the names it has defined so far."""

    source: Source
    code: str
    """The folder of the sources, with a slash at the end; left out of what the user sees."""
    inputs: dict[str, object] = field(default_factory=dict)
    known: Callable[[], Iterable[str]] = tuple
    network: bool = False

    def not_compiled(self, error: BaseException) -> dict[str, object]:
        """For what compile() raised."""
        if is_a(error, SyntaxError):
            return self._syntax_error(error)
        message = describe(error)
        if any(is_a(error, kind) for kind in TOO_COMPLEX):
            message = f"the code is too complex to compile: {message}"
        return _error("SYNTAX_ERROR", message, f"{message}\n", Place(self._shown(self.source.path)))

    def entry_not_found(self, error: EntryNotFound, main: tuple[int, int] | None) -> dict[str, object]:
        """For inputs that do not fit; `main` is where main is defined."""
        place = Place(self._shown(self.source.path), *main) if main else Place()
        return _error("ENTRY_NOT_FOUND", error.message, "", place, error.hint)

    def not_serializable(self, error: NotSerializable) -> dict[str, object]:
        """For a result that is not JSON."""
        return _error("RESULT_NOT_SERIALIZABLE", error.message, "", Place(), error.hint)

    def exception(self, error: BaseException) -> dict[str, object]:
        """For what user code raised and did not catch."""
        try:
            return self._exception(error)
        except BaseException:  # memory is short, or user code has broken what we rely on
            return _error("EXCEPTION", type_name(type(error)), "", Place())

    def _exception(self, error: BaseException) -> dict[str, object]:
        if is_a(error, SyntaxError) and self._is_user(stored(error, SyntaxError, "filename")):
            return self._syntax_error(error)
        register(self.source)
        linked = _linked(error)
        for one in linked:
            _traceback_of.__set__(one, _of_user(_traceback_of.__get__(one), self.code))
        place = self._place(_traceback_of.__get__(error))
        message = describe(error)
        try:
            hint = hints.for_exception(error, linked, self.inputs, self.known(), network=self.network)
        except Exception:  # attributes of the exception can be anything
            hint = ""
        return _error("EXCEPTION", message, self._text(error, message), place, hint, _errno_name(linked))

    def _syntax_error(self, error: BaseException) -> dict[str, object]:
        said, path, line, column, text = (
            stored(error, SyntaxError, name) for name in ("msg", "filename", "lineno", "offset", "text")
        )
        line, column = (max(value, 0) if type(value) is int else 0 for value in (line, column))
        place = Place(self._shown(path if type(path) is str else self.source.path), line, column if line else 0)
        message = f"{type_name(type(error))}: {said}"
        _traceback_of.__set__(error, _of_user(_traceback_of.__get__(error), self.code))
        hint = hints.for_syntax(text) if type(text) is str else ""
        return _error("SYNTAX_ERROR", message, self._text(error, message), place, hint)

    def _is_user(self, path: object) -> bool:
        return type(path) is str and path.startswith(self.code)

    def _place(self, traceback: TracebackType | None) -> Place:
        """The innermost frame of the user's own sources."""
        found = None
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename.startswith(self.code):
                found = traceback
            traceback = traceback.tb_next
        if found is None or not found.tb_lineno:
            return Place()
        path = found.tb_frame.f_code.co_filename
        return Place(self._shown(path), found.tb_lineno, self._column(found, path))

    def _column(self, traceback: TracebackType, path: str) -> int:
        position = list(_positions(traceback.tb_frame.f_code))[traceback.tb_lasti // 2]
        line, _, column, _ = position
        if line is None or column is None:
            return 0
        try:
            lines = lines_of(self.source.text) if path == self.source.path else linecache.getlines(path)
            return character_column(lines[line - 1], column) + 1
        except Exception:  # the file has gone, or linecache is not what it was
            return column + 1

    def _shown(self, path: str) -> str:
        return path.removeprefix(self.code)

    def _text(self, error: BaseException, message: str) -> str:
        """The traceback as Python prints it, or in its plainest form where user code has broken that."""
        traceback = _traceback_of.__get__(error)
        try:
            formatted = TracebackException(type(error), error, traceback, max_group_width=100)
            _shorten(formatted, self.code)
            lines = formatted.format() if traceback else formatted.format_exception_only()
            text = "".join(lines)
        except BaseException:
            return self._plain_text(traceback, message)
        return text if type(text) is str else self._plain_text(traceback, message)

    def _plain_text(self, traceback: TracebackType | None, message: str) -> str:
        lines = ["Traceback (most recent call last):\n"] if traceback else []
        while traceback is not None:
            code = traceback.tb_frame.f_code
            lines.append(f'  File "{self._shown(code.co_filename)}", line {traceback.tb_lineno}, in {code.co_name}\n')
            traceback = traceback.tb_next
        return "".join([*lines, message, "\n"])


def register(source: Source) -> None:
    """Makes the main file's lines known to tracebacks, warnings and `inspect`; there is no such file on disk."""
    _cache[source.path] = (len(source.text), None, lines_of(source.text), source.path)


def describe(error: BaseException) -> str:
    """`TypeName: text` as Python prints it."""
    kind = type(error)
    name = type_name(kind)
    try:
        module = kind.__module__
        if type(module) is str and module not in ("__main__", "main", "builtins"):
            name = f"{module}.{kind.__qualname__}"
        text = str(error)
    except BaseException:  # __str__ is the user's
        text = "<exception str() failed>"
    return f"{name}: {text}" if text else name


def cut(text: str, most: int) -> str:
    """At most `most` bytes of UTF-8, the middle left out; surrogates become escapes."""
    if len(text) > 4 * most:
        text = text[: 2 * most] + text[-2 * most :]
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= most:
        return raw.decode()
    left_out = "\n… cut …\n"
    half = (most - len(left_out.encode())) // 2
    return raw[:half].decode("utf-8", "ignore") + left_out + raw[-half:].decode("utf-8", "ignore")


def _error(
    kind: str, message: str, traceback: str, place: Place, hint: str = "", number: str = ""
) -> dict[str, object]:
    return {
        "kind": kind,
        "message": cut(message, MAX_MESSAGE),
        "traceback": cut(traceback, MAX_TRACEBACK),
        "file": place.file,
        "line": place.line,
        "column": place.column,
        "hint": cut(hint, MAX_HINT),
        "errno": number,
    }


def _linked(error: BaseException) -> list[BaseException]:
    """The exception, those it came from, and members of groups, as far as they would be shown; ends endless chains."""
    linked: list[BaseException] = []
    seen = set()
    todo = [error]
    while todo:
        one = todo.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        linked.append(one)
        if len(linked) >= MAX_LINKED:
            _context.__set__(one, None)
            _cause.__set__(one, None)
            continue
        cause = _cause.__get__(one)
        context = None if _suppressed(one) else _context.__get__(one)
        todo += [other for other in (cause, context) if other is not None]
        if is_a(one, BaseExceptionGroup):
            todo += _members(one)[:100]
    return linked


def _of_user(traceback: TracebackType | None, code: str) -> TracebackType | None:
    """The traceback without our frames, and without those of the library that lie between us and the user's first."""
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    if frames and _is_ours(frames[0]):
        first = next((i for i, one in enumerate(frames) if one.tb_frame.f_code.co_filename.startswith(code)), 0)
        frames = frames[first:]
    frames = [one for one in frames if not _is_ours(one)]
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    following = None
    for one in reversed(frames):
        one.tb_next = following
        following = one
    return following


def _is_ours(traceback: TracebackType) -> bool:
    return traceback.tb_frame.f_code.co_filename.startswith(OUR_FOLDER)


def _shorten(formatted: Any, code: str) -> None:
    """Shows the user's files without the folder they are in, in this exception and all that it holds."""
    todo = [formatted]
    seen = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        for frame in one.stack:
            frame.filename = frame.filename.removeprefix(code)
        if type(getattr(one, "filename", None)) is str:
            one.filename = one.filename.removeprefix(code)
        todo += [one.__cause__, one.__context__, *(one.exceptions or ())]


def _errno_name(linked: list[BaseException]) -> str:
    """The system's refusal that is the cause, where the host has limits of its own to blame for it."""
    for one in linked:
        if is_a(one, OSError) and stored(one, OSError, "errno") in REFUSALS:
            return REFUSALS[stored(one, OSError, "errno")]
        if is_a(one, RuntimeError) and stored(one, BaseException, "args") == ("can't start new thread",):
            return "EAGAIN"
    return ""
