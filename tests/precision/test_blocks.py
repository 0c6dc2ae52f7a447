"""Scales: what shares one, what they are, and MX against the tables of OCP."""

from __future__ import annotations

import math

import pytest
import torch

from dither.precision.blocks import (
    BLOCK,
    SMALLEST,
    Per,
    fraction_of,
    join,
    magnitude,
    power_within,
    shared_power,
    split,
)
from dither.precision.formats import FORMATS, FP4_E2M1, FP8_E4M3, FP8_E5M2, INT8, Format
from dither.precision.rounding import Rounding

ISOLATING = (Per.EXAMPLE, Per.ROW, Per.BLOCK)


@pytest.mark.parametrize(
    ("per", "shape"),
    [
        (Per.TENSOR, (1, 1, 1)),
        (Per.CHANNEL, (1, 1, 5)),
        (Per.EXAMPLE, (3, 1, 1)),
        (Per.ROW, (3, 4, 1)),
    ],
)
def test_what_shares_a_scale(per: Per, shape: tuple[int, ...]) -> None:
    x = torch.randn(3, 4, 5)
    found = magnitude(x, per, -1)
    assert found.shape == shape
    reduced = [axis for axis in range(3) if shape[axis] == 1]
    assert torch.equal(found, x.abs().amax(reduced, keepdim=True))


@pytest.mark.parametrize(("shape", "axis"), [((3, 70), 1), ((70, 3), 0), ((2, 33, 5), 1)])
def test_blocks_lie_along_their_axis(shape: tuple[int, ...], axis: int) -> None:
    x = torch.randn(shape)
    blocks = split(x, axis)
    assert blocks.shape[-1] == BLOCK
    assert torch.equal(join(blocks, axis, shape[axis]), x)
    assert torch.equal(blocks[..., 0, :], x.movedim(axis, -1)[..., :BLOCK])


@pytest.mark.parametrize("bound", [448.0, 57344.0, 6.0, 127.0, 7.0])
def test_the_least_power_under_which_nothing_saturates(bound: float) -> None:
    exact = bound * torch.exp2(torch.arange(-100.0, 100.0))
    next_up = torch.nextafter(exact, exact * 2)
    powers = torch.exp2(torch.arange(-100.0, 100.0))
    assert torch.equal(power_within(exact, bound), powers)
    assert torch.equal(power_within(next_up, bound), powers * 2)


def test_shared_scales_of_ocp_mx() -> None:
    """OCP MX v1.0, section 6.3: the largest power of two in the block over that of the element."""
    largest = torch.tensor([1.0, 1.99, 2.0, 6.0, 7.9, 8.0, 1e-30, 0.0, 3e38, float("nan")])
    found = shared_power(largest, 2)
    expected = [2.0 ** (math.floor(math.log2(v)) - 2) for v in (1.0, 1.99, 2.0, 6.0, 7.9, 8.0)]
    assert found[:6].tolist() == expected
    assert found[7] == 2.0**-127  # E8M0's least
    assert math.isnan(found[9])
    exponents = torch.log2(found[:9].double())
    assert torch.equal(exponents, exponents.round())  # E8M0 holds powers of two alone
    assert exponents.min() >= -127
    assert exponents.max() <= 127


@pytest.mark.parametrize(
    ("found", "emax", "largest"),
    [(FP4_E2M1, 2, 6.0), (FP8_E4M3, 8, 448.0), (FP8_E5M2, 15, 57344.0), (INT8, 6, 127.0)],
    ids=lambda v: getattr(v, "name", None),
)
def test_mx_formats_to_the_nearest(found: Format, emax: int, largest: float) -> None:
    """Element format, emax and largest normal number of OCP MX v1.0, tables 1 to 6.

    MXINT8's elements are k/64; scale and element together are the same numbers.
    """
    x = torch.randn(5, 96) * torch.exp2(torch.randint(-20, 20, (5, 96)).float())
    blocks = x.view(5, 3, 32)
    top = blocks.abs().amax(-1, keepdim=True).double()
    shared = torch.exp2(torch.floor(torch.log2(top)) - emax)
    elements = (blocks / shared).float()
    unit = found.quantize(
        torch.cat([elements.clamp(-largest, largest), torch.full((5, 3, 1), largest)], -1)
    )[..., :-1]
    assert torch.equal(found.quantize(x, per=Per.BLOCK).view(5, 3, 32).double(), unit * shared)


def test_mx_saturates_to_the_nearest_and_not_by_chance() -> None:
    x = torch.zeros(1, 32)
    x[0, 0] = 7.5  # 2^2 · 1.875: beyond E2M1's largest, 6, at the shared scale of one
    assert FP4_E2M1.quantize(x, per=Per.BLOCK)[0, 0] == 6.0
    drawn = torch.stack(
        [FP4_E2M1.quantize(x, per=Per.BLOCK, rounding=Rounding.STOCHASTIC)[0, 0] for _ in range(99)]
    )
    assert {*drawn.tolist()} == {6.0, 8.0}


@pytest.mark.parametrize(
    "found", [f for f in FORMATS.values() if f.bits < 32], ids=lambda f: f.name
)
@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("per", ISOLATING)
@pytest.mark.parametrize("axis", [1, -1])
def test_no_scale_is_shared_by_examples(
    found: Format, rounding: Rounding, per: Per, axis: int
) -> None:
    """What becomes of an example stays to the last bit, whatever the others are."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 33, 40, generator=generator)
    u = torch.rand(x.shape, generator=generator)
    kept = found.quantize(x, rounding=rounding, per=per, axis=axis, uniform=u)[2]
    for others in (0.0, 1e6, 1e-30, float("inf"), float("nan")):
        changed = torch.full_like(x, others)
        changed[2] = x[2]
        again = found.quantize(changed, rounding=rounding, per=per, axis=axis, uniform=u)[2]
        assert torch.equal(again, kept)


def test_a_scale_a_tensor_would_be_shared() -> None:
    """The test above can fail: this is what it is there to find."""
    x = torch.randn(6, 40)
    kept = INT8.quantize(x, per=Per.TENSOR)[2]
    x[0] *= 100.0
    assert not torch.equal(INT8.quantize(x, per=Per.TENSOR)[2], kept)
    assert [per.isolates for per in Per] == [False, False, False, True, True]


def test_no_scale_is_remembered() -> None:
    x = torch.randn(6, 40)
    before = INT8.quantize(x)
    INT8.quantize(x * 1e5)
    assert torch.equal(INT8.quantize(x), before)


def test_scales_are_normal_numbers() -> None:
    assert fraction_of(torch.tensor([1e-44, 0.0]), 127.0).tolist() == [SMALLEST, SMALLEST]
    assert math.isnan(fraction_of(torch.tensor([float("nan")]), 127.0)[0])


@pytest.mark.parametrize(
    "found", [f for f in FORMATS.values() if f.bits < 32], ids=lambda f: f.name
)
@pytest.mark.parametrize("per", [Per.ROW, Per.BLOCK])
def test_zeros_stay_zeros_where_subnormal_numbers_are_flushed(found: Format, per: Per) -> None:
    """E8M0's least scale is a subnormal float32, zero then: a row of zeros would become NaN."""
    x = torch.zeros(2, 40)
    x[1] = torch.randn(40)
    usual = found.quantize(x, per=per)
    assert torch.set_flush_denormal(True)
    try:
        flushed = found.quantize(x, per=per)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(usual, flushed)
    assert not flushed[0].any()
