"""`dither bench clip`: private steps against plain ones and against Opacus, on two threads.

Noise comes from the pool, whose thread works beside the steps and could make a private step's noise
in a baseline's time. So a private step is timed right after others that empty what the pool had
ahead, and pays for as much noise as it takes; a baseline is timed once the pool is full and rests.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch

from dither.bench import memory, opacus
from dither.bench.clip_models import CASES, ClipCase
from dither.bench.clip_steps import PrivateRun, plain_run, private_run
from dither.bench.harness import Case, Row, Work, measure, not_measured, summarise

NAMES = tuple(case.name for case in CASES)
THREADS = 2
BEST_MODE_TARGET = 1 / 1.2
GEOMETRIC_MEAN_TARGET = 1 / 1.6
MEMORY_TARGET = 1.25
MEMORY_CASES = ("mlp/4096", "transformer")

_POOL_RELEASES = 2  # what a pool holds ahead
_SLOW = 0.5  # seconds; steps above it do not feel whose data the caches hold


@dataclass(frozen=True)
class Effort:
    """How long to measure: so many pairs, in about so many seconds."""

    least: int
    most: int
    seconds: float


_PLAIN = (Effort(4, 20, 15.0), Effort(8, 60, 60.0))  # quick, full
_PEER = (Effort(2, 8, 10.0), Effort(2, 20, 20.0))
_MEMORY_PAIRS = (4, 8)


def rows(*, full: bool = False, cases: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of each case: against plain, against Opacus's modes, its best one; memory.

    Args:
        full: More pairs.
        cases: Names; all when empty.
    """
    chosen = [case for case in CASES if not cases or case.name in cases]
    modes = opacus.MODES if opacus.installed() else ()
    if not modes:
        reason = "not installed: pip install 'dither[bench]' adds it to the run"
        yield not_measured("all", "opacus", reason)
    found: list[Row] = []
    with threads(THREADS):
        for case in chosen:
            for row in _contests(case, modes, full=full):
                yield row
                found.append(row)
        yield from geometric_mean(found)
    for case in chosen:
        if case.name in MEMORY_CASES:
            yield memory_row(case, _MEMORY_PAIRS[full])


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Have PyTorch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _contests(case: ClipCase, modes: Sequence[str], *, full: bool) -> Iterator[Row]:
    data = case.batch(case.batch_size)
    plain = plain_run(case, case.build(), data)
    with private_run(case, case.build(), data) as private:
        against_plain = paired(case, "plain", private, plain)
        yield _measure(replace(against_plain, target=case.target), _PLAIN[full])
        found = []
        for mode in modes:
            row = _against(case, private, mode, _PEER[full])
            yield row
            found.append(row)
            gc.collect()
        if modes:
            yield best_mode(case.name, found)


def paired(
    case: ClipCase, baseline_name: str, private: PrivateRun, baseline: Work, *, warm: bool = True
) -> Case:
    """Return the case of private steps against a baseline, each with its own settling.

    Args:
        case: The case.
        baseline_name: What the baseline is.
        private: Our side.
        baseline: Its step.
        warm: Whether one uncounted step of the baseline comes before each counted one.
    """

    def spend() -> None:
        for _ in range(_POOL_RELEASES):
            private.step()

    def settle() -> None:
        private.rest()
        baseline()

    return Case(
        case.name,
        baseline_name,
        private.step,
        baseline,
        prepare=spend,
        prepare_baseline=settle if warm else private.rest,
        detail=(
            f"batch {case.batch_size}, {private.parameters} parameters, SGD, {THREADS} threads, "
            "noise pool"
        ),
    )


def _measure(case: Case, effort: Effort) -> Row:
    """Measure as many pairs as fit; this first trial of everything is the warm-up too."""
    prepares = (case.prepare, case.prepare_baseline or case.prepare)
    once = sum(map(_seconds, (prepares[0], case.ours, prepares[1], case.baseline)))
    pairs = max(effort.least, min(effort.most, int(effort.seconds / once)))
    return measure(case, pairs=pairs, warm_up=0)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _against(case: ClipCase, private: PrivateRun, mode: str, effort: Effort) -> Row:
    """Measure one mode of the peer; what goes wrong there is a row that says so."""
    name = f"opacus-{mode}"
    try:
        with opacus.bounded_memory():
            theirs = opacus.private_step(mode, case.build(), case.loss_fn, private.data)
            seconds = _seconds(theirs)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises belongs into its row
        lines = str(error).splitlines() or [""]
        return not_measured(case.name, name, f"{type(error).__name__}: {lines[0]}")
    contest = paired(case, name, private, theirs, warm=seconds < _SLOW)
    row = _measure(contest, effort)
    return replace(row, detail=f"{row.detail}, opacus {version('opacus')}")


def best_mode(case: str, measured: Sequence[Row]) -> Row:
    """Return the row of the mode that we beat by least, or one that says that none runs."""
    ran = [row for row in measured if row.ratio is not None]
    if not ran:
        return replace(not_measured(case, "opacus-best", "no mode runs"), metric="best_mode")
    best = max(ran, key=lambda row: row.ratio or 0.0)
    return replace(
        best,
        metric="best_mode",
        detail=f"{best.baseline_name}; modes that run: {len(ran)}",
        baseline_name="opacus-best",
        target=BEST_MODE_TARGET,
    )


def geometric_mean(measured: Sequence[Row]) -> Iterator[Row]:
    """Yield the geometric mean of the ratios to the best modes, if there are any."""
    bests = [row for row in measured if row.metric == "best_mode"]
    ratios = [row.ratio for row in bests if row.ratio is not None]
    if ratios:
        mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
        yield Row(
            case="all",
            metric="geometric_mean",
            unit="",
            ours=None,
            baseline=None,
            baseline_name="opacus-best",
            ratio=mean,
            ratio_low=min(ratios),
            ratio_high=max(ratios),
            pairs=len(ratios),
            detail=f"{len(ratios)} of {len(bests)} cases; least and largest beside it",
            target=GEOMETRIC_MEAN_TARGET,
        )


def memory_row(case: ClipCase, pairs: int) -> Row:
    """Return the row of peak memory, or one that says why a process failed."""
    ours, plain = [], []
    try:
        for _ in range(pairs):
            ours.append(float(memory.peak_in_child(case.name, "private", THREADS)))
            plain.append(float(memory.peak_in_child(case.name, "plain", THREADS)))
    except RuntimeError as error:  # a process ended; what was timed is still to be written
        failed = not_measured(case.name, "plain", str(error))
        return replace(failed, metric="peak_memory", unit="B", target=MEMORY_TARGET)
    return summarise(
        case.name,
        "B",
        ours=ours,
        baseline=plain,
        baseline_name="plain",
        detail=f"batch {case.batch_size}; resident bytes beyond model, optimizer and batch",
        metric="peak_memory",
        target=MEMORY_TARGET,
    )
