"""The smallest run there is: a runtime's probe in a fresh sandbox. What readiness, set-up and doctor believe."""

from __future__ import annotations

from belljar_server.errors import SandboxFailed
from belljar_server.models import Entry, Limits, Stream
from belljar_server.sandbox import Job, SandboxSource
from belljar_server.sandbox.spec import Environment


async def probe(sandboxes: SandboxSource, environment: Environment, limits: Limits) -> None:
    """Runs the probe. Raises SandboxFailed when a sandbox does not start or does not give the answer."""
    job = Job(environment.runtime.probe, "{}", Entry.SCRIPT.value, (), (), (), limits)
    listener = _Probe()
    async with sandboxes.acquire(environment) as sandbox:
        ending = await sandbox.run(job, listener)
    if bytes(listener.result) != b"1":
        raise SandboxFailed(f"{environment.runtime.name}: the probe gave {bytes(listener.result)[:100]!r}: {ending}")


class _Probe:
    """Listens for the result of a probe alone."""

    def __init__(self) -> None:
        self.result = bytearray()

    def on_prepared(self) -> None:
        pass

    def on_running(self) -> None:
        pass

    def on_output(self, stream: Stream, data: bytes) -> None:
        pass

    async def on_result(self, data: bytes) -> None:
        self.result += data

    def on_collecting(self) -> None:
        pass

    async def on_artifact(self, name: bytes, size: int) -> None:
        pass

    async def on_artifact_data(self, data: bytes) -> None:
        pass

    async def on_artifact_end(self, *, complete: bool) -> None:
        pass
