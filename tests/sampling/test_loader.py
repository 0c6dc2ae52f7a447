"""The loader: empty batches, workers, tickets, and what cannot be Poisson."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from dither.errors import SamplingError
from dither.noise.entropy import InsecureSeed
from dither.sampling.loader import PoissonLoader, check_loader, poisson_loader
from dither.sampling.poisson import PoissonSampler

ROWS = 60


def _data(rows: int = ROWS) -> TensorDataset:
    return TensorDataset(
        torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3), torch.arange(rows)
    )


def _loader(rate: float, batches: int = 8, **options: Any) -> PoissonLoader:
    sampler = PoissonSampler(ROWS, rate, InsecureSeed(4))
    return PoissonLoader(_data(), sampler, batches, **options)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(5, 2))


class Named(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.full((2, 2), float(index)), "y": torch.tensor(index)}


def test_batches_are_the_rows_that_the_sampler_drew() -> None:
    twin = PoissonSampler(ROWS, 0.2, InsecureSeed(4))
    for batch in _loader(0.2):
        rows = twin.draw().rows
        x, y = batch
        assert y.tolist() == rows.tolist()
        assert torch.equal(x, _data()[:][0][rows])
        assert batch.size == len(rows) == len(x)
        assert batch.seconds >= 0.0


def test_length_is_the_number_of_batches() -> None:
    loader = _loader(0.1, batches=5)
    assert len(loader) == 5
    assert len(list(loader)) == 5


def test_an_empty_batch_has_zero_rows_of_the_right_shape() -> None:
    for batch in _loader(1e-9, batches=2):
        x, y = batch
        assert batch.size == 0
        assert (x.shape, x.dtype) == ((0, 3), torch.float32)
        assert (y.shape, y.dtype) == ((0,), torch.int64)


def test_an_empty_batch_of_a_nested_data_set() -> None:
    loader = PoissonLoader(Named(), PoissonSampler(ROWS, 1e-9, InsecureSeed(0)), 1)
    (batch,) = loader
    assert batch.data["x"].shape == (0, 2, 2)
    assert batch.data["y"].shape == (0,)


def test_a_collate_function_of_the_user_is_kept_for_empty_batches_too() -> None:
    def collate(items: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([x for x, _ in items]).double()

    sizes = set()
    for batch in _loader(0.01, batches=40, collate=collate):
        assert batch.data.shape == (batch.size, 3)
        assert batch.data.dtype == torch.float64
        sizes.add(batch.size)
    assert {0, 1} <= sizes


def test_every_batch_of_every_pass_has_a_fresh_ticket() -> None:
    loader = _loader(0.2)
    batches = [*loader, *loader]
    assert len({id(batch.ticket) for batch in batches}) == 16
    rows = [tuple(batch.data[1].tolist()) for batch in batches]
    assert rows[:8] != rows[8:]  # nor is the second pass a replay
    assert {batch.ticket.rate for batch in batches} == {0.2}


def test_an_abandoned_pass_leaves_no_ticket_behind() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = _loader(0.3, options={"num_workers": 1})  # draws ahead of what is asked for
        next(iter(loader))
        for batch in loader:
            assert batch.size == len(batch.data[1])


def test_workers_keep_the_order_of_tickets_and_sizes() -> None:
    twin = PoissonSampler(ROWS, 0.2, InsecureSeed(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads of other tests
        batches = list(_loader(0.2, batches=12, options={"num_workers": 2}))
    assert len(batches) == 12
    for batch in batches:
        assert batch.data[1].tolist() == twin.draw().rows.tolist()
        assert batch.size == len(batch.data[0])
    assert len({id(batch.ticket) for batch in batches}) == 12
    assert len({batch.size for batch in batches}) > 1


def test_workers_make_empty_batches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        batches = list(_loader(1e-9, batches=3, options={"num_workers": 1}))
    assert [tuple(batch.data[0].shape) for batch in batches] == [(0, 3)] * 3


def _weighted() -> DataLoader[Any]:
    return DataLoader(_data(), 4, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS))


def _batched() -> DataLoader[Any]:
    class Sorted(BatchSampler):
        pass

    return DataLoader(_data(), batch_sampler=Sorted(SequentialSampler(_data()), 4, drop_last=False))


def _distributed() -> DataLoader[Any]:
    return DataLoader(_data(), 4, sampler=DistributedSampler(_data(), num_replicas=2, rank=0))


def _unbatched() -> DataLoader[Any]:
    return DataLoader(_data(), batch_size=None)


@pytest.mark.parametrize("build", [_weighted, _batched, _distributed, _unbatched])
def test_loaders_with_rules_of_their_own_are_refused(build: Callable[[], DataLoader[Any]]) -> None:
    for use in (check_loader, lambda loader: poisson_loader(loader, PoissonSampler(ROWS, 0.1))):
        with pytest.raises(SamplingError, match="the default sampler"):
            use(build())


def test_streams_are_refused() -> None:
    for use in (check_loader, lambda loader: poisson_loader(loader, PoissonSampler(5, 0.1))):
        with pytest.raises(SamplingError, match="random access"):
            use(DataLoader(Stream(), 2))


@pytest.mark.parametrize("shuffle", [True, False])
def test_plain_loaders_become_poisson(shuffle: bool) -> None:
    plain = DataLoader(_data(), 7, shuffle=shuffle, drop_last=True)
    check_loader(plain)
    loader = poisson_loader(plain, PoissonSampler(ROWS, 7 / ROWS, InsecureSeed(1)))
    assert len(loader) == 9  # one over the rate: drop_last means nothing here
    assert len({batch.size for batch in loader}) > 1  # a shuffled loader has one size
