"""Runs mutants against their killers, those of one test file in forks of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast, final

from dither.audit.mutants.core import run_core
from dither.audit.mutants.mutant import CoreMutant, Mutant, Outcome
from dither.errors import ConfigError, DitherError

LIMIT_SECONDS = 300.0  # of one run with a mutant

_SAID = ("passed", "asserted", "broken")

Told = Callable[[str], None]


def checkout(start: Path | None = None) -> Path:
    """Return the root of the checkout that a folder is in, which has the tests.

    Args:
        start: By default the working directory.

    Raises:
        ConfigError: It is in none, or dither is not imported from there.
    """
    here = (start or Path.cwd()).absolute()
    source = Path(__file__).resolve().parents[4]
    for folder in (here, *here.parents):
        if (folder / "src/dither").is_dir() and (folder / "tests/conftest.py").is_file():
            if folder.resolve() != source:
                raise ConfigError(
                    expected=f"the checkout that dither is imported from, {source}",
                    got=str(folder),
                    fix="install it from here, with pip install -e .",
                )
            return folder.resolve()
    raise ConfigError(
        expected="a checkout of dither, with its tests",
        got=f"{here}, which is in none",
        fix="clone the repository, run make env and start there: mutants are killed by its tests",
    )


def run_mutants(
    mutants: Sequence[Mutant | CoreMutant],
    root: Path,
    *,
    told: Told = lambda _: None,
    limit: float = LIMIT_SECONDS,
) -> Iterator[Outcome]:
    """Run mutants; yield what became of each, those of one test file one after the other.

    Args:
        mutants: Which.
        root: The checkout.
        told: Called with what happens now.
        limit: Seconds that one run may take.

    Raises:
        ConfigError: A mutant's place is not there any more, or its killer cannot run.
    """
    python = [one for one in mutants if isinstance(one, Mutant)]
    if python:
        with _Worker(root, limit) as worker:
            for file, group in groupby(sorted(python, key=_file), key=_file):
                yield from _run_file(worker, file, list(group), told)
    core = [one for one in mutants if isinstance(one, CoreMutant)]
    if core:
        yield from run_core(core, root, told)


def _file(mutant: Mutant) -> str:
    return mutant.killer.partition("::")[0]


def _run_file(worker: _Worker, file: str, mutants: list[Mutant], told: Told) -> Iterator[Outcome]:
    told(f"{file}: as it is")
    fault = worker.ask({"import": file})["fault"]
    if fault is not None:
        for mutant in mutants:
            why = f"its test cannot be imported: {fault}"
            yield Outcome(mutant, killed=False, reached=False, seconds=0.0, why=why)
        return
    clean = _clean(worker, sorted({mutant.killer for mutant in mutants}))
    for mutant in mutants:
        fault = _unfit(mutant.killer, clean)
        if fault is not None:
            yield Outcome(mutant, killed=False, reached=False, seconds=0.0, why=fault)
            continue
        told(mutant.name)
        answer = worker.ask({"mutant": asdict(mutant), "tests": [mutant.killer]})
        yield _judge(mutant, answer)


def _clean(worker: _Worker, tests: list[str]) -> dict[str, Any]:
    """Run the tests of one file without a mutant: together, or if that cannot be, one by one."""
    together = worker.ask({"mutant": None, "tests": tests})
    if together["passed"] or len(tests) == 1:
        return together
    alone = [worker.ask({"mutant": None, "tests": [test]}) for test in tests]
    return {key: [said for one in alone for said in one[key]] for key in _SAID}


def _unfit(killer: str, clean: dict[str, Any]) -> str | None:
    """Return why a killer is none: it must pass where nothing is changed."""
    mine = [said for said in clean["asserted"] + clean["broken"] if _is_of(said, killer)]
    if mine:
        return f"the test does not pass without the mutant: {mine[0]}"
    if not any(_is_of(node, killer) for node in clean["passed"]):
        return f"no test {killer} passed: {' '.join(clean['broken'])}"
    return None


def _is_of(said: str, killer: str) -> bool:
    """Return whether what is said is about a test or, of a test with parameters, one of them."""
    return said.startswith(killer) and said[len(killer) : len(killer) + 1] in {"", "[", ":", " "}


def _judge(mutant: Mutant, answer: dict[str, Any]) -> Outcome:
    killed = False
    if answer["broken"]:
        why = f"it broke rather than failed: {answer['broken'][0]}"
    elif not answer["asserted"]:
        why = "the test passed" + ("" if answer["reached"] else " without coming there")
    elif not answer["reached"]:
        why = "the test failed without coming to the changed line"
    else:
        killed, why = True, answer["asserted"][0]
    return Outcome(mutant, killed, answer["reached"], answer["seconds"], why)


@final
class _Worker:
    """The process that forks, `dither.audit.mutants.worker`."""

    def __init__(self, root: Path, limit: float) -> None:
        self._root = root
        self._limit = limit

    def __enter__(self) -> _Worker:
        if not hasattr(os, "fork"):
            raise ConfigError(
                expected="a system with fork, such as Linux",
                got=sys.platform,
                fix="run the mutants there",
            )
        self._folder = tempfile.TemporaryDirectory(prefix="dither-mutants-")
        folder = Path(self._folder.name)
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dither.audit.mutants.worker"],
            cwd=self._root,
            env=self._environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def _environment(self, folder: Path) -> dict[str, str]:
        """Keep what a mutant writes away from the user's own folders."""
        kept = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
        return {
            **kept,
            "OMP_NUM_THREADS": "1",
            "DITHER_HOME": str(folder / "home"),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
        }

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        cast("IO[str]", self._process.stdin).close()
        if kind is not None:
            self._process.terminate()
        self._process.wait()
        cast("IO[str]", self._process.stdout).close()
        self._log.close()
        self._folder.cleanup()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a job."""
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None  # noqa: S101 - both are pipes
        assert answers is not None  # noqa: S101
        to.write(json.dumps({**job, "limit": self._limit}) + "\n")
        to.flush()
        line = answers.readline()
        if not line:
            log = Path(self._log.name).read_text(errors="replace")
            raise _WorkerError(
                expected="a process that runs the tests",
                got=f"one that ended: {' '.join(log.split())[-400:]}",
                fix="run the tests themselves first: make test",
            )
        found: dict[str, Any] = json.loads(line)
        return found


class _WorkerError(DitherError, RuntimeError):
    """The process that runs the tests ended by itself."""


def choose(
    mutants: Iterable[Mutant | CoreMutant],
    names: Sequence[str] = (),
    *,
    entry: int | None = None,
    fast: bool = False,
) -> list[Mutant | CoreMutant]:
    """Return the mutants asked for.

    Args:
        mutants: All.
        names: Only these, if any are given.
        entry: Only those of this entry.
        fast: Only the first fast one of each entry, which the default suite runs.

    Raises:
        ConfigError: No such name, or none is left.
    """
    known = list(mutants)
    unknown = sorted(set(names) - {one.name for one in known})
    if unknown:
        raise ConfigError(
            expected="names of mutants",
            got=", ".join(unknown),
            fix="see the list in docs/concepts/mutants.md",
        )
    found = [
        one
        for one in known
        if (not names or one.name in names) and (entry is None or one.entry == entry)
    ]
    if fast:
        first = {one.entry: one for one in reversed(found) if one.fast}
        found = [one for one in found if first.get(one.entry) is one]
    if not found:
        raise ConfigError(
            expected="options that leave a mutant", got="none", fix="ask for fewer restrictions"
        )
    return found
