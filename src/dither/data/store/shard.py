"""Which rank holds which training records, so that one record's presence never moves another.

A rank samples its own shard by Poisson at the plan's rate, with randomness of its own. Shards are
fixed and disjoint and together they are the training records, so every record still enters a step
independently with that rate: the union over ranks is a Poisson sample of all of them, and one step
is the same event on one rank and on many.

That holds only if the neighbouring data set has the same shards. Under ``zero_out`` and
``replace_one`` row numbers are public and a record that is zeroed or replaced keeps its own. Under
``add_remove`` one more record shifts the numbers of all that follow, so a shard by row number would
move other records from rank to rank (parallel composition over ranks would fail, PRIVACY-REVIEW
B1); there each record's stable key alone decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64, UInt64

from dither.data.store.split import RELATIONS
from dither.errors import ConfigError

# A public constant, another than the split's: what is held out must not decide where the rest goes.
_KEY_SALT = b"dither shard v1"
_HALF = 32


def check_shard(rank: int, world_size: int, relation: str) -> None:
    """Refuse a shard that cannot be.

    Raises:
        ConfigError: No such rank, or an unknown relation.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(
            expected=f"a rank in [0, {world_size})",
            got=str(rank),
            fix="number ranks from 0 and give all of them the same world size",
        )
    if relation not in RELATIONS:
        raise ConfigError(
            expected="a relation out of " + ", ".join(RELATIONS),
            got=repr(relation),
            fix="name one of these",
        )


def by_row_number(
    rows: Int64[np.ndarray, " rows"], rank: int, world_size: int
) -> Int64[np.ndarray, " shard"]:
    """Return one rank's stretch of rows; the sizes of two stretches differ by at most one.

    Stretches rather than every R-th row: a host then reads its own part of the files only.

    Args:
        rows: The training rows, ascending: a public function of public row numbers.
        rank: Whose.
        world_size: R.
    """
    first, end = (len(rows) * place // world_size for place in (rank, rank + 1))
    return rows[first:end]


def by_key(
    keys: Iterable[bytes], rows: Int64[np.ndarray, " rows"], rank: int, world_size: int
) -> Int64[np.ndarray, " shard"]:
    """Return the rows whose key's BLAKE2b under a public salt falls to a rank.

    Sizes differ as those of random parts do, and a shard may be empty.

    Args:
        keys: The stable keys of all records, in row order.
        rows: The training rows.
        rank: Whose.
        world_size: R, below 2³².
    """
    hashes = np.frombuffer(b"".join(map(digest, keys)), dtype="<u8")
    return by_hash(hashes, rows, rank, world_size)


def digest(key: bytes) -> bytes:
    """Return the hash of a stable key, 8 bytes, little-endian."""
    return hashlib.blake2b(key, digest_size=8, key=_KEY_SALT).digest()


def by_hash(
    hashes: UInt64[np.ndarray, " units"],
    rows: Int64[np.ndarray, " rows"],
    rank: int,
    world_size: int,
) -> Int64[np.ndarray, " shard"]:
    """Return the units whose uniform hash falls to a rank."""
    # The upper half, scaled to [0, R): even to R/2³².
    owner = ((hashes >> np.uint64(_HALF)) * np.uint64(world_size)) >> np.uint64(_HALF)
    mine: Int64[np.ndarray, " shard"] = rows[owner[rows] == rank]
    return mine
