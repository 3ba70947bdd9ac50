"""Results: what JSON can carry comes back exactly, what it cannot is refused with its path."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Callable

import pytest

from belljar_client import ErrorKind, Limits, Result, ResultTooLarge

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

EITHER = pytest.mark.parametrize("runtime", ["javascript", "typescript"])
ALL = pytest.mark.parametrize("runtime", ["python", "javascript", "typescript"])
ECHO = {
    "python": "def main(args):\n    return args",
    "javascript": "function main(args) { return args }",
    "typescript": "function main(args: object) { return args }",
}


@ALL
def test_inputs_come_back_as_they_went(run: Run, runtime: str) -> None:
    """Text of all planes, escapes, numbers, nesting, and the order of keys."""
    sent = '{"z":1,"a":{"y":[],"b":{}},"m":[true,false,null,-0.5,1e+100],"é😀\\u2028":"\\u0000\\n\\"\\\\","":""}'
    result = run(ECHO[runtime], runtime=runtime, inputs_json=sent).check()
    assert result.result_json is not None
    assert json.loads(result.result_json) == json.loads(sent)
    assert list(result.value) == ["z", "a", "m", "é😀\u2028", ""]


def test_integers_of_any_size_survive_in_python(run: Run) -> None:
    """64 bits, 400 digits and more, both ways."""
    numbers = [2**53 + 1, -(2**63), 2**64 - 1, 10**400 + 7, 10**4000 + 9]
    result = run("def main(n):\n    print(n[1])\n    return n", inputs_json=json.dumps({"n": numbers})).check()
    assert result.result_json is not None
    assert result.result_json.replace(" ", "") == json.dumps(numbers).replace(" ", "")
    assert result.stdout == b"-9223372036854775808\n"


@EITHER
def test_bigint_keeps_all_its_digits(run: Run, runtime: str) -> None:
    """A bigint is an integer in the result."""
    result = run("return [2n ** 64n - 1n, { n: -(10n ** 40n) }]", runtime=runtime).check()
    assert result.result_json == '[18446744073709551615,{"n":-10000000000000000000000000000000000000000}]'


PYTHON_VALUES = """\
import collections, enum
class Text(str): pass
class Number(enum.IntEnum): ONE = 1
Point = collections.namedtuple("Point", "x y")
return {"tuple": (1, 2), "point": Point(1, 2), "str": Text("t"), "enum": Number.ONE,
        "ordered": collections.OrderedDict(b=1, a=2), "default": collections.defaultdict(list, k=[1]),
        1: "int key", None: "none key"}
"""


def test_python_values_that_json_can_carry(run: Run) -> None:
    """Subclasses by what they hold, tuples as arrays, keys as json.dumps has them."""
    assert run(PYTHON_VALUES).check().value == {
        "tuple": [1, 2],
        "point": [1, 2],
        "str": "t",
        "enum": 1,
        "ordered": {"b": 1, "a": 2},
        "default": {"k": [1]},
        "1": "int key",
        "null": "none key",
    }


@EITHER
def test_node_values_that_json_can_carry(run: Run, runtime: str) -> None:
    """Date and URL by their toJSON, undefined as null or left out, class instances by their properties."""
    code = """\
