"""How sandboxes of one environment come to be, and what is checked and written for that."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar_server.errors import SandboxFailed
from belljar_server.sandbox import MakeLink
from belljar_server.sandbox.runsc import Runsc
from belljar_server.sandbox.spec import Environment


@dataclass(frozen=True, slots=True)
class Start:
    """How sandboxes of one environment come to be: booted, or restored from a snapshot."""

    environment: Environment
    runsc: Runsc
    bundle: Path
    timeout: float
    disk_bytes: int
    """What a restored one is made ready for while it waits; a job that wants something else pays for the difference."""
    snapshot: Path | None = None
    make_link: MakeLink | None = None
    """Where links come from, for an environment with network."""

    def argv(self, sandbox_id: str) -> list[str]:
        """The command line of runsc."""
        network = self.environment.network
        if self.snapshot:
            return self.runsc.restore(sandbox_id, self.bundle, self.snapshot, network=network)
        return self.runsc.run(sandbox_id, self.bundle, network=network)


def write_bundle(directory: Path, spec: dict[str, Any]) -> Path:
    """Writes the OCI bundle that all sandboxes of one environment share."""
    (directory / "rootfs").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(spec))
    return directory


def check_namespace(pids: list[int], namespace: int) -> None:
    """Raises SandboxFailed unless every process is in the network namespace. runsc decides about that, we look."""
    wanted = os.fstat(namespace)
    for pid in pids:
        try:
            found = os.stat(f"/proc/{pid}/ns/net")
        except FileNotFoundError:  # it has ended
            continue
        if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino):
            raise SandboxFailed(f"process {pid} of a sandbox is in another network namespace than it should be")
