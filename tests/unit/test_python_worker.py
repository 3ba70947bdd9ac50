"""The Python worker: how code is found, called, and ended, and what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from belljar_server.guest import framing
from tests.unit.python_worker import Run, Worker, running_workers, waiting_worker

run = running_workers
worker = waiting_worker


def test_ready_tells_the_exact_version(worker: Worker) -> None:
    """The first frame comes before any job and names the interpreter's version."""
    frame = worker.frame()
    assert frame is not None
    kind, payload = frame
    assert kind == framing.READY
    assert json.loads(payload)["version"].count(".") == 2


# --- which way the code is written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "inputs", "result"),
    [
        ("def main(args):\n    return args", {"a": 1, "b": [2]}, {"a": 1, "b": [2]}),
        ("async def main(args):\n    return args['a']", {"a": 1}, 1),
        ("def main(args):\n    return args", {"args": 5}, 5),
        ("def main(a, b=2, *, c: int = 3):\n    return [a, b, c]", {"a": 1, "c": "x"}, [1, 2, "x"]),
        ("def main(a, /, b=2, **rest):\n    return [a, b, rest]", {"a": 1, "z": 0}, [1, 2, {"z": 0}]),
        ("def main(a=1, b=2, /):\n    return [a, b]", {"b": 3}, [1, 3]),
        ("def main():\n    return 7", {}, 7),
        ("main = lambda args: args['a']", {"a": 1}, 1),
        ("import functools\ndef f(x, y): return x + y\nmain = functools.partial(f, y=1)", {"x": 1}, 2),
        ("if True:\n    def main(args): return 1\nelse:\n    pass", {}, 1),
        ("try:\n    import nothing\nexcept ImportError:\n    def main(args): return 2", {}, 2),
        ("def main(args): return __name__\nif __name__ == '__main__':\n    main({})", {}, "main"),
        ("class Main:\n    def __call__(self, a): return a\nmain = Main()", {"a": 3}, 3),
        ("a + b", {"a": 1, "b": 2}, 3),
        ("x = a\nx", {"a": 1}, 1),
        ("x = a", {"a": 1}, None),
        ("", {}, None),
        ("# only a comment", {"a": 1}, None),
        ("'just a string'", {}, "just a string"),
        ("if a:\n    return 'yes'\nreturn 'no'", {"a": 0}, "no"),
        ("for i in range(9):\n    if i == a:\n        return i", {"a": 4}, 4),
        ("if a:\n    return\n'last'", {"a": 0}, "last"),
        ("if a:\n    return\n'last'", {"a": 1}, None),
        ("__name__", {}, "__main__"),
        ("def main(x): return x * 2\nmain(a)", {"a": 4}, 8),
        ("def main(x): return x * 2\nreturn main(a) + 1", {"a": 4}, 9),
        ("import asyncio\nawait asyncio.sleep(0)\na", {"a": 1}, 1),
        ("import asyncio\nawait asyncio.sleep(0)\nreturn a", {"a": 1}, 1),
        ("import asyncio\nasync def f(): return 6\nasyncio.run(f())", {}, 6),
        ("import asyncio\nasync def f(): return 6\ndef main(args): return asyncio.run(f())", {}, 6),
        ("import asyncio\nasync def f(): return 6\ndef main(args): return f()", {}, 6),
        (
            (
                "import asyncio\nqueue = asyncio.Queue()\nawait queue.put(1)\n"
                "async def main(args): return await queue.get()"
            ),
            {},
            1,
        ),
        ("async def main(): return 8\nmain()", {}, 8),
        ("\ufeff1 + 1", {}, 2),
        ("x = 1\r\nif x:\r\n\treturn x\r\n", {}, 1),
    ],
)
def test_code_is_run_the_way_it_is_written(run: Run, code: str, inputs: dict[str, Any], result: Any) -> None:
    """One dict, inputs by name, scripts with and without return, sync and async, are told apart by themselves."""
    assert run(code, inputs).result == result


