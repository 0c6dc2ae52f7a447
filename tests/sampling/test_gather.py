"""Gathering: whole batches equal items fetched one by one, without a step per record."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)

from dither.data import RecordStore, StoreDataset, build_store
from dither.data.synth import write_synthetic
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.sampling.gather import gather_of
from dither.sampling.loader import PoissonLoader, poisson_loader
from dither.sampling.poisson import PoissonSampler

TYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.bool,
]


class ByItem(TensorDataset):
    """A subclass may do more in __getitem__, so its items are fetched one by one."""


class Pure(Dataset[Tensor]):
    """Gathers batches; has no item access to fall back to."""

    def __init__(self, rows: int) -> None:
        self.values = torch.arange(rows)

    def __len__(self) -> int:
        return len(self.values)

    def gather_batch(self, rows: np.ndarray) -> Tensor:
        return self.values[torch.from_numpy(rows)]


class Doubled(Pure):
    def __getitem__(self, index: int) -> Tensor:
        return 2 * self.values[index]


class DoubledLists(Pure):
    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [2 * self.values[index] for index in indices]


class Wrapper(Dataset[Tensor]):
    def __init__(self, inner: Pure) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Tensor:
        return 2 * self.inner.values[index]


class Noisy(Dataset[Tensor]):
    """Augmentation by all three global generators; the subset below hides it one level down."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        import random

        return torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])  # noqa: NPY002, S311


def _tensors(rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    wide = torch.randn(7, rows, 4, generator=generator).transpose(0, 1)  # not contiguous
    return (
        wide,
        torch.arange(rows),
        *(torch.arange(rows * 2).reshape(rows, 2).to(t) for t in TYPES),
    )


def _loader(dataset: Any, rate: float, batches: int = 6, **options: Any) -> PoissonLoader:
    return PoissonLoader(
        dataset, PoissonSampler(len(dataset), rate, InsecureSeed(4)), batches, **options
    )


def _equal(left: Any, right: Any) -> bool:
    same = type(left) is type(right) and len(left) == len(right)
    return same and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(left, right, strict=True)
    )


