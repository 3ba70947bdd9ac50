"""The exit codes of `belljar`. The code's own exit code is never passed on: it could be any of these."""

from __future__ import annotations

import enum

from belljar_client import errors
from belljar_client.models import ErrorKind, Outcome, Result


class Exit(enum.IntEnum):
    """What a script can tell apart. Numbers follow sysexits.h, timeout(1) and the shell where they have one."""

    SUCCEEDED = 0
    CODE_FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    SERVER_FAILED = 70
    NOT_SAVED = 74
    OVERLOADED = 75
    CONNECTION_LOST = 76
    LIMIT = 123
    TIMEOUT = 124
    CANCELLED = 130
    STDOUT_CLOSED = 141


MEANINGS: dict[Exit, str] = {
    Exit.SUCCEEDED: "the code succeeded",
    Exit.CODE_FAILED: "the code failed: syntax error, exception, exit code other than 0, signal, bad result",
    Exit.USAGE: "wrong arguments, a file that cannot be read, or a request that the server refuses",
    Exit.UNAVAILABLE: "no server there, or one that takes no work; nothing was run",
    Exit.SERVER_FAILED: "the sandbox or the server failed, not the code",
    Exit.NOT_SAVED: "the code succeeded, but an artifact could not be saved",
    Exit.OVERLOADED: "the server is full; nothing was run, try again later",
    Exit.CONNECTION_LOST: "the connection broke; the code may have run",
    Exit.LIMIT: "a limit on memory, processes, disk or output was reached",
    Exit.TIMEOUT: "the time limit was reached",
    Exit.CANCELLED: "cancelled, for example by Ctrl-C",
    Exit.STDOUT_CLOSED: "the reader of stdout went away; the code was cancelled",
}

_BY_KIND: dict[ErrorKind, Exit] = {
    ErrorKind.TIMEOUT: Exit.TIMEOUT,
    ErrorKind.MEMORY_LIMIT: Exit.LIMIT,
    ErrorKind.PROCESS_LIMIT: Exit.LIMIT,
    ErrorKind.DISK_LIMIT: Exit.LIMIT,
    ErrorKind.OUTPUT_LIMIT: Exit.LIMIT,
    ErrorKind.CANCELLED: Exit.CANCELLED,
    ErrorKind.SANDBOX_FAILED: Exit.SERVER_FAILED,
}

_BY_CLASS: dict[type[errors.BelljarClientError], Exit] = {
    errors.InvalidRequest: Exit.USAGE,
    errors.NotFound: Exit.USAGE,
    errors.Overloaded: Exit.OVERLOADED,
    errors.Unavailable: Exit.UNAVAILABLE,
    errors.ConnectionLost: Exit.CONNECTION_LOST,
    errors.DeadlineExceeded: Exit.TIMEOUT,
    errors.Cancelled: Exit.CANCELLED,
    errors.DownloadFailed: Exit.NOT_SAVED,
}


def exit_of_result(result: Result) -> Exit:
    """How the execution ended, as an exit code."""
    if result.succeeded:
        return Exit.SUCCEEDED
    if result.outcome is Outcome.CANCELLED:
        return Exit.CANCELLED
    return _BY_KIND.get(result.error.kind, Exit.CODE_FAILED) if result.error else Exit.CODE_FAILED


def exit_of_error(error: errors.BelljarClientError) -> Exit:
    """Why there is no result, as an exit code."""
    return _BY_CLASS.get(type(error), Exit.SERVER_FAILED)
