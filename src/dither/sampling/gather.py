"""From row numbers to a batch: whole columns where the data set has them, else item by item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from dither.noise.entropy import Entropy
from dither.sampling.secret import SecretItems

Collate = Callable[[list[Any]], Any]
Gather = Callable[[Int64[np.ndarray, " batch"]], Any]


class GathersBatches(Protocol):
    """A data set that makes a whole batch at once; `dither.data.store.StoreDataset` is one.

    It is asked for batches where the loader has no collate function of the user's. A subclass that
    changes ``__getitem__`` or ``__getitems__`` alone is fetched through these.
    """

    def gather_batch(self, rows: Int64[np.ndarray, " batch"]) -> Any:
        """Return the batch of these rows, as if each item had been fetched and all stacked.

        It must be a function of each row alone and draw no random numbers: nothing seeds them
        anew, as happens where items are fetched one by one. No rows give tensors of zero rows.
        """


def gather_of(dataset: Any, collate: Collate | None, entropy: Entropy) -> Gather:
    """Return the fastest way to batches of a data set.

    Plain `TensorDataset`s, `GathersBatches` and `Subset`s of either are gathered without a Python
    step per record, if the collate function is PyTorch's default; subclasses may do more in their
    ``__getitem__``, so they do not count. All others make their items under `SecretItems`.

    Args:
        dataset: Map-style data set.
        collate: The user's; PyTorch's default when None.
        entropy: Seeds what random numbers the items take.
    """
    if collate is None or collate is default_collate:
        whole = _whole(dataset)
        if whole is not None:
            return whole
    return _ByItem(SecretItems(dataset, entropy), collate or default_collate)


@final
class Gathered(Dataset[Any]):
    """What a `DataLoader` is given: it asks for a batch and gets it, ready."""

    def __init__(self, gather: Gather, records: int) -> None:
        self._gather = gather
        self._records = records

    def __len__(self) -> int:
        return self._records

    def __getitems__(self, rows: Int64[np.ndarray, " batch"]) -> Any:
        """Return the batch of these rows."""
        return self._gather(rows)


def _whole(dataset: Any) -> Gather | None:
    if type(dataset) is TensorDataset:
        return _Columns(dataset) if all(map(_is_plain, dataset.tensors)) else None
    if type(dataset) is Subset:
        inner = _whole(dataset.dataset)
        indices = _indices(dataset) if inner is not None else None
        return None if inner is None or indices is None else _Part(inner, indices)
    return dataset.gather_batch if _gathers(type(dataset)) else None


def _gathers(kind: type) -> bool:
    """Whether its batch access is at least as new as its item access, and the class's own.

    A wrapper with ``__getattr__`` only passes on the access of what it wraps.
    """

    def age(name: str) -> int:
        return next((i for i, c in enumerate(kind.__mro__) if name in vars(c)), len(kind.__mro__))

    batch = age("gather_batch")
    return batch < len(kind.__mro__) and batch <= min(age("__getitem__"), age("__getitems__"))


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in {Tensor, nn.Parameter} and tensor.layout == torch.strided


def _indices(subset: Subset[Any]) -> Int64[np.ndarray, " rows"] | None:
    """A subset's indices counted from the front; None where they are no such list."""
    given: Any = subset.indices
    indices = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    length = len(subset.dataset)  # type: ignore[arg-type]
    if indices.size == 0:
        return np.empty(0, np.int64)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        return None
    if not (indices.min() >= -length and indices.max() < length):
        return None  # fetching by item says which one is wrong
    wide = indices.astype(np.int64)
    return np.where(wide < 0, wide + length, wide)


@dataclass(frozen=True)
class _Columns:
    dataset: TensorDataset

    def __call__(self, rows: Int64[np.ndarray, " batch"]) -> list[Tensor]:
        at = torch.from_numpy(rows)
        return [t.index_select(0, at.to(t.device)) for t in self.dataset.tensors]


@dataclass(frozen=True)
class _Part:
    inner: Gather
    indices: Int64[np.ndarray, " rows"]

    def __call__(self, rows: Int64[np.ndarray, " batch"]) -> Any:
        return self.inner(self.indices[rows])


@dataclass(frozen=True)
class _ByItem:
    items: SecretItems
    collate: Collate

    def __call__(self, rows: Int64[np.ndarray, " batch"]) -> Any:
        items = self.items.__getitems__(rows.tolist())
        if len(items):
            return self.collate(items)
        # Shapes and types of one record, none of its values.
        one = self.collate([self.items[0]])
        return tree_map(lambda leaf: leaf[:0] if isinstance(leaf, Tensor) else leaf, one)
