"""`belljar run`: one execution, its logs as they come, its artifacts on request."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from belljar_client.cli import declared, report
from belljar_client.cli.arguments import inputs_json_of, limits_of, refuse, runtime_of
from belljar_client.cli.exits import Exit, exit_of_result
from belljar_client.client import Client
from belljar_client.downloads import download, local_paths
from belljar_client.errors import DownloadFailed
from belljar_client.models import Artifact, Output, Result, Stream, Transcript
from belljar_client.requests import Options

_REDRAW_INTERVAL = 0.1
"""Seconds between two pictures of a download's progress."""


def run(arguments: argparse.Namespace) -> Exit:
    """Runs the file and reports. Raises ArgumentTypeError, OSError and BelljarClientError."""
    options = _options(arguments)
    code = _read_text(arguments.code_file)
    with Client(arguments.address) as client:
        result = _watch(client, code, options, moved=arguments.json or arguments.result)
    _report(result, _local_files(arguments, result), quiet=arguments.quiet)
    saved, complete = _save(result, arguments.save, quiet=arguments.quiet) if arguments.save else ({}, True)
    if arguments.json:
        _print(report.as_json(result, saved))
    elif arguments.result and result.succeeded:
        _print_result(result)
    if arguments.lock and result.lockfile and not arguments.lock.exists():
        arguments.lock.write_text(result.lockfile)
    ended = exit_of_result(result)
    return Exit.NOT_SAVED if ended is Exit.SUCCEEDED and not complete else ended


def _options(arguments: argparse.Namespace) -> Options:
    if arguments.code_file == "-" and arguments.inputs == "-":
        refuse("code and inputs cannot both come from stdin")
    return Options(
        runtime=runtime_of(arguments.code_file, arguments.runtime),
        inputs_json=_read_text(arguments.inputs) if arguments.inputs else inputs_json_of(arguments.input),
        entry=arguments.entry,
        files=_read_files(arguments.source, "--source"),
        input_files=_read_files(arguments.file, "--file"),
        env=dict(arguments.env),
        dependencies=[*arguments.dependencies, *declared.of(arguments.code_file)],
        lock=arguments.lock.read_text() if arguments.lock and arguments.lock.exists() else None,
        labels=dict(arguments.label),
        limits=limits_of(arguments),
        request_id=arguments.request_id,
        network=arguments.network,
        allow=arguments.allow,
    )


def _watch(client: Client, code: str, options: Options, *, moved: bool) -> Result:
    """Writes the logs as they come. Output is kept out of the transcript: nobody needs it twice."""
    targets: dict[Stream, BinaryIO] = {
        Stream.STDOUT: sys.stderr.buffer if moved else sys.stdout.buffer,
        Stream.STDERR: sys.stderr.buffer,
        Stream.INSTALL: sys.stderr.buffer,
    }
    transcript = Transcript()
    events = client.stream(code, **options)
    try:
        for event in events:
            if isinstance(event, Output):
                targets[event.stream].write(event.content)
                targets[event.stream].flush()
            else:
                transcript.add(event)
    finally:
        events.close()
    return transcript.result()


def _report(result: Result, local_files: dict[str, str], *, quiet: bool) -> None:
    report.warn(result)
    for denied in result.denied_connections:
        report.list_denied(denied)
    if result.error is not None:
        report.explain(result.error, local_files, result.exit_code)
    if quiet:
        return
    report.summarize(result)
    for artifact in _artifacts(result):
        report.list_artifact(artifact)


def _local_files(arguments: argparse.Namespace, result: Result) -> dict[str, str]:
    """The local names of the sources. The main file goes by the runtime's name for it in the sandbox."""
    names = {name: str(path) for path, name in arguments.source}
    if result.error is not None and arguments.code_file != "-":
        names.setdefault(result.error.file, arguments.code_file)
    return names


def _artifacts(result: Result) -> list[Artifact]:
    return [*result.artifacts, *([result.result_artifact] if result.result_artifact else [])]


def _save(result: Result, directory: Path, *, quiet: bool) -> tuple[dict[str, Path], bool]:
    """Downloads all artifacts; one that fails does not keep the others from coming. True when all of them came."""
    artifacts = _artifacts(result)
    saved: dict[str, Path] = {}
    for artifact, path in zip(artifacts, local_paths(artifact.name for artifact in artifacts), strict=True):
        try:
            saved[artifact.id] = _download(artifact, directory, path, quiet=quiet)
        except (DownloadFailed, OSError) as error:
            report.note(report.printable(f"error: not saved: {error}"))
    return saved, len(saved) == len(artifacts)


def _download(artifact: Artifact, directory: Path, path: PurePosixPath, *, quiet: bool) -> Path:
    shown = not quiet and sys.stderr.isatty()
    try:
        target = download(artifact, directory, path=path, progress=_progress(str(path)) if shown else None)
    finally:
        if shown:
            report.draw("")
    if not quiet:
        report.note(f"saved: {target} ({report.size(artifact.size_bytes)})")
    return target


def _progress(name: str) -> Callable[[int, int], None]:
    drawn = 0.0

    def draw(fetched: int, total: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn < _REDRAW_INTERVAL:
            return
        drawn = now
        share = f"{100 * fetched // total} %" if total else ""
        report.draw(f"{name}: {report.size(fetched)} of {report.size(total)} {share}")

    return draw


def _print_result(result: Result) -> None:
    if result.result_artifact is not None:
        report.note(f"warning: the result is too large to print; it is the artifact {result.result_artifact.name!r}")
        return
    _print(result.result_json if result.result_json is not None else "null")


def _print(text: str) -> None:
    """Prints UTF-8 whatever the locale says: JSON has no other encoding."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


def _read_text(path: str) -> str:
    content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        refuse(f"{'stdin' if path == '-' else path} is not UTF-8: {error.reason} at byte {error.start}")


def _read_files(placed: list[tuple[Path, str]], option: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path, name in placed:
        if name in files:
            refuse(f"{option}: two files are named {name!r}; name one of them with PATH=NAME")
        files[name] = path.read_bytes()
    return files
