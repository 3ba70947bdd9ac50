"""Which environment a request runs in. Pure: a wrong choice costs time, never correctness."""

from __future__ import annotations

from pathlib import PurePosixPath

from belljar_server.models import ExecutionRequest
from belljar_server.sandbox.spec import LOADED_BYTES, Environment

MOST_FILES = 20
MOST_BYTES = 64 * 1024
"""So many of the request's files are looked at, and so much of each."""


def choose(request: ExecutionRequest, plain: Environment, preloaded: Environment | None) -> Environment:
    """The preloaded environment when the code seems to import what it has loaded, else the plain one.

    Never when little memory was asked for, and never when a source of the request's has the name of a package: what is
    loaded already would win over it.
    """
    if preloaded is None or preloaded.preload is None or preloaded.runtime.imports is None:
        return plain
    if request.limits.memory_bytes < 2 * preloaded.preload.waiting_bytes:
        return plain
    if any(PurePosixPath(file.path).parts[0].partition(".")[0] in preloaded.modules for file in request.files):
        return plain
    loaded = {module.partition(".")[0] for module in preloaded.preload.modules}
    texts = (request.code, *(file.content[:MOST_BYTES].decode(errors="replace") for file in request.files[:MOST_FILES]))
    if any(loaded & preloaded.runtime.imports(text) for text in texts):
        return preloaded
    return plain


def to_load(request: ExecutionRequest, environment: Environment) -> tuple[str, ...]:
    """The imports that a snapshot for this request's code can have done: none when that could make a difference to it.

    A module may read the environment while it is imported, and what is loaded would win over a source of the
    request's.
    """
    statements = environment.runtime.import_statements
    if statements is None or request.env or request.files or request.limits.memory_bytes < LOADED_BYTES:
        return ()
    return statements(request.code)
