"""Names that a registry has and that are near one that it has not: what was meant, perhaps.

A registry can only be asked for names, so the likely slips are undone one by one, and a bounded number of them asked.
"""

from __future__ import annotations

import asyncio
import itertools
import re

from belljar_server.dependencies.registry import Registries
from belljar_server.runtimes import Ecosystem

MOST_ASKED = 40
AT_ONCE = 8
SECONDS = 4.0
MOST_FOUND = 3
_AFFIXES = {
    Ecosystem.PYTHON: (("python-", "py-", "py"), ("-python",)),
    Ecosystem.NPM: (("node-",), ("-js", ".js", "js")),
}


def candidates(ecosystem: Ecosystem, name: str) -> list[str]:
    """What may have been meant, the likelier first; at most `MOST_ASKED`."""
    scope, slash, bare = name.rpartition("/")
    prefixes, suffixes = _AFFIXES[ecosystem]
    pairs = list(itertools.pairwise(bare))
    found = [
        *(bare.removeprefix(each) for each in prefixes),
        *(bare.removesuffix(each) for each in suffixes),
        re.sub(r"[-_.]", "", bare),
        bare.removesuffix("s"),
        f"{bare}s",
        *(f"{bare[:at]}{right}{left}{bare[at + 2 :]}" for at, (left, right) in enumerate(pairs)),  # two letters swapped
        *(bare[:at] + bare[at + 1 :] for at in range(len(bare))),  # one too much
        *(f"{each}{bare}" for each in prefixes),
        *(f"{bare}{each}" for each in suffixes),
        *(bare[:at] + bare[at] + bare[at:] for at in range(len(bare))),  # one of two forgotten
    ]
    likely = dict.fromkeys(each for each in found if len(each) > 1 and each[0].isalnum() and each[-1].isalnum())
    likely.pop(bare, None)
    return [f"{scope}{slash}{each}" for each in likely][:MOST_ASKED]


async def existing(registries: Registries, ecosystem: Ecosystem, name: str) -> list[str]:
    """Those that a registry has, as far as it says so in a few seconds."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def has(candidate: str) -> bool:
        async with at_once:
            return await registries.has(ecosystem, candidate)

    names = candidates(ecosystem, name)
    tasks = [asyncio.create_task(has(each)) for each in names]
    try:
        await asyncio.wait(tasks, timeout=SECONDS)
    finally:
        for task in tasks:
            task.cancel()
    told = [(each, task) for each, task in zip(names, tasks, strict=True) if task.done()]
    return [each for each, task in told if task.result()][:MOST_FOUND]
