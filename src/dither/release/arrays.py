"""The arrays that contributions come in, checked: at each call, so quickly."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch

from dither.errors import ConfigError

_TYPES = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


def check_arrays(values: Any, out: Any) -> None:
    """Refuse what cannot be summed privately, before anything is charged.

    Args:
        values: This rank's contribution.
        out: Where the sum goes; None for a new array.

    Raises:
        ConfigError: Not flat, contiguous float32 or float64 of one size, or memory shared in part.
    """
    _check_array(values)
    if out is None:
        return
    if out is not values:
        _check_array(out)
    if out.size != values.size or not out.flags.writeable:
        raise ConfigError(
            expected=f"a writable result of {values.size} numbers",
            got=f"{'' if out.flags.writeable else 'a read-only one of '}{out.size}",
            fix="give out= the size of the values",
        )
    if _overlap(values, out):
        # Block by block: results would be read again as contributions, beyond their clipping.
        raise ConfigError(
            expected="a result in the memory of the values, or apart from it",
            got="arrays that share a part of their memory",
            fix="give out= the values themselves, or memory of its own",
        )


def own_memory(values: np.ndarray) -> np.ndarray:
    """Return values that no other process writes to: a copy where they lie in mapped memory.

    What changes after the norm was taken would leave beyond the clip bound, and a result may come
    to lie in the same memory under another address. Threads of this process are the caller's to
    keep away.
    """
    return values.copy() if _is_mapped(values) else values


def _is_mapped(array: np.ndarray) -> bool:
    owner: Any = array
    while owner is not None:
        if isinstance(owner, np.memmap | mmap.mmap):
            return True
        if isinstance(owner, torch.Tensor):
            return bool(owner.is_shared())  # type: ignore[no-untyped-call]
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return False


def _check_array(array: Any) -> None:
    problem = None
    if not isinstance(array, np.ndarray):
        problem = type(array).__name__
    elif isinstance(array, np.ma.MaskedArray):
        problem = "a masked array, whose masked values would count"
    elif array.ndim != 1 or array.dtype not in _TYPES:
        problem = f"{array.dtype} of shape {array.shape}"
    elif not array.flags.c_contiguous:
        problem = "a strided view"
    elif not array.flags.aligned:
        problem = "memory that is not aligned"
    if problem is not None:
        raise ConfigError(
            expected="a flat, contiguous numpy array of float32 or float64",
            got=problem,
            fix="convert it: what cannot be protected is never sent",
        )


def _overlap(values: np.ndarray, out: np.ndarray) -> bool:
    if out is values or not np.may_share_memory(values, out):
        return False
    return values.dtype != out.dtype or values.ctypes.data != out.ctypes.data
