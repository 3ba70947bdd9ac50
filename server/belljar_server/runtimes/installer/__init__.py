"""What installs the packages that requests ask for: uv, npm and mkfs.erofs, in an image of their own.

No user code runs in it; `worker/installer.py` is PID 1 there, and `dependencies/` is the host's side. It has the image
of a runtime and is none: clients cannot name it.
"""

from __future__ import annotations

from pathlib import Path

from belljar_server.runtimes import ImageRecipe, Runtime, WheelProgram
from belljar_server.runtimes.javascript import IMAGE as NODE

_HERE = Path(__file__).parent

INSTALLER = Runtime(
    name="installer",
    version="3.13",
    main_file="",
    image=ImageRecipe(
        name="installer",
        debian=("python3", "erofs-utils"),
        npm_binaries=NODE.npm_binaries,
        npm_project=_HERE / "npm",
        wheel_programs=(WheelProgram("uv", "bin/uv", "/usr/local/bin/uv"),),
        copies=((_HERE / "worker", "/opt/belljar/installer"),),
        compile_python=("/opt/belljar/installer",),
        mount_points=("/work",),
    ),
    worker=("/usr/bin/python3", "-I", "-S", "/opt/belljar/installer/installer.py"),
)