class Point { #hidden = 1; x = 1; get y() { return 2 } }
const bare = Object.create(null); bare.k = 1;
return { undefined: undefined, list: [undefined, null, , 1], date: new Date(0), url: new URL('http://a/b'),
         point: new Point(), bare, boxed: [new Number(1), new String('s'), new Boolean(false)], minus: -0,
         own: { toJSON: () => ({ made: true }) } }
"""
    assert run(code, runtime=runtime).check().value == {
        "list": [None, None, None, 1],
        "date": "1970-01-01T00:00:00.000Z",
        "url": "http://a/b",
        "point": {"x": 1},
        "bare": {"k": 1},
        "boxed": [1, "s", False],
        "minus": 0,
        "own": {"made": True},
    }


@ALL
def test_string_that_is_a_json_document_is_taken_as_it(run: Run, runtime: str) -> None:
    """Objects and arrays are, with digits and order of keys untouched."""
    document = '{"b": 18446744073709551617, "a": [1.10, {}]}'
    assert run(ECHO_FIELD[runtime], runtime=runtime, inputs={"value": document}).check().result_json == document


ECHO_FIELD = {
    "python": "def main(value):\n    return value",
    "javascript": "function main(value) { return value }",
    "typescript": "function main(value: string) { return value }",
}


@pytest.mark.parametrize(
    ("runtime", "text"),
    [
        ("python", "5"),
        ("python", "{'a': 1}"),
        ("javascript", '"quoted"'),
        ("javascript", "[1,"),
        ("typescript", "{not json}"),
    ],
)
def test_other_strings_stay_text(run: Run, runtime: str, text: str) -> None:
    """A number in a string, a quoted string and what only looks like JSON are what they are."""
    assert run(ECHO_FIELD[runtime], runtime=runtime, inputs={"value": text}).check().value == text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import datetime as d\nreturn {'items': [1, 2, 3, {'when': d.datetime(2020, 1, 1)}]}",
            "result.items[3].when is datetime",
        ),
        ("return {'x': [float('nan')]}", "result.x[0] is NaN"),
        ("return -float('inf')", "result is -Infinity"),
        ("return {'a': {1, 2}}", "result.a is set"),
        ("return b'bytes'", "result is bytes"),
        ("class Point: pass\nreturn [Point()]", "result[0] is Point"),
        ("import decimal\nreturn {'a b': decimal.Decimal(1)}", 'result["a b"] is Decimal'),
        ("return (n for n in range(3))", "result is generator"),
        ("a = {}\na['b'] = [a]\nreturn a", "result.b[0] refers back to result"),
        ("return {(1, 2): 3}", "result has a key that is tuple"),
        ("return {1: 'a', '1': 'b'}", 'result has two keys that become "1"'),
        ("a = []\nfor _ in range(3000): a = [a]\nreturn a", "is nested deeper than 500"),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nreturn {'p': P(1)}", "result.p is P"),
        ("def main(args):\n    return main", "result is function"),
    ],
)
def test_python_result_that_json_cannot_carry_is_refused_by_path(run: Run, code: str, message: str) -> None:
    """The message says what is where, the hint what to do about it; nothing is turned into text in silence."""
    result = run(code)
    assert result.error is not None
    assert (result.error.kind, result.exit_code) == (ErrorKind.RESULT_NOT_SERIALIZABLE, 1)
    assert message in result.error.message
    assert result.error.hint
    assert result.result_json is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("return { items: [1, 2, 3, { when: new Date(NaN) }] }", "result.items[3].when is an invalid Date"),
        ("return { x: [NaN] }", "result.x[0] is NaN"),
        ("return -Infinity", "result is -Infinity"),
        ("return { a: new Map([[1, 2]]) }", "result.a is Map"),
        ("return [new Set()]", "result[0] is Set"),
        ("return { f() {} }", "result.f is a function"),
        ("return { 'a b': Symbol('s') }", 'result["a b"] is a symbol'),
        ("const a = {}; a.b = [a]; return a", "result.b[0] refers back to result"),
        ("return { bytes: Buffer.from('x') }", "result.bytes is Buffer"),
        ("return { late: Promise.resolve(1) }", "result.late is Promise"),
        ("return { regexp: /x/ }", "result.regexp is RegExp"),
        ("let a = []; for (let i = 0; i < 3000; i++) a = [a]; return a", "nested deeper than 1000"),
    ],
)
def test_node_result_that_json_cannot_carry_is_refused_by_path(run: Run, code: str, message: str) -> None:
    """The message says what is where; nothing is dropped or made null in silence."""
    result = run(code, runtime="typescript" if "Map" in code else "javascript")
    assert result.error is not None
    assert (result.error.kind, result.exit_code) == (ErrorKind.RESULT_NOT_SERIALIZABLE, 1)
    assert message in result.error.message
    assert result.result_json is None


@ALL
def test_result_over_the_limit_becomes_an_artifact(run: Run, runtime: str) -> None:
    """Success, a warning, and the JSON text behind a URL; the artifacts of the code stay apart."""
    code = {
        "python": "open('own.txt', 'w').write('mine')\nreturn {'text': 'x' * 300000, 'n': 18446744073709551617}",
        "javascript": "require('fs').writeFileSync('own.txt', 'mine'); ({ text: 'x'.repeat(3e5), n: 2n ** 64n + 1n })",
    }
    source = code.get(runtime, code["javascript"])
    result = run(source, runtime=runtime, limits=Limits(result_bytes=100_000)).check()
    artifact = result.result_artifact
    assert artifact is not None
    assert (result.result_json, artifact.content_type) == (None, "application/json")
    with pytest.raises(ResultTooLarge):
        _ = result.value
    assert any("result" in warning for warning in result.warnings)
    with urllib.request.urlopen(artifact.download_url, timeout=30) as answer:
        body = answer.read()
        assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"text": "x" * 300_000, "n": 2**64 + 1}
    assert (len(body), hashlib.sha256(body).hexdigest()) == (artifact.size_bytes, artifact.sha256)
    assert [one.name for one in result.artifacts] == ["own.txt"]


def test_result_of_exactly_the_limit_is_inline(run: Run) -> None:
    """The limit is the last size that fits; one byte more does not."""
    code = "def main(n):\n    return 'x' * (n - 2)"
    inline = run(code, inputs={"n": 5000}, limits=Limits(result_bytes=5000)).check()
    assert inline.result_json is not None
    assert (len(inline.result_json), inline.result_artifact) == (5000, None)
    above = run(code, inputs={"n": 5001}, limits=Limits(result_bytes=5000)).check()
    assert (above.result_json, above.result_artifact is not None) == (None, True)


def test_result_too_large_even_for_an_artifact_names_both_limits(run: Run) -> None:
    """Nothing of it is delivered, and the caller knows what to raise."""
    result = run("'x' * 4998", limits=Limits(result_bytes=4000, artifact_bytes=4500))
    assert result.error is not None
    assert result.error.kind is ErrorKind.OUTPUT_LIMIT
    assert "5000 bytes" in result.error.message
    assert "limits.result_bytes (4000)" in result.error.message
    assert "limits.artifact_bytes (4500)" in result.error.message


@ALL
def test_prints_are_logs_and_never_the_result(run: Run, runtime: str) -> None:
    """What looks like a result on stdout is output; a code without result gives null."""
    code = "print('{\"result\": 1}')\nx = 1" if runtime == "python" else "console.log('{\"result\": 1}');\nlet x = 1"
    result = run(code, runtime=runtime).check()
    assert (result.result_json, result.stdout) == ("null", b'{"result": 1}\n')
