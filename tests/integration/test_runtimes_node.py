"""JavaScript and TypeScript: three ways to write code, both module systems, errors that name the user's own places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from belljar_client import ErrorKind, Result

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

A_AND_B = {"a": 2, "b": 3}
EITHER = pytest.mark.parametrize("runtime", ["javascript", "typescript"])
MAIN_FILE = {"javascript": "main.js", "typescript": "main.ts"}


def test_code_with_decorated_parameters_runs(run: Run) -> None:
    """Decorators as they were before the standard's, which know no parameters."""
    code = """\
const seen: unknown[] = [];
const inject = (target: object, key: string | undefined, index: number) => { seen.push([key ?? "new", index]) };
class Box { constructor(@inject readonly size: number) {} wide(@inject by: number) { return this.size * by } }
export const main = () => [new Box(3).wide(2), seen];
"""
    assert run(code, runtime="typescript").check().value == [6, [["wide", 0], ["new", 0]]]


@EITHER
@pytest.mark.parametrize(
    ("code", "inputs", "expected"),
    [
        pytest.param("function main(args) { return args.a + args.b }", A_AND_B, 5, id="args"),
        pytest.param("async function main(args) { await null; return args.a + args.b }", A_AND_B, 5, id="async-args"),
        pytest.param("function main(a, b) { return a - b }", A_AND_B, -1, id="named"),
        pytest.param("function main({ b, a }) { return [a, b] }", A_AND_B, [2, 3], id="object"),
        pytest.param(
            "const main = async ({ a, c = 7, ...rest }) => [a, c, rest]", A_AND_B, [2, 7, {"b": 3}], id="arrow"
        ),
        pytest.param("function main(a, b, c = 8) { return [a, b, c] }", A_AND_B, [2, 3, 8], id="defaults"),
        pytest.param("function main() { return 'none' }", {}, "none", id="no-parameters"),
        pytest.param("function main(args) { return args }", {"args": 5}, 5, id="args-is-an-input"),
        pytest.param("export default function main(a, b) { return a * b }", A_AND_B, 6, id="export-default"),
        pytest.param("export const main = (a, b) => a * b", A_AND_B, 6, id="export"),
        pytest.param("module.exports = { main(a, b) { return a * b } }", A_AND_B, 6, id="module-exports"),
        pytest.param("exports.main = ({ a, b }) => a * b", A_AND_B, 6, id="exports"),
        pytest.param("return a + b", A_AND_B, 5, id="script-return"),
        pytest.param("if (a > 1) { return 'early' }\nreturn 'late'", A_AND_B, "early", id="script-early-return"),
        pytest.param("const c = a + b;\nc * 2;", A_AND_B, 10, id="script-last-expression"),
        pytest.param("const c = a + b", A_AND_B, None, id="script-without-result"),
        pytest.param("const c = await Promise.resolve(a);\nc + b", A_AND_B, 5, id="script-await"),
        pytest.param(
            "import { sep } from 'path';\nimport fs from 'node:fs';\nawait 0;\nreturn [sep, typeof fs.readFileSync, a]",
            A_AND_B,
            ["/", "function", 2],
            id="script-import-await-return",
        ),
        pytest.param("const { sep } = require('path');\nsep + a", A_AND_B, "/2", id="script-require"),
        pytest.param("for (let i = 0; i < 2; i++) console.log(i);", {}, None, id="script-loop"),
    ],
)
def test_way_to_write_code_is_detected(
    run: Run, runtime: str, code: str, inputs: dict[str, Any], expected: Any
) -> None:
    """Each way gives its result, and is the same in both languages."""
    result = run(code, runtime=runtime, inputs=inputs).check()
    assert (result.value, result.stderr, result.warnings) == (expected, b"", ())


TYPESCRIPT_IN_FULL = """\
import * as path from 'node:path';
import type { Stats } from 'node:fs';

enum Color { Red = 1, Green = Red << 2 }
const enum Level { Low = 'low', High = 'high' }
namespace Geometry {
  export const unit = 2;
  export namespace Deep { export const answer = unit * 21; }
}
abstract class Shape<T extends object> {
  constructor(protected readonly name: string, private options?: T) {}
  abstract area(): number;
  label(this: Shape<T>): string { return `${this.name}:${this.area()}`; }
}
function logged<T extends (...args: never[]) => unknown>(target: T, context: ClassMethodDecoratorContext): T {
  return function (this: unknown, ...args: never[]) { return [String(context.name), target.apply(this, args)]; } as T;
}
class Square extends Shape<{ round?: boolean }> {
  declare readonly side: number;
  accessor count = 0;
  static #made = 0;
  constructor(side: number) { super('square'); Object.assign(this, { side }); Square.#made++; }
  override area() { return this.side ** 2; }
  @logged twice(): number { return this.area() * 2; }
  static get made() { return Square.#made; }
}
interface Inputs { a: number; b?: number }
type Pair = readonly [number, string];
function overload(x: number): number;
function overload(x: string): string;
function overload(x: any) { return x; }
export async function main({ a, b }: Inputs): Promise<unknown> {
  const pair = [a, 'x'] as const satisfies Pair;
  const square = new Square(a!);
  return [Color.Green, Color[1], Level.High, Geometry.Deep.answer, square.label(), square.twice(), Square.made,
          pair, overload(<number>b), path.sep, (undefined as unknown as Stats | undefined)?.size ?? null];
}
"""


