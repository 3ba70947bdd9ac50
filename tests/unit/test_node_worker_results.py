"""What becomes of a JavaScript value as a JSON result, and what is refused."""

from __future__ import annotations

import json

import pytest

from belljar_server.guest import framing
from tests.unit.node_worker import run


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("undefined", "null"),
        ("null", "null"),
        ("[undefined, , null]", "[null,null,null]"),
        ("{ a: undefined, b: 1 }", '{"b":1}'),
        ("-0", "0"),
        ("1e21", "1e+21"),
        ("0.1", "0.1"),
        ("12345678901234567890n", "12345678901234567890"),
        ("{ z: 1, a: 2, 10: 3, 2: 4 }", '{"2":4,"10":3,"z":1,"a":2}'),
        ("[new Number(1), new String('s'), new Boolean(false), Object(2n)]", '[1,"s",false,2]'),
        ("new Date(0)", '"1970-01-01T00:00:00.000Z"'),
        ("new URL('http://example.test/a')", '"http://example.test/a"'),
        ("new (class A { x = 1; #y = 2; get z() { return 3 } m() {} })", '{"x":1}'),
        ("Object.assign(Object.create({ inherited: 1 }), { own: 2 })", '{"own":2}'),
        ("Object.assign(Object.create(null), { own: 2 })", '{"own":2}'),
        ("{ ['__proto__']: 5 }", '{"__proto__":5}'),
        ("{ [Symbol('s')]: 1, a: 2 }", '{"a":2}'),
        ("{ get a() { return 1 } }", '{"a":1}'),
        ("new Proxy({ a: 1 }, {})", '{"a":1}'),
        ("new Proxy([1, 2], {})", "[1,2]"),
        ("new (class extends Array {})(2)", "[null,null]"),
        ("[{ toJSON(key) { return [key, this.y] }, y: 2 }]", '[["0",2]]'),
        ("(() => { const a = { b: 1 }; return [a, a] })()", '[{"b":1},{"b":1}]'),
        ("'\\u2028\\u0000\"\\\\'", '"\u2028\\u0000\\"\\\\"'),
        ("'\\ud800x'", '"\\ud800x"'),
        ("'😀é漢'", '"😀é漢"'),
        ("{ then: 1 }", '{"then":1}'),
        ("{ then(done) { done({ a: 1 }) } }", '{"a":1}'),
        ("[[], {}, '']", '[[],{},""]'),
    ],
)
def test_values_become_json_text(expression: str, text: str) -> None:
    """Each documented answer, to the letter."""
    ran = run(f"return ({expression})")
    assert ran.report == {"ok": True}, ran.report
    assert ran.result_text == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("[1, 12345678901234567890, 1.0]", "[1, 12345678901234567890, 1.0]"),
        (' {"b": 1, "a": 2}\n', ' {"b": 1, "a": 2}\n'),
        ("[1", '"[1"'),
        ("{a: 1}", '"{a: 1}"'),
        ("5", '"5"'),
        ("null", '"null"'),
        ('"text"', '"\\"text\\""'),
        ('["\ud800"]', '["\\ud800"]'),
        ('{"a[[[": "\\\\\\"[["}', '{"a[[[": "\\\\\\"[["}'),
    ],
)
def test_a_string_that_holds_an_object_or_array_is_that_document(value: str, text: str) -> None:
    """Its own digits and spaces are passed on; any other string is a string."""
    assert run(f"return {json.dumps(value)}").result_text == text


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("{ items: [0, { when: new Map() }] }", "result.items[1].when is Map"),
        ("{ 'a b': [NaN] }", 'result["a b"][0] is NaN'),
        ("[-1 / 0]", "result[0] is -Infinity"),
        ("() => 1", "result is a function"),
        ("{ a: class A {} }", "result.a is a function"),
        ("{ s: Symbol('x') }", "result.s is a symbol"),
        ("{ s: new Set() }", "result.s is Set"),
        ("new WeakMap()", "result is WeakMap"),
        ("/x/", "result is RegExp"),
        ("new TypeError('x')", "result is Error"),
        ("[Promise.resolve(1)]", "result[0] is Promise"),
        ("Buffer.from('x')", "result is Buffer"),
        ("new Float64Array(1)", "result is Float64Array"),
        ("new ArrayBuffer(1)", "result is ArrayBuffer"),
        ("new Date(NaN)", "result is an invalid Date"),
        ("(function* () {})()", "result is Generator"),
        ("(async function* () {})()", "result is Generator"),
        ("[1].values()", "result is Iterator"),
        ("Object(Symbol())", "result is Symbol"),
        ("(() => { const a = { b: [{}] }; a.b[0].c = a; return a })()", "result.b[0].c refers back to result"),
        ("(() => { const a = []; a.push(a); return { a } })()", "result.a[0] refers back to result.a"),
    ],
)
def test_what_json_cannot_carry_is_refused_by_path(expression: str, message: str) -> None:
    """Never dropped, never turned into something else."""
    error = run(f"return ({expression})").error
    assert error["kind"] == "RESULT_NOT_SERIALIZABLE"
    assert error["message"] == message


