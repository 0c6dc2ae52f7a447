"""A tap on all memory that processes share: clear contributions never stand in it."""

from __future__ import annotations

import re

import pytest
from tests.mpirun.harness import Programs, Run

pytestmark = pytest.mark.xdist_group("mpirun")


def found(run: Run) -> dict[str, int]:
    """How many shared mappings held a contribution after each form, on any rank."""
    holding: dict[str, int] = {}
    for rank in range(run.ranks):
        for line in run.lines(rank):
            match = re.fullmatch(r"(\w+) mappings (\d+) holding (\d+)", line)
            if match is not None:
                assert int(match[2]) > 0  # there was something to search
                holding[match[1]] = holding.get(match[1], 0) + int(match[3])
    return holding


def near(run: Run) -> int:
    lines = [line for rank in range(run.ranks) for line in run.lines(rank) if " near " in line]
    assert lines
    return sum(int(line.split()[-1]) for line in lines)


def test_the_tap_finds_what_a_bare_program_sends(programs: Programs) -> None:
    run = programs.bare("tap")
    assert run.status == 0, run.err
    assert all(found(run).values())
    assert near(run) > 0


@pytest.mark.parametrize("path", ["shm", pytest.param("mpi", marks=pytest.mark.full)])
def test_nothing_clear_leaves_a_process_and_nothing_clear_comes_back(
    programs: Programs, path: str
) -> None:
    run = programs.private("tap", clip=1e-3, noise_multiplier=1e3, path=path)
    assert run.status == 0, run.err
    assert run.ended()
    holding = found(run)
    assert len(holding) >= 6
    assert set(holding.values()) == {0}, holding
    assert near(run) == 0


@pytest.mark.full
def test_nothing_clear_leaves_even_where_noise_is_off(programs: Programs) -> None:
    """Numbers on a wire are lattice steps: the values themselves are never shared."""
    run = programs.private("tap", clip=1e-3, ranks=3, insecure_zero_noise=True)
    assert run.status == 0, run.err
    assert set(found(run).values()) == {0}
