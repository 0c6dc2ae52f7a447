"""Group-wise clipping in one pass: parts come during the backward pass, the same bits as in two."""

from __future__ import annotations

from typing import Any, final

import pytest
import torch
from tests.clipping.test_emission import LOSS, Model, examples, merged, pieces, ticket
from torch import Tensor, nn

from dither.clipping.arrivals import Receiver
from dither.clipping.clipping import ClippedSum, Clipping
from dither.clipping.emission import Emission
from dither.clipping.engine import ClippingEngine
from dither.clipping.styles import Flat, PerLayer, Style
from dither.noise.entropy import InsecureSeed
from dither.release.bounded_sum import BoundedSum


@final
class Taking(Receiver):
    """Takes totals as they are ready."""

    def __init__(self) -> None:
        self.begun: list[BoundedSum] = []
        self.groups: list[tuple[str, ...]] = []
        self.totals: dict[str, Tensor] = {}

    def begin(self, bounded: BoundedSum) -> None:
        self.begun.append(bounded)

    def ready(self, names: tuple[str, ...]) -> None:
        (bounded,) = self.begun
        assert isinstance(bounded.chunks, Emission)
        self.groups.append(names)
        for name in names:
            self.totals[name] = bounded.chunks.total(name).to_dense().clone()


def made(style: Style, **clipping: Any) -> ClippingEngine:
    torch.manual_seed(2)
    bound = Clipping(0.3, style=style, **clipping)
    return ClippingEngine(Model(), LOSS, bound, InsecureSeed(3), bucket_size=30)


def third(engine: ClippingEngine, data: Any) -> tuple[Taking, ClippedSum]:
    """The third sum: examples are checked anew at the first two."""
    for _ in range(2):
        engine(data, ticket(), Taking())
    taking = Taking()
    return taking, engine(data, ticket(), taking)


@pytest.mark.parametrize("clipping", [{}, {"microbatch_size": 4}], ids=["whole", "parts"])
def test_one_pass_gives_the_bits_of_two(clipping: dict[str, Any]) -> None:
    data = examples(24)
    two = made(PerLayer(), **clipping)(data, ticket())
    wanted = merged(pieces(two))
    taking, found = third(made(PerLayer(), **clipping), data)
    assert taking.begun == [found.bounded]
    layers = {"table.weight"}, {"first.weight", "first.bias"}, {"last.weight", "last.bias"}
    assert [set(group) for group in taking.groups] == list(reversed(layers))
    assert all(torch.equal(total, wanted[name]) for name, total in taking.totals.items())
    again = merged(pieces(found))
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
    assert torch.allclose(found.diagnostics._norms, two.diagnostics._norms, rtol=1e-12)
    assert found.diagnostics.batch_size == 24
    assert found.diagnostics.loss == two.diagnostics.loss


def test_a_flat_style_takes_two_passes() -> None:
    taking, found = third(made(Flat()), examples())
    assert taking.begun == []
    assert merged(pieces(found))["last.weight"].abs().sum() > 0


def test_an_empty_batch_has_nothing_to_take() -> None:
    taking, found = third(made(PerLayer()), examples(0))
    assert taking.begun == []
    assert all(t.abs().sum() == 0 for t in merged(pieces(found)).values())


def test_a_course_that_was_not_checked_takes_two_passes() -> None:
    engine = made(PerLayer())
    for call in range(1, 6):  # checked at the first, and anew at calls 2 and 4
        taking = Taking()
        engine(examples(), ticket(), taking)
        assert len(taking.begun) == (call in {3, 5})


class Half(nn.Module):
    """Its first layer's gradient is infinite where an input is; its last one's never is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.sigmoid(self.first(x)))
        return found


def test_a_gradient_that_is_not_finite_counts_as_zero_in_its_group() -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    y = torch.arange(12) % 3

    def summed(x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], ClippedSum]:
        torch.manual_seed(5)
        engine = ClippingEngine(Half(), LOSS, Clipping(0.3, style=PerLayer()), InsecureSeed(3))
        _, found = third(engine, (x, y))
        return merged(pieces(found)), found

    x[7] = torch.tensor([torch.inf, 1.0, 1.0, 1.0])
    kept = torch.arange(12) != 7
    (whole, found), (without, _) = summed(x, y), summed(x[kept], y[kept])
    assert found.diagnostics.non_finite == 1
    for name in ("first.weight", "first.bias"):
        assert bool(torch.isfinite(whole[name]).all())
        torch.testing.assert_close(whole[name].double(), without[name].double())
    moved = sum(
        float((whole[n].double() - without[n].double()).square().sum())
        for n in ("last.weight", "last.bias")
    )
    assert moved**0.5 <= 0.3 / 2**0.5 * (1 + 1e-5)
