"""Which rows are whose, in a store whose unit is the person.

One flat file, an entry a person in row order: its first row, and two hashes of who it is, which
decide its place in splits and shards where row numbers may not. It is mapped, never read whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from dither.data.store import shard, split
from dither.errors import DataError

FILE = "persons.bin"
ENTRY = np.dtype([("first", "<i8"), ("split", "<u8"), ("shard", "<u8")])


@dataclass(frozen=True)
class Persons:
    """What a manifest says about the persons of a store.

    Attributes:
        file: Name of the index.
        persons: How many there are, declared public.
        sha256: Of the index.
    """

    file: str
    persons: int
    sha256: str


def person_entry(name: bytes) -> bytes:
    """Return the two hashes of a person's name that an entry holds."""
    return split.digest(name) + shard.digest(name)


class PersonRows:
    """The mapped index of a store.

    Args:
        entries: Its entries.
        records: Rows of the store.
    """

    def __init__(self, entries: np.ndarray, records: int) -> None:
        self._entries = entries
        self._records = records

    @classmethod
    def open(cls, folder: Path, about: Persons, records: int, *, verify: bool) -> PersonRows:
        """Map the index of a store.

        Raises:
            DataError: It is missing, cut short or altered.
        """
        path = folder / about.file

        def broken(got: str) -> DataError:
            return DataError(
                expected=f"the index {path.name} of {folder} as dither wrote it",
                got=got,
                fix="restore the file, or build the store again",
            )

        if not path.is_file():
            raise broken("no such file")
        if path.stat().st_size != about.persons * ENTRY.itemsize:
            raise broken("a file of another size")
        if verify:
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != about.sha256:
                    raise broken("other bytes (its checksum differs)")
        return cls(np.memmap(path, dtype=ENTRY, mode="r"), records)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def split_hashes(self) -> UInt64[np.ndarray, " persons"]:
        """Uniform hashes that decide who is held out."""
        return np.asarray(self._entries["split"])

    @property
    def shard_hashes(self) -> UInt64[np.ndarray, " persons"]:
        """Uniform hashes that decide on which rank somebody is."""
        return np.asarray(self._entries["shard"])

    def spans(
        self, persons: Int64[np.ndarray, " batch"]
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
        """Return the first row of each person and how many rows it has, at least 1."""
        first = self._entries["first"][persons].astype(np.int64)
        after = np.minimum(persons + 1, len(self._entries) - 1)
        end = self._entries["first"][after].astype(np.int64)
        end[persons == len(self._entries) - 1] = self._records
        return first, end - first
