"""Python, as Debian packages it. `worker/` is copied into the image; it imports nothing of the server."""

from __future__ import annotations

from pathlib import Path

from belljar_server.runtimes import ImageRecipe, Runtime

RUNTIME = Runtime(
    name="python",
    version="3.13",
    main_file="main.py",
    image=ImageRecipe(
        name="python",
        debian=("python3",),
        copies=((Path(__file__).parent / "worker", "/opt/belljar/python"),),
        compile_python=("/opt/belljar",),
    ),
    # Isolated and without site, for a quick start; UTF-8 whatever the locale; no __pycache__ among the artifacts.
    worker=("/usr/bin/python3", "-I", "-S", "-B", "-X", "utf8", "/opt/belljar/python/worker.py"),
    # The seed of str hashes is fixed when an interpreter starts.
    snapshots=12,
    probe="1",
)
