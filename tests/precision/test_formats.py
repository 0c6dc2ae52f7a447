"""Every format against an exact oracle: its grid, its bias and its variance."""

from __future__ import annotations

import bisect
import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from dither.errors import ConfigError
from dither.precision.blocks import Per
from dither.precision.formats import (
    BF16,
    FLOAT32,
    FORMATS,
    FP4_E2M1,
    FP8_E4M3,
    FP8_E5M2,
    INT4,
    INT8,
    LUQ_FP4,
    Floating,
    Format,
    Integer,
    parse_format,
)
from dither.precision.rounding import Rounding

NEAREST, STOCHASTIC = Rounding.NEAREST, Rounding.STOCHASTIC
SCALED = (FP8_E4M3, FP8_E5M2, INT8, INT4, FP4_E2M1, LUQ_FP4)
LOW = (BF16, *SCALED)
PERS = (Per.TENSOR, Per.CHANNEL, Per.EXAMPLE, Per.ROW, Per.BLOCK)
DRAWS = 1 << 10

# OFP8 v1.0, tables 1 and 2; OCP MX v1.0, table 5; the others' own papers.
LARGEST = {
    "fp8_e4m3": 448,
    "fp8_e5m2": 57344,
    "fp4_e2m1": 6,
    "int8": 127,
    "int4": 7,
    "luq-fp4": 64,
}


def numbers(found: Format) -> list[Fraction]:
    """Return the grid of a format at scale one, by its definition and in exact arithmetic."""
    magnitudes: set[Fraction]
    if isinstance(found, Integer):
        magnitudes = {Fraction(k) for k in range(LARGEST[found.name] + 1)}
    elif found is LUQ_FP4:
        magnitudes = {Fraction(0), *(Fraction(2) ** k for k in range(7))}
    else:
        bias, mantissa = {"fp8_e4m3": (7, 3), "fp8_e5m2": (15, 2), "fp4_e2m1": (1, 1)}[found.name]
        exponents = range(1 << (found.bits - 1 - mantissa))
        magnitudes = {
            Fraction(2) ** (max(e, 1) - bias) * (Fraction(m, 1 << mantissa) + (1 if e else 0))
            for e, m in itertools.product(exponents, range(1 << mantissa))
        }
        magnitudes = {m for m in magnitudes if m <= LARGEST[found.name]}  # the rest: NaN, infinity
    return sorted({*magnitudes, *(-m for m in magnitudes)})


def neighbours(grid: list[Fraction], value: Fraction) -> tuple[Fraction, Fraction]:
    place = bisect.bisect_right(grid, value)
    below = grid[max(place - 1, 0)]
    return below, below if below == value else grid[min(place, len(grid) - 1)]


def at_scale_one(found: Format, rows: int = 40) -> Tensor:
    """Return values whose scale is one: the largest of each row is the format's largest."""
    generator = torch.Generator().manual_seed(3)
    top = float(LARGEST[found.name])
    signs = torch.where(torch.rand(rows, 15, generator=generator) < 0.5, -1.0, 1.0)
    spread = torch.exp2(-14.0 * torch.rand(rows, 15, generator=generator))
    return torch.cat([top * signs * spread, torch.full((rows, 1), top)], 1)


def uniforms(x: Tensor) -> Tensor:
    """Return all draws of a fine, even grid for every value: their mean is exact."""
    levels = (torch.arange(DRAWS) + 0.5) / DRAWS
    return levels.view(-1, *[1] * x.ndim).expand(-1, *x.shape)


@pytest.mark.parametrize("found", SCALED, ids=lambda f: f.name)
def test_the_grid_is_the_sources(found: Format) -> None:
    grid = numbers(found)
    assert max(grid) == LARGEST[found.name]
    assert len(grid) == {"luq-fp4": 15, "fp4_e2m1": 15, "int4": 15, "int8": 255}.get(
        found.name, {"fp8_e4m3": 2 * 126 + 1, "fp8_e5m2": 2 * 123 + 1}.get(found.name)
    )
    values = torch.tensor([[float(g) for g in grid]])
    for rounding in Rounding:  # what is on the grid stays, whatever the rounding
        assert torch.equal(found.quantize(values, rounding=rounding), values)


@pytest.mark.parametrize("found", SCALED, ids=lambda f: f.name)
def test_nearest_is_the_nearest_number(found: Format) -> None:
    grid = numbers(found)
    x = at_scale_one(found)
    for value, rounded in zip(x.flatten(), found.quantize(x).flatten(), strict=True):
        exact, got = Fraction(float(value)), Fraction(float(rounded))
        assert got in grid
        assert abs(got - exact) == min(abs(g - exact) for g in neighbours(grid, exact))


