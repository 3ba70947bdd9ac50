"""What the Python worker makes of a result: JSON text, or a refusal with its path."""

from __future__ import annotations

import pytest

from tests.unit.python_worker import Run, running_workers

run = running_workers

HERE = """
import collections, dataclasses, datetime, decimal, enum, math, sys
class Colour(enum.IntEnum):
    RED = 1
class Word(str, enum.Enum):
    HI = "hi"
Point = collections.namedtuple("Point", "x y")
class OddDict(dict):
    def items(self): raise RuntimeError
    def __iter__(self): raise RuntimeError
class OddList(list):
    def __iter__(self): raise RuntimeError
    def __len__(self): return 10**9
class OddInt(int):
    def __repr__(self): raise RuntimeError
class OddStr(str):
    def __str__(self): return "other"
class OddFloat(float):
    def __repr__(self): return "}"
class Liar:
    __class__ = dict
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
class Strange(metaclass=Meta):
    pass
@dataclasses.dataclass
class Data:
    x: int = 1
def nested(depth, kind=list):
    value = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value
"""


def returning(expression: str) -> str:
    """A script with the names above, whose result is the expression."""
    return f"{HERE}\nresult = {expression}\nresult\n"


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("None", "null"),
        ("[True, 1, 1.5, -0.0, 1e300, 2**70, '', None]", '[true,1,1.5,-0.0,1e+300,1180591620717411303424,"",null]'),
        ("{'b': 1, 'a': {}, 'c': [], 'd': ()}", '{"b":1,"a":{},"c":[],"d":[]}'),
        ("collections.OrderedDict(z=1, a=2)", '{"z":1,"a":2}'),
        ("collections.Counter('aab')", '{"a":2,"b":1}'),
        ("collections.defaultdict(list, a=[1])", '{"a":[1]}'),
        ("[Colour.RED, Word.HI, Point(1, 2)]", '[1,"hi",[1,2]]'),
        ("Word.HI", '"hi"'),
        (
            "{1: 'a', 2.5: 'b', True and None: 'c', False: 'd', Word.HI: 'e', Colour.RED: 'a'}",
            '{"1":"a","2.5":"b","null":"c","false":"d","hi":"e"}',
        ),
        ("[OddDict(a=OddList([1])), OddInt(7), OddStr('x'), OddFloat(1.5)]", '[{"a":[1]},7,"x",1.5]'),
        ("OddStr('[1]')", "[1]"),
        ("'é\\u2028\\x00\\\"\\\\ 😀'", '"é\u2028\\u0000\\"\\\\ 😀"'),
        ("'\\ud800 \\ude00'", '"\\ud800 \\ude00"'),
        ("10**5000", "1" + "0" * 5000),
        ("nested(500)", "[" * 500 + "1" + "]" * 500),
        ("[[1]] * 2 + [nested(499, dict)]", "[[1],[1]," + '{"a":' * 499 + "1" + "}" * 499 + "]"),
    ],
)
def test_what_json_can_carry_comes_back(run: Run, expression: str, text: str) -> None:
    """The basic types and their subclasses, by what they hold."""
    ran = run(returning(expression))
    assert ran.error is None
    assert ran.result_json == text


@pytest.mark.parametrize(
    ("expression", "message", "hint"),
    [
        ("{'items': [0, 0, 0, {'when': datetime.datetime.now()}]}", "result.items[3].when is datetime", "isoformat"),
        ("datetime.date.today()", "result is date", "isoformat"),
        ("{'a b': {'é': {1}}}", 'result["a b"].é is set', "sorted"),
        ("[b'x']", "result[0] is bytes", "decode"),
        ("[decimal.Decimal(1)]", "result[0] is Decimal", "str(value)"),
        ("{'x': float('nan')}", "result.x is NaN", "None"),
        ("{'x': -math.inf}", "result.x is -Infinity", "None"),
        ("(i for i in 'ab')", "result is generator", "list(value)"),
        ("{'m': map(str, [])}", "result.m is map", "list(value)"),
        ("[Data()]", "result[0] is Data", "dataclasses.asdict"),
        ("[Liar()]", "result[0] is Liar", "Return dicts"),
        ("[Strange()]", "result[0] is Strange", "Return dicts"),
        ("{(1, 2): 3}", "result has a key that is tuple", "strings"),
        ("{float('nan'): 3}", "result has a key that is float", "strings"),
        ("{'x': {1: 'a', '1': 'b'}}", 'result.x has two keys that become "1"', "strings"),
        ("{'x': {None: 'a', 'null': 'b'}}", 'result.x has two keys that become "null"', "strings"),
        ("sys", "result is module", "Return dicts"),
        ("print", "result is builtin_function_or_method", "Call it"),
        ("[object()] * 3", "result[0] is object", "Return dicts"),
    ],
)
def test_what_json_cannot_carry_is_refused_by_its_path(run: Run, expression: str, message: str, hint: str) -> None:
    """The message says where the value is and what it is, the hint what to return instead."""
    failure = run(returning(expression)).failure
    assert (failure["kind"], failure["message"]) == ("RESULT_NOT_SERIALIZABLE", message)
    assert hint in failure["hint"]


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ("r = {'a': {}}; r['a']['b'] = r['a']; r", "result.a.b refers back to result.a"),
        ("r = []; r.append(r); r", "result[0] refers back to result"),
        ("r = [1, [2]]; r[1] += [r, r]; r", "result[1][1] refers back to result"),
    ],
)
def test_a_cycle_is_refused_by_both_its_ends(run: Run, statements: str, message: str) -> None:
    """A value that holds itself is found at once, whatever its breadth."""
    failure = run(statements).failure
    assert (failure["kind"], failure["message"]) == ("RESULT_NOT_SERIALIZABLE", message)