@pytest.mark.parametrize(
    ("entry", "code", "inputs", "result"),
    [
        ("main_args", "def main(whatever):\n    return whatever", {"a": 1}, {"a": 1}),
        ("main_args", "def main(x, y=2):\n    return [x, y]", {"y": 1}, [{"y": 1}, 2]),
        ("main_args", "def main(*, x):\n    return x", {"y": 1}, {"y": 1}),
        ("main_named", "def main(args):\n    return args", {"args": 1}, 1),
        ("script", "def main(args):\n    return 1\n'script'", {}, "script"),
    ],
)
def test_entry_overrides_detection(run: Run, entry: str, code: str, inputs: dict[str, Any], result: Any) -> None:
    """What the request says about the entry wins."""
    assert run(code, inputs, entry=entry).result == result


@pytest.mark.parametrize(
    ("entry", "code", "inputs", "message"),
    [
        (
            "detect",
            "def main(a, b): pass",
            {"b": 1, "c": 2},
            "main(a, b) does not fit the inputs: missing a; unexpected c",
        ),
        ("detect", "def main(): pass", {"a": 1}, "main() does not fit the inputs: unexpected a"),
        ("detect", "def main(a, /, b, *, c=1): 0", {}, "main(a, /, b, *, c=…) does not fit the inputs: missing a, b"),
        (
            "main_named",
            "def main(args): pass",
            {"a": 1},
            "main(args) does not fit the inputs: missing args; unexpected a",
        ),
        (
            "main_args",
            "def main(): pass",
            {},
            "main() cannot take all inputs as one dict: too many positional arguments",
        ),
        ("main_args", "x = 1", {}, "the code has no function main"),
        ("main_named", "main = 5", {}, "the code has no function main"),
        ("script", "1", {"a b": 1}, '"a b" cannot be a variable of a script'),
        ("script", "1", {"__builtins__": 1, "class": 2}, "__builtins__, class cannot be variables of a script"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    run: Run, entry: str, code: str, inputs: dict[str, Any], message: str
) -> None:
    """Missing and unexpected inputs are an error of their own, with what main takes."""
    failure = run(code, inputs, entry=entry).failure
    assert (failure["kind"], failure["message"]) == ("ENTRY_NOT_FOUND", message)
    assert failure["hint"]


def test_a_guarded_call_does_not_run_main_twice(run: Run) -> None:
    """`if __name__ == "__main__"` is not taken when main is called for its result."""
    ran = run("def main(args):\n    print('ran')\n    return 1\n\nif __name__ == '__main__':\n    print(main({}))\n")
    assert (ran.result, ran.stdout) == (1, "ran\n")


# --- a top-level return ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("try:\n    return 1\nexcept BaseException:\n    return 2\nfinally:\n    x = 3", 1),
        ("import contextlib\nwith contextlib.suppress(BaseException):\n    return 1\nreturn 2", 1),
        (
            "x = 1\ndef f():\n    global x\n    x += 1\nf()\nreturn [x, globals()['x'], locals() is globals()]",
            [2, 2, True],
        ),
        ("exec('y = 5')\nreturn y", 5),
        (
            (
                "import os.path as p, json\nfrom math import pi as q\n"
                "def f(): return p.basename('a/b') + json.dumps(1)\nreturn f()"
            ),
            "b1",
        ),
        ("if (n := 3) > 2:\n    pass\nv = [m := i for i in range(3)]\ndef f(): return n + m\nreturn f()", 5),
        ("x: int = 1\ny: 'str'\ndef f(): return x\nreturn f()", 1),
        ("for i, (a, *b) in [(1, (2, 3, 4))]:\n    pass\ndef f(): return [i, a, b]\nreturn f()", [1, 2, [3, 4]]),
        (
            (
                "match {'k': [1, 2]}:\n    case {'k': [first, *rest], **others}:\n"
                "        def f(): return [first, rest]\n        return f()"
            ),
            [1, [2]],
        ),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    def f(): return str(e)\n    return f()",
            "division by zero",
        ),
        ("x = 1\ndel x\nreturn 'x' in globals()", False),
        (
            "class A:\n    class B: pass\nreturn [A.__qualname__, A.B.__qualname__, A.__module__]",
            ["A", "A.B", "__main__"],
        ),
        ("import pickle\nclass A: pass\nreturn type(pickle.loads(pickle.dumps(A()))) is A", True),
        ("return [f() for f in [lambda: i for i in range(3)]]", [2, 2, 2]),
        ("k = 2\nreturn {x: [x * k * y for y in range(2)] for x in 'ab'}", {"a": ["", "aa"], "b": ["", "bb"]}),
        ("'''Doc.'''\nfrom __future__ import annotations\ndef f(x: Nothing): pass\nreturn __doc__", "Doc."),
        ("from __future__ import annotations\nreturn", None),
        ("with open('/dev/null') as f, open('/dev/null') as g:\n    return f is not g", True),
        ("while True:\n    return 1", 1),
        ("global x\nx = 1\nreturn x", 1),
        ("def f():\n    return 1\nclass A:\n    def g(self): return 2\nf() + A().g()", 3),
    ],
)
def test_a_top_level_return_keeps_the_meaning_of_a_module(run: Run, code: str, result: Any) -> None:
    """Names stay global, nothing can catch the return, and every statement that binds a name works."""
    assert run(code).result == result


