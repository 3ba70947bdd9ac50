"""Python, as Debian packages it. `worker/` is copied into the image; it imports nothing of the server."""

from __future__ import annotations

from pathlib import Path

from belljar_server.runtimes import Ecosystem, ImageRecipe, LayerRecipe, Preload, Runtime
from belljar_server.runtimes.python.imports import import_statements, imported_modules

_HERE = Path(__file__).parent
PACKAGES = "/usr/local/lib/python3.13/dist-packages"
"""Where Debian's Python looks for packages by itself, also in programs that user code starts."""

LAYER = LayerRecipe(
    name="python-packages",
    ecosystem=Ecosystem.PYTHON,
    lock=_HERE / "packages" / "packages.txt",
    target=PACKAGES,
    # Their commands cannot work (no PATH leads there), their tests are a quarter of all files.
    unwanted=("bin", "numpy/**/tests", "pandas/tests", "scipy/**/tests", "matplotlib/tests", "mpl_toolkits/**/tests"),
    # The fonts are those in the layer: found once here, not by every first plot. The worker knows where it is.
    run_at_build=(
        (
            "/usr/bin/env",
            f"MPLCONFIGDIR={PACKAGES}/matplotlib/mpl-data",
            "/usr/bin/python3",
            "-c",
            "import matplotlib.font_manager",
        ),
    ),
)

RUNTIME = Runtime(
    name="python",
    version="3.13",
    main_file="main.py",
    image=ImageRecipe(
        name="python",
        debian=("python3",),
        copies=((_HERE / "worker", "/opt/belljar/python"),),
        compile_python=("/opt/belljar",),
        mount_points=(PACKAGES,),
    ),
    # Isolated and without site, for a quick start; UTF-8 whatever the locale; no __pycache__ among the artifacts.
    worker=("/usr/bin/python3", "-I", "-S", "-B", "-X", "utf8", "/opt/belljar/python/worker.py"),
    # The seed of str hashes is fixed when an interpreter starts.
    snapshots=12,
    probe="1",
    # Plots go to files; what matplotlib keeps goes where no artifact is looked for.
    worker_env=(("MPLBACKEND", "Agg"), ("MPLCONFIGDIR", "/dev/shm/matplotlib")),  # noqa: S108  in the sandbox
    layer=LAYER,
    preload=Preload(
        name="data",
        modules=("numpy", "pandas", "openpyxl", "xlsxwriter", "PIL.Image", "matplotlib.pyplot"),
        snapshots=4,
        waiting_bytes=120 << 20,
    ),
    imports=imported_modules,
    import_statements=import_statements,
)
