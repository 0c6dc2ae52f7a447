"""`dither bench allreduce`: private sums against MPICH's and gloo's unprotected ones, two ranks.

All contenders live in the same two processes, started by mpiexec, and take turns. The time of a
call is that of its slower rank, after a barrier. Noise and pads that a protection can prepare are
ready before a call, as between two training steps, and their making is not counted; the cases
called ``sustained`` make them within the call. L2 clipping is within ours always.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace

from dither.bench.allreduce_cases import CASES, NAMES, AllReduceCase, chosen
from dither.bench.harness import Row, not_measured
from dither.bench.launch import lines_under_mpi, why_no_mpi
from dither.errors import ReduceError

__all__ = ["CASES", "NAMES", "rows"]

RANKS = 2
_WORKER = "dither.bench.allreduce_worker"
_LIMIT = {False: 900.0, True: 3600.0}


def rows(*, full: bool = False, cases: Collection[str] = ()) -> Iterator[Row]:
    """Yield one row a contest.

    Args:
        full: More pairs.
        cases: Names; all when empty.
    """
    waiting = list(chosen(tuple(cases)))
    reason = why_no_mpi()
    while waiting and reason is None:
        arguments = [json.dumps({"full": full, "cases": [_key(case) for case in waiting]})]
        try:
            for line in lines_under_mpi(_WORKER, arguments, ranks=RANKS, limit=_LIMIT[full]):
                yield Row(**json.loads(line))
                waiting.pop(0)
        except ReduceError as error:
            if waiting:  # the contest that ended the ranks; the others go on with new ones
                yield without(waiting.pop(0), error.got)
    for case in waiting:
        yield without(case, reason or "the ranks ended before")


def without(case: AllReduceCase, reason: str) -> Row:
    """Return the row of a contest that could not be held."""
    return replace(not_measured(case.name, case.baseline_name, reason), target=case.target)


def _key(case: AllReduceCase) -> tuple[str, str]:
    return case.name, case.baseline
