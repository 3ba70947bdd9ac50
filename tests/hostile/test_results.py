"""Results and exceptions that are hard to tell (HOSTILE.md 14 and 19)."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest

from belljar_client import ErrorKind, Limits, Outcome, Result

MIB = 1 << 20
Hit = Callable[..., Result]

REFUSED = {
    "generator": ("python", "(i for i in range(3))", "result is generator"),
    "cycle": ("python", "a = {'b': []}\na['b'].append(a)\na", "result.b[0] refers back to result"),
    "deep": ("python", "a = []\nfor _ in range(10_000):\n    a = [a]\na", "nested deeper than"),
    "deep text": ("python", "'[' * 100_000 + ']' * 100_000", "nested deeper than"),
    "nan": ("python", "{'x': [1.0, float('nan')]}", "result.x[1] is NaN"),
    "bytes": ("python", "{'items': [b'x']}", "result.items[0] is bytes"),
    "slow iterable": (
        "python",
        "class Slow:\n    def __iter__(self):\n        while True: yield 1\n{'slow': Slow()}",
        "result.slow is",
    ),
    "cycle in node": ("javascript", "const a = { b: [] }; a.b.push(a); a", "result.b[0] refers back to result"),
    "deep in node": ("javascript", "let a = []; for (let i = 0; i < 10000; i += 1) a = [a]; a", "nested deeper than"),
    "generator in node": ("javascript", "(function* () { for (;;) yield 1; })()", "result is"),
    "map in typescript": ("typescript", "({ m: new Map([[1, 2]]) } as object)", "result.m is"),
    "function": ("javascript", "({ f() {} })", "result.f is a function"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_result_that_is_no_json_is_refused_by_path(hit: Hit, what: str) -> None:
    """Nothing is iterated, called or cut to make it fit."""
    runtime, code, message = REFUSED[what]
    result = hit(code, runtime, limits=Limits(timeout=20))
    assert result.error
    assert result.error.kind is ErrorKind.RESULT_NOT_SERIALIZABLE
    assert message in result.error.message
    assert (result.outcome, result.exit_code, result.result_json) == (Outcome.FAILED, 1, None)


LIARS = """
class Dict(dict):
    def items(self): return [("forged", 1)]
    def __iter__(self): raise ValueError
    def __len__(self): return 0
class List(list):
    def __iter__(self):
        while True: yield 1
class Str(str):
    def __str__(self): raise ValueError
    def encode(self, *_): raise ValueError
class Int(int):
    def __repr__(self): return "forged"
    def __str__(self): return "forged"
Dict(a=List([1, Int(2)]), b=Str("s"))
"""


def test_subclasses_give_what_they_hold_not_what_they_say(hit: Hit) -> None:
    """Overridden methods of dicts, lists, strings and numbers are not asked."""
    assert hit(LIARS, limits=Limits(timeout=20)).check().value == {"a": [1, 2], "b": "s"}


@pytest.mark.parametrize(
    ("runtime", "code"),
    [("python", "'x' * 3_000_000"), ("javascript", "'x'.repeat(3_000_000)")],
    ids=["python", "node"],
)
def test_result_over_its_limit_is_an_artifact(hit: Hit, runtime: str, code: str) -> None:
    """It comes whole, with a warning, by its URL."""
    result = hit(code, runtime, limits=Limits(result_bytes=MIB)).check()
    assert result.result_json is None
    assert result.result_artifact
    assert len(result.warnings) == 1
    with urllib.request.urlopen(result.result_artifact.download_url, timeout=20) as answer:
        assert json.loads(answer.read()) == "x" * 3_000_000


def test_result_of_a_gigabyte_is_refused_and_not_kept(hit: Hit) -> None:
    """More than an artifact may have: told as a limit with both numbers, or the code runs out of memory itself."""
    limits = Limits(memory_bytes=1024 * MIB, artifact_bytes=10 * MIB, timeout=60, cpu_time=60)
    result = hit("'x' * 200_000_000", limits=limits)
    assert result.error
    assert result.error.kind is ErrorKind.OUTPUT_LIMIT
    assert "200000002" in result.error.message
    assert "10485760" in result.error.message
    assert (result.exit_code, result.result_artifact) == (1, None)
    greedy = hit("'x' * (1 << 30)", limits=Limits(memory_bytes=256 * MIB, timeout=60))
    assert greedy.error
    assert greedy.error.kind is ErrorKind.MEMORY_LIMIT


EXCEPTIONS = {
    "str raises": ("python", "class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
    "str prints": ("python", "class E(Exception):\n    def __str__(self): print('p'); return 's'\nraise E", "E: s"),
    "ten megabytes": ("python", "raise Exception('x' * 10_000_000)", "Exception: xxx"),
    "no name": ("python", "raise type('', (Exception,), {})('noname')", "noname"),
    "metaclass": (
        "python",
        "class M(type):\n    __getattribute__ = lambda *a: 1 / 0\nclass E(Exception, metaclass=M): pass\nraise E",
        "E",
    ),
    "keyboard": ("python", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    "generator exit": ("python", "raise GeneratorExit", "GeneratorExit"),
    "group": ("python", "raise ExceptionGroup('g', [ValueError(i) for i in range(50_000)])", "ExceptionGroup: g"),
    "chain": (
        "python",
        "def f(n):\n    try: 1 / 0\n    except Exception:\n        if n: f(n - 1)\n        raise\nf(500)",
        "Zero",
    ),
    "loop of causes": ("python", "e = ValueError('a')\ne.__cause__ = e\nraise e", "ValueError: a"),
    "recursion": ("python", "def f(): f()\nf()", "RecursionError"),
    "lone surrogate": ("python", "raise ValueError('\\ud800 \\x00 \\x1b[31m')", "ValueError: \\ud800"),
    "null": ("javascript", "throw null", "null"),
    "undefined": ("javascript", "throw undefined", "undefined"),
    "proxy": ("javascript", "throw new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 } })", "Proxy"),
    "promise": ("javascript", "throw new Promise(() => {})", "Promise"),
    "getter": ("javascript", "throw { get message() { for (;;); } }", "message"),
    "big getter": (
        "javascript",
        "throw Object.defineProperty(new Error(), 'message', { get: () => 'y'.repeat(1e7) })",
        "yyy",
    ),
    "never settles": ("javascript", "await new Promise(() => {})", "never settles"),
    "main never settles": (
        "typescript",
        "export async function main() { await new Promise(() => {}); }",
        "never settles",
    ),
    "unhandled": ("javascript", "Promise.reject(new Error('lost')); 1", "lost"),
    "toJSON throws": ("javascript", "({ toJSON() { throw new Error('no json') } })", "no json"),
    "stack overflow": ("javascript", "const f = () => f(); f()", "Maximum call stack"),
}


@pytest.mark.parametrize("what", EXCEPTIONS)
def test_hostile_exception_is_told_in_bounds(hit: Hit, what: str) -> None:
    """Whatever is thrown becomes EXCEPTION with a message and a traceback of bounded size."""
    runtime, code, message = EXCEPTIONS[what]
    result = hit(code, runtime, limits=Limits(timeout=20))
    assert result.error
    assert result.error.kind is ErrorKind.EXCEPTION
    assert message in result.error.message
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 1)
    assert len(result.error.message.encode()) <= 16 * 1024
    assert len(result.error.traceback.encode()) <= 64 * 1024
