"""What the report says when code fails: kind, message, place in the user's source, frames of the user's only."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.node_worker import run


def place(error: dict[str, Any]) -> tuple[str, int, int]:
    return error["file"], error["line"], error["column"]


@pytest.mark.parametrize(
    ("language", "code", "message", "line", "column"),
    [
        ("javascript", "const x = 1;\nlet y = ;", "SyntaxError: Unexpected token", 2, 9),
        ("javascript", "import fs from 'fs'\nfs.(", "SyntaxError: Unexpected token", 2, 4),
        ("javascript", "const s = '😀'; let y = ;", "SyntaxError: Unexpected token", 1, 24),
        ("javascript", "let a; let a", "SyntaxError: Identifier 'a' has already been declared.", 1, 12),
        ("javascript", "if (true) {", "SyntaxError: Unexpected token", 1, 12),
        ("javascript", "return 'abc", "SyntaxError: Unterminated string constant.", 1, 8),
        ("javascript", "const n: number = 1", "SyntaxError: Missing initializer in const declaration.", 1, 8),
        ("javascript", "function f() { await 1 }", None, 1, 16),
        ("typescript", "const é: string = '😀'; let x: = 5;", "SyntaxError: Unexpected token", 1, 31),
        ("typescript", "interface A {\n  a: ;\n}", "SyntaxError: Unexpected token", 2, 6),
    ],
)
def test_a_syntax_error_has_its_place(language: str, code: str, message: str | None, line: int, column: int) -> None:
    """Line and column count from 1, in characters; the message is one clean line."""
    error = run(code, language=language).error
    assert error["kind"] == "SYNTAX_ERROR"
    assert place(error) == ("main.ts" if language == "typescript" else "main.js", line, column)
    assert error["message"].startswith("SyntaxError: ")
    assert "\n" not in error["message"]
    assert message in (None, error["message"])


@pytest.mark.parametrize("language", ["javascript", "typescript"])
def test_what_only_v8_refuses_is_a_syntax_error_too(language: str) -> None:
    """The parser before it does not look into regular expressions."""
    error = run("const x = 1;\nconst r = 'é', q = /(/;", language=language).error
    assert error["kind"] == "SYNTAX_ERROR"
    assert error["message"] == "SyntaxError: Invalid regular expression: /(/: Unterminated group"
    assert error["line"] == 2


@pytest.mark.parametrize("code", ["[" * 5000 + "]" * 5000, "{" * 50_000 + "}" * 50_000, "return " + "(" * 9000 + "1"])
def test_code_that_is_nested_absurdly_deep_is_refused(code: str) -> None:
    """With an answer instead of a crash."""
    assert run(code).error["message"] == "SyntaxError: the code is nested too deeply"


def test_long_sums_and_deep_literals_of_generated_programs_work() -> None:
    """What V8 runs is not refused by the parsers before it."""
    assert run("return " + "+".join(["1"] * 10_000)).result == 10_000
    assert run("const a = " + "[" * 900 + "]" * 900 + "; return 1", language="typescript").result == 1


@pytest.mark.parametrize(
    ("language", "code", "message", "at"),
    [
        ("javascript", "null.foo", "TypeError: Cannot read properties of null (reading 'foo')", (1, 6)),
        ("javascript", "const y = 1; null.foo", "TypeError: Cannot read properties of null (reading 'foo')", (1, 19)),
        ("javascript", "const s = '😀'; throw new Error('x')", "Error: x", (1, 22)),
        (
            "javascript",
            "export const a = 1\n\nfunction f() {\n  throw new RangeError('x')\n}\nf()",
            "RangeError: x",
            (4, 9),
        ),
        (
            "javascript",
            "async function main() {\n  await null\n  undefinedName()\n}",
            "ReferenceError: undefinedName is not defined",
            (3, 3),
        ),
        ("javascript", "if (1) return JSON.parse('{')", None, (1, 20)),
        (
            "javascript",
            "setTimeout(() => { throw new Error('late') }, 1)\nawait new Promise(() => {})",
            "Error: late",
            (1, 26),
        ),
        ("javascript", "Promise.reject(new Error('lost')); return 1", "Error: lost", (1, 16)),
        (
            "typescript",
            "interface A {}\n\nexport function main(): void {\n  const s = '😀é'; throw new TypeError('x')\n}",
            "TypeError: x",
            (4, 25),
        ),
        (
            "typescript",
            "enum E { A }\nif (E.A === 0) return [1].map((x: number) => { throw new Error('x') })",
            "Error: x",
            (2, 54),
        ),
        (
            "typescript",
            "class A {\n  constructor(private n: number) { throw new Error(`${this.n}`) }\n}\nnew A(5)",
            "Error: 5",
            (2, 42),
        ),
    ],
)
def test_an_exception_has_its_place(language: str, code: str, message: str | None, at: tuple[int, int]) -> None:
    """In the source that the user wrote, whatever was compiled out of it."""
    error = run(code, language=language).error
    assert error["kind"] == "EXCEPTION"
    assert message in (None, error["message"])
    assert place(error) == ("main.ts" if language == "typescript" else "main.js", *at)


def test_a_traceback_has_the_frames_of_the_user_and_no_other() -> None:
    """As node prints it, without node's frames and ours, also across await."""
    code = (
        "async function a(): Promise<void> { await null; throw new Error('deep') }\n"
        "async function b() { await a() }\nexport async function main() {\n  await b()\n}"
    )
    expected = "Error: deep\n    at a (main.ts:1:55)\n    at async b (main.ts:2:22)\n    at async main (main.ts:4:3)"
    assert run(code, language="typescript").error["traceback"] == expected


