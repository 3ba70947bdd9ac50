"""What `belljar` says about an execution. Control characters in text of untrusted code are escaped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from belljar_client.models import Artifact, DeniedConnection, ExecutionError, Result, Runtimes

_LONGEST_PREVIEW = 200
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def note(text: str) -> None:
    """Prints a line on stderr. A reader that has gone away is no reason to end with an error of its own."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def draw(text: str) -> None:
    """Puts the text in place of the terminal's current line, on stderr."""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def printable(text: str) -> str:
    """The text without anything that moves the cursor, changes colours or turns the direction of writing."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def explain(error: ExecutionError, local_files: Mapping[str, str], exit_code: int) -> None:
    """Prints an error as a compiler does: place, kind, message, then traceback and hint.

    `local_files` are the local names of what the sandbox knows by others, so that an editor can jump there.
    """
    place = ""
    if error.file:
        numbers = [str(number) for number in (error.line, error.column) if number]
        place = ":".join([local_files.get(error.file, error.file), *numbers]) + ": "
    ended = f" (exit code {exit_code})" if exit_code not in (0, 1) else ""
    note(printable(f"{place}{error.kind} {error.message}{ended}"))
    if error.traceback.strip():
        note(printable(error.traceback.rstrip()))
    if error.hint:
        note(printable(f"hint: {error.hint}"))


def summarize(result: Result) -> None:
    """Prints in one line how it went, with the beginning of the result."""
    line = f"belljar: {result.outcome} after {duration(result.usage.run_time)}"
    if result.result_json not in (None, "null"):
        line += f", result {preview(result.result_json or '')}"
    note(line)


def warn(result: Result) -> None:
    """Prints warnings and what is missing from the logs."""
    for warning in result.warnings:
        note(printable(f"warning: {warning}"))
    truncated = result.truncated
    for stream, dropped in (("stdout", truncated.stdout_dropped_bytes), ("stderr", truncated.stderr_dropped_bytes)):
        if dropped:
            note(f"warning: {stream} is not complete: {size(dropped)} were dropped")


def list_denied(denied: DeniedConnection) -> None:
    """Prints what the code was not let reach, and how it would be."""
    what = f"{denied.host}:{denied.port}" if denied.port else denied.host or "network"
    times = f" ({denied.count} times)" if denied.count > 1 else ""
    remedy = f"; --allow {denied.rule}" if denied.rule else ""
    note(printable(f"denied: {what}{times}: {denied.reason}{remedy}"))


def list_artifact(artifact: Artifact) -> None:
    """Prints an artifact's name, size, type and URL."""
    name = printable(artifact.name).replace("\n", "\\n")
    note(f"artifact: {name} ({size(artifact.size_bytes)}, {artifact.content_type}) {artifact.download_url}")


def as_json(result: Result, saved: Mapping[str, Path]) -> str:
    """The result as one JSON object. The code's own result goes in as it is, so that no digit of it is lost."""
    members = {
        "execution_id": json.dumps(result.execution_id),
        "outcome": json.dumps(result.outcome),
        "exit_code": json.dumps(result.exit_code),
        "signal": json.dumps(result.signal),
        "result": result.result_json if result.result_json is not None else "null",
        "error": _dump(result.error),
        "artifacts": json.dumps([_artifact(artifact, saved) for artifact in result.artifacts]),
        "result_artifact": json.dumps(_artifact(result.result_artifact, saved) if result.result_artifact else None),
        "usage": _dump(result.usage),
        "warnings": json.dumps(result.warnings),
        "truncated": _dump(result.truncated),
        "denied_connections": json.dumps([dataclasses.asdict(denied) for denied in result.denied_connections]),
    }
    return "{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + "}"


def runtimes_as_json(runtimes: Runtimes) -> str:
    """Everything about what a server runs as one JSON object."""
    return json.dumps(dataclasses.asdict(runtimes), indent=2)


def runtimes_as_table(runtimes: Runtimes) -> str:
    """What a server runs, for people."""
    rows = [("RUNTIME", "VERSION", "MAIN FILE"), *((r.name, r.version, r.main_file) for r in runtimes)]
    defaults, highest = (dataclasses.asdict(limits) for limits in (runtimes.default_limits, runtimes.max_limits))
    limits = [("LIMIT", "DEFAULT", "HIGHEST")]
    for name, default in defaults.items():
        waived = " (not enforced on this server)" if name in runtimes.waived_limits else ""
        limits.append((name, _limit(name, default), _limit(name, highest[name]) + waived))
    networks = ", ".join(runtimes.network_modes) or "none"
    return f"{_table(rows)}\n\n{_table(limits)}\n\nNETWORK  {networks}"


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"{count / 1024**power:.1f} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def preview(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(printable(text[: 2 * _LONGEST_PREVIEW]).split())
    return line if len(line) <= _LONGEST_PREVIEW else f"{line[:_LONGEST_PREVIEW]}…"


def _limit(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return size(int(value))
    return duration(value) if name in ("timeout", "cpu_time") else f"{value:g}"


def _table(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _artifact(artifact: Artifact, saved: Mapping[str, Path]) -> dict[str, Any]:
    described = dataclasses.asdict(artifact)
    path = saved.get(artifact.id)
    return described | {"expire_time": artifact.expire_time.isoformat(), "saved_to": str(path) if path else None}


def _dump(value: Any) -> str:
    return json.dumps(dataclasses.asdict(value) if value is not None else None)
