"""Augmentation with secret randomness, whatever generator a data set uses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import Dataset

from dither.noise.entropy import Entropy


@contextmanager
def secret_randomness(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python for a while, then put them back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the one that data sets use
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


@final
class SecretItems(Dataset[Any]):
    """A data set whose items are made under fresh entropy.

    A user's seed is public and would tie the augmentation of each record to its place in the
    batch: one record's absence would then change all others (PRIVACY-REVIEW A5).

    Args:
        dataset: Map-style data set.
        entropy: Seeds every batch anew.
    """

    def __init__(self, dataset: Any, entropy: Entropy) -> None:
        self._dataset = dataset
        self._entropy = entropy

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        with secret_randomness(self._entropy.seed()):
            return self._dataset[index]

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the items of a batch, by the data set's own batch access where it has one."""
        with secret_randomness(self._entropy.seed()):
            if hasattr(self._dataset, "__getitems__"):
                return self._dataset.__getitems__(indices)
            return [self._dataset[index] for index in indices]