@pytest.mark.parametrize(
    ("code", "places"),
    [
        (
            "function bad(v: any, c: any) {\n  throw new Error('x')\n}\nclass A {\n  @bad m() {}\n}",
            ["bad (main.ts:2:9)", "(main.ts:4:7)"],
        ),
        ("function bad(c: any): void {\n  null!.x\n}\n@bad\nclass A {}", ["bad (main.ts:2:9)", "(main.ts:5:"]),
        (
            "function f() {\n  using d = { [Symbol.dispose]() { throw new Error('x') } }\n}\nf()",
            ["(main.ts:2:42)", "f (main.ts:", "(main.ts:4:1)"],
        ),
    ],
)
def test_functions_that_the_compiler_adds_are_no_frames(code: str, places: list[str]) -> None:
    """Helpers for decorators and `using` are of no line of the user's."""
    frames = run(code, language="typescript").error["traceback"].split("\n")[1:]
    for place in places:
        assert any(place in frame for frame in frames), frames
    assert not [frame for frame in frames if "(main.ts)" in frame or "_ts_" in frame or "_apply" in frame]


def test_stacks_that_user_code_prints_are_in_its_own_places_too() -> None:
    """`error.stack` in a log helps only when its lines are those of the editor."""
    ran = run("const a: number = 1;\n\nconsole.error(new Error('logged').stack)", language="typescript")
    assert ran.stderr == "Error: logged\n    at Object.<anonymous> (main.ts:3:15)\n"


def test_causes_are_part_of_the_traceback() -> None:
    """The outermost first, each with its frames."""
    error = run("try { null.x } catch (e) {\n  throw new Error('outer', { cause: e })\n}").error
    assert error["message"] == "Error: outer"
    cause = "TypeError: Cannot read properties of null (reading 'x')\n    at Object.<anonymous> (main.js:1:12)"
    assert f"\nCaused by: {cause}" in error["traceback"]
    assert error["line"] == 2


@pytest.mark.parametrize(
    ("thrown", "message"),
    [
        ("null", "Uncaught null"),
        ("undefined", "Uncaught undefined"),
        ("'text'", "Uncaught 'text'"),
        ("{ code: 5 }", "Uncaught { code: 5 }"),
        ("new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 } })", "Uncaught Proxy({})"),
        ("Object.assign(new Error('x'), { name: 'Custom' })", "Custom: x"),
        ("Object.defineProperty(new Error('x'), 'message', { get() { throw 1 } })", "Error"),
        ("Object.defineProperty(new Error('x'), 'stack', { get() { throw 1 } })", "Error: x"),
        ("new Error('x', { cause: new Proxy({}, { get() { throw 1 } }) })", "Error: x"),
        ("Object.assign(new Error('a\\u0000\\ud800'), { name: '' })", "Error: a\0\ufffd"),
    ],
)
def test_whatever_is_thrown_is_described(thrown: str, message: str) -> None:
    """Also what is no error, and what fights back."""
    error = run(f"throw {thrown}").error
    assert (error["kind"], error["message"]) == ("EXCEPTION", message)


