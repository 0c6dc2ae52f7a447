"""The house rules that a machine can hold."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dither
from dither import errors

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
ALL_PYTHON = SOURCES + sorted((ROOT / "tests").rglob("*.py"))
NATIVE = [path for path in (ROOT / "native").rglob("*") if path.suffix in {".c", ".h", ".cpp"}]


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function below its signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return 0 if not body else (node.end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", ALL_PYTHON + NATIVE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    limit = 400 if path in SOURCES or path in NATIVE else 600
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_function_bodies_are_short(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {f.name: body_lines(f) for f in functions if body_lines(f) > 40} == {}


def test_every_room_has_its_tests() -> None:
    rooms = {p.name for p in (ROOT / "src" / "dither").iterdir() if (p / "__init__.py").is_file()}
    mirrored = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()}
    assert rooms <= mirrored


@pytest.mark.parametrize("name", dither.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(dither, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = dither.nothing_here


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    native = importlib.import_module("dither._native")
    assert dither.__version__ == project["version"] == native.version()


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from dither.cli.main import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pyarrow', 'duckdb', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip().endswith("[]")


def test_errors_say_what_was_expected_what_came_and_what_to_do() -> None:
    error = errors.ConfigError(expected="a pear", got="an apple", fix="pick again")
    assert str(error) == "expected a pear, got an apple. To mend it: pick again."
    assert isinstance(error, ValueError)


def test_errors_survive_pickling() -> None:
    import pickle

    error = errors.LedgerBehindError(expected="a", got="b", fix="c")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is type(error)
    assert str(again) == str(error)
