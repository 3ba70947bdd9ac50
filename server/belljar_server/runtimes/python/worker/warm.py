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


NUMPY_RANDOM = "numpy.random"


def import_usual() -> None:
    """Imports the modules above; leaves out what this Python does not have."""
    for name in USUAL:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def import_packages(names: list[str], folders: list[str]) -> None:
    """Imports packages from the folders where they are installed. Raises what they raise: then there is no snapshot."""
    before = sys.path[:]
    sys.path[:] = [*before, *folders]
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        sys.path[:] = before


_EXERCISES = (
    """\
import io, numpy, pandas
frame = pandas.DataFrame({'key': list('abab') * 8, 'value': numpy.arange(32) * 1.5})
frame['when'] = pandas.to_datetime(['2024-05-17'] * 32)
groups = frame.groupby('key').agg({'value': ['sum', 'mean']})
merged = frame.merge(frame.head(2), on='key').sort_values('value_x')
text = pandas.read_csv(io.StringIO(frame.to_csv(index=False))).describe().to_json()
len(text + str(groups) + str(merged))
""",
    """\
import io, pandas
file = io.BytesIO()
pandas.DataFrame({'a': [1, 2]}).to_excel(file, index=False)
len(pandas.read_excel(file))
""",
    """\
import io, PIL.Image
for kind in ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF'):
    file = io.BytesIO()
    PIL.Image.new('RGB', (8, 8), 'red').save(file, kind)
    PIL.Image.open(file).resize((4, 4)).load()
""",
    """\
import io, matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([1, 2], [2, 1], label='a')
axes.set_title('t')
axes.legend()
figure.savefig(io.BytesIO(), format='png')
plt.close('all')
""",
)

_PROGRAMS = (
    ("detect", "def main(args):\n    return {'sum': sum(args['numbers']), 'text': f'{args}'}\n"),
    ("main_named", "import re\ndef main(numbers: list):\n    return re.sub('a', 'b', str(numbers))\n"),
    ("detect", "total = sum(numbers)\nif total:\n    return total\n"),
    ("detect", "[number / 0 for number in numbers]"),
)


def job(entry: str, code: str) -> str:
    """A job as the agent would send it."""
    inputs = '{"numbers": [1, 2.5]}'
    return json.dumps({"code": code, "inputs": inputs, "entry": entry, "env": {}, "main_file": "main.py"})


REHEARSED = [job(entry, code) for entry, code in _PROGRAMS]
"""Jobs that exercise the way that the real one will take; before a snapshot, and again in every copy of it."""
EXERCISES = [job("script", code) for code in _EXERCISES]
"""Jobs that do what code does with preloaded packages, which set much up at the first use."""


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


def nonces() -> list[str]:
    """What user code's random numbers would have been, had they not been seeded again right after. Raises OSError."""
    reseed()
    drawn = [random.getrandbits(256)]
    if NUMPY_RANDOM in sys.modules:
        drawn.append(int.from_bytes(sys.modules[NUMPY_RANDOM].bytes(32), "big"))
    reseed()
    return [f"{number:064x}" for number in drawn]


def reseed() -> None:
    """Makes this process unlike others restored from the same snapshot. Raises OSError: then nothing may run."""
    seed = os.urandom(32)
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed(seed)
    if NUMPY_RANDOM in modules:
        modules[NUMPY_RANDOM].seed(list(os.urandom(32)))
    if "ssl" in modules:
        modules["ssl"].RAND_add(os.urandom(32), 32.0)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None  # type: ignore[attr-defined]
    if "uuid" in modules:
        modules["uuid"]._node = None  # type: ignore[attr-defined]
