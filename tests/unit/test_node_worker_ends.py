"""What the JavaScript and TypeScript worker does between the result and the end of the process."""

from __future__ import annotations

import json
import time

import pytest

from belljar_server.guest import framing
from tests.unit.node_worker import run


def test_what_was_begun_is_finished_behind_the_result() -> None:
    """A stream that was not waited for is written, and a timer fires, as under node."""
    ran = run(
        "function main() {\n"
        "  const file = require('fs').createWriteStream('r.csv');\n"
        "  for (let i = 0; i < 3; i++) file.write('row\\n');\n"
        "  file.end();\n"
        "  setTimeout(() => console.log('late'), 50);\n"
        "  return { rows: 3 };\n"
        "}"
    )
    assert (ran.result, ran.stdout) == ({"rows": 3}, "late\n")
    assert (ran.home / "r.csv").read_text() == "row\n" * 3


@pytest.mark.parametrize(
    ("code", "left"),
    [
        ("setInterval(() => {}, 100); setTimeout(() => {}, 1e6)", ["Timeout"]),
        ("require('net').createServer().listen(0); require('child_process').spawn('sleep', ['2'])", None),
        ("process.on('beforeExit', () => setTimeout(() => {}, 600))", None),
        ("setTimeout(() => {}, 1e6); globalThis.setTimeout = clearTimeout; Set = Math.min = null", ["Timeout"]),
        (
            "setTimeout(() => {}, 1e6); Object.getPrototypeOf(setTimeout(() => {}, 1e6)).unref = null\n"
            "process.getActiveResourcesInfo = () => ['<b>']",
            ["Timeout"],
        ),
    ],
)
def test_what_does_not_end_is_left_and_told(code: str, left: list[str] | None) -> None:
    """After a second the result counts, and the report names the kinds of what is under way."""
    ran = run(f"{code}\nreturn 5")
    assert ran.report is not None
    assert (ran.report["ok"], ran.exit_code, ran.result_text) == (True, 0, "5")
    assert left is None or ran.report["left"] == left
    assert all(name.isalpha() for name in ran.report["left"])
    assert ran.frames == [framing.RESULT, framing.REPORT]


@pytest.mark.parametrize(
    "code",
    [
        "process.emit = null",
        "process.emit = () => {}",
        "require('events').prototype.emit = () => {}",
        "process.removeAllListeners()",
        "setTimeout(() => process.removeAllListeners(), 10)",
        "Object.freeze(process)",
        "Object.defineProperty(process, 'emit', { value: () => {} })",
    ],
)
def test_nothing_hides_that_the_event_loop_has_run_dry(code: str) -> None:
    """The result comes although the event for it does not."""
    ran = run(f"{code}\nsetTimeout(() => {{}}, 20)\nreturn 5")
    assert (ran.result_text, ran.exit_code, ran.frames) == ("5", 0, [framing.RESULT, framing.REPORT])


def test_a_result_is_not_lost_to_a_short_time_limit() -> None:
    """What is left over is not waited for when the host would end the execution meanwhile."""
    began = time.monotonic()
    ran = run("setTimeout(() => {}, 20_000); return 5", timeout=0.3)
    assert ran.report == {"ok": True, "left": ["Timeout"]}
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("late", "message"),
    [
        ("throw new Error('not saved')", "Error: not saved"),
        ("(async () => { throw new Error('not saved') })()", "Error: not saved"),
    ],
)
def test_what_fails_behind_the_result_is_a_failure(late: str, message: str) -> None:
    """A result must not hide that something of it went wrong."""
    assert run(f"setTimeout(() => {{ {late} }}, 50)\nreturn 'saved'").error["message"] == message


def test_an_exit_behind_the_result_ends_at_once() -> None:
    """With 0 the result counts; another code is the code's own end."""
    assert run("setTimeout(() => {}, 1e6); setTimeout(() => process.exit(0), 20); return 5").result == 5
    ran = run("setTimeout(() => process.exit(3), 20); return 5")
    assert (ran.report, ran.exit_code) == (None, 3)


@pytest.mark.parametrize("end", ["throw new Error('no')", "process.exit(0)", "process.exit(4)"])
def test_only_a_result_waits(end: str) -> None:
    """A throw and process.exit end at once, as under node."""
    assert run(f"setTimeout(() => console.log('late'), 1)\n{end}").stdout == ""


def test_exit_handlers_come_last() -> None:
    """After beforeExit, whose listeners may begin something new, and after what was under way."""
    ran = run(
        "process.on('exit', (code) => console.log('bye', code))\n"
        "let rounds = 0\n"
        "process.on('beforeExit', () => { if (rounds++ < 2) setTimeout(() => console.log('round', rounds), 1) })\n"
        "setTimeout(() => console.log('late'), 30)\n"
        "return 1"
    )
    assert (ran.result, ran.stdout) == (1, "late\nround 1\nround 2\nbye 0\n")
    ran = run("process.on('exit', () => console.log('bye')); setInterval(() => {}, 1000); return 1")
    assert (ran.report, ran.stdout) == ({"ok": True, "left": ["Timeout"]}, "bye\n")
    thrown = run("process.on('exit', () => { throw new Error('in exit') }); return 1").error
    assert thrown["message"] == "Error: in exit"


def test_a_listener_of_before_exit_may_settle_what_main_waits_for() -> None:
    """It comes when the event loop has run dry, before the worker says that nothing can settle it."""
    ran = run(
        "let settle\nprocess.once('beforeExit', () => setTimeout(() => settle(7), 1))\n"
        "return new Promise((resolve) => { settle = resolve })"
    )
    assert json.loads(ran.result_text or "null") == 7
    assert "never settles" in run("process.on('beforeExit', () => {}); await new Promise(() => {})").error["message"]
