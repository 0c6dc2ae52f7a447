"""Arguments of the C core, checked: arrays in place, σ in range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dither.errors import ConfigError
from dither.noise.core import Buffer

LARGEST_SIGMA = 2.0**40
LARGEST_SIGMA_INT32 = 2.0**26
_NAMES = ("float32", "float64", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_TYPES = {name: np.dtype(name) for name in _NAMES}


def core_array(buffer: object, types: Sequence[str], *, written: bool = True) -> np.ndarray:
    """Return an array's own memory as the C core can use it; nothing is copied.

    Args:
        buffer: A numpy array, a CPU tensor, or anything else with DLPack.
        types: Names of the number types that will do.
        written: Whether the core writes into it.

    Raises:
        ConfigError: Says what is wrong with it, and what to do.
    """
    wanted = f"a contiguous one-dimensional {' or '.join(types)} array on the CPU"
    array = _view(buffer, wanted)
    problem = None
    if not any(array.dtype == _TYPES[name] for name in types):
        problem = f"dtype {array.dtype}", f"make it with dtype {types[0]}"
    elif array.ndim != 1:
        problem = f"shape {array.shape}", "pass its reshape(-1), a view of the same memory"
    elif not array.flags.c_contiguous:
        problem = "a strided view", "pass a contiguous array and copy it back"
    elif written and not array.flags.writeable:
        problem = "memory that cannot be written", "pass a copy"
    if problem is not None:
        raise ConfigError(expected=wanted, got=problem[0], fix=problem[1])
    return array


def _view(buffer: object, wanted: str) -> np.ndarray:
    if isinstance(buffer, np.ndarray):
        return buffer
    if not isinstance(buffer, Buffer):
        raise ConfigError(
            expected=wanted, got=type(buffer).__name__, fix="pass a numpy array or a CPU tensor"
        )
    try:
        return np.from_dlpack(buffer)
    except (BufferError, RuntimeError, TypeError) as error:
        raise ConfigError(
            expected=wanted,
            got=str(error).splitlines()[0],
            fix="pass a CPU tensor that needs no gradient (tensor.detach())",
        ) from None


def check_sigma(sigma: object, largest: float = LARGEST_SIGMA) -> float:
    """Return σ as a float.

    Raises:
        ConfigError: Not a number in (0, largest].
    """
    number = isinstance(sigma, int | float | np.number) and not isinstance(sigma, bool)
    if number and 0 < sigma <= largest:  # type: ignore[operator]
        return float(sigma)  # type: ignore[arg-type]
    raise ConfigError(
        expected=f"a sigma in (0, 2^{largest.hex().split('p+')[1]}] lattice steps",
        got=repr(sigma) if number else type(sigma).__name__,
        fix="check the plan" if largest == LARGEST_SIGMA else "check the plan, or draw int64",
    )


def check_count(count: int) -> int:
    """Return a number of draws or words.

    Raises:
        ConfigError: Below zero.
    """
    if not isinstance(count, int | np.integer) or not 0 <= count < 1 << 48:
        raise ConfigError(
            expected="a count of 0 or more, below 2^48", got=repr(count), fix="check the size"
        )
    return int(count)
