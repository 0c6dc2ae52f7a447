"""From values to integers and back: errors, sensitivity, clamps, and what is reachable."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from dither.errors import ConfigError, ReleaseError
from dither.noise.codec import Encoded, Grid, decode, encode, encode_ready, message_type
from dither.noise.key import Key
from dither.noise.reference import encode_reference
from dither.noise.rounded import rounded_gaussian
from dither.noise.simd import available, using
from dither.privacy.lattice import Lattice

Values = np.ndarray[tuple[int], np.dtype[Any]]
FLOATS = [np.float32, np.float64]
MATERIAL = hashlib.sha256(b"test_codec").digest()


def grid(
    exponent: int = -10, clamp: int = 10**6, shift: int = 0, bits: int = 32, ranks: int = 1
) -> Lattice:
    return Lattice(exponent, 100.0, clamp, shift, bits, ranks)


def ready(values: Values, noise: Any, lattice: Grid) -> Encoded:
    """Encode with this noise."""
    return encode_ready(values, np.array(noise, np.int32), lattice)


def quiet(values: Values, lattice: Grid) -> Encoded:
    """Encode with no noise."""
    return ready(values, np.zeros(values.size), lattice)


def vectors(bound: float) -> st.SearchStrategy[Values]:
    floats = st.floats(-bound, bound)
    return st.integers(0, 40).flatmap(lambda n: arrays(np.float64, n, elements=floats))


def test_a_plans_lattice_is_a_grid() -> None:
    assert isinstance(grid(), Grid)


# ---- the promises of one coordinate and of the vector --------------------------------------------


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
@given(vectors(1e9), st.integers(0, 1000))
def test_clamp_holds_and_is_counted(values: Values, clamp: int) -> None:
    lattice = grid(0, clamp=clamp)
    encoded = quiet(values, lattice)
    assert (np.abs(encoded.message) <= clamp).all()
    assert encoded.saturated == int((np.abs(np.rint(values)) > clamp).sum())
    inside = np.abs(np.rint(values)) <= clamp
    assert (encoded.message[inside] == np.rint(values[inside])).all()
    outside = encoded.message[~inside]
    assert (outside == clamp * np.sign(values[~inside])).all()


def test_the_clamp_comes_before_the_noise() -> None:
    encoded = ready(np.array([1e6, 1e6, -1e6]), [7, -7, 7], grid(0, clamp=10))
    assert encoded.message.tolist() == [17, 3, -3]
    assert encoded.saturated == 3


@pytest.mark.parametrize(
    ("noise", "wire"), [(0, 0), (7, 0), (8, 1), (9, 1), (23, 1), (24, 2), (-8, 0), (-9, -1)]
)
def test_shift_rounds_to_the_nearest_wire_step(noise: int, wire: int) -> None:
    assert ready(np.zeros(1), [noise], grid(shift=4)).message.tolist() == [wire]


@pytest.mark.parametrize(("bits", "kind"), [(16, np.int16), (32, np.int32)])
@pytest.mark.parametrize("ranks", [1, 3, 64])
def test_the_wire_never_overflows(bits: int, kind: type, ranks: int) -> None:
    lattice = grid(0, clamp=2**40, bits=bits, ranks=ranks)
    huge = [2**31 - 1, -(2**31)]
    message = ready(np.array([1e11, -1e11]), huge, lattice).message
    assert message.dtype == kind == message_type(lattice)
    total = message.copy()
    for _ in range(ranks - 1):
        total += message
    assert (total == message.astype(np.int64) * ranks).all()  # no wrap in the wire's own type
    assert message[0] == lattice.wire_limit > 0
    assert message[1] == -lattice.wire_limit


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_value_up_to_the_wires_ends_can_be_reached(ranks: int) -> None:
    """One wire step beyond the last one is held back, and nothing before it."""
    lattice = grid(0, clamp=2**20, bits=16, ranks=ranks)
    limit = (2**15 - 1) // ranks
    assert lattice.wire_limit == limit
    points = np.arange(-limit - 3, limit + 4)
    message = quiet(points.astype(np.float64), lattice).message
    assert (message == np.clip(points, -limit, limit)).all()


def test_inputs_zero_and_c_reach_the_same_values() -> None:
    """A float's low bits would tell them apart (Mironov 2012); multiples of γ_w do not."""
    lattice = Lattice(-12, 1500.0, 10**6, 3, 32, 1)
    clip = 1.0 + 2.0**-13 + 1e-9  # not on the lattice
    seen = []
    for value in (0.0, clip):
        values = decode(encode(np.full(60_000, value), lattice, Key()).message, lattice)
        steps = values / lattice.wire_step
        assert (steps == np.rint(steps)).all()
        seen.append(set(steps.astype(int).tolist()))
    common = set(range(130, 380))  # within 2.1 σ of both: three missed have probability < 1e-15
    assert len(common - seen[0]) <= 2
    assert len(common - seen[1]) <= 2


