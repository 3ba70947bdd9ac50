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


MAX_TOLD = 1400
"""Characters of violations in one answer. gRPC clients take at most 8 KiB of metadata, where a status repeats it all,
partly in base64; beyond that they see a broken stream instead of the reason."""
VIOLATION_OVERHEAD = 10
"""What one violation takes beside its text."""


class InvalidRequest(BelljarError):
    """The request is wrong. Change it; a retry gives the same answer. Tells as many violations as fit."""

    def __init__(self, *violations: Violation) -> None:
        self.violations = _first_that_fit(violations)
        left_out = len(violations) - len(self.violations)
        text = "; ".join(f"{v.field}: {v.description}" for v in self.violations)
        super().__init__(f"{text}; and {left_out} more" if left_out else text)


def _first_that_fit(violations: tuple[Violation, ...]) -> tuple[Violation, ...]:
    size = 0
    for index, violation in enumerate(violations):
        size += len(violation.field) + len(violation.description) + VIOLATION_OVERHEAD
        if index and size > MAX_TOLD:
            return violations[:index]
    return violations


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
