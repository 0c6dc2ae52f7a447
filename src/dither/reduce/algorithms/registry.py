"""All algorithms by name, and the one call that everybody else uses."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from dither.errors import ConfigError
from dither.reduce.algorithms.auto import Table, current_table
from dither.reduce.algorithms.backend import backend
from dither.reduce.algorithms.binomial import binomial
from dither.reduce.algorithms.common import Algorithm
from dither.reduce.algorithms.hierarchical import hierarchical
from dither.reduce.algorithms.naive import naive
from dither.reduce.algorithms.rabenseifner import rabenseifner
from dither.reduce.algorithms.recursive_doubling import recursive_doubling
from dither.reduce.algorithms.ring import ring
from dither.reduce.algorithms.round_robin import round_robin
from dither.reduce.endpoint import Buffer, Endpoint

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "naive": naive,
        "round_robin": round_robin,
        "binomial": binomial,
        "recursive_doubling": recursive_doubling,
        "ring": ring,
        "rabenseifner": rabenseifner,
        "hierarchical": hierarchical,
        "backend": backend,
    }
)
TYPES = frozenset(
    np.dtype(name)
    for name in (
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float32", "float64"),
    )
)


def sum_over(
    endpoint: Endpoint, buffer: Buffer, algorithm: str = "auto", table: Table | None = None
) -> None:
    """Sum a buffer over all ranks in place: integers modulo 2^bits, the same bits on all ranks.

    All ranks must pass the same type, size, algorithm and table; `agreement` sees to that.

    Args:
        endpoint: This rank's end.
        buffer: Flat, contiguous and writable; integers of 8 to 64 bits, float32 or float64 in the
            host's byte order.
        algorithm: A name from `ALGORITHMS`, or auto: by transport, ranks, hosts and bytes.
        table: What auto chooses by; the measured table of this user, or dither's, by default.

    Raises:
        ConfigError: Another buffer or name, or the back end cannot sum this type.
        PeerError: A peer is dead or does not answer in time; ``buffer`` is garbage then.
    """
    chosen = find_algorithm(algorithm)
    check_buffer(buffer)
    if endpoint.world_size == 1:
        return
    if chosen is not None:
        chosen(endpoint, buffer)
        return
    choice = (current_table() if table is None else table).choose(endpoint, buffer.nbytes)
    if choice.algorithm != "backend" or not endpoint.all_reduce(buffer):
        name = choice.fallback if choice.algorithm == "backend" else choice.algorithm
        ALGORITHMS[name](endpoint, buffer)


def find_algorithm(name: str) -> Algorithm | None:
    """Return an algorithm, None for auto.

    Raises:
        ConfigError: No such name.
    """
    if name == "auto":
        return None
    if name not in ALGORITHMS:
        raise ConfigError(
            expected=f"an algorithm: auto, {', '.join(ALGORITHMS)}",
            got=repr(name),
            fix="choose one of these",
        )
    return ALGORITHMS[name]


def check_buffer(buffer: np.ndarray) -> None:
    """Refuse what cannot be summed in place.

    Raises:
        ConfigError: Not flat, contiguous and writable, or of another type.
    """
    flags = buffer.flags
    whole = buffer.ndim == 1 and flags.c_contiguous and flags.writeable and flags.aligned
    if not whole or buffer.dtype not in TYPES:
        state = "" if whole else ", not flat, contiguous, aligned and writable"
        raise ConfigError(
            expected="a flat, contiguous, writable array of integers, float32 or float64",
            got=f"{buffer.dtype} of shape {buffer.shape}{state}",
            fix="pass a contiguous copy, flattened, in one of these types and native byte order",
        )
