"""A process that has imported the tests once and forks for each run of them.

It reads one job a line from standard input, and writes one answer a line to standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dither.audit.mutants.mutant import Mutant
from dither.audit.mutants.plugin import Watch

_COMMON = ("-q", "-p", "no:cacheprovider", "-m", "full or not full")
_PAUSE = 0.02


def main() -> None:
    """Answer jobs until there are none."""
    # Threads do not survive a fork, and tests may not print into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    root = Path.cwd()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(root, json.loads(line))) + "\n")
        answers.flush()


class _WithoutShrinking:
    """Lets Hypothesis stop at the first failure: a smaller example of a mutant helps nobody."""

    def pytest_configure(self) -> None:
        """Set it before tests are imported, for all forks."""
        with suppress(ImportError):
            # Not before pytest has seen to it that its assertions are rewritten.
            from hypothesis import Phase, settings  # noqa: PLC0415

            settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])
            settings.load_profile("mutants")


def _answer(root: Path, job: dict[str, Any]) -> dict[str, Any]:
    if "import" in job:
        return _import(job["import"])
    with tempfile.TemporaryDirectory(prefix="dither-mutant-") as name:
        return _in_child(root, job, Path(name))


def _import(file: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dither-mutant-") as name:
        log = Path(name) / "log"
        with _quiet(log):
            code = pytest.main([*_COMMON, "--collect-only", file], plugins=[_WithoutShrinking()])
        return {"fault": None if code == pytest.ExitCode.OK else _tail(log)}


def _in_child(root: Path, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()  # what it starts ends with it
        with suppress(BaseException):
            _run(root, job, folder)
        os._exit(0)
    late = not _ended(child, start + job["limit"])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if late:
        os.waitpid(child, 0)
    seconds = time.monotonic() - start
    written = folder / "answer.json"
    answer: dict[str, Any] = {"passed": [], "asserted": [], "broken": []}
    if late:
        answer["broken"] = [f"out of time after {job['limit']:g} s"]
    elif written.is_file():
        answer = json.loads(written.read_text())
    if not any(answer.values()):
        answer["broken"] = [_tail(folder / "log")]
    return {**answer, "seconds": seconds, "reached": (folder / "reached").is_file()}


def _ended(child: int, deadline: float) -> bool:
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(_PAUSE)
    return False


def _run(root: Path, job: dict[str, Any], folder: Path) -> None:
    mutant = None if job["mutant"] is None else Mutant(**job["mutant"])
    watch = Watch(root, mutant, folder / "reached")
    options = [*_COMMON, "--basetemp", str(folder / "tmp")]
    if mutant is not None:
        options.append("-x")
    with _quiet(folder / "log"):
        pytest.main([*options, *job["tests"]], plugins=[watch])
    found = {"passed": watch.passed, "asserted": watch.asserted, "broken": watch.broken}
    (folder / "answer.json").write_text(json.dumps(found))


@contextmanager
def _quiet(log: Path) -> Any:
    """Send what is printed to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


def _tail(log: Path) -> str:
    text = log.read_text(errors="replace") if log.is_file() else ""
    return " ".join(text.split())[-400:] or "it ended without a word"


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
