"""Arrays that no fill may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# All zeros, so that a refusal that came too late shows.
Maker = Callable[[], Any]


def refused(numpy_type: type[np.generic], torch_type: torch.dtype) -> dict[str, Maker]:
    """Arrays of the right type that a fill cannot take, by the reason."""
    return {
        "every other one": lambda: np.zeros(16, numpy_type)[::2],
        "backwards": lambda: np.zeros(16, numpy_type)[::-1],
        "two dimensions": lambda: np.zeros((4, 4), numpy_type),
        "a scalar": lambda: np.zeros((), numpy_type),
        "read-only": lambda: _frozen(numpy_type),
        "the other byte order": lambda: np.zeros(8, np.dtype(numpy_type).newbyteorder()),
        "int16": lambda: np.zeros(8, np.int16),
        "uint32": lambda: np.zeros(8, np.uint32),
        "uint64": lambda: np.zeros(8, np.uint64),
        "complex": lambda: np.zeros(8, np.complex64),
        "bool": lambda: np.zeros(8, np.bool_),
        "torch, every other one": lambda: torch.zeros(16, dtype=torch_type)[::2],
        "torch, two dimensions": lambda: torch.zeros(4, 4, dtype=torch_type),
        "torch, bfloat16": lambda: torch.zeros(8, dtype=torch.bfloat16),
        "torch, not in memory": lambda: torch.zeros(8, dtype=torch_type, device="meta"),
    }


def _frozen(kind: type[np.generic]) -> np.ndarray[tuple[int], np.dtype[Any]]:
    array = np.zeros(8, kind)
    array.setflags(write=False)
    return array


def untouched(array: Any) -> bool:
    """Whether nothing was written."""
    return getattr(array, "is_meta", False) or not array.any()