def _steps(loader: PoissonLoader) -> int:
    """Bytecode instructions that a pass executes, of whichever module."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in loader:
            pass
    finally:
        sys.settrace(before)
    return count


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    folder = tmp_path_factory.mktemp("gather")
    return build_store(
        write_synthetic(folder / "persons.csv", 3000, seed=3), "unemployment", folder / "store"
    )


def _columns(rows: int) -> Dataset[Any]:
    return TensorDataset(torch.randn(rows, 3), torch.arange(rows))


def _subset(rows: int) -> Dataset[Any]:
    nested = Subset(_columns(rows + 2), np.arange(1, rows + 2))  # type: ignore[arg-type]
    return Subset(nested, torch.arange(rows))  # type: ignore[arg-type]


def _batches(rows: int) -> Dataset[Any]:
    return Pure(rows)


@pytest.mark.parametrize("build", [_columns, _subset, _batches])
def test_a_hundred_times_the_records_take_no_more_steps(build: Callable[[int], Any]) -> None:
    """The full batch has one size; loops of Python and calls of __getitem__ would both count."""
    few, many = (_steps(_loader(build(rows), 1.0, 1)) for rows in (20, 2000))
    assert few > 0
    assert many - few < 200


def test_so_it_is_for_a_store(store: RecordStore) -> None:
    few, many = (
        _steps(_loader(StoreDataset(store, np.arange(rows)), 1.0, 1)) for rows in (12, 1200)
    )
    assert few > 0
    assert many - few < 200


def test_the_count_of_steps_sees_a_loop() -> None:
    few, many = (_steps(_loader(ByItem(*_tensors(rows)), 1.0, 1)) for rows in (20, 2000))
    assert many - few > 1980


def test_no_item_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    for kind in (TensorDataset, Subset):
        monkeypatch.setattr(kind, "__getitem__", lambda _, index: fetched.append(index))
    monkeypatch.setattr(Subset, "__getitems__", lambda _, indices: fetched.extend(indices))
    for data in (_columns(50), _subset(50)):
        for rate in (0.3, 1.0, 1e-12):
            assert all(len(b.data[0]) == b.size for b in _loader(data, rate))
        plain: DataLoader[Any] = DataLoader(data, batch_size=5, shuffle=True)
        users = poisson_loader(plain, PoissonSampler(50, 0.1))
        assert sum(len(b.data[0]) for b in users) > 0  # 500 coins of 0.1: none falls in 1e-23
    assert fetched == []


@pytest.mark.parametrize("rate", [0.2, 1.0, 1e-12, 0.02])
def test_whole_batches_equal_items_stacked(rate: float) -> None:
    tensors = _tensors(60)
    whole = _loader(TensorDataset(*tensors), rate)
    slow = _loader(ByItem(*tensors), rate)
    sizes = set()
    for one, other in zip(whole, slow, strict=True):
        assert one.size == other.size == len(one.data[0])
        assert _equal(one.data, other.data)
        sizes.add(one.size)
    assert {1.0: sizes == {60}, 1e-12: sizes == {0}}.get(rate, len(sizes) > 1)


@pytest.mark.parametrize(
    "indices",
    [
        [5, 3, 3, 59, 0],
        [-1, 0, -60],
        range(10, 50, 3),
        np.array([200, 7], np.uint8),
        np.array([-100, 3], np.int8),
        torch.tensor([8, 1, -2]),
        [torch.tensor(4), torch.tensor(2)],
        [np.int64(4), 2],
        (1, 2),
        [],
    ],
    ids=str,
)
def test_a_subset_of_any_kind_of_indices_equals_its_items(indices: Any) -> None:
    data = TensorDataset(*_tensors(201))
    subset: Subset[Any] = Subset(data, indices)
    (batch,) = _loader(subset, 1.0, 1)
    slow = [subset[i] for i in range(len(indices))]
    expected = default_collate(slow) if slow else [t[:0] for t in data.tensors]
    assert _equal(batch.data, expected)
    assert batch.size == len(indices)


def test_parts_of_parts_and_random_splits() -> None:
    data = TensorDataset(*_tensors(40))
    part, _ = random_split(data, [30, 10], torch.Generator().manual_seed(0))
    for subset in (part, Subset(part, [-1, 4, 4]), Subset(Subset(data, range(9, 0, -2)), [0, -2])):
        (batch,) = _loader(subset, 1.0, 1)
        assert _equal(batch.data, default_collate([subset[i] for i in range(len(subset))]))


def test_indices_that_a_subset_changes_between_passes_count() -> None:
    subset = Subset(_columns(10), [1, 2, 3])
    loader = _loader(subset, 1.0, 1)
    assert [b.data[1].tolist() for b in loader] == [[1, 2, 3]]
    subset.indices = [7, 8, 9]
    assert [b.data[1].tolist() for b in loader] == [[7, 8, 9]]


@pytest.mark.parametrize("index", [60, -61])
def test_an_index_beyond_the_data_is_the_data_sets_own_error(index: int) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        list(_loader(Subset(TensorDataset(torch.ones(60, 1)), [0, index]), 1.0, 1))


def test_truth_values_as_indices_mean_what_they_mean_to_the_data_set() -> None:
    subset = Subset(TensorDataset(torch.arange(4)), [True, True])
    (batch,) = _loader(subset, 1.0, 1)
    assert batch.data[0].shape == (2, 1, 4)  # a mask of one tensor, not row 1


def test_sparse_columns_go_to_the_collate_function_which_refuses_them() -> None:
    data = TensorDataset(torch.eye(4).to_sparse())
    with pytest.raises(RuntimeError, match="sparse tensors are not currently supported"):
        list(_loader(data, 1.0, 1))
    dense = _loader(
        data, 1.0, 1, collate=lambda items: [torch.stack([x.to_dense() for (x,) in items])]
    )
    assert [torch.equal(b.data[0], torch.eye(4)) for b in dense] == [True]


@pytest.mark.parametrize("kind", [Doubled, DoubledLists])
def test_a_subclass_with_items_of_its_own_is_not_bypassed(kind: type[Pure]) -> None:
    for data in (kind(5), Subset(kind(5), range(5))):
        (batch,) = _loader(data, 1.0, 1)
        assert batch.data.tolist() == [0, 2, 4, 6, 8]
    (batch,) = _loader(Pure(5), 1.0, 1)
    assert batch.data.tolist() == [0, 1, 2, 3, 4]


def test_nor_is_a_wrapper_that_passes_attributes_on() -> None:
    (batch,) = _loader(Wrapper(Pure(3)), 1.0, 1)
    assert batch.data.tolist() == [0, 2, 4]


def test_nor_are_subclasses_of_torchs_data_sets() -> None:
    class Halved(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            return tuple(tensor[index] / 2 for tensor in self.tensors)

    class Shifted(Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            return self.dataset[self.indices[index] + 1]

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices]

    halved = Halved(torch.tensor([2.0, 4.0, 8.0]))
    for data, expected in (
        (halved, [1.0, 2.0, 4.0]),
        (Subset(halved, [2]), [4.0]),
        (Shifted(TensorDataset(torch.tensor([2.0, 4.0, 8.0])), [0, 1]), [4.0, 8.0]),
    ):
        (batch,) = _loader(data, 1.0, 1)
        assert batch.data[0].tolist() == expected


def test_a_users_collate_function_gets_the_items() -> None:
    seen: list[Any] = []

    def collate(items: list[tuple[Tensor, ...]]) -> list[Tensor]:
        seen.append([(type(item), len(item), item[1].item()) for item in items])
        return [torch.stack([x for x, _ in items])]

    (batch,) = _loader(_columns(3), 1.0, 1, collate=collate)
    assert seen == [[(tuple, 2, 0), (tuple, 2, 1), (tuple, 2, 2)]]
    assert batch.data[0].shape == (3, 3)


def test_a_data_sets_own_list_access_is_used_once_a_batch() -> None:
    calls: list[list[int]] = []

    class Lists(Dataset[Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitems__(self, indices: list[int]) -> list[Tensor]:
            calls.append(indices)
            return [torch.tensor(index) for index in indices]

    (batch,) = _loader(Lists(), 1.0, 1)
    assert batch.data.tolist() == [0, 1, 2, 3]
    assert calls == [[0, 1, 2, 3]]
    assert {type(index) for index in calls[0]} == {int}


@pytest.mark.parametrize("rate", [1.0, 0.05, 1e-12])
def test_a_stores_batches_equal_its_items(store: RecordStore, rate: float) -> None:
    data = StoreDataset(store, store.split().train)
    part = Subset(data, range(1, len(data), 2))
    for whole, subset in ((_loader(data, rate, 2), False), (_loader(part, rate, 2), True)):
        twin = PoissonSampler(len(part if subset else data), rate, InsecureSeed(4))
        for batch in whole:
            rows = twin.draw().rows
            at = data.rows[1::2][rows] if subset else data.rows[rows]
            features, labels = batch.data
            assert features.shape == (len(rows), store.feature_dim)
            assert (features.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert torch.equal(features, store.gather(at)[0])
            assert torch.equal(labels, store.labels(at))
            for place in range(0, len(rows), 997):
                assert torch.equal(features[place], (part if subset else data)[int(rows[place])][0])


def test_workers_gather_whole_batches_in_the_order_of_tickets() -> None:
    for data in (_columns(60), _subset(60), Pure(60), ByItem(torch.arange(60), torch.arange(60))):
        alone = list(_loader(data, 0.2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside other threads
            helped = list(_loader(data, 0.2, options={"num_workers": 2}))
        assert [b.size for b in helped] == [b.size for b in alone]
        for one, other in zip(helped, alone, strict=True):
            assert _equal(list(one.data), list(other.data))


def test_pinning_reaches_whole_batches() -> None:
    loader = _loader(_columns(6), 1.0, 1, options={"pin_memory": True})
    if torch.accelerator.is_available():
        (batch,) = loader
        assert batch.data[0].is_pinned()
    else:
        with pytest.warns(UserWarning, match="no accelerator is found"):
            list(loader)


def test_augmentation_takes_fresh_entropy_and_leaves_the_users_generators() -> None:
    passes = []
    for _ in range(2):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        sampler = PoissonSampler(6, 1.0, OsEntropy())
        for data in (Noisy(), Subset(Noisy(), range(6))):
            passes += [batch.data for batch in PoissonLoader(data, sampler, 2)]
        assert torch.equal(torch.get_rng_state(), before)
    values = torch.stack(passes)  # pass, record, generator
    for generator in range(3):
        assert len(set(values[:, :, generator].flatten().tolist())) == 8 * 6


def test_an_empty_batch_takes_nothing_from_the_users_generators() -> None:
    before = torch.get_rng_state()
    (batch,) = PoissonLoader(Noisy(), PoissonSampler(6, 1e-12), 1)
    assert batch.data.shape == (0, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_gathering_leaves_the_data_alone() -> None:
    data = TensorDataset(torch.zeros(4, 2))
    batch = gather_of(data, None, OsEntropy())(np.array([1, 1, 3]))
    batch[0] += 1.0
    assert data.tensors[0].sum() == 0.0
