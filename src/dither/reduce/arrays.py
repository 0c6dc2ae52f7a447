"""The arrays that contributions come in, checked: at each call, so quickly."""

from __future__ import annotations

from typing import Any

import numpy as np

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


def _check_array(array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise ConfigError(
            expected="a numpy array", got=type(array).__name__, fix="convert it first"
        )
    flags, dtype = array.flags, array.dtype
    if not (array.ndim == 1 and flags.c_contiguous and flags.aligned and dtype in _TYPES):
        raise ConfigError(
            expected="a flat, contiguous array of float32 or float64",
            got=f"{dtype} of shape {array.shape}",
            fix="convert it: what cannot be protected is never sent",
        )


def _overlap(values: np.ndarray, out: np.ndarray) -> bool:
    if out is values or not np.may_share_memory(values, out):
        return False
    return values.dtype != out.dtype or values.ctypes.data != out.ctypes.data
