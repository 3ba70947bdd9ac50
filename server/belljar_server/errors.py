"""The errors of Belljar: one class for each way in which the caller should react.

How user code ended is never an exception here; it is a `models.Finished`.
"""

from __future__ import annotations

from dataclasses import dataclass


class BelljarError(Exception):
    """Base of all errors that Belljar raises on purpose."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field of a request: its path, and what was given and what is allowed in words."""

    field: str
    description: str


class InvalidRequest(BelljarError):
    """The request is wrong. Change it; a retry gives the same answer."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class NotFound(BelljarError):
    """What the request names does not exist, or not any more."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"{what} {name!r} does not exist")
        self.what = what
        self.name = name


class Overloaded(BelljarError):
    """The server has no room now (executions, disk). Nothing was started; try again after `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unavailable(BelljarError):
    """This server takes no work: it is stopping or cannot start sandboxes. Nothing was started; try another one."""

    def __init__(self, reason: str, retry_after: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class SandboxFailed(BelljarError):
    """A sandbox did not start, or died by itself. Not the fault of user code."""


class StoreFailed(BelljarError):
    """The artifact store could not take or give bytes."""


class HostNotReady(BelljarError):
    """The host lacks something, or a setting is wrong. The message says what to do; the service does not start."""


def shown(value: str) -> str:
    """A value of the client's in an error message: quoted, escaped and short."""
    text = ascii(value[:64])
    return f"{text}… ({len(value)} characters)" if len(value) > 64 else text
