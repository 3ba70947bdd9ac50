"""From source text to code objects: what kind of program it is, and how a script gives its result.

A script may have a top-level `return`, which Python does not know. Such a script is compiled as the body of a function
in which every name is global, and then run like a module. No exception is involved, so no `except` of the user can
catch it.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import CO_COROUTINE, CO_NEWLOCALS, CO_OPTIMIZED
from types import CodeType
from typing import Any

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

FUTURES = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
FRAME_NAME = "<module>"
LINE_END = re.compile(r"\r\n|\r|\n")
CALL_OF_MAIN = re.compile(r"(?<!def )\bmain\s*\(")


@dataclass(frozen=True, slots=True)
class Source:
    """The main file: its path in tracebacks, and its text without a byte order mark."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What the top level of a program says about it. Lines and columns count from 1."""

    returns: bool
    """It has a `return` outside of functions."""
    calls_main: bool
    """It calls main itself, not only under `if __name__ == "__main__"`."""
    main: tuple[int, int] | None
    """Line and column where main is defined."""


def parse(source: Source) -> ast.Module:
    """The syntax tree. Raises SyntaxError and the other errors of compile()."""
    flags = ast.PyCF_ONLY_AST | TOP_LEVEL_AWAIT
    tree: ast.Module = compile(source.text, source.path, "exec", flags, dont_inherit=True)
    return tree


def survey(tree: ast.Module, text: str) -> Survey:
    """Looks at the top level, which includes the blocks of if, for, while, with, try and match."""
    main: tuple[int, int] | None = None
    returns = False
    open_statements = []
    for statement, guarded in _statements(tree):
        if isinstance(statement, ast.Return):
            returns = True
        elif main is None and _binds_main(statement):
            main = statement.lineno, statement.col_offset + 1
        if not guarded:
            open_statements.append(statement)
    calls = main is not None and CALL_OF_MAIN.search(text) is not None and any(map(_calls_main, open_statements))
    return Survey(returns, calls, main)


def compile_module(tree: ast.Module, source: Source) -> CodeType:
    """The program as a module. Raises SyntaxError."""
    return _compile(tree, source, "exec")


def compile_script(tree: ast.Module, source: Source, *, returns: bool) -> tuple[CodeType, ...]:
    """The program as steps to evaluate in turn; what the last one gives is the result. Raises SyntaxError."""
    if returns:
        return (_compile_with_return(tree, source),)
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        return (compile_module(tree, source),)
    last = tree.body[-1]
    # The module's docstring stays where it is, so that __doc__ is set also when it is the whole program.
    body = tree.body if len(tree.body) == 1 and ast.get_docstring(tree, clean=False) is not None else tree.body[:-1]
    module = _compile(ast.Module(body=body, type_ignores=[]), source, "exec")
    expression = _compile(ast.Expression(body=last.value), source, "eval", module.co_flags & FUTURES)
    return module, expression


def character_column(line: str, byte_column: int) -> int:
    """Column in characters from one in bytes of UTF-8; both count from 0."""
    return len(line.encode("utf-8", "surrogatepass")[:byte_column].decode("utf-8", "replace"))


def lines_of(text: str) -> list[str]:
    """The lines as Python's tokenizer counts them: only LF, CRLF and CR end one."""
    return [line + "\n" for line in LINE_END.split(text)]


