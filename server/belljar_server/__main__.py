"""The command line of the server: `belljar serve`, `belljar setup`, `belljar doctor`, `belljar cache`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from belljar_server import config
from belljar_server.config import Settings
from belljar_server.errors import HostNotReady

EXIT_FAILED = 1
EXIT_SETTINGS = 78
"""EX_CONFIG of sysexits(3): the settings are wrong, a restart gives the same answer."""
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        settings = config.load(arguments.config)
    except HostNotReady as error:
        return _refuse(error, EXIT_SETTINGS)
    commands = {"serve": _serve, "setup": _setup, "doctor": _doctor, "cache": _cache}
    try:
        return commands[arguments.command](settings, arguments)
    except HostNotReady as error:
        return _refuse(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="belljar",
        description="Run untrusted code in gVisor behind one gRPC call: the commands of the server.",
        epilog="A new host: `belljar setup` as root, then `belljar serve`. Something is wrong: `belljar doctor`.",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings as TOML; BELLJAR_CONFIG names one too, and BELLJAR_… variables win over it",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        parents=[shared],
        help="serve until SIGTERM or SIGINT",
        description="Serves until SIGTERM or SIGINT. Prints the addresses it listens on; its log goes to stderr."
        f" Exits with {EXIT_FAILED} when the host is not ready, with {EXIT_SETTINGS} when the settings are wrong.",
    )
    serve.add_argument("--print-config", action="store_true", help="print the effective settings as JSON and exit")
    setup = commands.add_parser(
        "setup",
        parents=[shared],
        help="make this host ready: runsc and the images",
        description="Makes this host ready, as root: finds or makes runsc, builds missing images, and starts"
        " a sandbox of each runtime. Says what it does; a second run does nothing.",
    )
    setup.add_argument(
        "--build-only",
        action="store_true",
        help="start no sandbox and make no snapshot: for building container images",
    )
    doctor = commands.add_parser(
        "doctor",
        parents=[shared],
        help="check this host and say what to do",
        description=f"Checks this host and says what to do. Exits with {EXIT_FAILED} when there is a FAIL.",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as one JSON array")
    cache = commands.add_parser(
        "cache",
        parents=[shared],
        help="requested packages that are kept: list, prune, warm",
        description="What is kept of packages that requests asked for. A running server need not be stopped:"
        " what it uses is never removed, and what is made here it finds.",
    )
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the layers, the latest used first")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    prune = actions.add_parser("prune", help="remove the least recently used that nobody uses")
    prune.add_argument("--keep", type=int, default=0, metavar="BYTES", help="stop when the rest fits (default: 0)")
    warm = actions.add_parser("warm", help="install sets before anybody asks for them")
    warm.add_argument("file", type=Path, metavar="FILE", help="TOML: [[set]] tables with runtime and dependencies")
    return parser


def _cache(settings: Settings, arguments: argparse.Namespace) -> int:
    from belljar_server import caching

    if arguments.action == "prune":
        _print(f"{caching.prune(settings, arguments.keep)} layers removed")
        return 0
    if arguments.action == "warm":
        import asyncio

        return 0 if asyncio.run(caching.warm(settings, caching.read_sets(arguments.file), _print)) else EXIT_FAILED
    rows = caching.everything(settings)
    if arguments.json:
        _print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return 0
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used_at))
        _print(f"{row.key[:12]}  {row.size_bytes / (1 << 20):8.1f} MiB  {used}  {row.packages}")
    return 0


def _serve(settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.print_config:
        _print(settings.model_dump_json(indent=2))
        return 0
    import uvloop

    from belljar_server import app

    uvloop.run(app.serve(settings))
    return 0


def _setup(settings: Settings, arguments: argparse.Namespace) -> int:
    from belljar_server import setup

    started = time.monotonic()

    def say(line: str) -> None:
        _print(f"{time.monotonic() - started:6.1f} s  {line}")

    if setup.prepare(settings, say, build_only=arguments.build_only):
        say(f"ready; everything is in {settings.built}")
    else:
        say(f"nothing to do; everything is in {settings.built}")
    return 0


def _doctor(settings: Settings, arguments: argparse.Namespace) -> int:
    from belljar_server import log
    from belljar_server.setup import doctor

    log.configure(settings.log)  # to stderr: what it tries may log, and stdout is the findings'
    findings = []
    for finding in doctor.examine(settings):
        findings.append(finding)
        if arguments.json:
            continue
        _print(f"{MARKS[finding.status.value]}  {finding.name + ':':<12} {finding.found}")
        if finding.remedy:
            _print(f"{'':<6}{'':<12} -> {finding.remedy}")
    if arguments.json:
        _print(
            json.dumps(
                [{"name": f.name, "status": f.status.value, "found": f.found, "remedy": f.remedy} for f in findings],
                indent=2,
            )
        )
    return EXIT_FAILED if any(finding.status is doctor.Status.FAIL for finding in findings) else 0


def _refuse(error: HostNotReady, code: int) -> int:
    sys.stderr.write(f"belljar: {error}\n")
    return code


def _print(line: str) -> None:
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
