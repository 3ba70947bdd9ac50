"""What is done before anybody knows the code: imports, so that a snapshot has them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import sys

USUAL = (  # noqa: SIM905  words
    "abc argparse array asyncio base64 binascii bisect calendar cmath collections.abc colorsys concurrent.futures"
    " configparser contextlib copy csv ctypes dataclasses datetime decimal difflib email.message email.utils enum"
    " fractions functools getpass glob gzip hashlib heapq hmac html html.parser http.client http.cookies inspect io"
    " ipaddress itertools json locale logging math mimetypes numbers operator os.path pathlib pickle platform pprint"
    " queue random re secrets shlex shutil signal socket sqlite3 ssl stat statistics string struct subprocess tempfile"
    " textwrap threading time traceback types typing unicodedata urllib.error urllib.parse urllib.request uuid warnings"
    " weakref xml.etree.ElementTree zipfile zlib zoneinfo"
).split()
"""What code nodes import, and what these import in turn."""


def import_usual() -> None:
    """Imports the modules above; leaves out what this Python does not have."""
    for name in USUAL:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


_PROGRAMS = (
    ("detect", "def main(args):\n    return {'sum': sum(args['numbers']), 'text': f'{args}'}\n"),
    ("main_named", "import re\ndef main(numbers: list):\n    return re.sub('a', 'b', str(numbers))\n"),
    ("detect", "total = sum(numbers)\nif total:\n    return total\n"),
    ("detect", "[number / 0 for number in numbers]"),
)
REHEARSED = tuple(
    json.dumps({"code": code, "inputs": '{"numbers": [1, 2.5]}', "entry": entry, "env": {}, "main_file": "main.py"})
    for entry, code in _PROGRAMS
)
"""Jobs that exercise the way that the real one will take."""


def make_forks_cheap() -> None:
    """Lets forked children share this process's memory page by page.

    gVisor copies private memory that a fork shares in pieces of 2 MiB when it is written to, but in pages where it is
    executable (pkg/sentry/mm/pma.go, `privateAllocUnit`). Without this every child costs 18 MiB, and with the default
    limits a fork bomb meets the memory limit long before that of processes. Code that runs here may execute what it
    likes anyway, so nothing is lost. Does nothing where the kernel does not allow it.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    with open("/proc/self/maps") as maps:
        mappings = [line.split(maxsplit=2) for line in maps]
    for where, permissions, _ in mappings:
        if permissions == "rw-p":
            start, end = (int(address, 16) for address in where.split("-"))
            libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 7)


def nonce() -> str:
    """What user code's random numbers would have been, had they not been seeded again right after. Raises OSError."""
    reseed()
    drawn = f"{random.getrandbits(256):064x}"
    reseed()
    return drawn


def reseed() -> None:
    """Makes this process unlike others restored from the same snapshot. Raises OSError: then nothing may run."""
    seed = os.urandom(32)
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed(seed)
    if "ssl" in modules:
        modules["ssl"].RAND_add(os.urandom(32), 32.0)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None  # type: ignore[attr-defined]
    if "uuid" in modules:
        modules["uuid"]._node = None  # type: ignore[attr-defined]
