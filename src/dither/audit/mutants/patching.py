"""Puts a mutant into the running program: the function's code is exchanged, wherever it is held.

A function object keeps its identity, so whoever imported, decorated or stored it runs the mutant.
"""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import os
from itertools import takewhile
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from dither.audit.mutants.mutant import Mutant
from dither.errors import ConfigError

_MARK = "__dither_mutant_reached__"


def mutated_source(mutant: Mutant, source: str) -> tuple[str, int]:
    """Return a module's source with the mutant in it, and the line where it begins.

    Args:
        mutant: Which.
        source: The module's.

    Raises:
        ConfigError: No such function, or the text does not stand in it exactly once.
    """
    qualname = mutant.target.partition(":")[2]
    node = _find(ast.parse(source), qualname.split("."))
    if node is None:
        raise _moved(mutant, f"no function {qualname} there")
    lines = source.splitlines(keepends=True)
    # A decorator or a default is evaluated at definition: only the body can be exchanged.
    first, last = node.body[0].lineno - 1, node.end_lineno or 0
    body = "".join(lines[first:last])
    if body.count(mutant.right) != 1:
        raise _moved(mutant, f"{body.count(mutant.right)} times in {mutant.target}")
    before = body[: body.index(mutant.right)]
    # Lines that stay at the beginning of the text are not what was changed.
    line = first + (before + _beginning(mutant.right, mutant.wrong)).count("\n") + 1
    changed = body.replace(mutant.right, mutant.wrong)
    return "".join(lines[:first]) + changed + "".join(lines[last:]), line


def _beginning(one: str, other: str) -> str:
    """Return the characters that two texts begin with."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(left for left, _ in alike)


def apply(mutant: Mutant, reached: Path) -> None:
    """Put the mutant into this process and what it forks from now on.

    Args:
        mutant: Which.
        reached: File that grows by a byte in each process that comes to the changed line.

    Raises:
        ConfigError: Its place has changed, or the function cannot be found in memory.
    """
    module = importlib.import_module(mutant.target.partition(":")[0])
    path, qualname = Path(inspect.getfile(module)), mutant.target.partition(":")[2]
    source, line = mutated_source(mutant, path.read_text())
    code = _code(source, qualname, line, str(path))
    found = [
        one
        for one in gc.get_objects()
        # By type: some objects answer isinstance with code of their own.
        if type(one) is FunctionType and _is_at(one.__code__, path, qualname)
    ]
    if not found:
        raise _moved(mutant, "no such function in memory")
    _count(module, reached)
    for function in found:
        if function.__code__.co_freevars != code.co_freevars:
            raise _moved(mutant, "a function with other outer variables")
        function.__code__ = code


def _is_at(code: CodeType, path: Path, qualname: str) -> bool:
    return code.co_qualname == qualname and code.co_filename == str(path)


def _code(source: str, qualname: str, line: int, path: str) -> CodeType:
    tree = ast.parse(source)
    node = _find(tree, qualname.split("."))
    assert node is not None  # noqa: S101 - found before
    _insert_mark(node, line)
    whole = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
    code = _inner(whole, qualname)
    assert code is not None  # noqa: S101 - every function has one
    return code


def _inner(code: CodeType, qualname: str) -> CodeType | None:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            if const.co_qualname == qualname:
                return const
            found = _inner(const, qualname)
            if found is not None:
                return found
    return None


def _insert_mark(function: ast.FunctionDef, line: int) -> None:
    """Call the counter before the innermost statement that holds a line."""
    block, index = function.body, 0
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            statements: Any = getattr(node, name, None)
            if not isinstance(statements, list):
                continue
            for at, statement in enumerate(statements):
                if statement.lineno <= line <= (statement.end_lineno or 0):
                    block, index = statements, at  # ast.walk goes from the outside in
    call = ast.Expr(ast.Call(ast.Name(_MARK, ast.Load()), [], []))
    block.insert(index, ast.copy_location(call, block[index]))


def _count(module: ModuleType, path: Path) -> None:
    """Give a module the counter that the changed code calls, also in what it forks."""
    told: set[int] = set()

    def reached() -> None:
        if os.getpid() not in told:
            told.add(os.getpid())
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(descriptor, b".")
            os.close(descriptor)

    vars(module)[_MARK] = reached


def _find(tree: ast.AST, names: list[str]) -> ast.FunctionDef | None:
    found = None
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == names[0]:
            if len(names) == 1 and isinstance(node, ast.FunctionDef):
                found = node  # the last one of a name counts, as at run time
            elif len(names) > 1 and isinstance(node, ast.ClassDef):
                found = _find(node, names[1:])
    return found


def _moved(mutant: Mutant, got: str) -> ConfigError:
    return ConfigError(
        expected=f"exactly one {mutant.right!r} in the body of {mutant.target}",
        got=got,
        fix=f"the code has moved on: give the mutant {mutant.name} its new place",
    )
