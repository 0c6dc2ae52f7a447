"""What every algorithm must sum right over every transport, and how that is checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dither.reduce.algorithms.registry import ALGORITHMS, sum_over
from dither.reduce.endpoint import Buffer, Endpoint

NAMES = (*ALGORITHMS, "auto")
INTEGERS = ("int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float64")
# None, one, fewer than ranks, odd, and enough for several segments of a ring of two.
LENGTHS = (0, 1, 2, 5, 1000, 600_011)
SHORT_LENGTHS = LENGTHS[:-1]


@dataclass(frozen=True)
class Case:
    """One sum."""

    algorithm: str
    kind: str
    length: int


def cases(
    algorithms: Sequence[str] = NAMES,
    kinds: Sequence[str] = (*INTEGERS, *FLOATS),
    lengths: Sequence[int] = SHORT_LENGTHS,
) -> Iterator[Case]:
    """All combinations; long messages in one integer and one float type only."""
    for algorithm in algorithms:
        for kind in kinds:
            for length in lengths:
                if length < LENGTHS[-1] or kind in {"int16", "float32"}:
                    yield Case(algorithm, kind, length)


def contribution(rank: int, case: Case) -> Buffer:
    """Random bits of the whole range for integers, so that sums wrap; normal floats."""
    generator = np.random.default_rng((rank, case.length))
    kind = np.dtype(case.kind)
    if kind.kind == "f":
        return generator.normal(size=case.length).astype(kind)
    return np.frombuffer(generator.bytes(case.length * kind.itemsize), kind).copy()


def expected(world_size: int, case: Case) -> Buffer:
    """numpy's sum: modulo 2^bits for integers."""
    total = contribution(0, case)
    for rank in range(1, world_size):
        total += contribution(rank, case)
    return total


def run_case(endpoint: Endpoint, case: Case) -> Buffer:
    """This rank's result."""
    buffer = contribution(endpoint.rank, case)
    sum_over(endpoint, buffer, case.algorithm)
    return buffer


def check_case(endpoint: Endpoint, case: Case) -> str | None:
    """Run a case on one rank; return what is wrong.

    Integers must equal numpy's sum. Floats must be near it and have rank 0's bits on all ranks.
    """
    got, want = run_case(endpoint, case), expected(endpoint.world_size, case)
    right = bool(np.array_equal(got, want))
    if got.dtype.kind == "f":
        as_first = _same_as_first(endpoint, got)
        right = as_first and bool(np.allclose(got, want, rtol=1e-5, atol=1e-5))
    return None if right else f"rank {endpoint.rank}: {case}: {got[:5]}, not {want[:5]}"


def _same_as_first(endpoint: Endpoint, got: Buffer) -> bool:
    """Rank 0 sends its result round."""
    if endpoint.rank > 0:
        first = np.empty_like(got)
        endpoint.receive(0, first)
        return bool(np.array_equal(first.view(np.uint8), got.view(np.uint8)))
    for rank in range(1, endpoint.world_size):
        endpoint.send(rank, got)
    return True
