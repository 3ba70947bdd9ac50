"""The command `belljar`: `run`, `runtimes` and `health` talk to a server; the others come with it and are passed on."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from belljar_client.channels import default_address
from belljar_client.cli import health, report
from belljar_client.cli.arguments import SERVER_COMMANDS, parser
from belljar_client.cli.exits import Exit, exit_of_error
from belljar_client.cli.run import run
from belljar_client.client import Client
from belljar_client.errors import BelljarClientError, InvalidRequest


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in SERVER_COMMANDS:
        return _server(arguments)
    try:
        return _client(arguments)
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.STDOUT_CLOSED
    except KeyboardInterrupt:
        report.note("belljar: cancelled")
        return Exit.CANCELLED
    except InvalidRequest as error:
        lines = [f"  {violation.field}: {violation.description}" for violation in error.violations] or [f"  {error}"]
        report.note(report.printable("\n".join(["error: the request is refused", *lines])))
        return Exit.USAGE
    except BelljarClientError as error:
        report.note(report.printable(f"error: {type(error).__name__}: {error}"))
        return exit_of_error(error)
    except (argparse.ArgumentTypeError, OSError) as error:
        report.note(report.printable(f"error: {error}"))
        return Exit.USAGE


def _client(argv: list[str]) -> int:
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.version:
        sys.stdout.write(f"belljar {importlib.metadata.version('belljar')}\n")
        return Exit.SUCCEEDED
    if arguments.command == "run":
        return run(arguments)
    if arguments.command == "runtimes":
        return _runtimes(arguments)
    if arguments.command == "health":
        return _health(arguments)
    top.print_help(sys.stderr)
    return Exit.USAGE


def _runtimes(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        runtimes = client.runtimes()
    text = report.runtimes_as_json(runtimes) if arguments.json else report.runtimes_as_table(runtimes)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return Exit.SUCCEEDED


def _health(arguments: argparse.Namespace) -> int:
    address = arguments.address or default_address()
    health.check(address, arguments.timeout)
    sys.stdout.write(f"{address} is serving\n")
    return Exit.SUCCEEDED


def _server(argv: list[str]) -> int:
    try:
        from belljar_server.__main__ import main as server_main
    except ImportError as error:
        report.note(f"error: `belljar {argv[0]}` needs the server: pip install 'belljar[server]' ({error})")
        return Exit.USAGE
    return int(server_main(argv) or 0)
