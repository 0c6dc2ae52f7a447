"""Sums that are computed while they leave: the same numbers, in public pieces, when asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dither.clipping.clipping import ClippedSum, Clipping
from dither.clipping.emission import Emission, buckets
from dither.clipping.engine import ClippingEngine, Method
from dither.clipping.loss import per_example
from dither.clipping.styles import PerLayer
from dither.errors import ReleaseError
from dither.noise.entropy import InsecureSeed
from dither.privacy.events import SamplerKind
from dither.privacy.ticket import SampleTicket
from dither.release.ahead import Spans

LOSS = per_example(nn.CrossEntropyLoss(reduction="none"))


class Model(nn.Module):
    """A table, layers, and one layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 6)
        self.first = nn.Linear(6, 9)
        self.unused = nn.Linear(3, 5)
        self.last = nn.Linear(9, 3)

    def forward(self, places: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.first(self.table(places))))
        return found


def examples(rows: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    places = torch.randint(40, (rows,), generator=generator)
    return places, torch.randint(3, (rows,), generator=generator)


def ticket() -> SampleTicket:
    return SampleTicket(SamplerKind.POISSON, 0.1, secret=True)


def engine(
    bucket_size: int | None = None,
    spans: Spans | None = None,
    method: Method = "bookkeeping",
    **clipping: Any,
) -> ClippingEngine:
    torch.manual_seed(2)
    bound = Clipping(0.3, **clipping)
    return ClippingEngine(
        Model(),
        LOSS,
        bound,
        InsecureSeed(3),
        method=method,
        bucket_size=bucket_size,
        spans=spans,
    )


def pieces(found: ClippedSum) -> list[dict[str, Tensor]]:
    """Copies: engines use their memory again."""
    return [
        {name: t.to_dense() if t.is_sparse else t.clone() for name, t in chunk.items()}
        for chunk in found.bounded.chunks
    ]


def merged(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}


@given(st.lists(st.integers(0, 50), max_size=12), st.none() | st.integers(1, 80))
def test_buckets_hold_every_parameter_once_and_no_more_than_fits(
    sizes: list[int], most: int | None
) -> None:
    named = {f"p{index}": size for index, size in enumerate(sizes)}
    found = buckets(named, most)
    flat = [name for bucket in found for name in bucket]
    if most is None:
        assert found == (tuple(named),)
        return
    assert flat == list(reversed(named))
    held = [sum(named[name] for name in bucket) for bucket in found]
    assert all(total <= most or len(bucket) == 1 for total, bucket in zip(held, found, strict=True))
    firsts = [named[bucket[0]] for bucket in found[1:]]
    assert all(one + more > most for one, more in zip(held, firsts, strict=False))


@pytest.mark.parametrize("bucket_size", [1, 30, 64, 10_000])
@pytest.mark.parametrize(
    "clipping", [{}, {"microbatch_size": 4}, {"style": PerLayer()}], ids=["flat", "parts", "layers"]
)
def test_cuts_change_no_bit(bucket_size: int, clipping: dict[str, Any]) -> None:
    whole = pieces(engine(**clipping)(examples(), ticket()))
    cut = pieces(engine(bucket_size, **clipping)(examples(), ticket()))
    assert len(whole) == 1
    assert len(cut) == (1 if bucket_size == 10_000 else len(cut)) > 0
    assert bucket_size == 10_000 or len(cut) > 2
    again = merged(cut)
    assert again.keys() == whole[0].keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole[0].items())
    assert again["unused.weight"].abs().sum() == 0.0
    assert all(again[name].abs().sum() > 0 for name in again if "unused" not in name)


def test_the_reference_leaves_in_the_same_pieces() -> None:
    books = pieces(engine(30)(examples(), ticket()))
    slow = pieces(engine(30, method="reference")(examples(), ticket()))
    assert [list(part) for part in books] == [list(part) for part in slow]
    for name, tensor in merged(books).items():
        torch.testing.assert_close(tensor.double(), merged(slow)[name].double())


