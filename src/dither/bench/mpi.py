"""`dither bench mpi`: unmodified MPI programs under `dither mpirun`, against the same ones bare.

The programs of benchmarks/mpi call ``PMPI_Allreduce``, which MPI defines as the way past any
interposed library, and ``MPI_Allreduce``, which the library takes, in turn, in the same processes:
so both meet the machine in the same mood, and start-up does not count. Before each timed piece of
work both sides rest alike until noise (or pads) are ready, untimed, as between two training steps.
Rows ``.../sustained`` have no such rest on the private side: nothing is left of what was made
ahead. Rows ``.../encrypted`` are HEAR's way on the same shared memory, with pads ready. Rows
``.../control`` show that bare calls beside an idle library cost what they cost without one. A
piece's time is that of its slower rank, after a barrier; L2 clipping is within private ones. Each
sum is checked, its noise included, before it is timed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from dither.bench.harness import Row, not_measured, summarise
from dither.bench.mpi_cases import (
    CASES,
    CONTROL,
    ENCRYPTED,
    NAMES,
    READY,
    SUSTAINED,
    Manner,
    MpiCase,
    Program,
    chosen,
)
from dither.bench.mpi_programs import (
    CLIP,
    NOISE_MULTIPLIER,
    Programs,
    Spoken,
    is_private,
    norm,
    programs,
)
from dither.errors import DitherError
from dither.privacy.trust import LOCAL

__all__ = ["CASES", "NAMES", "rows"]

_LIMIT = {False: 300.0, True: 1800.0}
_ROUNDS: dict[Program, tuple[int, int]] = {"workload": (9, 25), "sweep": (20, 60)}  # quick, full
_WORTH_TELLING = 0.005  # of the noise
_NOISE_AGREES = 0.2  # of the error that a sum must have
_MANY = 5.0  # standard deviations
_FLOAT32, _WIRE = 1e-5, 1e-2  # of the numbers' size, where there is no noise
_WORDS = {
    READY: "private, noise ready, L2 clipping included",
    SUSTAINED: "private, nothing made ahead, L2 clipping included",
    ENCRYPTED: "encrypted, not private, pads ready, no clipping",
    CONTROL: "ours: bare calls beside the idle library; baseline: the same without any library",
}


def rows(*, full: bool = False, cases: Collection[str] = ()) -> Iterator[Row]:
    """Yield one row a case.

    Args:
        full: Larger models (scaled down, as the rows say), all sizes, controls, more rounds.
        cases: Names; those that belong to a quick or full run when empty.
    """
    groups = _launches(chosen(tuple(cases), full=full))
    with ExitStack() as stack:
        try:
            built = stack.enter_context(programs())
        except DitherError as error:
            yield from (without(case, error.got) for group in groups for case in group)
            return
        for group in groups:
            yield from _held(built, group, full=full)


def without(case: MpiCase, reason: str) -> Row:
    """Return the row of a case that could not be measured."""
    return replace(not_measured(case.name, _baseline(case), reason), target=case.target)


def _baseline(case: MpiCase) -> str:
    return "no library" if case.manner == CONTROL else "bare"


def _launches(cases: Sequence[MpiCase]) -> list[list[MpiCase]]:
    """Return the cases that one start of a program measures, together."""
    groups: dict[tuple[str, str], list[MpiCase]] = {}
    for case in cases:
        groups.setdefault((case.program, case.manner), []).append(case)
    return list(groups.values())


def _held(built: Programs, group: list[MpiCase], *, full: bool) -> Iterator[Row]:
    """Measure cases of one program and manner; after one that ends the program, the others."""
    program, manner, arguments = group[0].program, group[0].manner, _arguments(group, full=full)
    spoken = built.run(program, manner, arguments, limit=_LIMIT[full])
    beside: Spoken | None = None
    if manner == CONTROL and spoken.lines:
        beside = built.run(program, READY, arguments, limit=_LIMIT[full])
    for place, (case, line) in enumerate(zip(group, spoken.lines, strict=False)):
        if beside is None:
            yield _row(case, line, spoken)
        elif place < len(beside.lines):
            yield _control(case, beside.lines[place], line)
        else:
            yield without(case, f"the run beside it ended: {beside.error}")
    missing = group[len(spoken.lines) :]
    without_times = missing if spoken.late else missing[:1]
    yield from (without(case, spoken.error or "the program ended before") for case in without_times)
    if len(without_times) < len(missing):
        yield from _held(built, missing[1:], full=full)


def _arguments(group: list[MpiCase], *, full: bool) -> list[str]:
    program = group[0].program
    rounds = ["--rounds", str(_ROUNDS[program][full])]
    told = [case.argument for case in group]
    return [*rounds, *(told if program == "workload" else ["--sizes", ",".join(told)])]


def _row(case: MpiCase, line: dict[str, Any], spoken: Spoken) -> Row:
    problem = wrong(case.manner, line)
    if problem is None and spoken.error is None and spoken.protected == 0:
        problem = "the library took no call"
    if problem is not None:
        return without(case, problem)
    return summarise(
        case.name,
        "s",
        ours=line["ours"],
        baseline=line["bare"],
        baseline_name=_baseline(case),
        detail=_detail(case, line, spoken.dry),
        target=case.target,
    )


def _control(case: MpiCase, beside: dict[str, Any], alone: dict[str, Any]) -> Row:
    problem = wrong(CONTROL, alone)
    if problem is not None:
        return without(case, problem)
    return summarise(
        case.name,
        "s",
        ours=beside["bare"],
        baseline=alone["bare"],
        baseline_name=_baseline(case),
        detail=_detail(case, alone, None),
        target=case.target,
    )


def _detail(case: MpiCase, line: dict[str, Any], dry: float | None) -> str:
    parts = [
        f"{line['ranks']} ranks, one host, {' '.join(line['mpi'].replace('Version:', '').split())}",
        f"float32, {line['elements']} numbers"
        + (f" in {line['messages']} messages" if line["messages"] > 1 else ""),
        _WORDS[case.manner],
    ]
    if case.scale != 1:
        parts.insert(2, f"sizes and sleeps divided by {case.scale}")
    if case.manner == READY and dry is not None and dry > _WORTH_TELLING:
        parts.append(f"but {dry:.1%} of the noise made within calls, of all rows of this run")
    return "; ".join(parts)


def wrong(manner: Manner, line: dict[str, Any]) -> str | None:
    """Return what is wrong with a program's sums: a bench of wrong sums would show nothing.

    Args:
        manner: How ours was protected.
        line: What the program said of a case.
    """
    ranks, count = line["ranks"], line["elements"]
    # Every number of a message is norm / sqrt(its length), with signs of each rank's own.
    size = norm(manner) * math.sqrt(ranks * line["messages"] / count)
    if line["bare_error"] > _FLOAT32 * size:
        return f"bare sums are off by {line['bare_error']:.3g}, at numbers of {size:.3g}"
    error = line["ours_error"]
    if not is_private(manner):
        limit = (_WIRE if manner == ENCRYPTED else _FLOAT32) * size
        return None if error <= limit else f"an error of {error:.3g}, where {limit:.3g} may be"
    due = NOISE_MULTIPLIER * CLIP * LOCAL.sum_multiple(ranks)
    spread = max(_NOISE_AGREES, _MANY / math.sqrt(2.0 * count))
    low = 0.0 if spread >= 1.0 else due * (1.0 - spread)
    if low <= error <= due * (1.0 + spread):
        return None
    return f"an error of {error:.3g} where {due:.3g} is due"