@pytest.mark.parametrize(
    ("expression", "hint"),
    [
        ("new Map()", "Return Object.fromEntries(map) or [...map]."),
        ("new Set()", "Return [...set]."),
        ("Buffer.from('x')", "Return Buffer.from(bytes).toString('base64'), or write it to a file."),
    ],
)
def test_a_refusal_says_what_to_return_instead(expression: str, hint: str) -> None:
    """One line that works."""
    assert run(f"return {expression}").error["hint"] == hint


def test_an_accidental_last_expression_is_explained() -> None:
    """A script that ends with setTimeout did not mean its timer as a result."""
    assert "last expression" in run("setTimeout(() => {}, 1)").error["hint"]
    assert run("return setTimeout(() => {}, 1)").error["hint"] == ""


def test_results_are_at_most_1000_levels_deep() -> None:
    """1000 works, one more is refused with its path, and so is text of a document that is deeper."""
    nest = "let a = null; for (let i = 0; i < {n}; i++) a = i % 2 ? [a] : {{ a }}; return a"
    assert run(nest.format(n=1000)).report == {"ok": True}
    error = run(nest.format(n=1001)).error
    assert error["message"] == f"result{'.a[0]' * 10}.…{'.a[0]' * 10} is nested deeper than 1000"
    assert error["hint"] == "Return a flatter value."
    message = "result is a JSON document that is nested deeper than 1000"
    assert run("return '['.repeat(1001) + ']'.repeat(1001)").error["message"] == message


@pytest.mark.parametrize(
    ("expression", "message", "column"),
    [
        ("{ get a() { throw new TypeError('getter') } }", "TypeError: getter", 27),
        ("{ toJSON() { throw new RangeError('toJSON') } }", "RangeError: toJSON", 28),
        ("new Proxy({}, { ownKeys() { throw new Error('trap') } })", "Error: trap", 43),
    ],
)
def test_user_code_that_throws_while_the_result_is_written_is_an_exception(
    expression: str, message: str, column: int
) -> None:
    """At the user's own line."""
    error = run(f"return ({expression})").error
    assert (error["kind"], error["message"]) == ("EXCEPTION", message)
    assert (error["line"], error["column"]) == (1, column)


def test_a_getter_is_asked_once() -> None:
    """It cannot show one value to the check and another to the result."""
    ran = run("let n = 0; return { get a() { n += 1; return n > 1 ? NaN : n } }")
    assert ran.result == {"a": 1}


@pytest.mark.parametrize("character", ["x", "é", "漢", "😀"])
def test_a_large_result_comes_in_frames_of_a_mebibyte(character: str) -> None:
    """No frame is refused, no character is cut in two."""
    ran = run(f"return {{ a: 'y' + {json.dumps(character)}.repeat(3e6), b: [1] }}")
    assert ran.result == {"a": "y" + character * 3_000_000, "b": [1]}
    assert ran.frames.count(framing.RESULT) > 2


def test_a_result_of_a_hundred_megabytes_arrives() -> None:
    """Nothing is built from it twice in memory that would make it fail."""
    ran = run("return 'x'.repeat(1e8)")
    assert ran.result_text is not None
    assert len(ran.result_text) == 100_000_002


def test_integers_beyond_53_bits_lose_digits_as_numbers_and_keep_them_as_bigint() -> None:
    """JavaScript's numbers; documented, and there is a way out."""
    assert run("function main({ n }) { return n }", '{"n": 9007199254740993}').result_text == "9007199254740992"
    assert run("return 2n ** 64n").result_text == "18446744073709551616"


def test_json_of_user_code_is_not_ours() -> None:
    """Replacing it, or adding toJSON to a prototype, has the effect that it has in JSON.stringify and no other."""
    assert run("JSON.stringify = () => 'x'; JSON.parse = null; return { a: [1] }").result == {"a": [1]}
    assert run("BigInt.prototype.toJSON = () => 'x'; return [1n]").result == [1]
    assert run("Map.prototype.toJSON = function () { return [...this] }; return new Map([[1, 2]])").result == [[1, 2]]
