"""What comes back is the clipped sum with the noise that was promised, no less and no more."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tests.mpirun.harness import Programs, Run, deviates

pytestmark = pytest.mark.xdist_group("mpirun")

COUNT = 4000
CLIP, NOISE = 64.0, 0.5  # wide enough for integers to be rounded without harm


def sums(run: Run, rank: int) -> dict[str, np.ndarray]:
    """The noise that came back, by FORM/TYPE."""
    return {
        name: np.fromfile(Path(f"{run.prefix}.{rank}.{name.replace('/', '.')}"))
        for name in run.lines(rank)
        if "/" in name
    }


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_local_noise_follows_the_law(programs: Programs, path: str) -> None:
    """Each rank adds zC, so the sum of two carries √2 of it: independent between ranks."""
    run = programs.private(
        "law", str(COUNT), path=path, clip=CLIP, noise_multiplier=NOISE, pool=1 << 16
    )
    assert run.status == 0, run.err
    assert run.ended()
    sigma = NOISE * CLIP * math.sqrt(2)
    first, second = sums(run, 0), sums(run, 1)
    assert len(second) >= 16
    for name, noise in second.items():
        assert noise.size == COUNT
        assert not deviates(noise, sigma), (name, noise.std(), sigma)
        for factor in (2 / 3, 3 / 2):
            assert deviates(noise, factor * sigma), name
    # All ranks get the same bits, and no call the noise of another.
    assert first
    for name, noise in first.items():
        assert np.array_equal(noise, second[name]), name
    correlation = np.corrcoef(np.stack(list(second.values()))) - np.eye(len(second))
    assert np.abs(correlation).max() < 7 / math.sqrt(COUNT)


def test_central_noise_is_shared_by_the_ranks(programs: Programs) -> None:
    run = programs.private(
        "law", str(COUNT), trust="central", clip=CLIP, noise_multiplier=NOISE, ranks=3
    )
    assert run.status == 0, run.err
    for name, noise in sums(run, 2).items():
        assert not deviates(noise, NOISE * CLIP), (name, noise.std())
        assert deviates(noise, NOISE * CLIP * math.sqrt(3) / 1.5), name


@pytest.mark.full
def test_one_rank_alone_has_noise(programs: Programs) -> None:
    run = programs.private("law", str(COUNT), clip=CLIP, noise_multiplier=NOISE, ranks=1)
    assert run.status == 0, run.err
    for name, noise in sums(run, 0).items():
        assert not deviates(noise, NOISE * CLIP), (name, noise.std())


def test_the_law_is_a_test_that_can_fail() -> None:
    noise = np.random.default_rng(3).normal(size=COUNT)
    assert not deviates(noise, 1.0)
    assert deviates(noise, math.sqrt(2))
    assert deviates(noise, 1 / math.sqrt(2))
    assert deviates(np.clip(noise, -1, 1), float(np.clip(noise, -1, 1).std()))


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_contributions_are_clipped_and_what_is_no_number_counts_as_zero(
    programs: Programs, path: str
) -> None:
    sigma = 0.03 * math.sqrt(2)
    run = programs.private("clip", clip=1.0, noise_multiplier=0.03, path=path)
    assert run.status == 0, run.err
    expected = {
        "large": (1.0, 1.0),
        "negative": (1.0, -1.0),
        "nan": (1.0, 0.0),
        "infinite": (1.0, 0.0),
        "far": (1.0, 1.0),
        "beyond": (1.0, 0.0),
        "tiny": (1.0, 0.0),
        "inside": (1.0, 0.25),
        "integer": (1.0, 1.0),
    }
    for name, values in expected.items():
        for rank in range(2):
            (line,) = run.told(rank, name)
            for found, value in zip(map(float, line.split()), values, strict=True):
                assert abs(found - value) < 7.5 * sigma, (name, found, value)
    # The length along the diagonal is that of two vectors of length C, not of 300,000 halves.
    assert abs(float(run.told(0, "spread")[0]) - 2.0) < 7.5 * sigma
    assert run.ended()
