"""Which registries this machine's own package managers use: noted by set-up, for servers whose settings name none.

No registry's address is in this source: pip and npm know theirs.
"""

from __future__ import annotations

import json
from pathlib import Path

from belljar_server.setup import tools
from belljar_server.setup.commands import Say, run

FILE = "registries.json"
DEFAULT_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
"""pip has no command that tells the index it asks when nothing is configured."""


def note(data_dir: Path, scratch: Path, say: Say) -> None:
    """Writes down the addresses. Raises HostNotReady, OSError."""
    configured = tools.index_settings()
    first = configured.get("UV_DEFAULT_INDEX") or run([tools.python(), "-c", DEFAULT_INDEX], timeout=60).strip()
    npm = tools.npm(scratch, say)
    registry = run([*npm.argv, "config", "get", "registry"], env=npm.env, timeout=60).strip().splitlines()[-1]
    found = {"python": [first, *configured.get("UV_INDEX", "").split()], "npm": registry}
    (data_dir / FILE).write_text(json.dumps(found, indent=2) + "\n")
