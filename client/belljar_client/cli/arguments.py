"""The arguments of `belljar`: what may be written, and the values it stands for. Errors are argparse's, exit code 2."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import NoReturn

from belljar_client.channels import DEFAULT_ADDRESS
from belljar_client.cli.exits import MEANINGS, Exit
from belljar_client.models import Limits

SERVER_COMMANDS = {
    "serve": "start the service",
    "setup": "make this machine ready: runsc, images (a second run does nothing)",
    "cache": "requested packages that are kept: list, prune, warm",
    "doctor": "check this machine and say what to do about each finding",
}
"""Commands that come with `belljar[server]`; their arguments are parsed there."""

_RUNTIME_BY_SUFFIX = {
    ".py": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".ts": "typescript",
    ".mts": "typescript",
}

_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_ADDRESS_HELP = f"the server (default: $BELLJAR_ADDRESS, else {DEFAULT_ADDRESS})"

_EPILOG = """\
examples:
  belljar setup && belljar serve                    a server on this machine
  belljar run hello.py --input name=Ada             run a file, watch its logs
  belljar run report.ts --inputs in.json --save out inputs from a file, artifacts into ./out
  belljar run --help                                more of these
"""

_RUN_DESCRIPTION = """\
Run a file in a fresh gVisor sandbox. What it prints appears on stdout and stderr while it runs; what
belljar itself has to say goes to stderr. Three ways to write the code, all detected:

  def main(args): ...          one dict with all inputs (JavaScript and TypeScript: one object)
  def main(a, b): ...          inputs by name (JavaScript and TypeScript: main({a, b}))
  a script                     inputs are variables; the result is what `return` gives, or the last expression

Files left in the working directory, /home/user, are artifacts.
"""

_RUN_EPILOG = """\
examples:
  belljar run sum.py --input a=1 --input b=2 --result            the result, and only that, on stdout
  belljar run report.py --inputs in.json --save out              inputs from a file, artifacts into ./out
  belljar run chart.py --file data.csv --file x.csv=y.csv        files for /home/user, one by another name
  belljar run app.ts --source lib.ts --timeout 5s --memory 256M  another source to import from, limits
  echo 'print(6 * 7)' | belljar run - --runtime python           code from stdin
  belljar run fetch.py --allow api.example.com                   a host that it may reach; --network full: all
  belljar run job.py --json | jq .usage                          everything as one JSON object