# ---- the same integers as the oracle, step by step -----------------------------------------------


@st.composite
def lattices(draw: Callable[..., Any]) -> Lattice:
    """Every grid that the core takes; σ only where noise is drawn."""
    return Lattice(
        step_exponent=draw(st.integers(-60, 60) | st.sampled_from([-500, 500])),
        sigma=draw(st.floats(1e-3, 2.0**26)),
        clamp=draw(st.integers(0, 2**50) | st.integers(0, 2000)),
        wire_shift=draw(st.integers(0, 48)),
        wire_bits=draw(st.sampled_from([16, 32])),
        world_size=draw(st.integers(1, 100)),
    )


def ties_and_ends(lattice: Lattice, kind: type, generator: np.random.Generator) -> Values:
    """Values that a codec gets wrong: ties, neighbours of ties, clamps, zeros, ends of the type."""
    halves = generator.integers(-50, 50, 40) + 0.5
    ends = lattice.clamp + np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    steps = np.concatenate([halves, ends, -ends, np.arange(-5.0, 5.0)])
    with np.errstate(over="ignore", under="ignore"):
        near: Values = np.ldexp(steps, lattice.step_exponent).astype(kind)
        plain: Values = (generator.normal(0, 30, 60) * lattice.step).astype(kind)
    info = np.finfo(kind)
    odd = [0.0, -0.0, info.tiny, -info.smallest_subnormal, info.max, info.min, 1.0, -1.0]
    around = [np.nextafter(near, kind(np.inf)), np.nextafter(near, kind(-np.inf))]
    values: Values = np.concatenate([near, *around, plain, np.array(odd, kind)]).astype(kind)
    finite: Values = generator.permutation(values[np.isfinite(values)])
    return finite


def same(one: Encoded, two: Encoded) -> bool:
    return (
        one.message.dtype == two.message.dtype
        and one.message.tolist() == two.message.tolist()
        and one.saturated == two.saturated
    )


@settings(deadline=None, max_examples=400)
@given(lattices(), st.sampled_from(FLOATS), st.integers(0, 2**32), st.sampled_from(available()))
@example(Lattice(500, 1.0, 2**50, 48, 32, 1), np.float32, 0, "portable")
@example(Lattice(-500, 1.0, 2**50, 0, 32, 1), np.float64, 0, "portable")
@example(Lattice(-10, 1.0, 0, 0, 16, 1), np.float64, 0, "portable")
def test_ready_noise_gives_the_oracles_integers(
    lattice: Lattice, kind: type, seed: int, simd: str
) -> None:
    """Any grid, type, noise, tail length and instruction set: equal, and the noise is spent."""
    generator = np.random.default_rng(seed)
    values = ties_and_ends(lattice, kind, generator)
    values = values[: generator.integers(0, values.size + 1)]
    widest = 2 ** int(generator.integers(1, 32)) - 1
    noise = generator.integers(-widest - 1, widest, values.size, np.int32, endpoint=True)
    expected = encode_reference(values.astype(np.float64), noise.astype(np.int64), lattice)
    kept = values.copy()
    with using(simd):
        assert same(encode_ready(values, noise, lattice), expected)
    assert not noise.any()
    assert (values == kept).all()


@settings(deadline=None, max_examples=150)
@given(lattices(), st.sampled_from(FLOATS), st.integers(0, 2**32), st.sampled_from(available()))
def test_fresh_noise_gives_the_oracles_integers(
    lattice: Lattice, kind: type, seed: int, simd: str
) -> None:
    """The noise is that of `rounded_gaussian` from the same place of a twin key."""
    generator = np.random.default_rng(seed)
    values: Values = np.tile(ties_and_ends(lattice, kind, generator), 8)[
        : generator.integers(0, 1500)
    ]
    cipher = str(generator.choice(["chacha20", "aes256"])) if simd != "portable" else "chacha20"
    key, twin = (Key.agreed(MATERIAL, cipher=cipher) for _ in range(2))
    for _ in range(2):
        noise = rounded_gaussian(lattice.sigma, values.size, twin)
        expected = encode_reference(values.astype(np.float64), noise, lattice)
        with using(simd):
            assert same(encode(values, lattice, key), expected)
        assert key.position == twin.position == key.position