@pytest.mark.parametrize("found", SCALED, ids=lambda f: f.name)
def test_bias_and_variance_of_stochastic_rounding(found: Format) -> None:
    """The mean is x; the variance (x - below)(above - x): over all draws, without chance."""
    grid = numbers(found)
    x = at_scale_one(found, rows=8)
    u = uniforms(x)
    drawn = found.quantize(
        x.expand(u.shape).contiguous(), rounding=STOCHASTIC, per=Per.ROW, uniform=u
    ).double()
    mean, variance = drawn.mean(0), drawn.var(0, correction=0)
    for value, m, v in zip(x.flatten(), mean.flatten(), variance.flatten(), strict=True):
        exact = Fraction(float(value))
        below, above = neighbours(grid, exact)
        step = float(above - below) or 1.0
        assert abs(float(m) - float(exact)) <= step / DRAWS
        assert abs(float(v) - float((exact - below) * (above - exact))) <= step**2 * 2 / DRAWS


@pytest.mark.parametrize("found", LOW, ids=lambda f: f.name)
@pytest.mark.parametrize("per", PERS)
def test_stochastic_rounding_draws_without_bias(found: Format, per: Per) -> None:
    """Torch's own draws, 1000 of each; by Bernstein's bound a false alarm in 1e-6 of runs."""
    torch.manual_seed(5)
    x = torch.randn(6, 3, 40) * torch.exp2(torch.randn(6, 3, 1) * 3)
    count, unlikely = 1000, 25.0

    def rounded(values: Tensor, uniform: Tensor | None = None) -> Tensor:
        return found.quantize(
            values, rounding=STOCHASTIC, per=per, axis=-1, uniform=uniform
        ).double()

    ends = rounded(x, torch.zeros_like(x)), rounded(x, torch.full_like(x, 1 - 2.0**-24))
    below, above = torch.minimum(*ends), torch.maximum(*ends)
    assert ((below <= x + 1e-6 * x.abs()) & (x - 1e-6 * x.abs() <= above)).all()
    # Repeats lie along the middle axis, where they change no scale.
    drawn = rounded(x.repeat(1, count, 1)).view(6, count, 3, 40)
    variance = ((x - below) * (above - x)).clamp(min=0)
    alarm = (2 * unlikely * variance / count).sqrt() + unlikely / count * (above - below)
    assert ((drawn.mean(1) - x).abs() <= alarm + 1e-5 * x.abs()).all()
    assert drawn.std(1).max() > 0


def test_nearest_rounding_is_biased_where_stochastic_is_not() -> None:
    """The statistic above is able to fail: to the nearest, small gradients vanish."""
    x = torch.cat([torch.full((1, 63), 0.1), torch.full((1, 1), 10.0)], 1)
    for found in (INT4, FP4_E2M1, LUQ_FP4):
        assert found.quantize(x)[0, 0] != pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("found", [FP8_E4M3, FP8_E5M2], ids=lambda f: f.name)
def test_fp8_is_the_librarys_own_cast(found: Floating) -> None:
    kind = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[found.name]
    x = at_scale_one(found, rows=200)
    assert torch.equal(found.quantize(x), x.to(kind).float())


def test_bf16_is_the_librarys_own_cast_and_truncation_by_chance() -> None:
    x = torch.randn(260) * torch.exp2(torch.arange(260.0) - 140)  # subnormal ones too
    assert torch.equal(BF16.quantize(x), x.bfloat16().float())
    low = (x.view(torch.int32) & 0xFFFF).double() / 0x10000
    u = uniforms(x)
    drawn = BF16.quantize(x.expand(u.shape), rounding=STOCHASTIC, uniform=u)
    down = (x.view(torch.int32) & ~0xFFFF).view(torch.float32)
    ups = (drawn != down).double().mean(0)
    assert torch.allclose(ups, low, atol=1.0 / DRAWS, rtol=0)


def test_luq_has_the_papers_underflow_and_logarithmic_rounding() -> None:
    """Chmiel et al. 2112.10769, section 4: α = max / 2^6, T(x) = ±α with probability |x|/α."""
    top = 12.8
    alpha = top / 64
    x = torch.tensor([[0.3 * alpha, -0.8 * alpha, 1.25 * alpha, -3.0 * alpha, 40 * alpha, top]])
    u = uniforms(x)[:, 0]
    drawn = LUQ_FP4.quantize(x.expand(u.shape).contiguous(), rounding=STOCHASTIC, uniform=u)
    expected = [
        {0.0: 0.7, 1.0: 0.3},
        {0.0: 0.2, -1.0: 0.8},
        {1.0: 0.75, 2.0: 0.25},
        {-2.0: 0.5, -4.0: 0.5},
        {32.0: 0.75, 64.0: 0.25},
        {64.0: 1.0},
    ]
    for column, law in zip((drawn / alpha).T, expected, strict=True):
        found = {round(float(v), 3): float((column == v).double().mean()) for v in column.unique()}
        assert found == pytest.approx(law, abs=2e-3)