exit codes (the code's own exit code is in --json and in the message, never passed on):
{exits}
"""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves our line breaks alone and gives the options room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="belljar",
        description="Run untrusted Python, JavaScript and TypeScript in gVisor.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and stop")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_run(commands)
    runtimes = commands.add_parser(
        "runtimes",
        help="list what the server runs, with default and highest limits",
        description="List the runtimes of a server, with default and highest limits.",
        formatter_class=HelpFormatter,
    )
    runtimes.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    runtimes.add_argument("--address", metavar="HOST:PORT", help=_ADDRESS_HELP)
    health = commands.add_parser(
        "health",
        help="say whether a server takes work",
        description="Ask a server by the gRPC health protocol whether it takes work, that is: whether sandboxes start."
        f" Exits with {Exit.SUCCEEDED} when it does, with {Exit.UNAVAILABLE} when not.",
        formatter_class=HelpFormatter,
    )
    health.add_argument("--timeout", type=seconds, default=5.0, metavar="TIME", help="wait so long (default: 5s)")
    health.add_argument("--address", metavar="HOST:PORT", help=_ADDRESS_HELP)
    for name, purpose in SERVER_COMMANDS.items():
        commands.add_parser(name, help=f"{purpose} (needs belljar[server])", add_help=False)
    return top


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a file in a sandbox, with live logs",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG.format(exits="\n".join(f"  {code:<5}{meaning}" for code, meaning in MEANINGS.items())),
        formatter_class=HelpFormatter,
    )
    run.add_argument("code_file", metavar="FILE", help="the code; - reads it from stdin and needs --runtime")
    run.add_argument("--runtime", metavar="NAME", help="python, javascript, typescript (default: by the extension)")
    run.add_argument("--address", metavar="HOST:PORT", help=_ADDRESS_HELP)

    given = run.add_argument_group("what the code gets")
    inputs = given.add_mutually_exclusive_group()
    inputs.add_argument(
        "--input", action="append", type=pair, default=[], metavar="K=V", help="an input: JSON if V is that, else text"
    )
    inputs.add_argument("--inputs", metavar="FILE", help="all inputs as one JSON object; - reads stdin")
    given.add_argument(
        "--file", action="append", type=placed_file, default=[], metavar="PATH[=NAME]", help="a file for /home/user"
    )
    given.add_argument(
        "--source", action="append", type=placed_file, default=[], metavar="PATH[=NAME]", help="one more source file"
    )
    given.add_argument(
        "--with",
        action="append",
        dest="dependencies",
        default=[],
        metavar="PACKAGE",
        help="a package with its version, polars>=1 or zod@4; beside those that the file declares (inline script"
        " metadata in Python, package.json beside it in JavaScript and TypeScript)",
    )
    given.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help="run with the very packages in FILE; when it is not there it is written, for the next time",
    )
    given.add_argument("--env", action="append", type=pair, default=[], metavar="K=V", help="an environment variable")
    given.add_argument(
        "--entry",
        choices=["detect", "main_args", "main_named", "script"],
        default="detect",
        help="how the code takes inputs (default: detect)",
    )

    reach = run.add_argument_group("what the code may reach (default: nothing)")
    reach.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="RULE",
        help="example.com (ports 443 and 80), example.com:5432, *.example.com, 203.0.113.0/24:443, example.com:*",
    )
    reach.add_argument(
        "--network",
        choices=["none", "allowlist", "full"],
        help="full: the public internet (default: allowlist with --allow, else none)",
    )

    limits = run.add_argument_group("limits (default: the server's, see `belljar runtimes`)")
    limits.add_argument(
        "--timeout", type=seconds, metavar="TIME", help="wall time: 500ms, 5s, 2m; bare numbers are seconds"
    )
    limits.add_argument("--memory", type=size, metavar="SIZE", help="512M, 1G (powers of 1024); bare numbers are bytes")
    limits.add_argument("--cpus", type=float, metavar="N", help="CPU cores, for example 0.5")
    limits.add_argument("--processes", type=int, metavar="N", help="processes and threads")
    limits.add_argument("--disk", type=size, metavar="SIZE", help="/home/user, /tmp and sources together")

    results = run.add_argument_group("what to do with what comes out")
    shape = results.add_mutually_exclusive_group()
    shape.add_argument(
        "--result",
        action="store_true",
        help="print only the result, as JSON, on stdout; the code's stdout goes to stderr",
    )
    shape.add_argument(
        "--json",
        action="store_true",
        help="print only one JSON object on stdout, with outcome, result, error, artifacts and usage;"
        " the code's stdout goes to stderr",
    )
    results.add_argument("--save", type=Path, metavar="DIR", help="download the artifacts into DIR")
    results.add_argument("--quiet", action="store_true", help="say nothing but errors and warnings on stderr")

    call = run.add_argument_group("the call")
    call.add_argument(
        "--request-id", metavar="ID", help="idempotency key: the same call again sees the first execution"
    )
    call.add_argument(
        "--label", action="append", type=pair, default=[], metavar="K=V", help="a label for the server's log"
    )


def refuse(message: str) -> NoReturn:
    """Ends the program as argparse does for arguments that each are fine but not together."""
    raise argparse.ArgumentTypeError(message)


def pair(text: str) -> tuple[str, str]:
    """`name=value`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        refuse(f"{text!r} is not of the form name=value")
    return name, value


def placed_file(text: str) -> tuple[Path, str]:
    """`path` or `path=name`: a local file and its name in the sandbox. A file that has all of it as its name wins."""
    path, equals, name = text.rpartition("=")
    if not equals or Path(text).is_file():
        return Path(text), Path(text).name
    if not path or not name:
        refuse(f"{text!r} is not of the form path=name")
    return Path(path), name


def seconds(text: str) -> float:
    """`500ms`, `5s`, `2m`, `1h`; a bare number is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", text)
    if match is None:
        refuse(f"{text!r} is no time: write 500ms, 5s, 2m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def size(text: str) -> int:
    """`512M`, `1G`, `1.5GiB`; powers of 1024, a bare number is bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        refuse(f"{text!r} is no size: write 512M, 1G or a number of bytes")
    return round(float(match[1]) * _BYTES[match[2].upper()])


def runtime_of(code_file: str, runtime: str | None) -> str:
    """The runtime asked for, else the one that the extension stands for. Raises ArgumentTypeError when none is."""
    found = runtime or _RUNTIME_BY_SUFFIX.get(Path(code_file).suffix.lower())
    if found is None:
        what = "code from stdin" if code_file == "-" else f"the extension of {code_file!r}"
        refuse(f"{what} does not say which runtime: add --runtime, such as --runtime python")
    return found


def inputs_json_of(pairs: list[tuple[str, str]]) -> str:
    """One JSON object of `--input` pairs; values that are JSON go in as they were written, so no digit is lost."""
    members: dict[str, str] = {}
    for name, value in pairs:
        if name in members:
            refuse(f"--input {name} is given twice")
        members[name] = value if _is_json(value) else json.dumps(value)
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "}"


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits that were given."""
    return Limits(
        timeout=arguments.timeout,
        memory_bytes=arguments.memory,
        cpus=arguments.cpus,
        processes=arguments.processes,
        disk_bytes=arguments.disk,
    )


def _is_json(text: str) -> bool:
    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        json.loads(text, parse_constant=no_constant, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True