def test_places_below_a_top_level_return_are_the_users_own(run: Run) -> None:
    """The wrapping that makes return possible moves no line and no column, and shows no frame."""
    failure = run("x = 1\nif x:\n    y = 'ä' + x.nothing\nreturn y").failure
    assert (failure["file"], failure["line"], failure["column"]) == ("main.py", 3, 15)
    assert 'File "main.py", line 3, in <module>\n    y = ' in failure["traceback"]


# --- code that does not compile ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "line", "column", "message"),
    [
        ("x = = 1", 1, 5, "SyntaxError: invalid syntax"),
        (
            "def f():\nreturn 1",
            2,
            1,
            "IndentationError: expected an indented block after function definition on line 1",
        ),
        ("'ä'; 'ö'; yield 1\nreturn 1", 1, 11, "SyntaxError: 'yield' outside function"),
        ("'ä'; break", 1, 6, "SyntaxError: 'break' outside loop"),
        ("def f():\n    from os import *\nreturn 1", 2, 20, "SyntaxError: import * only allowed at module level"),
        ("class A:\n    return 1", 2, 5, "SyntaxError: 'return' outside function"),
        ("\ufeffx = = 1", 1, 5, "SyntaxError: invalid syntax"),
    ],
)
def test_code_that_does_not_compile_says_where(run: Run, code: str, line: int, column: int, message: str) -> None:
    """Line and column count characters in the user's own text, from 1."""
    failure = run(code).failure
    assert (failure["kind"], failure["file"]) == ("SYNTAX_ERROR", "main.py")
    assert (failure["line"], failure["column"], failure["message"]) == (line, column, message)
    assert failure["traceback"].startswith('  File "main.py", line')


@pytest.mark.parametrize("code", ["x = '\0'", "(" * 5000, "-" * 200_000 + "1", "x" + ".x" * 100_000, "x = '\ud800'"])
def test_code_that_no_compiler_takes_is_a_syntax_error(run: Run, code: str) -> None:
    """NUL, lone surrogates and nesting without end are refused as what they are."""
    assert run(code).failure["kind"] == "SYNTAX_ERROR"


def test_a_syntax_error_in_another_file_names_that_file(run: Run) -> None:
    """The place of the error is in the imported file, shown as the request named it."""
    failure = run("import lib.broken", files={"lib/broken.py": "x = 1\ny = = 2\n"}).failure
    assert (failure["kind"], failure["file"], failure["line"], failure["column"]) == (
        "SYNTAX_ERROR",
        "lib/broken.py",
        2,
        5,
    )


