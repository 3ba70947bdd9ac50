"""Output, ends, and code that works against the JavaScript and TypeScript worker."""

from __future__ import annotations

import os
import threading

import pytest

from belljar_server.guest import framing
from tests.unit.node_worker import run


def test_all_output_is_out_before_the_report() -> None:
    """Also when nobody reads for a while, and the code ends its process at once."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as a pipe that an event loop has made
    received = bytearray()

    def drain() -> None:
        while data := os.read(reader, 1 << 16):
            received.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        ran = run("process.stdout.write('é'.repeat(2e6)); console.log('end'); process.exit(4)", stdout=writer)
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    assert ran.exit_code == 4
    assert received.decode() == "é" * 2_000_000 + "end\n"


def test_output_is_written_while_the_code_computes() -> None:
    """A log line is in the pipe before the next statement runs."""
    code = (
        "console.log('seen'); console.error('too')\n"
        "const fs = require('fs')\nreturn [fs.statSync('../stdout').size, fs.statSync('../stderr').size]"
    )
    assert run(code).result == [5, 4]


def test_output_streams_behave_like_streams() -> None:
    """Callbacks, encodings, bytes, pipes and corking."""
    code = (
        "const { Readable } = require('stream'), { pipeline } = require('stream/promises')\n"
        "await new Promise((done) => process.stdout.write('a', done))\n"
        "process.stdout.write('62', 'hex'); process.stdout.write(new Uint8Array([99]))\n"
        "process.stdout.cork(); process.stdout.write('d'); process.stdout.write('é'); process.stdout.uncork()\n"
        "await pipeline(Readable.from(['f', 'g']), process.stdout, { end: false })\nreturn process.stdout.fd"
    )
    ran = run(code)
    assert (ran.result, ran.stdout) == (1, "abcdéfg")


@pytest.mark.parametrize(
    ("code", "exit_code", "stdout"),
    [
        ("process.exit(3)", 3, ""),
        ("process.exitCode = 5; return 1", 5, ""),
        ("process.on('exit', (code) => { console.log('bye', code); process.exit(6) }); return 1", 6, "bye 0\n"),
        ("process.reallyExit(7)", 7, ""),
        ("process.kill(process.pid, 'SIGKILL')", -9, ""),
        ("process.abort()", -6, ""),
    ],
)
def test_an_end_that_the_code_chose_is_not_reported_as_another(code: str, exit_code: int, stdout: str) -> None:
    """The wait status tells it; there is neither result nor report."""
    ran = run(code)
    assert (ran.exit_code, ran.report, ran.result_text, ran.stdout) == (exit_code, None, None, stdout)


def test_exit_with_zero_is_success_without_result() -> None:
    """What was printed counts, the rest does not run."""
    ran = run("console.log('x'); process.exit(); console.log('y')")
    assert (ran.report, ran.result_text, ran.stdout) == ({"ok": True}, None, "x\n")


def test_a_handler_of_the_users_own_takes_uncaught_exceptions() -> None:
    """As under node; without one they end the execution, also when all listeners were removed."""
    late = (
        "setTimeout(() => { throw new Error('late') }, 1); await new Promise((done) => setTimeout(done, 20)); return 1"
    )
    ran = run(f"process.on('uncaughtException', (e) => console.log('mine', e.message)); {late}")
    assert (ran.result, ran.stdout) == (1, "mine late\n")
    assert run(f"process.removeAllListeners(); {late}").error["message"] == "Error: late"


PROTOTYPES = (
    "Array.prototype",
    "Object.prototype",
    "String.prototype",
    "Promise.prototype",
    "Function.prototype",
    "Map.prototype",
    "WeakMap.prototype",
    "Set.prototype",
    "RegExp.prototype",
    "Uint8Array.prototype",
    "Object.getPrototypeOf(Uint8Array.prototype)",
    "Error.prototype",
    "JSON",
    "Reflect",
    "Object",
    "Array",
    "Number",
)
REPLACE_ALL = """
const targets = [{targets}], found = [], define = Object.defineProperty
for (const target of targets) for (const key of Reflect.ownKeys(target)) found.push([target, key])
for (let i = 0, n = found.length; i < n; i += 1) {{
  const target = found[i][0], key = found[i][1]
  // Node itself calls Array.prototype.pop after every timer.
  if (key === 'constructor' || key === 'pop') continue
  const value = () => {{ throw new Error('replaced') }}
  try {{ define(target, key, {{ __proto__: null, configurable: true, value }}) }} catch {{}}
}}
"""


@pytest.mark.parametrize("target", PROTOTYPES)
def test_a_result_arrives_whatever_the_code_has_replaced(target: str) -> None:
    """The worker uses the intrinsics of a realm of its own."""
    ran = run(REPLACE_ALL.format(targets=target) + "return { __proto__: null, ok: [1, 'x', 2n], o: { a: null } }")
    assert ran.result_text == '{"ok":[1,"x",2],"o":{"a":null}}'


def test_an_exception_arrives_when_everything_is_replaced() -> None:
    """With its place."""
    error = run(REPLACE_ALL.format(targets=", ".join(PROTOTYPES)) + "null.x").error
    assert error["message"] == "TypeError: Cannot read properties of null (reading 'x')"
    assert error["line"] == 11


def test_main_may_destroy_its_globals() -> None:
    """And still return."""
    names = [
        "JSON",
        "Object",
        "Array",
        "Promise",
        "Buffer",
        "process",
        "console",
        "Error",
        "Reflect",
        "Uint8Array",
        "setImmediate",
    ]
    code = "".join(f"globalThis.{name} = null;" for name in names)
    assert run(f"function main(args) {{ {code} return {{ a: args.a, l: [1] }} }}", {"a": 1}).result == {
        "a": 1,
        "l": [1],
    }


@pytest.mark.parametrize(
    "setting",
    [
        "Error.prepareStackTrace = () => { throw new Error('x') }",
        "Error.prepareStackTrace = (error, frames) => frames",
        "Error.stackTraceLimit = 0",
        "delete Error.prepareStackTrace",
        "Object.defineProperty(Error.prototype, 'toString', { value() { throw 1 } })",
    ],
)
def test_stacks_in_the_hands_of_user_code_do_not_hide_the_error(setting: str) -> None:
    """At worst the place is missing."""
    assert run(f"{setting}; throw new TypeError('boom')").error["message"] == "TypeError: boom"


@pytest.mark.parametrize(
    "code",
    [
        "process.exit = process.emit = process.on = process.once = () => {}",
        "process.stdout.write = () => { throw new Error('x') }",
        "Object.defineProperty(process, 'stdout', { get() { throw new Error('x') } })",
        "Promise.prototype.then = () => { throw new Error('x') }; await null",
        "Object.prototype.toJSON = undefined; Object.prototype.then = undefined",
        "Object.defineProperty(Object.prototype, 'cause', { get() { throw 1 } })",
        "require('fs').writeSync = require('fs').readSync = () => 0",
        "require('fs').closeSync(1); require('fs').closeSync(2); console.log('x'); console.error('y')",
        "globalThis.queueMicrotask = globalThis.setImmediate = globalThis.setTimeout = null",
        "Symbol.prototype[Symbol.toPrimitive] = null",
    ],
)
def test_one_result_and_one_report_come_whatever_is_patched(code: str) -> None:
    """Each exactly once."""
    ran = run(f"{code}\nreturn {{ a: [1] }}")
    assert ran.result == {"a": [1]}
    assert ran.frames == [framing.RESULT, framing.REPORT]


@pytest.mark.parametrize("then", ["", "fs.openSync('/dev/null', 'r+')", "fs.openSync('mine', 'w+')"])
def test_a_result_that_cannot_be_sent_is_no_success(then: str) -> None:
    """The code has closed or replaced the channel: the logs say so, and what is there now gets nothing."""
    ran = run(f"const fs = require('fs'); fs.closeSync(3); {then}\nreturn 1")
    assert (ran.report, ran.exit_code) == (None, 1)
    assert "the result could not be delivered: the code has closed the worker's channel" in ran.stderr
    assert "file descriptor 3" in ran.stderr
    assert all(path.stat().st_size == 0 for path in ran.home.iterdir())


def test_threads_and_children_do_not_report() -> None:
    """They work, and the channel is not theirs."""
    ran = run(
        "const { Worker } = require('worker_threads'), { fork, execFileSync } = require('child_process')\n"
        "const w = new Worker(\"require('worker_threads').parentPort.postMessage(1)\", { eval: true })\n"
        "const one = await new Promise((done) => w.once('message', done))\n"
        "require('fs').writeFileSync('c.js', 'process.send(2)')\n"
        "const two = await new Promise((done) => fork('./c.js').once('message', done))\n"
        "const links = execFileSync('ls', ['-l', '/proc/self/fd']).toString()\n"
        "return [one, two, links.includes(' 3 -> socket')]"
    )
    assert ran.result == [1, 2, False]
    assert ran.frames == [framing.RESULT, framing.REPORT]


def test_a_rejection_that_nobody_handles_is_not_lost_behind_a_result() -> None:
    """A forgotten await is told, as under node."""
    ran = run("async function save() { throw new Error('not saved') }\nsave()\nreturn 'saved'")
    assert ran.error["message"] == "Error: not saved"
    assert 'the reason "text"' in run("Promise.reject('text'); return 1").error["message"]


def test_the_heap_follows_the_sandbox_and_gives_way() -> None:
    """V8 collects garbage for a limit far below its own, and does not abort where more is needed."""
    statistics = "require('v8').getHeapStatistics().heap_size_limit / 2 ** 20"
    assert 300 < run(f"return {statistics}").result < 512
    grow = "const live = []; while (process.memoryUsage().heapUsed < 6e8) live.push(new Array(10000).fill(1.5));"
    assert run(f"{grow} return {statistics}").result > 60_000