def test_typescript_in_full_runs(run: Run) -> None:
    """Enums, namespaces, decorators, parameter properties, generics, overloads, abstract classes, type imports."""
    expected = [4, "Red", "high", 42, "square:4", ["twice", 8], 1, [2, "x"], 3, "/", None]
    assert run(TYPESCRIPT_IN_FULL, runtime="typescript", inputs=A_AND_B).check().value == expected


def test_typescript_annotations_are_ignored(run: Run) -> None:
    """Types are not checked: a wrong one runs, also one that is declared nowhere."""
    code = "function main(a: string, b: Nowhere<number>): void { return [a, b] as any }"
    assert run(code, runtime="typescript", inputs=A_AND_B).check().value == [2, 3]


def test_class_field_and_getter_decorators_run(run: Run) -> None:
    """Decorators as TypeScript 5 has them, with their contexts."""
    code = """\
const seen: string[] = [];
const mark = (_: unknown, context: DecoratorContext) => { seen.push(`${context.kind}:${String(context.name)}`) };
@mark class Box { @mark size = 1; @mark get wide() { return 1 } }
new Box();
seen.sort()
"""
    assert run(code, runtime="typescript").check().value == ["class:Box", "field:size", "getter:wide"]


@EITHER
@pytest.mark.parametrize(
    ("entry", "code", "expected"),
    [
        ("main_args", "function main(a) { return a }", A_AND_B),
        ("main_named", "function main(args = 1, a, b) { return [args, a, b] }", [1, 2, 3]),
        ("script", "function main() { return 'main' }\n[a, b]", [2, 3]),
    ],
)
def test_entry_overrides_detection(run: Run, runtime: str, entry: str, code: str, expected: Any) -> None:
    """What the request says wins over what the code looks like."""
    assert run(code, runtime=runtime, inputs=A_AND_B, entry=entry).check().value == expected


@EITHER
@pytest.mark.parametrize(
    ("code", "entry", "named"),
    [
        ("let x = 1\nfunction main(a, c) {}", "detect", ["missing c", "unexpected b"]),
        ("const main = ({ a, c, d }) => 1", "detect", ["missing c, d", "unexpected b"]),
        ("async function main() {}", "detect", ["unexpected a, b"]),
        ("function main(args) {}", "main_named", ["missing args", "unexpected a, b"]),
        ("const x = 1", "main_args", ["no function main"]),
        ("const main = 5", "main_named", ["no function main"]),
    ],
)
def test_inputs_that_do_not_fit_are_named(run: Run, runtime: str, code: str, entry: str, named: list[str]) -> None:
    """ENTRY_NOT_FOUND says what is missing and what is too much, and where main is."""
    error = run(code, runtime=runtime, inputs=A_AND_B, entry=entry).error
    assert error is not None
    assert error.kind is ErrorKind.ENTRY_NOT_FOUND
    for text in named:
        assert text in error.message
    if "main(a, c)" in code:
        assert (error.file, error.line, error.column) == (MAIN_FILE[runtime], 2, 10)