def test_a_keyword_in_the_wrong_case_gets_a_hint(run: Run) -> None:
    """The typo of the documents that people learn from."""
    failure = run("def main(args):\n    Return {'a': 1}").failure
    assert (failure["kind"], failure["line"]) == ("SYNTAX_ERROR", 2)
    assert "return" in failure["hint"]


# --- the world around the code -----------------------------------------------------------------------------------


def test_sources_and_own_modules_can_be_imported_without_leaving_files(run: Run) -> None:
    """The request's files and modules that code writes are importable, also by names of ours, without __pycache__."""
    files = {"report.py": "NAME = 'mine'", "package/__init__.py": "", "package/entry.py": "VALUE = 1"}
    code = (
        "import report, os, sys\nfrom package.entry import VALUE\nopen('made.py', 'w').write('X = 2')\nimport made\n"
        "ours = [name for name in ('framing', 'run', 'worker') if name in sys.modules]\n"
        "[report.NAME, VALUE, made.X, os.getcwd() == HOME, ours]"
    )
    ran = run(f"import os\nHOME = os.environ['HOME']\n{code}", files=files)
    assert ran.result == ["mine", 1, 2, True, []]
    assert [path.name for path in ran.home.iterdir()] == ["made.py"]


def test_the_interpreter_looks_ordinary(run: Run) -> None:
    """Names that `site` makes exist, `__main__` is the user's module, arguments and types resolve."""
    code = """
import sys, typing, dataclasses, pickle, inspect, os
def main(args):
    import __main__
    @dataclasses.dataclass
    class Local:
        x: 'int'
    return [callable(exit), callable(quit), callable(help), __main__.main is main, sys.argv[0].endswith('/main.py'),
            typing.get_type_hints(Point), pickle.loads(pickle.dumps(Point(1))).x, inspect.getsource(helper),
            os.environ['A'],
            __file__ == sys.argv[0], [name for name in os.environ if name.startswith('BELLJAR')]] == [
            True, True, True, True, True, {'x': int}, 1, 'def helper():\\n    return 1\\n', 'b', True, []]
@dataclasses.dataclass
class Point:
    x: 'int'
def helper():
    return 1
"""
    assert run(code, env={"A": "b"}).result is True


def test_processes_and_threads_of_the_code_work(run: Run) -> None:
    """Multiprocessing by fork, subprocess, thread pools: and only the worker itself reports."""
    code = """
import multiprocessing, subprocess, sys, concurrent.futures
def square(x):
    return x * x
def main(args):
    with multiprocessing.get_context('fork').Pool(2) as pool:
        squares = pool.map(square, [1, 2, 3])
    with concurrent.futures.ThreadPoolExecutor() as threads:
        more = list(threads.map(square, [4]))
    print('before', end=' ')
    subprocess.run([sys.executable, '-c', 'print("child")'], check=True)
    print('after')
    return squares + more
"""
    ran = run(code)
    assert (ran.result, ran.stdout, ran.stderr) == ([1, 4, 9, 16], "before child\nafter\n", "")


def test_integers_of_any_size_and_key_order_survive_both_ways(run: Run) -> None:
    """64 bits and 10,000 digits, in and out, also through a document in a string."""
    big = "9" * 10_000
    text = f'{{"z":{big},"a":9007199254740993,"m":-0.0}}'
    assert run("def main(args):\n    return args", text).result_json == text
    assert (
        run("import json\ndef main(args):\n    return json.dumps(args, separators=(',', ':'))", text).result_json
        == text
    )


def test_lone_surrogates_survive_both_ways(run: Run) -> None:
    """The result is valid UTF-8 all the same."""
    assert run("def main(args):\n    return args", '{"a\\ud800":"\\udc00é"}').result_json == '{"a\\ud800":"\\udc00é"}'


# --- what people write today -------------------------------------------------------------------------------------

