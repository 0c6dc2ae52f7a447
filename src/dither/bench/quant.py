"""`dither bench quant`: what low precision costs in accuracy, by schedule, format and privacy.

Many small trainings, each on one thread in a process of its own pool, each through the whole
private path. What is finished is a line in a file, so that a study can be stopped and gone on with.
No choice is made on test records: they are scored once, at the end of each training.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dither.bench.harness import Row, not_measured
from dither.bench.quant_cases import CASES, DELTA, EPSILON, NAMES, Case, Training, trainings
from dither.bench.quant_data import missing, prepare
from dither.bench.quant_rows import rows_of
from dither.bench.quant_stats import Findings, amplifications, comparisons, findings
from dither.bench.quant_train import Job, run, stored_promise
from dither.errors import ConfigError
from dither.files import locked, output_errors

__all__ = ["NAMES", "Study", "find_data"]

LINES = "trainings.jsonl"
_AHEAD = 1  # jobs that wait for a process to be free
Told = Callable[[int, int, str], None]
Results = dict[Training, dict[str, Any]]


def find_data(given: Path | None) -> Path:
    """Return the folder of records: the given one, or ``../shared/data`` beside the checkout.

    Raises:
        ConfigError: It is not there.
    """
    folder = given or Path("../shared/data")
    if not folder.is_dir():
        raise ConfigError(
            expected=f"records in {folder}: images/mnist_train.npz and so on",
            got="no such folder",
            fix="name their folder with --data; docs/guides/precision.md says what is in it",
        )
    return folder


@dataclass
class Study:
    """One study: `rows` makes it, the rest tells what came of it.

    Attributes:
        data: Folder with ``images/`` and ``acs/``.
        out: Where finished trainings are kept; nowhere by default.
        full: More of everything.
        seeds: Of every comparison, in place of the study's own numbers.
        processes: Trainings at a time; as many as cores by default.
        hours: No training is started after this long.
        told: Is told trainings done, trainings in all, and what was done last.
        found: By group, when all rows came.
        left: Trainings that are still to be made.
        failed: Lines of those that failed.
    """

    data: Path
    out: Path | None = None
    full: bool = False
    seeds: int | None = None
    processes: int | None = None
    hours: float | None = None
    told: Told = lambda done, total, note: None  # noqa: ARG005
    found: Findings = field(default_factory=dict)
    left: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    chosen: tuple[Training, ...] = ()

    def rows(self, cases: Collection[str] = ()) -> Iterator[Row]:
        """Yield the rows of these cases, of the usual ones when empty.

        Raises:
            ConfigError: No records for any of them.
            OutputError: Finished trainings cannot be kept.
        """
        start = time.monotonic()
        wanted = trainings(full=self.full, cases=cases, seeds=self.seeds)
        reasons = {case.name: missing(self.data, case.data) for case in CASES}
        self.chosen = tuple(each for each in wanted if reasons[each.case.name] is None)
        absent = dict.fromkeys(each.case.name for each in wanted if reasons[each.case.name])
        if not self.chosen:
            raise ConfigError(
                expected="records of at least one case",
                got="; ".join(dict.fromkeys(str(reasons[name]) for name in absent)),
                fix="name their folder with --data",
            )
        with self._folder() as folder:
            results = self._train(folder, start)
        self.failed = [line for line in results.values() if "error" in line]
        self.left = len(self.chosen) - len(results)
        self.found = findings(results.items())
        self.seconds = time.monotonic() - start
        yield from rows_of(self.found)
        for name in absent:
            yield not_measured(name, "full precision", str(reasons[name]))
        for line in self.failed:
            yield not_measured(line["training"]["case"]["name"], "full precision", line["error"])

    def to_json(self) -> dict[str, Any]:
        """Return everything that was found, and every setting, beside the rows."""
        cases = dict.fromkeys(each.case for each in self.chosen)
        return {
            "epsilon": EPSILON,
            "delta": DELTA,
            "full": self.full,
            "seconds": self.seconds,
            "trainings": {
                "made": sum(finding.trainings for finding in self.found.values()),
                "failed": len(self.failed),
                "left": self.left,
            },
            "cases": [vars(case) for case in cases],
            "findings": [finding.to_json() for finding in self.found.values()],
            "comparisons": [found.to_json() for found in comparisons(self.found)],
            "amplifications": [found.to_json() for found in amplifications(self.found)],
        }

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.out is None:
            with TemporaryDirectory(prefix="dither-quant-") as name:
                yield Path(name)
            return
        with output_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out / ".lock"):
            yield self.out

    def _train(self, folder: Path, start: float) -> Results:
        """Make what is not made yet; return all lines of what was chosen."""
        path = folder / LINES
        known = read_lines(path)
        results = {each: known[each.key] for each in self.chosen if each.key in known}
        ahead = [each for each in self.chosen if each not in results]
        if not ahead:
            return results
        records = {case.data: prepare(self.data, case.data, folder) for case in _cases(ahead)}
        end = None if self.hours is None else start + 3600.0 * self.hours
        with _pool(self.processes) as pool:
            jobs = self._jobs(ahead, records, folder, pool)
            for training, line in _in_turn(pool, jobs, self._width(), end):
                append_line(path, line)
                results[training] = line
                self.told(len(results), len(self.chosen), _said(training, line))
        return results

    def _width(self) -> int:
        return self.processes or os.cpu_count() or 1

    def _jobs(
        self,
        ahead: list[Training],
        records: dict[str, Path],
        folder: Path,
        pool: ProcessPoolExecutor,
    ) -> list[Job]:
        """Find the noise of every kind of private training first: it is the same for all seeds."""
        kinds = dict.fromkeys(
            (each.case, each.schedule == "dpquant") for each in ahead if each.private
        )
        self.told(len(self.chosen) - len(ahead), len(self.chosen), "finding noise multipliers")
        found = {
            kind: pool.submit(stored_promise, kind[0], folder, probes=kind[1]) for kind in kinds
        }
        files = {kind: future.result() for kind, future in found.items()}
        return [
            Job(
                each,
                records[each.case.data],
                files[each.case, each.schedule == "dpquant"] if each.private else None,
            )
            for each in ahead
        ]


def _cases(chosen: Collection[Training]) -> list[Case]:
    return list(dict.fromkeys(each.case for each in chosen))


@contextmanager
def _pool(processes: int | None) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread, fresh ones: a fork of PyTorch's threads would hang."""
    spawn = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(processes or os.cpu_count() or 1, mp_context=spawn)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _in_turn(
    pool: ProcessPoolExecutor, jobs: list[Job], width: int, end: float | None
) -> Iterator[tuple[Training, dict[str, Any]]]:
    """Yield results as they come; what is not submitted at the end of the time never is."""
    waiting = iter(jobs)
    running: dict[Future[dict[str, Any]], Training] = {}
    while True:
        late = end is not None and time.monotonic() >= end
        while not late and len(running) < width + _AHEAD:
            job = next(waiting, None)
            if job is None:
                break
            running[pool.submit(run, job)] = job.training
        if late:
            for future in [future for future in running if future.cancel()]:
                del running[future]
        if not running:
            return
        done, _ = wait(running, timeout=5.0, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future.result()


def _said(training: Training, line: dict[str, Any]) -> str:
    if "error" in line:
        return f"{training.group.name}: {line['error']}"
    return f"{training.group.name}: {100.0 * line['accuracy']:.1f} %"


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Return finished trainings by their key; failed ones and torn lines are made again."""
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for text in path.read_text().splitlines():
            with suppress(json.JSONDecodeError, KeyError, TypeError):
                line = json.loads(text)
                if "error" not in line and line["part"] == "test":
                    found[line["key"]] = line
    return found


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a finished training, durably; after a torn line it begins a new one.

    Raises:
        OutputError: It cannot be written.
    """
    with output_errors(path), path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(line) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
