"""What the ranks of `dither bench allreduce` run; rank 0 writes a row a line."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict

import numpy as np
from jaxtyping import Float

from dither.bench.allreduce import without
from dither.bench.allreduce_cases import CASES, KIB, MIB, AllReduceCase
from dither.bench.allreduce_contenders import CLIP, CONTENDERS
from dither.bench.allreduce_group import Contender, Group
from dither.bench.harness import Row, summarise
from dither.errors import DitherError

# By size from so many bytes on: pairs (quick, full) and calls in a row.
_EFFORT = {
    0: ((20, 60), 32),
    256 * KIB: ((20, 60), 4),
    8 * MIB: ((10, 30), 1),
    64 * MIB: ((7, 20), 1),
}
_AGREES = 0.2  # of the error that a sum must have


def measured(case: AllReduceCase, group: Group, *, full: bool) -> Row:
    """Hold one contest, or return the row that says why not."""
    values = contribution(group.rank, case.size // 4)
    wanted = true_sum(group.world_size, values.size)
    found: list[Contender] = []
    try:
        for name in (case.ours, case.baseline):
            problem = _make(group, name, values, found)
            if problem is None:
                problem = group.problem(_check(group, name, found[-1], wanted))
            if problem is not None:
                return without(case, problem)
        (quick, many), calls = next(
            effort for size, effort in reversed(_EFFORT.items()) if case.size >= size
        )
        ours, baseline = group.contest(*found, pairs=many if full else quick, calls=calls)
    finally:
        for contender in found:
            contender.close()
    return summarise(
        case.name,
        "s",
        ours=ours,
        baseline=baseline,
        baseline_name=case.baseline_name,
        detail=f"{group.world_size} ranks, one host; ours {found[0].detail}; "
        f"{case.baseline_name} {found[1].detail}",
        target=case.target,
    )


def contribution(rank: int, size: int) -> Float[np.ndarray, " size"]:
    """Return what a rank sums: a direction of its own, twice as long as the clip bound."""
    values = np.random.default_rng(rank).standard_normal(size, np.float32)
    values *= np.float32(2.0 * CLIP / math.sqrt(float(values @ values)))
    return values


def true_sum(world_size: int, size: int) -> Float[np.ndarray, " size"]:
    """Return the sum of all ranks' contributions, unclipped."""
    total = contribution(0, size)
    for rank in range(1, world_size):
        total += contribution(rank, size)
    return total


def _make(
    group: Group, name: str, values: Float[np.ndarray, " size"], found: list[Contender]
) -> str | None:
    """Make a contender on all ranks; return what kept any rank from it."""
    problem = None
    try:
        found.append(CONTENDERS[name](group, values.copy()))
    except (DitherError, ImportError) as error:
        problem = f"{name}: {error}"
    return group.problem(problem)


def _check(
    group: Group, name: str, contender: Contender, wanted: Float[np.ndarray, " size"]
) -> str | None:
    """Return what is wrong with a contender's sum: a bench of wrong sums would show nothing."""
    group.timed(contender.call, contender.prepare, 1)
    error = contender.result() - wanted * (0.5 if contender.clipped else 1.0)
    rms = math.sqrt(float(np.square(error, dtype=np.float64).mean()))
    if contender.error == 0.0:
        right = rms <= 1e-5 * math.sqrt(float(np.square(wanted, dtype=np.float64).mean()))
    else:
        right = abs(rms / contender.error - 1.0) < _AGREES
    return None if right else f"{name}: an error of {rms:.3g} where {contender.error:.3g} is due"


def main(arguments: list[str]) -> None:
    """Measure the cases that rank 0 was told of."""
    options = json.loads(arguments[0])
    wanted = [tuple(key) for key in options["cases"]]
    with Group() as group:
        for case in CASES:
            if (case.name, case.baseline) in wanted:
                row = measured(case, group, full=options["full"])
                if group.rank == 0:
                    sys.stdout.write(json.dumps(asdict(row)) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