DIFY_PARSE = """
import json, re

def main(llm_output: str) -> dict:
    try:
        data = json.loads(llm_output)
        return {"name": data.get("name", ""), "score": data.get("score", 0)}
    except json.JSONDecodeError:
        pass
    name_match = re.search(r'Name:\\s*(.+)', llm_output)
    score_match = re.search(r'Score:\\s*(\\d+)', llm_output)
    return {
        "name":  name_match.group(1).strip() if name_match else "",
        "score": int(score_match.group(1)) if score_match else 0,
    }
"""
DIFY_LIST = """
def main(raw_items: list) -> dict:
    seen = set()
    cleaned = []
    for item in raw_items:
        key = item.get("id", "").strip().lower()
        if key and key not in seen:
            seen.add(key)
            cleaned.append({
                "id": key,
                "label": item.get("name", "").title(),
                "value": float(item.get("value", 0)),
            })
    return {"items": cleaned, "count": len(cleaned)}
"""
STACK_FILES = """
import csv

def main(args):
    for region in ["us", "eu", "apac"]:
        with open(f"sales_{region}.csv", "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["product", "units"])
            writer.writerow(["widget", 42])

    return {"generated": 3}
"""


@pytest.mark.parametrize(
    ("code", "inputs", "result"),
    [
        (DIFY_PARSE, {"llm_output": '{"name": "Ann", "score": 3}'}, {"name": "Ann", "score": 3}),
        (DIFY_PARSE, {"llm_output": "Name: Bob \nScore: 42"}, {"name": "Bob", "score": 42}),
        (
            DIFY_LIST,
            {"raw_items": [{"id": " A ", "name": "one two", "value": 1}, {"id": "a"}]},
            {"items": [{"id": "a", "label": "One Two", "value": 1.0}], "count": 1},
        ),
        ("import json\ndef main(args):\n    return json.dumps({'Result': args['x']})", {"x": 1}, {"Result": 1}),
        (STACK_FILES, {}, {"generated": 3}),
    ],
)
def test_code_of_todays_code_nodes_runs_as_it_stands(run: Run, code: str, inputs: dict[str, Any], result: Any) -> None:
    """Examples of the documents that users of other code nodes have learned from."""
    assert run(code, inputs).result == result


def test_files_that_code_writes_are_in_its_home(run: Run) -> None:
    """The working directory is where artifacts are collected."""
    names = sorted(path.name for path in run(STACK_FILES).home.iterdir())
    assert names == ["sales_apac.csv", "sales_eu.csv", "sales_us.csv"]


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("from math import *\nreturn sqrt(a)", 3.0),
        ("if a:\n    from math import *\nreturn floor(pi) + a", 12),
        ("from helper import *\nfrom helper import __name__ as n\nreturn [x, n]", [5, "helper"]),
        ("return '\\ud800x'[1:]", "x"),
        ("x = 1\nreturn 'text'", "text"),
    ],
)
def test_whatever_a_module_may_say_goes_with_a_top_level_return(run: Run, code: str, result: object) -> None:
    """The code becomes a function, and must not show it."""
    assert run(code, {"a": 9}, files={"helper.py": "x = 5\n"}).result == result


def test_a_star_import_that_fails_is_told_in_its_line(run: Run) -> None:
    """As any other import."""
    failure = run("x = 1\nfrom nothing_here import *\nreturn x").failure
    assert (failure["kind"], failure["line"]) == ("EXCEPTION", 2)
    assert "nothing_here" in failure["message"]


@pytest.mark.parametrize("name", ["statistics", "calendar", "queue", "html", "csv", "logging", "types", "email"])
def test_files_come_before_modules_that_are_loaded(run: Run, name: str) -> None:
    """Plain Python looks into the folder of the program first."""
    code = f"import {name}, asyncio, json\nasync def main(): return {name}.mine"
    assert run(code, files={f"{name}.py": "mine = 'yes'"}, worker_env={"BELLJAR_WARM": "1"}).result == "yes"
    files = {f"{name}/__init__.py": "", f"{name}/part.py": "mine = 1"}
    assert run(f"import {name}.part\n{name}.part.mine", files=files).result == 1
    assert run(f"import {name}\n{name}.__file__[:5]", files={f"{name}/data.txt": ""}).result != "/code"