@EITHER
@pytest.mark.parametrize(
    ("code", "kind", "message", "place"),
    [
        pytest.param("const x = 1;\n\n  missing(x)", "EXCEPTION", "ReferenceError: missing", (3, 3), id="script"),
        pytest.param("const y = null;\nreturn y.size", "EXCEPTION", "TypeError", (2, 10), id="script-return"),
        pytest.param(
            "function f() {\n  throw new RangeError('no')\n}\nf()", "EXCEPTION", "RangeError: no", (2, 9), id="frame"
        ),
        pytest.param("function main(args) {\n  return args.gone.deep\n}", "EXCEPTION", "TypeError", (2, 20), id="main"),
        pytest.param(
            "const wait = () => new Promise(r => setTimeout(r, 1));\nasync function deep() {\n  await wait();\n"
            "  throw new Error('deep');\n}\nasync function main() {\n  await deep();\n}",
            "EXCEPTION",
            "Error: deep",
            (4, 9),
            id="async",
        ),
        pytest.param(
            "import fs from 'node:fs';\n\nexport const main = () => {\n  fs.readFileSync('/home/user/none');\n}",
            "EXCEPTION",
            "ENOENT",
            (4, 6),
            id="in-the-library",
        ),
        pytest.param(
            "setTimeout(() => {\n  throw Error('later');\n}, 1);\nawait new Promise((r) => setTimeout(r, 9000))",
            "EXCEPTION",
            "Error: later",
            (2, 9),
            id="in-a-timer",
        ),
        pytest.param(
            "Promise.reject(new Error('lost'));\n1", "EXCEPTION", "Error: lost", (1, 16), id="unhandled-rejection"
        ),
        pytest.param(
            "const s = '😀é'; throw new Error(s)", "EXCEPTION", "Error: 😀é", (1, 23), id="column-in-characters"
        ),
        pytest.param("const a = 1;\nconst b = = 2;\n", "SYNTAX_ERROR", "SyntaxError", (2, 11), id="syntax"),
        pytest.param("const a = 1;\nconst a = 2;\n", "SYNTAX_ERROR", "SyntaxError", (2, 7), id="declared-twice"),
        pytest.param("function main( {\n  return 1\n}\n", "SYNTAX_ERROR", "SyntaxError", (2, 3), id="syntax-in-main"),
    ],
)
def test_error_names_the_users_place(
    run: Run, runtime: str, code: str, kind: str, message: str, place: tuple[int, int]
) -> None:
    """File, line and column are those of the source that was sent; the traceback shows none of our frames."""
    result = run(code, runtime=runtime)
    error = result.error
    assert error is not None
    assert (error.kind, result.exit_code, result.signal) == (kind, 1, 0)
    assert message in error.message
    assert (error.file, error.line, error.column) == (MAIN_FILE[runtime], *place)
    assert f"{MAIN_FILE[runtime]}:{place[0]}:{place[1]}" in error.traceback
    for ours in ("/opt", "/code", "node:internal", "node:fs"):
        assert ours not in error.traceback


@pytest.mark.parametrize(
    ("code", "place"),
    [
        (
            "enum E { A, B, C }\nnamespace N { export const x = 1 }\n\nfunction main() {\n  throw Error('x' + E.B);\n}",
            (5, 9),
        ),
        ("interface I {\n  a: number;\n  b: string;\n}\ntype T = I | null;\nconst t = null as T;\nt!.a", (7, 4)),
        (
            "class C {\n  constructor(private x: 1) {}\n\n  go(): never { throw Error(`${this.x}`) }\n}\nnew C(1).go()",
            (4, 23),
        ),
        (
            "namespace N {\n  export function f(): void {\n    throw new Error('in a namespace');\n  }\n}\nN.f();",
            (3, 11),
        ),
    ],
)
def test_typescript_error_is_placed_in_the_source_not_in_what_was_compiled(
    run: Run, code: str, place: tuple[int, int]
) -> None:
    """What TypeScript erases or expands before an error does not move it."""
    error = run(code, runtime="typescript").error
    assert error is not None
    assert (error.kind, error.file, error.line, error.column) == (ErrorKind.EXCEPTION, "main.ts", *place)
    assert f"main.ts:{place[0]}:{place[1]}" in error.traceback


def test_typescript_syntax_errors_are_its_own(run: Run) -> None:
    """A wrong type annotation is a syntax error at its place; JavaScript refuses types at all."""
    wrong = run("const a = 1;\nfunction main(a: ): void {}", runtime="typescript").error
    assert wrong is not None
    assert (wrong.kind, wrong.file, wrong.line, wrong.column) == (ErrorKind.SYNTAX_ERROR, "main.ts", 2, 18)
    types = run("const a = 1;\nconst b: number = 2;", runtime="javascript").error
    assert types is not None
    assert (types.kind, types.file, types.line, types.column) == (ErrorKind.SYNTAX_ERROR, "main.js", 2, 8)


