"""Simulated sums carry the noise that theory says, from real draws of every rank."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dither.errors import ConfigError
from dither.noise.key import Key
from dither.noise.pool import FreshNoise
from dither.privacy.trust import CENTRAL, LOCAL, Trust
from dither.reduce import simulate as module
from dither.reduce.networks import NETWORKS
from dither.reduce.simulate import ErrorPoint, measured_error, simulate, simulated_plan, world_sizes

FALSE_ALARM = 1e-7  # of each verdict below, in place of the 10⁻³ that figures show
SIZES = [2, 3, 4, 8, 16, 64, 256, 512] + [
    pytest.param(size, marks=pytest.mark.full) for size in (1024, 2048, 4096, 8192)
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONFIDENCE", 1.0 - FALSE_ALARM)


def _trust(name: str, world_size: int) -> Trust:
    return {
        "central": CENTRAL,
        "local": LOCAL,
        "one colluder": Trust("distributed", 1),
        "half collude": Trust("distributed", world_size // 2),
    }[name]


@pytest.mark.parametrize("name", ["central", "one colluder", "half collude", "local"])
@pytest.mark.parametrize("world_size", SIZES)
def test_the_error_is_theorys_and_neither_two_thirds_nor_three_halves(
    world_size: int, name: str
) -> None:
    point = measured_error(_trust(name, world_size), world_size)
    assert point.agrees()
    assert not point.agrees(2 / 3)
    assert not point.agrees(3 / 2)
    assert point.coordinates == 4096


def test_theory_is_the_tables() -> None:
    points = {name: measured_error(_trust(name, 16), 16) for name in ("central", "local")}
    half = measured_error(_trust("half collude", 16), 16)
    assert (points["central"].theory, points["local"].theory) == (1.0, 4.0)
    assert half.theory == pytest.approx(math.sqrt(2.0))


def test_noise_on_one_rank_only_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The privacy mutant: all other ranks send what they have."""

    class Encoder(module.Encoder):  # type: ignore[misc]
        made = 0

        def __init__(self, lattice: object, noise: object) -> None:
            Encoder.made += 1
            silent = replace(lattice, sigma=1e-9)  # type: ignore[type-var]
            super().__init__(lattice if Encoder.made == 1 else silent, noise)

    monkeypatch.setattr(module, "Encoder", Encoder)
    assert not measured_error(LOCAL, 4).agrees()


def test_one_key_for_all_ranks_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise R times adds up to R, not √R."""
    shared = bytes(range(32))
    monkeypatch.setattr(module, "Key", lambda: Key.agreed(shared))
    point = measured_error(LOCAL, 4)
    assert not point.agrees()
    assert point.rms == pytest.approx(4.0, rel=0.1)


def test_the_lattice_is_the_one_of_so_many_ranks() -> None:
    few, many = measured_error(LOCAL, 2), measured_error(LOCAL, 300)
    assert (few.wire_bits, many.wire_bits) == (16, 32)


def test_sums_of_the_largest_world_fit_the_wire() -> None:
    for trust in module.trusts(8192):
        lattice = simulated_plan(trust, 8192).bind(1.0, 1 << 26, 8192)
        message = FreshNoise(Key()).encode(np.ones(1 << 12, np.float32), lattice).message
        assert np.abs(message).max() * 8192 < 2**31


@pytest.mark.parametrize(("largest", "sizes"), [(2, (2,)), (8, (2, 4, 8)), (11, (2, 4, 8, 11))])
def test_world_sizes(largest: int, sizes: tuple[int, ...]) -> None:
    assert world_sizes(largest) == sizes


@pytest.mark.parametrize("largest", [-1, 0, 1, 8193])
def test_other_worlds_are_refused(largest: int) -> None:
    with pytest.raises(ConfigError, match="ranks from 2 to 8192"):
        world_sizes(largest)


@pytest.mark.parametrize("coordinates", [0, 1, (1 << 12) + 1])
def test_a_sample_outside_the_message_is_refused(coordinates: int) -> None:
    with pytest.raises(ConfigError, match="drawn"):
        simulate(2, networks=NETWORKS, coordinates=coordinates, message=1 << 12)


def test_a_simulation_has_every_point_and_tells_errors_as_they_come() -> None:
    told: list[ErrorPoint] = []
    found = simulate(8, networks=NETWORKS, coordinates=256, message=1 << 16, tell=told.append)
    assert tuple(told) == found.errors
    assert len(found.errors) == 3 * 3
    protections = {point.protection for point in found.times}
    assert protections == {
        "clear",
        *(f"{name}{s}" for name in ("private", "masked", "encrypted") for s in ("", "/sustained")),
    }
    assert len(found.times) == 3 * 3 * len(protections)
    assert all(point.seconds > 0 for point in found.times)
    assert min(vars(found.speed).values()) > 0
    times = {(p.network, p.protection, p.world_size): p.seconds for p in found.times}
    assert all(
        times[n, f"{p}/sustained", r] > times[n, p, r]
        for (n, p, r) in times
        if f"{p}/sustained" in protections
    )
    json.dumps(found.to_json(), allow_nan=False)