@pytest.mark.parametrize("depth", [501, 600, 5000, 100_000])
def test_a_result_nested_too_deep_is_refused_with_a_short_path(run: Run, depth: int) -> None:
    """501 is one too many, and no depth breaks the worker."""
    failure = run(returning(f"nested({depth}, dict)")).failure
    assert failure["kind"] == "RESULT_NOT_SERIALIZABLE"
    assert failure["message"].endswith("is nested deeper than 500")
    assert len(failure["message"]) < 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1.0, "n": 123456789012345678901234567890}', '{"a":1.0, "n": 123456789012345678901234567890}'),
        (" \n[1, 2 ]\n ", "[1, 2 ]"),
        ('{"a": NaN}', None),
        ("[1, 2", None),
        ("[1] [2]", None),
        ("[1],", None),
        ('"text"', None),
        ("5", None),
        ("", None),
        ("{not json}", None),
        ("[" * 100_000, None),
        ('["\ud800"]', '["\\ud800"]'),
        ("[" * 500 + "]" * 500, "[" * 500 + "]" * 500),
    ],
)
def test_a_string_that_is_a_json_document_is_that_document(run: Run, text: str, expected: str | None) -> None:
    """Objects and arrays are passed on as their text; every other string stays a string."""
    ran = run("def main(text):\n    return text", {"text": text})
    assert ran.error is None
    if expected is None:
        assert ran.result == text
    else:
        assert ran.result_json == expected


@pytest.mark.parametrize("depth", [501, 1500, 100_000])
def test_a_document_nested_too_deep_is_refused(run: Run, depth: int) -> None:
    """The same bound holds for documents in strings."""
    failure = run(f"'[' * {depth} + ']' * {depth}").failure
    assert failure["message"] == "result is a JSON document that is nested deeper than 500"


def test_a_result_of_many_megabytes_comes_in_frames_that_fit(run: Run) -> None:
    """Every frame is at most 1 MiB (the unpacker of the test refuses more), whatever the characters."""
    ran = run("def main(n):\n    return ['\\u20ac' * n, '\\ud800' * (n // 10), 'x' * n]", {"n": 3_000_000})
    euro, lone, plain = ran.result
    assert (euro, len(lone), plain) == ("€" * 3_000_000, 300_000, "x" * 3_000_000)


def test_awaitables_are_awaited_before_they_are_judged(run: Run) -> None:
    """An object with __await__ gives its value, an async generator has none."""
    awaitable = "class A:\n    def __await__(self):\n        return 5\n        yield\ndef main(args): return A()"
    assert run(awaitable).result == 5
    failure = run("async def main(args):\n    yield 1").failure
    assert failure["message"] == "result is async_generator"


def test_an_exception_in_a_lazy_value_does_not_break_the_report(run: Run) -> None:
    """Methods of a dict's or list's subclass are not asked what it holds."""
    code = (
        HERE
        + "class Evil(dict):\n    def items(self): sys.exit(3)\ndef main(args): return [Evil(a=1), OddList([1, {2}])]"
    )
    failure = run(code).failure
    assert failure["message"] == "result[1][1] is set"


def test_memory_that_runs_out_while_the_result_is_written_is_an_exception(run: Run) -> None:
    """MemoryError is told as the exception it is."""
    code = (
        "import resource\ndef main(args):\n    text = 'x' * 200_000_000\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)\n    return [text, text]"
    )
    failure = run(code).failure
    assert (failure["kind"], failure["message"]) == ("EXCEPTION", "MemoryError")
