"""The plan file: what C reads is what the plan promises, number for number."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dither.errors import ConfigError, OutputError
from dither.mpirun.options import MOST_RELEASES, MpirunConfig
from dither.mpirun.plan_file import PlanFile, lease, with_room_for_a_pool
from dither.mpirun.promise import make_plan, releases_within
from dither.privacy.accountant import epsilon
from dither.privacy.events import Gaussian, Relation
from dither.privacy.plan import Plan
from dither.release.contribution import contribution_plan

POOL_SIGMA = 2.0**26  # DITHER_MAX_SIGMA_I32


def options(**changes: Any) -> MpirunConfig:
    values: dict[str, Any] = {
        "ranks": 3,
        "trust": "local",
        "clip": 1.0,
        "delta": 1e-6,
        "releases": 100,
        "noise_multiplier": 10.0,
        "program": ("./app",),
    }
    return MpirunConfig(**{**values, **changes})


def plan_file(plan: Plan, tmp_path: Path, **changes: Any) -> PlanFile:
    values: dict[str, Any] = {
        "plan": plan,
        "mode": "private",
        "socket": tmp_path / "agent",
        "token": "ab" * 32,
        "ranks": 3,
        "pool": 1 << 20,
        "warm": True,
        "timeout": 60.0,
        "route": "auto",
    }
    return PlanFile(**{**values, **changes})


def read(text: str) -> tuple[dict[str, list[str]], dict[tuple[int, int], list[str]]]:
    """Keys with their values, and lattices by ranks and logarithm of the length."""
    lines = [line.split() for line in text.splitlines()]
    grids = {(int(a), int(b)): rest for key, a, b, *rest in (x for x in lines if x[0] == "grid")}
    return {key: rest for key, *rest in lines if key != "grid"}, grids


@pytest.mark.parametrize("trust", ["local", "central"])
def test_the_lattices_are_the_plans(trust: str, tmp_path: Path) -> None:
    plan = make_plan(options(trust=trust, clip=0.3))
    keys, grids = read(plan_file(plan, tmp_path).text())
    assert keys["trust"] == [trust]
    assert float.fromhex(keys["clip"][0]) == 0.3
    assert {ranks for ranks, _ in grids} == {1, 2, 3}
    for (ranks, size), values in grids.items():
        lattice = plan.bind(0.3, 2**size, ranks)
        assert float.fromhex(values[0]) == lattice.sigma
        numbers = [-lattice.step_exponent, lattice.clamp, lattice.wire_shift]
        assert [*map(int, values[1:])] == [*numbers, lattice.wire_limit, lattice.wire_bits]
    assert {size for _, size in grids} >= {26, 34}


def test_the_first_line_says_the_format_and_all_keys_are_there(tmp_path: Path) -> None:
    text = plan_file(make_plan(options()), tmp_path, allow_clear=("MPI_MAX", "MPI_MIN")).text()
    keys, _ = read(text)
    assert text.startswith("dither-mpi 1\n")
    assert keys["allow_clear"] == ["MPI_MAX", "MPI_MIN"]
    assert keys["ranks"] == ["3"]
    assert keys["warm"] == ["1"]
    assert float(keys["timeout"][0]) == 60.0
    assert keys["socket"] == [str(tmp_path / "agent")]
    assert set(keys) == {
        *("dither-mpi", "mode", "trust", "clip", "socket", "token", "ranks", "pool", "warm"),
        *("timeout", "path", "lease", "allow_clear"),
    }


@pytest.mark.parametrize("clip", [1.0, 1.999, 1e-3, 777.0])
@pytest.mark.parametrize("z", [0.5, 8.0, 17.3, 60.0, 120.0])
def test_much_noise_still_fits_a_pool(z: float, clip: float, tmp_path: Path) -> None:
    plan = make_plan(options(noise_multiplier=z, clip=clip))
    _, grids = read(plan_file(plan, tmp_path).text())
    assert all(float.fromhex(grids[r, 26][0]) <= POOL_SIGMA for r in (1, 2, 3))
    assert {size for _, size in grids} == {26, 34}


@pytest.mark.parametrize("z", [270.0, 1000.0])
def test_very_much_noise_has_a_pool_for_shorter_messages(z: float, tmp_path: Path) -> None:
    _, grids = read(plan_file(make_plan(options(noise_multiplier=z)), tmp_path).text())
    sizes = sorted(size for ranks, size in grids if ranks == 2)
    assert len(sizes) == 3
    assert sizes[0] >= 16
    assert float.fromhex(grids[2, sizes[0]][0]) <= POOL_SIGMA < float.fromhex(grids[2, 26][0])


def test_a_coarser_lattice_never_lowers_the_noise() -> None:
    fine = replace(make_plan(options(noise_multiplier=100.0)), lattice_slack=1e-3)
    coarse = with_room_for_a_pool(fine)
    assert fine.lattice_slack < coarse.lattice_slack <= 2.0**-5
    assert coarse.event == fine.event
    for size in (16, 26, 34):
        noise = [
            p.bind(1.0, 2**size, 2).sigma * p.bind(1.0, 2**size, 2).step for p in (fine, coarse)
        ]
        assert noise[0] <= noise[1] <= noise[0] * 1.04


@pytest.mark.parametrize("clip", [1e-6, 1.0, 1000.0, 2.0**29])
@pytest.mark.parametrize(("mode", "room"), [("test", 1.0), ("encrypted", 2.0)])
def test_without_noise_integers_stay_what_they_are(
    mode: str, room: float, clip: float, tmp_path: Path
) -> None:
    plan = make_plan(options(clip=clip))
    keys, grids = read(plan_file(plan, tmp_path, mode=mode).text())
    assert keys["mode"] == [mode]
    for (ranks, _), (sigma, exponent, clamp, shift, limit, bits) in grids.items():
        step = 2.0 ** -int(exponent)
        assert float.fromhex(sigma) == 0.0
        assert (shift, bits) == ("0", "32")
        assert room * clip <= int(clamp) * step
        assert int(clamp) <= int(limit)
        assert ranks * int(limit) < 2**31
        if room * clip * ranks < 2**30:
            assert step <= 0.5


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    file = plan_file(make_plan(options()), tmp_path)
    file.write(tmp_path / "plan")
    assert (tmp_path / "plan").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "plan").read_text() == file.text()
    with pytest.raises(OutputError):
        file.write(tmp_path / "plan")


def test_too_many_ranks_for_a_lattice_are_refused(tmp_path: Path) -> None:
    plan = make_plan(options(noise_multiplier=1e6))
    with pytest.raises(ConfigError, match="lattice"):
        plan_file(plan, tmp_path).text()


@pytest.mark.parametrize(
    ("releases", "wanted"), [(1, 1), (31, 1), (32, 2), (1000, 62), (10**9, 64)]
)
def test_a_lease_is_a_small_part_of_the_releases(releases: int, wanted: int) -> None:
    assert lease(releases) == wanted


@pytest.mark.parametrize("trust", ["local", "central"])
def test_the_promise_is_that_of_one_contribution(trust: str) -> None:
    made = make_plan(options(trust=trust))
    python = contribution_plan(
        3, l2_clip=1.0, releases=100, delta=1e-6, noise_multiplier=10.0, trust=made.trust
    )
    assert replace(made, lattice_slack=python.lattice_slack) == python
    assert python.relation is Relation.REPLACE_ONE


def test_the_example_of_the_guide_keeps_its_budget() -> None:
    plan = make_plan(options(epsilon=1.0, releases=1000, noise_multiplier=None))
    assert 0.99 < plan.epsilon() <= 1.0
    assert plan.steps == 1000
    assert plan.bind(1.0, 2**16, 2).sigma <= POOL_SIGMA


def test_releases_follow_from_budget_and_noise() -> None:
    plan = make_plan(options(epsilon=3.0, releases=None, noise_multiplier=20.0))
    assert plan.epsilon(plan.steps) <= 3.0 < plan.epsilon(plan.steps + 1)
    assert plan.noise_multiplier == 20.0


def test_releases_have_an_end() -> None:
    assert releases_within(1e5, 1e3, 1e-6) == MOST_RELEASES
    one = epsilon([(Gaussian(2.0), 1)], 1e-6, Relation.REPLACE_ONE)
    assert releases_within(one * 1.0001, 2.0, 1e-6) == 1
    with pytest.raises(ConfigError, match="one release costs"):
        releases_within(one * 0.999, 2.0, 1e-6)
    assert math.isfinite(one)
