"""A PyTorch loader of Poisson batches."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from dither.errors import SamplingError
from dither.privacy.ticket import SampleTicket
from dither.sampling.gather import Collate, Gathered, gather_of
from dither.sampling.poisson import PoissonSampler

# Options of a user's loader that its Poisson twin keeps: how records are fetched, not which.
_KEPT = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")


_STORE_FIRST = (
    "store the records first (dither data build), open the store (RecordStore.open) and load its "
    "StoreDataset: shuffled or streamed batches cannot be charged as Poisson samples"
)


@dataclass(frozen=True)
class PoissonBatch:
    """One batch and the proof of how it was drawn.

    Attributes:
        data: What the data set's collate function made of it; may have zero rows.
        size: Number of records. Secret: the noisy mean divides by the expected size instead.
        ticket: The sample's right to one release.
        seconds: Time it took to draw the rows.
    """

    data: Any
    size: int
    ticket: SampleTicket
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Any]:
        """Let ``x, y = batch`` work as it does with a plain loader."""
        return iter(self.data)


@final
class PoissonLoader:
    """Iterates over Poisson batches of a map-style data set; one pass is ``len(self)`` batches.

    PyTorch's own `DataLoader` runs it, so workers, pinning and collate functions work as usual.
    A `TensorDataset`, a record store's data set, or a `Subset` of either is gathered whole, with
    no Python step per record; a collate function of the user's needs the items one by one.
    Batches of zero records come as tensors of zero rows.

    Args:
        dataset: Map-style data set (``__getitem__`` and ``__len__``), or one that
            `dither.sampling.gather.GathersBatches`.
        sampler: Draws the rows.
        batches: Number of batches in one pass.
        collate: Merges a list of items; PyTorch's default when None.
        options: Further options of the `DataLoader` (``num_workers``, ``pin_memory``, ...).

    Raises:
        SamplingError: The data set has no random access: a stream cannot be sampled so.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: PoissonSampler,
        batches: int,
        *,
        collate: Collate | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        _require_random_access(dataset)
        self.sampler = sampler
        self.batches = batches
        self._entropy = sampler.entropy.stream("augmentation")
        self._dataset = dataset
        self._collate = collate
        self._options = dict(options or {})

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[PoissonBatch]:
        drawn: deque[_Drawn] = deque()
        gather = gather_of(self._dataset, self._collate, self._entropy)
        batches: DataLoader[Any] = DataLoader(
            Gathered(gather, self.sampler.records),
            batch_sampler=_Draws(self.sampler, self.batches, drawn),  # type: ignore[arg-type]
            collate_fn=_as_gathered,
            generator=torch.Generator().manual_seed(self._entropy.seed()),  # of the workers
            **self._options,
        )
        for data in batches:  # the DataLoader keeps the order in which rows were drawn
            draw = drawn.popleft()
            yield PoissonBatch(data, draw.size, draw.ticket, draw.seconds)


def poisson_loader(loader: DataLoader[Any], sampler: PoissonSampler) -> PoissonLoader:
    """Return a Poisson loader over the data set of a plain one.

    Raises:
        SamplingError: The data set has no random access, or the loader weights, shards or batches
            by rules of its own: none of that can be charged as Poisson sampling.
    """
    check_loader(loader)
    return PoissonLoader(
        loader.dataset,
        sampler,
        math.ceil(1.0 / sampler.rate),  # not len(loader): under add_remove n itself is private
        collate=loader.collate_fn,
        options={name: getattr(loader, name) for name in _KEPT},
    )


def check_loader(loader: object) -> None:
    """Refuse loaders whose sampling cannot become Poisson.

    Raises:
        SamplingError: See `poisson_loader`.
    """
    if not isinstance(loader, DataLoader):
        raise SamplingError(
            expected="a torch DataLoader over a map-style data set, whose batches become Poisson's",
            got=f"{type(loader).__name__}, which yields batches of its own making",
            fix=_STORE_FIRST,
        )
    _require_random_access(loader.dataset)
    if type(loader.sampler) not in {RandomSampler, SequentialSampler} or (
        type(loader.batch_sampler) is not BatchSampler
    ):
        raise SamplingError(
            expected="a loader with batch_size and the default sampler",
            got=f"sampler {type(loader.sampler).__name__}",
            fix="drop the custom sampler: records must enter batches independently, at one rate",
        )


def _require_random_access(dataset: object) -> None:
    """Refuse a stream by its type: who is in a batch would follow the order of the records."""
    streams = isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized)
    reachable = hasattr(type(dataset), "__getitem__") or hasattr(type(dataset), "gather_batch")
    if streams or not reachable:
        raise SamplingError(
            expected="a map-style data set with random access (__getitem__ and __len__)",
            got=f"{type(dataset).__name__}, a stream",
            fix=_STORE_FIRST,
        )


def check_rows(batch: PoissonBatch) -> None:
    """Refuse a batch with other rows than records: one record would count several times.

    Raises:
        SamplingError: A collate function repeated, dropped or merged records.
    """
    first = next((leaf for leaf in tree_leaves(batch.data) if isinstance(leaf, Tensor)), None)
    if first is not None and first.ndim and first.shape[0] != batch.size:
        raise SamplingError(
            expected=f"one row for each of the {batch.size} records of the batch",
            got=f"{first.shape[0]} rows",
            fix="use a collate_fn that makes one row of one record",
        )


@dataclass(frozen=True)
class _Drawn:
    ticket: SampleTicket
    size: int
    seconds: float


class _Draws:
    """The batch sampler handed to the `DataLoader`; notes each draw's ticket in order."""

    def __init__(self, sampler: PoissonSampler, batches: int, drawn: deque[_Drawn]) -> None:
        self._sampler = sampler
        self._batches = batches
        self._drawn = drawn

    def __iter__(self) -> Iterator[Int64[np.ndarray, " batch"]]:
        for _ in range(self._batches):
            start = time.perf_counter()
            sample = self._sampler.draw()
            seconds = time.perf_counter() - start
            self._drawn.append(_Drawn(sample.ticket, sample.rows.size, seconds))
            yield sample.rows

    def __len__(self) -> int:
        return self._batches


def _as_gathered(batch: Any) -> Any:
    return batch