def test_a_wide_sigma_and_clamp_stay_exact() -> None:
    """σ of 2^40 steps, the clamp at 2^50 and a shift of 20: everything at its limit."""
    lattice = Lattice(-30, 2.0**40, 2**50, 20, 32, 1)
    values: Values = np.ldexp(np.random.default_rng(0).uniform(-1.2, 1.2, 4000), 20)
    key, twin = (Key.agreed(MATERIAL) for _ in range(2))
    expected = encode_reference(values, rounded_gaussian(2.0**40, 4000, twin), lattice)
    assert same(encode(values, lattice, key), expected)
    assert 200 < expected.saturated < 1200


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("bits", [16, 32])
def test_noise_has_the_grids_sigma(kind: type, bits: int) -> None:
    """χ² of 200 000 coordinates, false alarm 1e-7; 0.98 and 1.02 of σ are told apart."""
    lattice = Lattice(-10, 1234.5, 10**6, 3, bits, 1)
    noise = decode(encode(np.zeros(200_000, kind), lattice, Key()).message, lattice)
    square = float(np.sum((noise / lattice.step) ** 2))
    low, high = stats.chi2.isf([1 - 5e-8, 5e-8], noise.size)
    wire = (1 + 2.0 ** (2 * lattice.wire_shift)) / 12  # two roundings, of 1 and of 2^shift
    assert low < square / (lattice.sigma**2 + wire) < high
    for wrong in (0.98, 1.02):
        assert not low < square / ((wrong * lattice.sigma) ** 2 + wire) < high


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("simd", available())
@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_never_leave(
    bad: float, bits: int, kind: type, simd: str
) -> None:
    """At any place: what was written is zeros again, the noise is spent, nothing is returned."""
    lattice = grid(bits=bits)
    for size, place in ((1, 0), (3, 1), (500, 0), (500, 255), (500, 499)):
        values: Values = np.ones(size, kind)
        values[place] = bad
        with using(simd):
            noise = np.full(size, 9, np.int32)
            one, two = (np.full(size, 5, message_type(lattice)) for _ in range(2))
            with pytest.raises(ReleaseError, match="a finite clipped sum"):
                encode(values, lattice, Key(), out=one)
            with pytest.raises(ReleaseError, match="a finite clipped sum"):
                encode_ready(values, noise, lattice, out=two)
            assert not one.any()
            assert not two.any()
            assert not noise.any()


OUTSIDE: list[dict[str, Any]] = [
    {"step_exponent": 501},
    {"step_exponent": -501},
    {"step_exponent": 2**40},
    {"clamp": -1},
    {"clamp": 2**50 + 1},
    {"clamp": 2**64},
    {"wire_shift": -1},
    {"wire_shift": 49},
    {"wire_bits": 8},
    {"wire_bits": 64},
]


@pytest.mark.parametrize("change", OUTSIDE, ids=str)
def test_grids_beyond_the_limits_are_refused(change: dict[str, Any]) -> None:
    """Also for no values at all: so a caller can ask before anything is spent."""
    numbers = {"step_exponent": -10, "sigma": 9.0, "clamp": 100, "wire_shift": 0, "wire_bits": 32}
    lattice = Lattice(**{**numbers, "world_size": 1, **change})
    for size in (0, 5):
        values, noise, key = np.zeros(size), np.full(size, 3, np.int32), Key()
        with pytest.raises(ConfigError):
            encode(values, lattice, key)
        with pytest.raises(ConfigError):
            encode_ready(values, noise, lattice)
        with pytest.raises(ConfigError):
            decode(np.zeros(size, message_type(lattice)), lattice)
        assert key.position == 0
        assert (noise == 3).all()


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, 2.0**40 * 1.0001])
def test_a_sigma_out_of_range_is_refused(sigma: float) -> None:
    lattice = Lattice(-10, sigma, 100, 0, 32, 1)
    for size in (0, 5):
        with pytest.raises(ConfigError, match="a sigma in"):
            encode(np.zeros(size), lattice, Key())


@pytest.mark.parametrize(
    "values",
    [np.zeros(16)[::2], np.zeros(8)[::-1], np.zeros(8, np.float16), np.zeros(8, ">f8")],
    ids=["strided", "reversed", "half", "big-endian"],
)
def test_values_the_core_cannot_read_in_place_are_refused(values: Values) -> None:
    with pytest.raises(ConfigError):
        encode(values, grid(), Key())
    with pytest.raises(ConfigError):
        quiet(values, grid())


def test_ready_noise_must_be_as_many_int32_that_can_be_wiped() -> None:
    values = np.zeros(8)
    fixed = np.ones(8, np.int32)
    fixed.flags.writeable = False
    for noise in (np.ones(16, np.int32)[::2], fixed):
        with pytest.raises(ConfigError, match="a contiguous one-dimensional int32 array"):
            encode_ready(values, noise, grid())
        assert noise.all()


