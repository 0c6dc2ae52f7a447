"""Training and test rows, chosen so that one record's presence never moves another record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from dither.errors import ConfigError

RELATIONS = ("zero_out", "replace_one", "add_remove")

# Public constants: a split is no secret, and everyone gets the same one.
_ROW_SEED = 0x9E3779B97F4A7C15
_KEY_SALT = b"dither split v1"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Split:
    """Numbers of the training and the test units (rows, or persons), both ascending."""

    train: Int64[np.ndarray, " train"]
    test: Int64[np.ndarray, " test"]


def check_split(test_fraction: float, relation: str) -> None:
    """Refuse what cannot be split by.

    Raises:
        ConfigError: The fraction is not in [0, 1) or the relation is unknown.
    """
    if not 0 <= test_fraction < 1:
        raise ConfigError(
            expected="a test fraction in [0, 1)",
            got=str(test_fraction),
            fix="hold out, say, 0.2 of the records",
        )
    if relation not in RELATIONS:
        raise ConfigError(
            expected="a relation out of " + ", ".join(RELATIONS),
            got=repr(relation),
            fix="name one of these",
        )


def by_row_number(rows: int, test_fraction: float) -> Split:
    """Split by a public hash (splitmix64) of the row number."""
    test, below = np.empty(rows, dtype=bool), _threshold(test_fraction)
    for start in range(0, rows, _BLOCK):  # of many millions of rows, only the answer is kept
        x = np.arange(start + 1, min(start + _BLOCK, rows) + 1, dtype=np.uint64)
        with np.errstate(over="ignore"):
            x *= np.uint64(_ROW_SEED)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        test[start : start + _BLOCK] = (x ^ (x >> np.uint64(31))) < below
    return _split(test)


def by_key(keys: Iterable[bytes], test_fraction: float) -> Split:
    """Split by BLAKE2b of each record's stable key under a public salt."""
    return by_hash(np.frombuffer(b"".join(map(digest, keys)), dtype="<u8"), test_fraction)


def by_hash(hashes: UInt64[np.ndarray, " units"], test_fraction: float) -> Split:
    """Split by uniform hashes of who or what is split."""
    return _split(hashes < _threshold(test_fraction))


def digest(key: bytes) -> bytes:
    """Return the hash of a stable key, 8 bytes, little-endian."""
    return hashlib.blake2b(key, digest_size=8, key=_KEY_SALT).digest()


def _threshold(test_fraction: float) -> np.uint64:
    return np.uint64(int(test_fraction * 2.0**64))


def _split(test: Bool[np.ndarray, " rows"]) -> Split:
    return Split(train=np.flatnonzero(~test), test=np.flatnonzero(test))