def test_luq_to_the_nearest_splits_powers_in_their_middle() -> None:
    x = torch.tensor([[0.49, 0.51, 1.49, 1.51, 2.9, 3.1, 47.0, 49.0, 64.0]])
    assert LUQ_FP4.quantize(x).tolist() == [[0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 32.0, 64.0, 64.0]]


@pytest.mark.parametrize("found", LOW, ids=lambda f: f.name)
@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("per", [Per.EXAMPLE, Per.ROW, Per.BLOCK])
@pytest.mark.parametrize("stray", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_example(
    found: Format, rounding: Rounding, per: Per, stray: float
) -> None:
    x = torch.randn(4, 5, 48)
    u = torch.rand(x.shape)
    clean = found.quantize(x, rounding=rounding, per=per, uniform=u)
    x[2, 3, 40] = stray
    soiled = found.quantize(x, rounding=rounding, per=per, uniform=u)
    assert not torch.isfinite(soiled[2, 3, 40])
    others = torch.tensor([0, 1, 3])
    assert torch.equal(clean[others], soiled[others])


@pytest.mark.parametrize("found", [FLOAT32, *LOW], ids=lambda f: f.name)
@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 7), (3, 0), (1,), (2, 33), (2, 3, 4, 5)])
def test_shapes_and_zeros(
    found: Format, rounding: Rounding, per: Per, shape: tuple[int, ...]
) -> None:
    if not shape and per is not Per.TENSOR:
        return
    for x in (torch.zeros(shape), torch.full(shape, 1e-44), torch.full(shape, 1e37)):
        y = found.quantize(x, rounding=rounding, per=per)
        assert y.shape == x.shape
        assert y.dtype == torch.float32
        assert torch.isfinite(y).all()
        assert torch.equal(y == 0, x == 0) or x.max() < 1e-38
    assert (found.quantize(torch.zeros(shape), rounding=rounding, per=per) == 0).all()


@pytest.mark.parametrize("found", LOW, ids=lambda f: f.name)
@pytest.mark.parametrize("per", [Per.EXAMPLE, Per.ROW, Per.BLOCK])
def test_large_tensors_are_encoded_in_pieces_all_the_same(found: Format, per: Per) -> None:
    x = torch.randn(40, 30, 512)
    assert x.numel() > 1 << 19
    u = torch.rand(x.shape)
    for rounding, draws in ((NEAREST, None), (STOCHASTIC, u)):
        whole = found.quantize(x, rounding=rounding, per=per, uniform=draws)
        rows = [
            found.quantize(
                x[i : i + 1],
                rounding=rounding,
                per=per,
                uniform=None if draws is None else draws[i : i + 1],
            )
            for i in range(40)
        ]
        assert torch.equal(whole, torch.cat(rows))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("found", LOW, ids=lambda f: f.name)
@pytest.mark.parametrize("per", [Per.EXAMPLE, Per.ROW, Per.BLOCK])
def test_under_vmap_as_without(found: Format, per: Per) -> None:
    x, u = torch.randn(4, 3, 40), torch.rand(3, 40)
    for rounding in Rounding:

        def one(row: Tensor, how: Rounding = rounding) -> Tensor:
            return found.quantize(row[None], rounding=how, per=per, uniform=u[None])[0]

        together = torch.func.vmap(one, randomness="different")(x)
        apart = found.quantize(x, rounding=rounding, per=per, uniform=u.expand(4, 3, 40))
        assert torch.equal(together, apart)


def test_values_have_no_gradient_and_inputs_stay() -> None:
    x = torch.randn(3, 64, requires_grad=True)
    before = x.detach().clone()
    for found in FORMATS.values():
        assert not found.quantize(x, rounding=STOCHASTIC).requires_grad
    assert torch.equal(x.detach(), before)


def test_codes_times_scale_are_the_values() -> None:
    x = torch.randn(5, 70)
    encoded = INT8.encode(x, per=Per.ROW)
    assert encoded.codes.dtype == torch.int8
    assert encoded.scale is not None
    assert encoded.scale.shape == (5, 1)
    assert torch.equal(encoded.values(), encoded.codes * encoded.scale)
    assert (encoded.codes.abs().amax(1) == 127).all()
    assert BF16.encode(x).codes.dtype == torch.bfloat16


def test_a_format_by_its_name() -> None:
    assert parse_format("fp4_e2m1") is FP4_E2M1
    with pytest.raises(ConfigError, match="int8, int4"):
        parse_format("int3")