def test_a_huge_message_is_cut() -> None:
    """The report stays within what the agent takes, control characters included."""
    error = run("throw new Error('\\u0001'.repeat(1e7))").error
    assert 10_000 < len(error["message"].encode()) <= 16 * 1024
    assert len(error["traceback"].encode()) <= 64 * 1024


@pytest.mark.parametrize(
    ("code", "subject"),
    [
        ("async function main() { await new Promise(() => {}) }", "main() returned"),
        ("const main = () => new Promise(() => {})", "main() returned"),
        ("await new Promise(() => {})", "the script waits for"),
    ],
)
def test_a_promise_that_never_settles_is_told(code: str, subject: str) -> None:
    """Node would end with nothing but an exit code."""
    error = run(code).error
    assert error["kind"] == "EXCEPTION"
    assert error["message"] == f"{subject} a promise that never settles"


@pytest.mark.parametrize(
    ("language", "code", "at"),
    [
        ("javascript", "const x = 1\nconst _ = require('lodash')", (2, 11)),
        ("javascript", "await import('lodash')", (1, 7)),
        ("javascript", "const x = 1\nimport _ from 'lodash'\n_.map([])", (2, 15)),
        ("typescript", "type A = number\nimport { map } from 'lodash'\nmap([])", (2, 21)),
    ],
)
def test_a_missing_package_hints_at_dependencies(language: str, code: str, at: tuple[int, int]) -> None:
    """The most common failure has a place and a way out, without paths of the sandbox."""
    error = run(code, language=language).error
    assert error["hint"] == "Declare lodash in dependencies."
    assert error["message"] in ("Error: Cannot find module 'lodash'", "Error: Cannot find package 'lodash'")
    assert (error["line"], error["column"]) == at
    assert "/code/" not in error["traceback"]


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("require('./helper')", "Other sources must be in files; paths are relative to the importing file."),
        ("throw Object.assign(new Error('x'), { code: 'EAI_AGAIN' })", "The sandbox has no network."),
        (
            "const e = new Error(); e.code = 'ENETUNREACH'; throw new TypeError('x', { cause: e })",
            "The sandbox has no network.",
        ),
        ("throw Object.assign(new Error('x'), { code: 'EROFS' })", "Files can be written below /home/user and /tmp."),
        ("throw new Error('x')", ""),
    ],
)
def test_common_failures_come_with_a_hint(code: str, hint: str) -> None:
    """Only where there is something to say."""
    assert run(code).error["hint"] == hint


def test_with_a_network_no_hint_says_that_there_is_none() -> None:
    """A name that does not exist is then just that."""
    code = "throw Object.assign(new Error('x'), { code: 'ENOTFOUND' })"
    assert run(code, network=True).error["hint"] == ""


@pytest.mark.parametrize(
    ("code", "errno"),
    [
        ("require('fs').readFileSync('/nowhere')", "ENOENT"),
        ("throw new Error('outer', { cause: Object.assign(new Error('x'), { code: 'ENOSPC' }) })", "ENOSPC"),
        ("throw Object.assign(new Error('x'), { code: 'ERR_WORKER_INIT_FAILED' })", "EAGAIN"),
        ("await require('fs').promises.readFile('/nowhere')", "ENOENT"),
        ("throw Object.assign(new Error('x'), { code: 'ERR_OTHER' })", ""),
        ("throw Object.assign(new Error('x'), { code: 5 })", ""),
    ],
)
def test_the_errno_behind_an_exception_is_told(code: str, errno: str) -> None:
    """The host makes DISK_LIMIT and PROCESS_LIMIT of it."""
    assert run(code).error["errno"] == errno


def test_infinite_recursion_is_an_exception() -> None:
    """Also with the larger stack, of JavaScript and of a regular expression."""
    assert run("const f = () => f(); f()").error["message"] == "RangeError: Maximum call stack size exceeded"
    assert run("return /^(?:(a)|b)*$/.test('ab'.repeat(5e6))").error["kind"] == "EXCEPTION"