def test_products_are_computed_when_they_are_asked_for() -> None:
    spans = Spans()
    made = engine(1, spans)
    found = made(examples(), ticket())
    names = [name for name, _ in made.model.named_parameters()]
    assert spans.list() == []
    asked = iter(found.bounded.chunks)
    for count, name in enumerate(reversed(names), 1):
        assert list(next(asked)) == [name]
        seen = [span.name for span in spans.list()]
        assert seen == [f"product {each}" for each in reversed(names[-count:])]
    assert next(asked, None) is None
    assert isinstance(found.bounded.chunks, Emission)
    assert len(found.bounded.chunks) == len(names)
    # Again: nothing is computed twice, and nothing is added twice.
    first = {name: t.clone() for c in found.bounded.chunks for name, t in c.items()}
    assert all(
        torch.equal(made.emission.total(n).to_dense(), t.to_dense()) for n, t in first.items()
    )
    assert len(spans.list()) == len(names)
    assert all(span.seconds >= 0.0 for span in spans.list())


def test_an_order_of_ones_own_changes_no_bit() -> None:
    wanted = merged(pieces(engine()(examples(), ticket())))
    made = engine(30)
    made(examples(), ticket())
    for name in ("first.weight", "last.bias", "table.weight", "unused.bias", "first.bias"):
        assert torch.equal(made.emission.total(name).to_dense(), wanted[name])


@pytest.mark.parametrize("rows", [0, 1])
def test_the_pieces_do_not_depend_on_the_batch(rows: int) -> None:
    usual = pieces(engine(30)(examples(), ticket()))
    other = pieces(engine(30)(examples(rows), ticket()))
    shapes = [[(name, t.shape) for name, t in part.items()] for part in usual]
    assert [[(name, t.shape) for name, t in part.items()] for part in other] == shapes
    if not rows:
        assert all(t.abs().sum() == 0.0 for part in other for t in part.values())


def test_examples_that_are_not_finite_stay_out_of_every_piece() -> None:
    x, y = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3
    x[4] = torch.inf

    def summed(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        made = ClippingEngine(model, LOSS, Clipping(0.3), InsecureSeed(1), bucket_size=1)
        return merged(pieces(made((x, y), ticket())))

    kept = torch.arange(9) != 4
    with_it, without = summed(x, y), summed(x[kept], y[kept])
    assert all(bool(torch.isfinite(t).all()) for t in with_it.values())
    for name, tensor in without.items():
        torch.testing.assert_close(with_it[name].double(), tensor.double())


def test_a_sum_half_read_is_gone_with_the_next_batch() -> None:
    made = engine(30)
    asked = iter(made(examples(), ticket()).bounded.chunks)
    next(asked)
    made(examples(5), ticket())
    with pytest.raises(ReleaseError, match="another batch"):
        next(asked)


def test_a_table_of_few_rows_stays_sparse() -> None:
    found = engine(1)(examples(3), ticket())
    parts: dict[str, Tensor] = {}
    for chunk in found.bounded.chunks:
        parts.update(chunk)
    assert parts["table.weight"].is_sparse


def test_a_frugal_engine_keeps_no_sum() -> None:
    torch.manual_seed(2)
    made = ClippingEngine(
        Model(), LOSS, Clipping(0.3), InsecureSeed(3), bucket_size=30, frugal=True
    )
    wanted = merged(pieces(engine()(examples(), ticket())))
    for _ in range(2):
        found = made(examples(), ticket())
        seen: dict[str, Tensor] = {}
        for chunk in found.bounded.chunks:
            held = [name for name, total in made._sums.items() if total._dense is not None]
            assert set(held) <= set(chunk)
            seen.update({n: t.to_dense() if t.is_sparse else t.clone() for n, t in chunk.items()})
        assert all(torch.equal(seen[name], tensor) for name, tensor in wanted.items())
        with pytest.raises(ReleaseError, match="read once"):
            list(found.bounded.chunks)
