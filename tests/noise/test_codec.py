"""From values to integers and back: errors, sensitivity, clamps, and what is reachable."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dither.errors import ReleaseError
from dither.noise.codec import Encoded, Grid, decode, encode
from dither.noise.entropy import InsecureSeed
from dither.noise.reference import rounded_gaussian
from dither.privacy.lattice import Lattice

Values = np.ndarray[tuple[int], np.dtype[np.float64]]


def grid(
    exponent: int = -10, clamp: int = 10**6, shift: int = 0, bits: int = 32, ranks: int = 1
) -> Lattice:
    return Lattice(exponent, 100.0, clamp, shift, bits, ranks)


def quiet(values: Values, lattice: Lattice) -> Encoded:
    """Encode with no noise."""
    return encode(values, np.zeros(values.size, np.int64), lattice)


def vectors(bound: float) -> st.SearchStrategy[Values]:
    sizes = st.integers(0, 40)
    return sizes.flatmap(lambda n: arrays(np.float64, n, elements=st.floats(-bound, bound)))


def test_a_plans_lattice_is_a_grid() -> None:
    assert isinstance(grid(), Grid)


@settings(deadline=None)
@given(vectors(900.0), st.integers(-20, 0))
def test_rounding_moves_by_half_a_step_at_most(values: Values, exponent: int) -> None:
    lattice = grid(exponent, clamp=2**31 - 1)
    back = decode(quiet(values, lattice).message, lattice)
    assert (np.abs(back - values) <= lattice.step / 2).all()


@settings(deadline=None)
@given(vectors(100.0), st.integers(0, 12))
def test_the_wire_moves_by_half_a_wire_step_more(values: Values, shift: int) -> None:
    lattice = grid(shift=shift)
    back = decode(quiet(values, lattice).message, lattice)
    assert (np.abs(back - values) <= lattice.step / 2 + lattice.wire_step / 2).all()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_neighbours_stay_within_s_plus_gamma_root_d(data: st.DataObject) -> None:
    """The sensitivity that `Plan.bind` charges, clamp included."""
    values = data.draw(vectors(50.0))
    moved = data.draw(arrays(np.float64, values.size, elements=st.floats(-2.0, 2.0)))
    lattice = grid(data.draw(st.integers(-12, -2)), clamp=data.draw(st.integers(1, 300)))
    one, two = (quiet(v, lattice).message.astype(np.float64) for v in (values, values + moved))
    distance = float(np.linalg.norm(values + moved - values))
    rounding = lattice.step * math.sqrt(values.size)
    assert np.linalg.norm(one - two) * lattice.step <= (distance + rounding) * (1 + 1e-12)


def test_rounding_alone_can_cost_the_whole_of_gamma_root_d() -> None:
    """The charge is not slack: 64 coordinates either side of a boundary move γ√d apart."""
    lattice = grid(0)
    below, above = np.full(64, 0.4999999), np.full(64, 0.5000001)
    apart = quiet(above, lattice).message - quiet(below, lattice).message
    assert np.linalg.norm(apart) == 8.0
    assert np.linalg.norm(above - below) < 1e-5


@settings(deadline=None)
@given(vectors(1e9), st.integers(1, 1000))
def test_clamp_holds_and_is_counted(values: Values, clamp: int) -> None:
    lattice = grid(0, clamp=clamp)
    encoded = quiet(values, lattice)
    assert (np.abs(encoded.message) <= clamp).all()
    assert encoded.saturated == int((np.abs(np.rint(values)) > clamp).sum())
    inside = np.abs(np.rint(values)) <= clamp
    assert (encoded.message[inside] == np.rint(values[inside])).all()
    assert (np.sign(encoded.message[~inside]) == np.sign(values[~inside])).all()


def test_the_clamp_comes_before_the_noise() -> None:
    lattice = grid(0, clamp=10)
    noise = np.array([7, -7, 7], np.int64)
    encoded = encode(np.array([1e6, 1e6, -1e6]), noise, lattice)
    assert encoded.message.tolist() == [17, 3, -3]
    assert encoded.saturated == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_never_leave(bad: float) -> None:
    with pytest.raises(ReleaseError, match="a finite clipped sum"):
        quiet(np.array([0.0, bad, 1.0]), grid())


@pytest.mark.parametrize(
    ("noise", "wire"), [(0, 0), (7, 0), (8, 1), (9, 1), (23, 1), (24, 2), (-8, 0), (-9, -1)]
)
def test_shift_rounds_to_the_nearest_wire_step(noise: int, wire: int) -> None:
    encoded = encode(np.zeros(1), np.array([noise], np.int64), grid(shift=4))
    assert encoded.message.tolist() == [wire]


@pytest.mark.parametrize(("bits", "kind"), [(16, np.int16), (32, np.int32)])
@pytest.mark.parametrize("ranks", [1, 3, 64])
def test_the_wire_never_overflows(bits: int, kind: type, ranks: int) -> None:
    lattice = grid(0, clamp=2**40, bits=bits, ranks=ranks)
    huge = np.array([2**39, -(2**39)], np.int64)
    message = encode(np.array([1e11, -1e11]), huge, lattice).message
    assert message.dtype == kind
    total = message.copy()
    for _ in range(ranks - 1):
        total += message
    assert (total == message.astype(np.int64) * ranks).all()  # no wrap in the wire's own type
    assert message[0] == lattice.wire_limit > 0
    assert message[1] == -lattice.wire_limit


def test_inputs_zero_and_c_reach_the_same_values() -> None:
    """A float's low bits would tell them apart (Mironov 2012); multiples of γ_w do not."""
    lattice = Lattice(-12, 1500.0, 10**6, 3, 32, 1)
    clip = 1.0 + 2.0**-13 + 1e-9  # not on the lattice
    seen = []
    for value, seed in ((0.0, 1), (clip, 2)):
        noise = rounded_gaussian(lattice.sigma, 60_000, InsecureSeed(seed))
        values = decode(encode(np.full(60_000, value), noise, lattice).message, lattice)
        steps = values / lattice.wire_step
        assert (steps == np.rint(steps)).all()
        seen.append(set(steps.astype(int).tolist()))
    common = set(range(130, 380))  # within 2.1 σ of both
    assert common <= seen[0]
    assert common <= seen[1]


@settings(deadline=None)
@given(arrays(np.int32, st.integers(0, 30)), st.integers(-40, 40), st.integers(0, 30))
def test_decoding_is_exact(message: Values, exponent: int, shift: int) -> None:
    lattice = grid(exponent, shift=shift)
    values = decode(message, lattice)
    assert (np.ldexp(values, -exponent - shift) == message).all()


@settings(deadline=None)
@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(-(2**20), 2**20)))
def test_lattice_points_come_back_unchanged(points: Values) -> None:
    lattice = grid(-8, clamp=2**21)
    values = points * lattice.step
    assert (quiet(values, lattice).message == points).all()
    assert (decode(quiet(values, lattice).message, lattice) == values).all()
