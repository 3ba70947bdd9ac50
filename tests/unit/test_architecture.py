"""The import rule: who may import whom, as in the table of ARCHITECTURE.md; read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "belljar_server"
ROOT = Path(__file__).parents[2] / "server" / PACKAGE

GROUND = {"models", "errors", "config", "log"}
"""What every layer may use: types, errors, settings, the logger."""
EXECUTION = {"environments", "admission", "execution", "verdict", "run", "replays", "accounts", "executor", "sessions"}
"""One execution, from admission to its terminal event."""
LAYERS = GROUND | {"policy", "runtimes", "guest", "sandbox", "egress", "dependencies", "artifacts", "metrics"}

MAY_IMPORT = {
    "__init__": set[str](),
    "errors": set[str](),
    "models": {"errors"},
    "config": {"errors", "models"},
    "log": {"config"},
    "inputs": {"errors"},
    "policy": {"inputs", "models", "errors", "config", "dependencies", "egress", "runtimes"},
    "runtimes": {"models", "errors"},
    "guest": set[str](),
    "sandbox": {"models", "errors", "config", "guest", "runtimes", "log", "metrics"},
    "egress": {"models", "errors", "config"},
    "dependencies": {"sandbox", "models", "errors", "config", "guest", "runtimes", "log"},
    "artifacts": {"models", "errors", "config", "log"},
    "metrics": {"models"},
    **dict.fromkeys(EXECUTION, LAYERS | EXECUTION),
    "readiness": {"models", "errors", "sandbox", "log"},
    "http": {"executor", "models", "errors", "config", "artifacts"},
    "messages": {"models", "errors", "policy"},
    "service": {
        "messages",
        "executor",
        "sessions",
        "execution",
        "models",
        "errors",
        "config",
        "policy",
        "metrics",
        "sandbox",
        "runtimes",
    },
    "adapters": {"executor", "models", "errors"},
    "setup": {"runtimes", "sandbox", "egress", "models", "errors", "config"},
}
"""Part of the package -> the other parts that it may import; what composes may import everything."""
COMPOSE = {"app", "caching", "__main__"}
SPAWNING = {"sandbox/runsc.py", "sandbox/launcher.py", "setup/commands.py"}
"""The only files that start processes."""
IN_THE_SANDBOX = ("guest/", "runtimes/python/", "runtimes/installer/")
"""What is copied into images: the language's own library only, and the modules beside it."""


@dataclass(frozen=True)
class Import:
    """One import: the file it stands in, its line, and the dotted name that it asks for."""

    file: str
    line: int
    target: str

    @property
    def part(self) -> str:
        """The part of the package that the importing file belongs to."""
        return self.file.split("/")[0].removesuffix(".py")

    @property
    def imported_part(self) -> str:
        """The part of the package that is imported; empty for the package itself and for what is not of it."""
        package, _, rest = self.target.partition(".")
        return rest.split(".")[0] if package == PACKAGE else ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def sources() -> list[Path]:
    """Every module of the server."""
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def imports() -> Iterator[Import]:
    """Every import of the server, also those inside functions."""
    for path in sources():
        file = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                yield from (Import(file, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, (
                    f"{file}:{node.lineno} is a relative import; the rule is read from absolute ones"
                )
                # `from belljar_server import models` asks for a part, `from belljar_server.models import Limits` for a
                # name in it.
                names = (
                    [f"{node.module}.{alias.name}" for alias in node.names] if node.module == PACKAGE else [node.module]
                )
                yield from (Import(file, node.lineno, name or "") for name in names)


def test_every_part_of_the_server_has_a_place_in_the_table() -> None:
    """A new module must say where it stands before it can be imported."""
    parts = {str(path.relative_to(ROOT)).split("/")[0].removesuffix(".py") for path in sources()}
    unplaced = parts - set(MAY_IMPORT) - COMPOSE
    assert not unplaced, f"say in MAY_IMPORT and in ARCHITECTURE.md what these may import: {sorted(unplaced)}"


def test_parts_import_only_what_the_table_allows() -> None:
    """Dependencies point one way, so a layer can be read, tested and replaced without those above it."""
    wrong = [
        str(found)
        for found in imports()
        if found.imported_part
        and found.part not in COMPOSE
        and found.imported_part not in {found.part, *MAY_IMPORT.get(found.part, set())}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_dependency_seams_use_guest_framing_only() -> None:
    """Of what runs inside, the host uses the framing and nothing else: the agent is not its library."""
    wrong = [
        str(found)
        for found in imports()
        if found.imported_part == "guest"
        and found.part != "guest"
        and found.target not in {f"{PACKAGE}.guest", f"{PACKAGE}.guest.framing"}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("aiobotocore", {"artifacts/s3.py"}),
        ("botocore", {"artifacts/s3.py"}),
        ("belljar", {"messages.py", "service.py", "app.py"}),
        ("grpc", {"service.py", "app.py"}),
        ("aiohttp", {"http.py", "artifacts/download.py", "artifacts/s3.py", "dependencies/registry.py", "app.py"}),
        ("prometheus_client", {"metrics.py", "http.py", "app.py"}),
        ("subprocess", SPAWNING),
    ],
)
def test_a_library_has_one_user(library: str, allowed: set[str]) -> None:
    """What comes from outside stands behind one module, so a change of it is a change of that module."""
    wrong = [
        str(found)
        for found in imports()
        if found.target.split(".")[0] == library and found.file not in allowed and "/worker/" not in found.file
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_launcher_and_setup_start_processes() -> None:
    """Spawning is where a sandbox service gets hurt: few places, each an argument list."""
    calls = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "fork", "forkpty", "system", "popen"}
    calls |= {"posix_spawn", "posix_spawnp", "execv", "execve", "execvp", "execvpe", "spawnv", "spawnve"}
    wrong = []
    for path in sources():
        file = str(path.relative_to(ROOT))
        if file in SPAWNING or file.startswith(IN_THE_SANDBOX):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                owner = ast.unparse(node.func.value)
                if owner in {"os", "asyncio", "subprocess"}:
                    wrong.append(f"{file}:{node.lineno} calls {owner}.{node.func.attr}")
    assert not wrong, "\n".join(wrong)


def test_nobody_uses_a_shell() -> None:
    """A shell is where data becomes a command."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        if not str(path.relative_to(ROOT)).startswith(IN_THE_SANDBOX)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and any(k.arg == "shell" and getattr(k.value, "value", True) is not False for k in node.keywords)
    ]
    assert not wrong, "\n".join(wrong)


def test_what_runs_in_the_sandbox_imports_the_standard_library_only() -> None:
    """Agent and worker are copied into images, where nothing else is installed."""
    for folder in IN_THE_SANDBOX:
        beside = {path.stem for path in (ROOT / folder).rglob("*.py")} | {
            path.stem for path in (ROOT / "guest").glob("*.py")
        }
        wrong = [
            str(found)
            for found in imports()
            if found.file.startswith(folder)
            and found.file.removeprefix(folder) not in {"__init__.py", "imports.py"}  # these stay on the host
            and found.target.split(".")[0] not in sys.stdlib_module_names | beside
        ]
        assert not wrong, "\n".join(wrong)
