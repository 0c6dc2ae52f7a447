"""`dither bench allreduce --tune` and the measured points of `--simulate`."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from dither.bench.allreduce_times import Timed, Wanted
from dither.bench.harness import Row, not_measured
from dither.bench.launch import lines_under_mpi
from dither.errors import ReduceError
from dither.reduce.algorithms.auto import TableRow, current_table, write_table
from dither.reduce.fit import Fit, Point, fit
from dither.train.run import environment

_WORKER = "dither.bench.allreduce_times"
_LIMIT = 1200.0
_SIZES = tuple(1 << power for power in (6, 10, 13, 15, 17, 19, 21, 23, 25))
_POINT_SIZES = tuple(1 << power for power in (6, 12, 16, 18, 20, 22, 24))
# Three that add up different shares of what they send, without which the fit is blind.
_POINT_ALGORITHMS = ("naive", "recursive_doubling", "ring")
_MOST_RANKS = 16


def world_sizes() -> tuple[int, ...]:
    """Return 2, 4, ... up to the cores: with more ranks than cores times mean little."""
    cores = min(len(os.sched_getaffinity(0)), _MOST_RANKS)
    return tuple(1 << k for k in range(1, cores.bit_length())) or (2,)


def times(wanted: Wanted, *, ranks: int) -> Iterator[Timed]:
    """Yield what ranks of this host measure.

    Raises:
        ReduceError: MPI is missing, or a rank failed.
    """
    arguments = [json.dumps(asdict(wanted))]
    for line in lines_under_mpi(_WORKER, arguments, ranks=ranks, limit=_LIMIT):
        yield Timed(**json.loads(line))


def tune(*, full: bool = False, sizes: Sequence[int] = _SIZES) -> Iterator[Row]:
    """Measure all algorithms over all transports and write the table that ``auto`` reads.

    Args:
        full: More rounds.
        sizes: Bytes.

    Yields:
        One row an algorithm, transport, number of ranks and size, against the fastest.

    Raises:
        ReduceError: MPI is missing, or a rank failed; the old table stays.
        OutputError: The table cannot be written.
    """
    found: list[Timed] = []
    for ranks in world_sizes():
        wanted = Wanted(sizes=tuple(sizes), rounds=15 if full else 7)
        for _, group in groupby(times(wanted, ranks=ranks), lambda t: (t.transport, t.size)):
            together = list(group)
            found += together
            yield from _rows(together)
    chosen = table_rows(found)
    if not chosen:
        raise ReduceError(
            expected="at least one transport to measure",
            got="none: " + "; ".join(each.reason for each in found),
            fix="see the reasons",
        )
    write_table(current_table().updated(chosen, _measured(found)))


def table_rows(found: Sequence[Timed]) -> list[TableRow]:
    """Return what was fastest, as rows of the table; sizes that choose alike make one row."""
    rows: list[TableRow] = []
    ran = sorted(
        (each for each in found if each.seconds is not None),
        key=lambda each: (each.transport, each.world_size, each.size),
    )
    for (transport, ranks, size), group in groupby(
        ran, lambda each: (each.transport, each.world_size, each.size)
    ):
        fastest = sorted(group, key=lambda each: each.seconds or 0.0)
        algorithm = fastest[0].algorithm
        fallback = next(each.algorithm for each in fastest if each.algorithm != "backend")
        last = rows[-1] if rows and rows[-1].group == (transport, "one_host", ranks) else None
        if last is None or (last.algorithm, last.fallback) != (algorithm, fallback):
            start = 0 if last is None else size
            rows.append(TableRow(transport, "one_host", ranks, start, algorithm, fallback))
    return rows


def measured_fit(*, sizes: Sequence[int] = _POINT_SIZES) -> Fit:
    """Return latency, link and adding of this machine's shared memory, from two ranks.

    Raises:
        ReduceError: MPI or shared memory is missing, or a rank failed.
        ConfigError: The times tell too little.
    """
    wanted = Wanted(("shared_memory",), _POINT_ALGORITHMS, tuple(sizes))
    points = []
    for found in times(wanted, ranks=2):
        if found.seconds is None:
            raise ReduceError(
                expected="shared memory between two ranks", got=found.reason, fix="see the reason"
            )
        points.append(Point(found.algorithm, found.world_size, found.size, found.seconds))
    return fit(points)


def _rows(found: Sequence[Timed]) -> Iterator[Row]:
    ran = [each for each in found if each.seconds is not None]
    for each in found:
        if each.seconds is None:
            yield not_measured(f"tune/{each.transport}", "fastest", each.reason)
    if not ran:
        return
    best = min(ran, key=lambda each: each.seconds or 0.0)
    for each in ran:
        ratio = (each.seconds or 0.0) / (best.seconds or 1.0)
        yield Row(
            case=f"tune/{each.transport}/{each.world_size}/{each.size}/{each.algorithm}",
            metric="time",
            unit="s",
            ours=each.seconds,
            baseline=best.seconds,
            baseline_name="fastest",
            ratio=ratio,
            ratio_low=ratio,
            ratio_high=ratio,
            pairs=1,
            detail=f"{each.size} bytes of int32, {each.world_size} ranks; fastest {best.algorithm}",
        )


def _measured(found: Sequence[Timed]) -> dict[str, str]:
    about = environment()
    ranks = sorted({each.world_size for each in found})
    transports = sorted({each.transport for each in found if each.seconds is not None})
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "processor": str(about.get("cpu", "unknown")),
        "what": f"{', '.join(transports)}; {', '.join(map(str, ranks))} ranks of one host",
    }
