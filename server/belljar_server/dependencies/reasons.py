"""Why packages could not be installed, in words for the client: by what this side knows, else the installer's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from belljar_server.dependencies.installing import InstallFailed, Wanted
from belljar_server.dependencies.registry import Visit

IMPORTED_AS = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "pil": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Packages that are imported under another name than they are installed."""
REASONS = (
    (
        r"has no wheels with a matching|no wheels are usable|Wheels are required for|not compatible with|EBADPLATFORM",
        "there is no wheel for this platform",
    ),
    (r"there (?:is|are) no version|ETARGET|No matching version", "there is no such version"),
    (r"hash mismatch|EINTEGRITY", "what the registry sent is not what the lock says"),
    (r"conflict|incompatible|ERESOLVE|unsatisfiable", "the versions that are asked for conflict"),
    (r"failed to build|build backend", "a package could not be built"),
)
"""What uv and npm say, and what it means; the first that fits."""


def near_here(missing: str, wanted: Wanted) -> str:
    """The package that is meant by a name, as far as this side knows without asking."""
    close = difflib.get_close_matches(missing, [name for name, _ in wanted.preinstalled], 1)
    return IMPORTED_AS.get(missing.lower()) or next(iter(close), "")


def explain(error: InstallFailed, visit: Visit, wanted: Wanted, near: Sequence[str]) -> tuple[str, str]:
    """Message and hint for the client, out of what this side knows and what the installer said.

    `near` are names like the missing one that exist.
    """
    names = ", ".join(wanted.requirements[:5]) or "the lock"
    if str(error):
        return f"{names}: {error}", error.hint
    said = " ".join(error.last_lines.split())  # uv breaks lines anywhere
    if visit.missing:
        return f"{visit.missing[0]} is not in the registry", f"Did you mean {' or '.join(near)}?" if near else ""
    for pattern, reason in REASONS:
        match = re.search(pattern, said, re.IGNORECASE | re.DOTALL)
        if match:
            return f"{names}: {reason}", ""
    return f"{names} could not be installed", ""