@EITHER
def test_files_are_importable_in_every_way(run: Run, runtime: str) -> None:
    """Import with and without extension, require, import(), a folder, TypeScript from both, JSON, top-level await."""
    files = {
        "esm.mjs": "export const who = 'esm'; export default 1",
        "cjs.cjs": "module.exports = { who: 'cjs' }",
        "plain.js": "exports.who = 'plain'",
        "typed.ts": "enum E { A = 5 }\nexport const who: number = E.A",
        "folder/index.js": "export { who } from '../esm.mjs'",
        "later.mjs": "export const who = await Promise.resolve('later')",
        "numbers.json": '{"n": [1, 2]}',
    }
    code = """\
import one, { who as esm } from './esm.mjs';
import { who as typed } from './typed';
import { who as folder } from './folder';
import { who as later } from './later.mjs';
const cjs = require('./cjs.cjs');
const numbers = require('./numbers.json');
const plain = await import('./plain.js');
return [one, esm, typed, folder, later, cjs.who, numbers.n, plain.who]
"""
    expected = [1, "esm", 5, "esm", "later", "cjs", [1, 2], "plain"]
    assert run(code, runtime=runtime, files=files).check().value == expected


@EITHER
def test_error_in_one_of_the_files_names_that_file(run: Run, runtime: str) -> None:
    """The innermost place is that of the module; the traceback shows the way there, also through TypeScript."""
    files = {
        "shop/prices.ts": "enum E { A }\nexport function total(items: any[]): 1 {\n  return items[0].price.value;\n}\n"
    }
    code = "import { total } from './shop/prices';\n\nfunction main() {\n  return total([{}]);\n}\n"
    error = run(code, runtime=runtime, files=files).error
    assert error is not None
    assert (error.kind, error.file, error.line, error.column) == (ErrorKind.EXCEPTION, "shop/prices.ts", 3, 25)
    assert f"at main ({MAIN_FILE[runtime]}:4:" in error.traceback


@EITHER
@pytest.mark.parametrize("name", ["broken.js", "broken.mjs", "broken.ts"])
def test_syntax_error_in_one_of_the_files_names_that_file(run: Run, runtime: str, name: str) -> None:
    """It is the user's source as much as the main one."""
    error = run(f"import './{name}';", runtime=runtime, files={name: "export const x = 1;\nlet = = 2;\n"}).error
    assert error is not None
    assert (error.kind, error.file, error.line) == (ErrorKind.SYNTAX_ERROR, name, 2)


@EITHER
@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import thing from 'nosuchpackage';\nthing()", 1),
        ("const x = 1;\nconst thing = require('nosuchpackage')", 2),
        ("async function main() {\n  await import('nosuchpackage')\n}", 2),
        ("import { a } from '@scope/nosuchpackage/deep';\na()", 1),
    ],
)
def test_missing_module_hints_at_dependencies(run: Run, runtime: str, code: str, line: int) -> None:
    """The hint says what to do and names the package."""
    error = run(code, runtime=runtime).error
    assert error is not None
    assert (error.kind, error.file, error.line) == (ErrorKind.EXCEPTION, MAIN_FILE[runtime], line)
    assert "nosuchpackage" in error.hint
    assert "in dependencies" in error.hint


def test_missing_file_hints_at_files(run: Run) -> None:
    """A relative import is no package."""
    error = run("import './gone.js'", runtime="javascript").error
    assert error is not None
    assert "files" in error.hint
    assert "dependencies" not in error.hint


@EITHER
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("throw null", "Uncaught null"),
        ("throw 'just text'", "just text"),
        ("throw { code: 5 }", "5"),
        ("await new Promise(() => {})", "never settles"),
        ("async function main() { await new Promise(() => {}) }", "never settles"),
    ],
)
def test_odd_ends_are_exceptions_that_say_so(run: Run, runtime: str, code: str, message: str) -> None:
    """Whatever is thrown is told, and a promise that nothing can settle does not wait for the time limit."""
    error = run(code, runtime=runtime).error
    assert error is not None
    assert error.kind is ErrorKind.EXCEPTION
    assert message in error.message


@EITHER
def test_causes_are_in_the_traceback(run: Run, runtime: str) -> None:
    """An error's cause is shown with it."""
    code = "try { null.x } catch (error) {\n  throw new Error('outer', { cause: error })\n}"
    error = run(code, runtime=runtime).error
    assert error is not None
    assert (error.message, error.line) == ("Error: outer", 2)
    assert "TypeError" in error.traceback


@EITHER
def test_program_sees_itself_as_a_program(run: Run, runtime: str) -> None:
    """/home/user, nothing on stdin, fetch and timers there, the result after what was awaited."""
    code = """\
const stdin = require('fs').readFileSync(0, 'utf8');
const timed = await new Promise((resolve) => setTimeout(resolve, 5, 'timed'));
const name = __filename.split('/').pop();
return [process.cwd(), stdin, timed, typeof fetch, process.getuid(), name, require('os').homedir()]
"""
    expected = ["/home/user", "", "timed", "function", 1000, MAIN_FILE[runtime], "/home/user"]
    assert run(code, runtime=runtime).check().value == expected