@pytest.mark.parametrize("bits", [16, 32])
def test_a_message_goes_where_the_caller_says(bits: int) -> None:
    lattice = grid(bits=bits)
    key, twin = (Key.agreed(MATERIAL) for _ in range(2))
    values = np.linspace(-3, 3, 1001)
    room = np.zeros(3000, message_type(lattice))
    encoded = encode(values, lattice, key, out=room[1000:2001])
    assert np.shares_memory(encoded.message, room)
    assert room[1000:2001].tolist() == encode(values, lattice, twin).message.tolist()
    assert not room[:1000].any()
    assert not room[2001:].any()
    wrong = np.zeros(1001, np.int16 if bits == 32 else np.int32)
    for out in (wrong, room[:2002:2]):
        with pytest.raises(ConfigError):
            encode(values, lattice, key, out=out)
        with pytest.raises(ConfigError):
            encode_ready(values, np.ones(1001, np.int32), lattice, out=out)


SIZES = """
import numpy as np
from dither.errors import ConfigError
from dither.noise.codec import decode, encode, encode_ready
from dither.noise.key import Key
from dither.noise.pool import NoisePool
from dither.privacy.lattice import Lattice
grid, values = Lattice(0, 9.0, 10, 0, 32, 1), np.zeros(100)
ints = lambda size: np.full(size, 7, np.int32)
key, pool = Key(), NoisePool(9.0)
for size in (0, 99, 101, 10**6):
    out, noise, floats = ints(size), ints(size), np.full(size, 7.0)
    for call in (
        lambda: encode(values, grid, key, out=out),
        lambda: encode_ready(values, ints(100), grid, out=out),
        lambda: encode_ready(values, noise, grid),
        lambda: pool.encode(values, grid, out=out),
        lambda: decode(ints(100), grid, out=floats),
    ):
        try:
            call()
        except ConfigError:
            print("refused", all((array == 7).all() for array in (out, noise, floats)))
assert key.position == 0
pool.close()
"""


def test_sizes_are_checked_by_the_core_too() -> None:
    """Without this suite's checks of shapes, in a process of its own: no byte beyond an array."""
    done = subprocess.run(
        [sys.executable, "-c", SIZES], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["refused True"] * 20


# ---- and back ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    arrays(st.sampled_from([np.int16, np.int32]), st.integers(0, 30)),
    st.integers(-40, 40),
    st.integers(0, 30),
    st.sampled_from(available()),
)
def test_decoding_is_exact(message: Values, exponent: int, shift: int, simd: str) -> None:
    lattice = grid(exponent, shift=shift, bits=8 * message.itemsize)
    with using(simd):
        values = decode(message, lattice)
    assert (np.ldexp(values, -exponent - shift) == message).all()


@settings(deadline=None, max_examples=200)
@given(
    arrays(st.sampled_from([np.int16, np.int32]), st.integers(0, 50)),
    st.sampled_from(FLOATS),
    st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12),
    st.integers(-40, 40),
    st.sampled_from(available()),
)
def test_a_scale_is_one_product_rounded_to_the_type(
    message: Values, kind: type, scale: float, exponent: int, simd: str
) -> None:
    """Bit for bit what numpy makes of the exact values in two more passes, at every tail length."""
    lattice = grid(exponent, shift=3, bits=8 * message.itemsize)
    room: Values = np.full(message.size + 2, 7, kind)
    with using(simd):
        values = decode(message, lattice, scale=scale, out=room[1:-1])
    assert np.shares_memory(values, room) or not message.size
    assert values.tobytes() == (decode(message, lattice) * scale).astype(kind).tobytes()
    assert room[0] == room[-1] == 7


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf, -math.inf, 1e-300, 1e300])
def test_a_scale_that_would_lose_the_values_is_refused(scale: float) -> None:
    out = np.ones(3)
    with pytest.raises(ConfigError, match="a scale with a magnitude between"):
        decode(np.zeros(3, np.int32), grid(), scale=scale, out=out)
    assert out.tolist() == [1.0] * 3


def test_values_go_to_arrays_that_the_core_can_write() -> None:
    fixed = np.ones(3)
    fixed.flags.writeable = False
    for out in (np.ones(6)[::2], fixed):
        with pytest.raises(ConfigError, match="a contiguous one-dimensional float32 or float64"):
            decode(np.zeros(3, np.int32), grid(), out=out)
        assert out.tolist() == [1.0] * 3


def test_decoding_another_width_is_refused() -> None:
    for message in (np.zeros(4, np.int16), np.zeros(4, np.int64), np.zeros(8, np.int32)[::2]):
        with pytest.raises(ConfigError, match="a message of the wire's integers"):
            decode(message, grid())


@settings(deadline=None)
@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(-(2**20), 2**20)))
def test_lattice_points_come_back_unchanged(points: Values) -> None:
    lattice = grid(-8, clamp=2**21)
    values = points * lattice.step
    assert (quiet(values, lattice).message == points).all()
    assert (decode(quiet(values, lattice).message, lattice) == values).all()
