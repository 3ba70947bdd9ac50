"""Python: three ways to write code, and errors that name the user's own places."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from belljar_client import ErrorKind, Result

pytestmark = pytest.mark.integration

Run = Callable[..., Result]

A_AND_B = {"a": 2, "b": 3}


@pytest.mark.parametrize(
    ("code", "inputs", "expected"),
    [
        pytest.param("def main(args):\n    return args['a'] + args['b']", A_AND_B, 5, id="args"),
        pytest.param(
            "def main(args: dict) -> dict:\n    return {'n': len(args)}", {}, {"n": 0}, id="args-without-inputs"
        ),
        pytest.param("async def main(args):\n    return args['a'] + args['b']", A_AND_B, 5, id="async-args"),
        pytest.param("def main(a, b):\n    return a + b", A_AND_B, 5, id="named"),
        pytest.param("def main(b, a):\n    return [a, b]", A_AND_B, [2, 3], id="named-in-any-order"),
        pytest.param("def main(a: str, b: list[int]) -> None:\n    return [a, b]", A_AND_B, [2, 3], id="annotations"),
        pytest.param("def main(a, b=7, c=8):\n    return [a, b, c]", A_AND_B, [2, 3, 8], id="defaults"),
        pytest.param("def main(a, /, *, b):\n    return [a, b]", A_AND_B, [2, 3], id="positional-and-keyword-only"),
        pytest.param("def main(**rest):\n    return rest", A_AND_B, A_AND_B, id="rest"),
        pytest.param("def main():\n    return 'none'", {}, "none", id="no-parameters"),
        pytest.param("main = lambda a, b: a * b", A_AND_B, 6, id="lambda"),
        pytest.param(
            "import asyncio\nasync def main(a, b):\n    await asyncio.sleep(0)\n    return a + b",
            A_AND_B,
            5,
            id="async-named",
        ),
        pytest.param("def main(args):\n    return args", {"args": 5}, 5, id="args-is-an-input"),
        pytest.param("if True:\n    def main(a, b):\n        return a - b", A_AND_B, -1, id="main-in-a-block"),
        pytest.param("return a + b", A_AND_B, 5, id="script-return"),
        pytest.param("if a > 1:\n    return 'early'\nreturn 'late'", A_AND_B, "early", id="script-early-return"),
        pytest.param("c = a + b\nc * 2", A_AND_B, 10, id="script-last-expression"),
        pytest.param("c = a + b", A_AND_B, None, id="script-without-result"),
        pytest.param("import asyncio\nawait asyncio.sleep(0)\na + b", A_AND_B, 5, id="script-await"),
        pytest.param(
            "def double(x):\n    return 2 * x\nreturn [double(n) for n in (a, b)]", A_AND_B, [4, 6], id="closure"
        ),
        pytest.param(
            "def main(a, b):\n    return a + b\nif __name__ == '__main__':\n    print(main(1, 1))",
            A_AND_B,
            5,
            id="guarded-main",
        ),
        pytest.param("from __future__ import annotations\n'doc'\nreturn a", A_AND_B, 2, id="script-future-import"),
        pytest.param("\ufeffdef main(a, b):\r\n\treturn a + b\r\n", A_AND_B, 5, id="bom-crlf-tabs"),
    ],
)
def test_way_to_write_code_is_detected(run: Run, code: str, inputs: dict[str, Any], expected: Any) -> None:
    """Each way gives its result and prints nothing that the code did not print."""
    result = run(code, inputs=inputs).check()
    assert (result.value, result.stderr, result.warnings) == (expected, b"", ())


@pytest.mark.parametrize(
    ("entry", "code", "expected"),
    [
        ("main_args", "def main(a):\n    return a", A_AND_B),
        ("main_named", "def main(args=1, **rest):\n    return [args, rest]", [1, A_AND_B]),
        ("script", "def main(a, b):\n    return 'main'\n[a, b]", [2, 3]),
        ("main_args", "def main(args):\n    return args", A_AND_B),
    ],
)
def test_entry_overrides_detection(run: Run, entry: str, code: str, expected: Any) -> None:
    """What the request says wins over what the code looks like."""
    assert run(code, inputs=A_AND_B, entry=entry).check().value == expected


@pytest.mark.parametrize(
    ("code", "entry", "named"),
    [
        ("x = 1\ndef main(a, c):\n    pass", "detect", ["missing c", "unexpected b"]),
        ("def main(a, b, c, d):\n    pass", "detect", ["missing c, d"]),
        ("async def main():\n    pass", "detect", ["unexpected a, b"]),
        ("def main(args):\n    pass", "main_named", ["missing args", "unexpected a, b"]),
        ("x = 1", "main_args", ["no function main"]),
        ("x = 1", "main_named", ["no function main"]),
        ("main = 5", "main_args", ["no function main"]),
        ("def main(a, b):\n    pass", "main_args", ["main(a, b)"]),
    ],
)
def test_inputs_that_do_not_fit_are_named(run: Run, code: str, entry: str, named: list[str]) -> None:
    """ENTRY_NOT_FOUND says what is missing and what is too much, and where main is."""
    error = run(code, inputs=A_AND_B, entry=entry).error
    assert error is not None
    assert error.kind is ErrorKind.ENTRY_NOT_FOUND
    for text in named:
        assert text in error.message
    if "def main" in code:
        assert (error.file, error.line, error.column) == ("main.py", 1 + code.startswith("x = 1"), 1)


def test_input_that_is_no_name_cannot_be_a_variable(run: Run) -> None:
    """A script says so instead of losing the input; main(args) takes it."""
    error = run("1", inputs={"not a name": 1}).error
    assert error is not None
    assert (error.kind, "not a name" in error.message) == (ErrorKind.ENTRY_NOT_FOUND, True)
    assert run("def main(args):\n    return args", inputs={"not a name": 1}).value == {"not a name": 1}


@pytest.mark.parametrize(
    ("code", "kind", "message", "place"),
    [
        pytest.param("x = 1\n\nprint(undefined_name)", "EXCEPTION", "NameError", ("main.py", 3, 7), id="script"),
        pytest.param("y = 2\nreturn 1 / 0", "EXCEPTION", "ZeroDivisionError", ("main.py", 2, 8), id="script-return"),
        pytest.param(
            "def f():\n    raise ValueError('no')\nf()", "EXCEPTION", "ValueError: no", ("main.py", 2, 5), id="frame"
        ),
        pytest.param(
            "def main(args):\n    x = 1\n    return args['gone']",
            "EXCEPTION",
            "KeyError: 'gone'",
            ("main.py", 3, 12),
            id="main",
        ),
        pytest.param(
            "import asyncio\nasync def deep():\n    await asyncio.sleep(0)\n    raise OSError('deep')\n"
            "async def main(args):\n    await asyncio.gather(deep())",
            "EXCEPTION",
            "OSError: deep",
            ("main.py", 4, 5),
            id="async",
        ),
        pytest.param(
            "s = '😀é'; raise KeyError(s)", "EXCEPTION", "KeyError", ("main.py", 1, 11), id="column-in-characters"
        ),
        pytest.param(
            "import json\njson.loads('{')", "EXCEPTION", "JSONDecodeError", ("main.py", 2, 1), id="in-the-library"
        ),
        pytest.param("x = (1,\n", "SYNTAX_ERROR", "SyntaxError", ("main.py", 1, 5), id="never-closed"),
        pytest.param("a = 1\nb = = 2\n", "SYNTAX_ERROR", "SyntaxError", ("main.py", 2, 5), id="syntax"),
        pytest.param("if 1:\nprint(1)", "SYNTAX_ERROR", "IndentationError", ("main.py", 2, 1), id="indentation"),
        pytest.param(
            "def f():\n    break\n", "SYNTAX_ERROR", "SyntaxError", ("main.py", 2, 5), id="found-when-compiling"
        ),
    ],
)
def test_error_names_the_users_place(run: Run, code: str, kind: str, message: str, place: tuple[str, int, int]) -> None:
    """File, line and column are those of the source that was sent; the traceback shows none of our frames."""
    result = run(code)
    error = result.error
    assert error is not None
    assert (error.kind, result.exit_code, result.signal) == (kind, 1, 0)
    assert message in error.message
    assert (error.file, error.line, error.column) == place
    assert f'File "main.py", line {place[1]}' in error.traceback
    assert message.partition(":")[0] in error.traceback
    assert "/opt" not in error.traceback
    assert "/code" not in error.traceback


def test_error_in_one_of_the_files_names_that_file(run: Run) -> None:
    """The innermost frame of the user's own sources is the place; the traceback shows the way there."""
    files = {"shop/__init__.py": "", "shop/prices.py": "def total(items):\n    return sum(i['price'] for i in items)\n"}
    error = run("from shop.prices import total\n\ndef main(args):\n    return total([{}])\n", files=files).error
    assert error is not None
    assert (error.kind, error.file, error.line) == (ErrorKind.EXCEPTION, "shop/prices.py", 2)
    assert 'File "main.py", line 4, in main' in error.traceback
    assert "return sum(i['price'] for i in items)" in error.traceback


