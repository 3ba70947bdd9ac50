"""Module systems, TypeScript, and the request's `files` in the JavaScript and TypeScript worker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.node_worker import run


@pytest.mark.parametrize("language", ["javascript", "typescript"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import fs from 'fs'\nif (true) return fs.existsSync('/')", True),
        ("import * as path from 'node:path'\nimport { join as j } from 'path'\n[path.sep, j('a', 'b')]", ["/", "a/b"]),
        ("import { setTimeout as pause } from 'timers/promises'\nexport const x = 1\nawait pause(1, 'v')", "v"),
        ("import m from 'module'\nconst require = m.createRequire(import.meta.url)\nrequire('path').sep", "/"),
        (
            "import p from 'path'\nconst __dirname = p.dirname('/x/y')\nconst module = 5;\n[__dirname, module]",
            ["/x", 5],
        ),
        ("const { sep } = await import('node:path')\nsep", "/"),
        ("const fs = await import('fs');\n[typeof fs.default.readFileSync, typeof fs.readFileSync]", ["function"] * 2),
        ("export default 5\nthis === undefined", None),
        ("return import.meta.url === `file://${import.meta.filename}`", True),
        ("return import.meta.resolve('./x.json').endsWith('/code/x.json')", True),
    ],
)
def test_import_and_return_go_together(language: str, code: str, expected: Any) -> None:
    """What users mix is accepted: imports, a top-level return, await, the last expression."""
    ran = run(code, language=language, files={"x.json": "{}"})
    if expected is None:
        assert ran.report == {"ok": True}
    else:
        assert ran.result == expected


def test_commonjs_is_sloppy_and_modules_are_strict() -> None:
    """As in node."""
    assert run("x = 5; return [typeof this, x, (function () { return this === globalThis })()]").result == [
        "object",
        5,
        True,
    ]
    assert run("'use strict'\nx = 5").error["message"] == "ReferenceError: x is not defined"
    assert run("export {}\nx = 5").error["message"] == "ReferenceError: x is not defined"
    assert run("x = 5", language="typescript").error["message"] == "ReferenceError: x is not defined"


def test_byte_order_mark_shebang_and_crlf_are_no_obstacle() -> None:
    """Editors leave them; lines count as they do there."""
    assert run("\ufeff#!/usr/bin/env node\r\nreturn 1").result == 1
    error = run("\ufeff// a\r\n\r\nnull.x\r\n").error
    assert (error["line"], error["column"]) == (3, 6)


TYPESCRIPT = {
    "enums": ("enum A { X = 3, Y }\nconst enum B { Z = 'z' }\nreturn [A.Y, A[3], B.Z]", [4, "X", "z"]),
    "namespaces": ("namespace N { export const x = 1; export namespace M { export const y = x + 1 } }\nN.M.y", 2),
    "parameter properties": (
        (
            "abstract class S { constructor(public name: string) {} abstract area(): number }\n"
            "class Q extends S { constructor(private s: number) { super('q') } area() { return this.s ** 2 } }\n"
            "const q = new Q(3)\nreturn [q, q.area()]"
        ),
        [{"name": "q", "s": 3}, 9],
    ),
    "decorators": (
        (
            "function twice(f: any, c: ClassMethodDecoratorContext) {\n"
            "  return function (this: any, ...a: any[]) { return [String(c.name), f.apply(this, a) * 2] }\n}\n"
            "class A { @twice m(x: number) { return x } }\nreturn new A().m(4)"
        ),
        ["m", 8],
    ),
    "a class that its decorator seals": (
        (
            "function sealed(c: Function) { Object.seal(c); Object.seal(c.prototype) }\n"
            "function frozen(c: Function) { Object.freeze(c) }\n"
            "@sealed class A { x = 1 }\n@frozen class B extends A {}\nreturn [new B().x, Object.isSealed(A)]"
        ),
        [1, True],
    ),
    "decorated parameters": (
        (
            "const seen: any[] = []\n"
            "function note(target: any, key: string | undefined, index: number) { seen.push([key ?? 'new', index]) }\n"
            "function plusOne(target: any, key: string, descriptor: PropertyDescriptor) {\n"
            "  const f = descriptor.value\n"
            "  descriptor.value = function (...a: any[]) { return f.apply(this, a) + 1 }\n}\n"
            "class A {\n  constructor(@note private readonly s: number) {}\n"
            "  @plusOne m(@note x: number) { return x + this.s }\n}\n"
            "return [new A(4).m(3), seen]"
        ),
        [8, [["m", 0], ["new", 0]]],
    ),
    "failure while disposing of a failure": (
        (
            "try {\n  using x = { [Symbol.dispose]() { throw new Error('second') } }\n  throw new Error('first')\n"
            "} catch (e: any) { return [e.name, e.error.message, e.suppressed.message] }"
        ),
        ["SuppressedError", "second", "first"],
    ),
    "accessors and using": (
        (
            "class A { accessor q = 1 }\nlet closed = 0\n{ using x = { [Symbol.dispose]() { closed += 1 } } }\n"
            "return [new A().q, closed]"
        ),
        [1, 1],
    ),
    "types everywhere": (
        (
            "type P<T> = { [K in keyof T]?: T[K] }\ninterface I { a: number }\ndeclare const input: string\n"
            "function f(a: string): string\nfunction f(a: number): number\n"
            "function f<T>(this: void, a: T): T { return a }\n"
            "const o = { a: 1 } satisfies I\nlet v = <any>o as unknown as P<I>\nreturn [f(1), v!.a]"
        ),
        [1, 1],
    ),
    "import = require": ("import path = require('path')\nreturn path.sep", "/"),
    "export =": ("export = { main(args: { a: number }) { return args.a } }", 1),
    "type imports": (
        "import type { Stats } from 'fs'\nimport { type Dirent, existsSync } from 'fs'\nexistsSync('/')",
        True,
    ),
    "types at the end": ("40 + 2\ntype Last = number\ninterface Also {}", 42),
    "overloaded main": (
        "function main(a: string): string\nfunction main(a: any, b?: number): any { return [a, b ?? 0] }",
        [1, 0],
    ),
    "annotated async main": ("export async function main({ a }: { a: number }): Promise<number> { return a }", 1),
}


@pytest.mark.parametrize("name", TYPESCRIPT)
def test_typescript_is_understood_in_full(name: str) -> None:
    """With what a type stripper cannot do."""
    code, expected = TYPESCRIPT[name]
    inputs = {"a": 1} if "main" in code else {}
    assert run(code, inputs, language="typescript").result == expected


@pytest.mark.parametrize("language", ["javascript", "typescript"])
@pytest.mark.parametrize(
    ("code", "files", "expected"),
    [
        ("require('./util').x", {"util.js": "exports.x = 1"}, 1),
        ("import { x } from './util.js'\nx", {"util.js": "export const x = 1"}, 1),
        ("import { x } from './util.js'\nx", {"util.ts": "export const x: number = 1"}, 1),
        ("import { x } from './util.ts'\nx", {"util.ts": "export enum E { A = 1 }\nexport const x = E.A"}, 1),
        ("import x from './util'\nx", {"util.mjs": "export default 1"}, 1),
        ("import x from './util.cjs'\nx", {"util.cjs": "module.exports = 1"}, 1),
        ("import data from './data.json'\ndata.n", {"data.json": '{"n": 1}'}, 1),
        (
            "require('./lib').x",
            {"lib/index.ts": "import { y } from '../y'\nexport const x = y", "y.js": "exports.y = 1"},
            1,
        ),
        ("const { x } = await import('./util')\nx", {"util.ts": "export const x = 1"}, 1),
        ("import { x } from './util.js'\nx", {"util.ts": "export const x: number = await Promise.resolve(1)"}, 1),
        ("import x, { y } from './util.mjs'\nx + y", {"util.mjs": "export default await 1\nexport const y = 2"}, 3),
        ("(await import('./util.mjs')).x", {"util.mjs": "export const x = await 1"}, 1),
        ("import * as u from './util'\nObject.keys(u).sort()", {"util.ts": "export const b = 1, a = 2"}, ["a", "b"]),
        (
            "import { get } from './a'\nget()",
            {
                "a.ts": "import { b } from './b'\nexport const one = 1, get = () => b()",
                "b.ts": "import { one } from './a'\nexport const b = () => one",
            },
            1,
        ),
        (
            "import { f } from './util'\nawait f()",
            {"util.ts": "export const f = async () => (await import('./other')).x", "other.ts": "export const x = 1"},
            1,
        ),
        (
            "import { u } from './util'\nu",
            {"util.ts": "export const u: boolean = import.meta.url.endsWith('/util.ts')"},
            True,
        ),
        ("require('./a b (1)').x", {"a b (1).ts": "export const x: number = 1"}, 1),
    ],
)
def test_files_are_importable(language: str, code: str, files: dict[str, str], expected: Any) -> None:
    """In either language, by either module system, with or without extension."""
    assert run(code, language=language, files=files).result == expected


def test_files_may_decorate_parameters_and_seal_classes() -> None:
    """As the main source may; also a file that awaits at the top level, which stays an ES module."""
    decorators = (
        "function sealed(c) { Object.seal(c) }\n"
        "function note(target: any, key: any, index: number) { target.noted = index }\n"
    )
    files = {
        "a.ts": f"{decorators}await null\n@sealed class A {{}}\nexport default Object.isSealed(A)",
        "b.ts": f"{decorators}export class B {{ m(@note x: number) {{}} }}",
    }
    code = "import a from './a'\nimport { B } from './b'\nreturn [a, (B.prototype as any).noted]"
    assert run(code, language="typescript", files=files).result == [True, 0]


def test_errors_in_files_have_their_own_places() -> None:
    """Also when a function of a file is called later."""
    files = {"lib/util.ts": "interface A {}\n\nexport function f(): void { throw new RangeError('in é util') }"}
    error = run(
        "import { f } from './lib/util'\nexport function main() { f() }", language="typescript", files=files
    ).error
    assert (error["file"], error["line"], error["column"]) == ("lib/util.ts", 3, 35)
    assert error["traceback"] == "RangeError: in é util\n    at f (lib/util.ts:3:35)\n    at main (main.ts:2:27)"


@pytest.mark.parametrize("importing", ["import './util'", "require('./util')", "await import('./util')"])
def test_a_syntax_error_in_a_file_names_the_file(importing: str) -> None:
    """It is the file that has to be changed."""
    error = run(importing, language="typescript", files={"util.ts": "\nexport function f(: void {}"}).error
    assert (error["kind"], error["message"]) == ("SYNTAX_ERROR", "SyntaxError: Unexpected token")
    assert (error["file"], error["line"], error["column"]) == ("util.ts", 2, 19)


def test_the_packages_of_the_worker_are_not_those_of_user_code() -> None:
    """What it is built of is nobody's dependency."""
    for name in ("@babel/parser", "@swc/core-linux-x64-gnu"):
        assert run(f"require('{name}')").error["hint"] == f"Declare {name} in dependencies."


def test_the_program_looks_like_node_main() -> None:
    """Nothing of the worker shows in what programs usually look at."""
    ran = run(
        "return [process.argv, process.execArgv, Object.keys(require.cache), module.id.endsWith('/main.js'),"
        " __filename.endsWith('/code/main.js'), Object.keys(process.env).sort(), process.env.A]",
        env={"A": "1"},
        worker_env={"NODE_EXTRA": "x", "BELLJAR_WARM": ""},
    )
    assert ran.result == [["node", "main.js"], [], [], True, True, ["A", "HOME", "LANG", "PATH"], "1"]