def _compile(tree: ast.Module | ast.Expression, source: Source, mode: str, flags: int = 0) -> CodeType:
    try:
        code: CodeType = compile(tree, source.path, mode, flags | TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        _complete(error, source)
        raise
    return code


def _complete(error: SyntaxError, source: Source) -> None:
    """Compiling a tree reports columns in bytes and knows no source text; parsing reports characters and both."""
    lines = lines_of(source.text)
    if error.lineno is None or not 0 < error.lineno <= len(lines):
        return
    error.text = lines[error.lineno - 1]
    if error.offset:
        error.offset = character_column(error.text, error.offset - 1) + 1
    if error.end_offset and error.end_lineno and 0 < error.end_lineno <= len(lines):
        error.end_offset = character_column(lines[error.end_lineno - 1], error.end_offset - 1) + 1


def _compile_with_return(tree: ast.Module, source: Source) -> CodeType:
    """One code object that gives what the top-level `return` gives, else the last expression, when it is evaluated."""
    plain = _compile(_Unreturned().visit(_copy(source)), source, "exec")
    tree = _StarImports().visit(tree)
    futures = plain.co_flags & FUTURES
    is_async = bool(plain.co_flags & CO_COROUTINE)
    body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")]
    docstring = ast.get_docstring(tree, clean=False)
    if docstring is not None:
        variable = ast.Name(id="__doc__", ctx=ast.Store())
        body[0] = ast.copy_location(ast.Assign(targets=[variable], value=ast.Constant(value=docstring)), body[0])
    if body and isinstance(body[-1], ast.Expr):
        body[-1] = ast.copy_location(ast.Return(value=body[-1].value), body[-1])
    for statement, _ in _statements(tree):
        if isinstance(statement, ast.AnnAssign):
            statement.simple = 0  # `x: int = 1` with x global is refused, `(x): int = 1` is not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plain compilation has told them
        local = _function(body, source, futures, is_async=is_async)
        names = sorted({*local.co_varnames, *local.co_cellvars} - {".0"})
        if names:
            everything_global = ast.copy_location(ast.Global(names=names), body[0])
            local = _function([everything_global, *body], source, futures, is_async=is_async)
    # Without these flags the frame's locals are its globals, as in a module.
    return local.replace(co_flags=local.co_flags & ~(CO_OPTIMIZED | CO_NEWLOCALS))


def _function(body: list[ast.stmt], source: Source, futures: int, *, is_async: bool) -> CodeType:
    kind = ast.AsyncFunctionDef if is_async else ast.FunctionDef
    no_arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    wrapper: Any = kind(name=FRAME_NAME, args=no_arguments, body=body, decorator_list=[], lineno=1, col_offset=0)
    if "type_params" in kind._fields:
        wrapper.type_params = []
    tree = ast.fix_missing_locations(ast.Module(body=[wrapper], type_ignores=[]))
    module = _compile(tree, source, "exec", futures)
    return next(constant for constant in module.co_consts if isinstance(constant, CodeType))


def _copy(source: Source) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parse(source)


class _Unreturned(ast.NodeTransformer):
    """Makes top-level returns expressions, so that the rest can be checked by the rules for modules."""

    def visit_Return(self, node: ast.Return) -> ast.stmt:
        values = [node.value] if node.value else []  # in a tuple: a text alone would be the docstring
        value = ast.copy_location(ast.Tuple(elts=values, ctx=ast.Load()), node)
        return ast.copy_location(ast.Expr(value=value), node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            return node
        return super().generic_visit(node)


class _StarImports(ast.NodeTransformer):
    """Makes `from x import *` of the top level a call that imports into the module, which a function cannot."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        if not any(alias.name == "*" for alias in node.names):
            return node
        call = ast.parse(f"__import__('builtins').exec({ast.unparse(node)!r}, globals())").body[0]
        for each in ast.walk(call):
            ast.copy_location(each, node)
        return call

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            return node
        return super().generic_visit(node)


def _statements(tree: ast.Module) -> Iterator[tuple[ast.stmt, bool]]:
    """All statements of the top level in order, and whether they run only under a `__name__` guard."""
    todo: list[tuple[ast.AST, bool]] = [(node, False) for node in reversed(tree.body)]
    while todo:
        node, guarded = todo.pop()
        if isinstance(node, ast.stmt):
            yield node, guarded
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        inner = guarded or (isinstance(node, ast.If) and _is_guard(node.test))
        blocks = (
            ("body", inner),
            ("handlers", guarded),
            ("cases", guarded),
            ("orelse", guarded),
            ("finalbody", guarded),
        )
        children = [(child, flag) for name, flag in blocks for child in getattr(node, name, ())]
        todo += reversed(children)


def _is_guard(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(map(_is_guard, test.values))
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return False
    sides = (test.left, test.comparators[0])
    names = any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
    return names and any(isinstance(side, ast.Constant) and side.value == "__main__" for side in sides)


def _binds_main(node: ast.stmt) -> bool:
    """Whether main becomes something that can be a function: defined, imported, or assigned what is no literal."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name == "main"
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any((alias.asname or alias.name) == "main" for alias in node.names)
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value:
        targets = [node.target]
    else:
        return False
    callable_value = isinstance(node.value, (ast.Lambda, ast.Name, ast.Attribute, ast.Call))
    return callable_value and any(isinstance(target, ast.Name) and target.id == "main" for target in targets)


def _calls_main(statement: ast.stmt) -> bool:
    """Whether an expression of this statement itself calls main; blocks in it are statements of their own."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return False
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "main":
            return True
        elsewhere = (ast.stmt, ast.Lambda, ast.ExceptHandler, ast.match_case)
        todo += [child for child in ast.iter_child_nodes(node) if not isinstance(child, elsewhere)]
    return False