def test_syntax_error_in_one_of_the_files_names_that_file(run: Run) -> None:
    """It is the user's source as much as the main one."""
    error = run("import broken", files={"broken.py": "x = 1\ndef f(:\n"}).error
    assert error is not None
    assert (error.kind, error.file, error.line, error.column) == (ErrorKind.SYNTAX_ERROR, "broken.py", 2, 7)


def test_causes_are_in_the_traceback(run: Run) -> None:
    """A chain of exceptions is shown as Python shows it."""
    code = """\
        def main(args):
            try:
                {}["key"]
            except KeyError as error:
                raise RuntimeError("outer") from error
    """
    error = run(textwrap.dedent(code)).error
    assert error is not None
    assert (error.message, error.line) == ("RuntimeError: outer", 5)
    assert "KeyError: 'key'" in error.traceback
    assert "direct cause" in error.traceback


@pytest.mark.parametrize("code", ["import nosuchpackage", "def main(args):\n    from nosuchpackage.sub import thing\n"])
def test_missing_module_hints_at_dependencies(run: Run, code: str) -> None:
    """The hint says what to do and names the package."""
    error = run(code).error
    assert error is not None
    assert (error.kind, error.line) == (ErrorKind.EXCEPTION, code.count("\n", 0, code.index("nosuch")) + 1)
    assert "ModuleNotFoundError" in error.message
    assert "nosuchpackage" in error.hint
    assert "declare it in dependencies" in error.hint


def test_own_modules_are_importable_and_ours_are_not(run: Run) -> None:
    """`files` can have any name, also those of the worker's modules, and relative imports work in packages."""
    files = {
        "run.py": "who = 'user'",
        "report.py": "who = 'user'",
        "pkg/__init__.py": "from .inner import n",
        "pkg/inner.py": "n = 5",
    }
    code = "import run, report, pkg\nreturn [run.who, report.who, pkg.n, pkg.__file__]"
    assert run(code, files=files).check().value == ["user", "user", 5, "/code/pkg/__init__.py"]
    assert run("import jsonvalue").error is not None


def test_program_sees_itself_as_a_program(run: Run) -> None:
    """A script is __main__ in /home/user with nothing on stdin; multiprocessing and threads work."""
    code = """\
        import concurrent.futures, os, sys
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            squares = list(pool.map(lambda n: n * n, range(5)))
        return [__name__, os.getcwd(), sys.stdin.read(), squares, sys.version_info[:2], os.listdir("."), os.getuid()]
    """
    expected = ["__main__", "/home/user", "", [0, 1, 4, 9, 16], [3, 13], [], 1000]
    assert run(textwrap.dedent(code)).check().value == expected
