"""TypeScript on Node.js: the image and the worker of JavaScript, with every source compiled by swc inside the sandbox.

Types are taken away, not checked. Decorators are those of the standard (2022-03), not TypeScript's
`experimentalDecorators`. All code is strict. Enums, namespaces, parameter properties, `import x = require()` and
`export =` work.
"""

from __future__ import annotations

from belljar_server.runtimes import Runtime
from belljar_server.runtimes.javascript import IMAGE, LAYER, worker

RUNTIME = Runtime(
    name="typescript",
    version="26",
    main_file="main.ts",
    image=IMAGE,
    worker=worker("typescript"),
    probe="const one: number = 1; return one",
    layer=LAYER,
)
