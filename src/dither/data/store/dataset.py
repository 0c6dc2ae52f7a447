"""Some units of a store as a PyTorch data set: one item is one record, or one person."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from dither.data.store.store import RecordStore

IGNORED = -100
"""Label of a row that pads a person; PyTorch's cross-entropy leaves it out by default."""


class StoreDataset(Dataset[tuple[Tensor, Tensor]]):
    """Some units of a store; whole batches are gathered at once.

    Where a person may have several rows, an item is a person: features ``[k, features]`` and labels
    ``[k]``, k the schema's bound, the places after the person's own rows zero and labelled
    `IGNORED`. So a loader draws persons, and an example's loss (and gradient) is the sum over the
    person's rows: it is clipped as one.

    Args:
        store: The records.
        rows: The units that make up the data set, say ``store.split().train``.
    """

    def __init__(self, store: RecordStore, rows: Int64[np.ndarray, " units"]) -> None:
        self.store = store
        self.rows = rows

    @property
    def unit(self) -> str:
        """What an item stands for: ``record`` or ``person``."""
        return self.store.manifest.unit

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(
        self, index: int
    ) -> tuple[Float[Tensor, "... features"], Int64[Tensor, " ..."]]:
        features, labels = self.gather_batch(np.asarray([index], dtype=np.int64))
        return features[0], labels[0]

    def __getitems__(
        self, indices: list[int]
    ) -> tuple[Float[Tensor, "batch ... features"], Int64[Tensor, "batch ..."]]:
        """A whole batch, already stacked: use it with ``collate_fn=lambda batch: batch``."""
        return self.gather_batch(np.asarray(indices, dtype=np.int64))

    def gather_batch(
        self, rows: Int64[np.ndarray, " batch"]
    ) -> tuple[Float[Tensor, "batch ... features"], Int64[Tensor, "batch ..."]]:
        """A whole batch of the data set's items, for `dither.sampling.loader.PoissonLoader`."""
        units = self.rows[rows]
        if self.store.rows_per_unit == 1:
            return self.store.gather(self.store.spans(units)[0])
        return self._persons(units)

    def _persons(
        self, units: Int64[np.ndarray, " batch"]
    ) -> tuple[Float[Tensor, "batch rows features"], Int64[Tensor, "batch rows"]]:
        most = self.store.rows_per_unit
        there = np.arange(most) < self.store.spans(units)[1][:, None]
        features = torch.zeros(len(units), most, self.store.feature_dim)
        labels = torch.full((len(units), most), IGNORED, dtype=torch.int64)
        at = torch.from_numpy(there)
        features[at], labels[at] = self.store.gather(self.store.rows_of(units))
        return features, labels
