"""All rows of one person, at most k of them, side by side: what makes the person the unit.

A person who may have any number of rows could move a sum by any amount. So at most k rows of each
are used, and which ones depends on that person's own rows alone: those whose keys have the smallest
hashes under a public constant. Another person more or fewer, another order of the source, or
another engine changes nothing about them. Rows left out never count again: the store holds what is
used. A person's rows then stand side by side, so that they can be drawn by one coin, lie on one
rank, and be clipped as one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from dither.data.schema import Schema
from dither.data.store.persons import ENTRY, FILE, Persons, person_entry
from dither.errors import DataError

# A public constant, another than those of splits and shards.
_SALT = b"dither rows of a person v1"


def bounded(batches: Iterator[pa.RecordBatch], rows_per_person: int) -> Iterator[pa.RecordBatch]:
    """Yield at most so many rows a person; no person's rows fall into two batches.

    Args:
        batches: Rows with columns ``person`` and ``key`` (text), all rows of a person side by side.
        rows_per_person: k.

    Raises:
        DataError: A person has two rows of one key.
    """
    held: pa.RecordBatch | None = None  # of the last person: at most k rows, whatever came
    last: tuple[str, str] | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        last = _check_keys(batch, last)
        rows = batch if held is None else pa.concat_batches([held, batch])
        start = int(_starts(rows)[-1])
        whole, held = rows.slice(0, start), _chosen(rows.slice(start), rows_per_person)
        if whole.num_rows:
            yield _chosen(whole, rows_per_person)
    if held is not None:
        yield held


def _starts(rows: pa.RecordBatch) -> Int64[np.ndarray, " persons"]:
    """First row of each person."""
    persons = rows.column("person")
    changes = pc.not_equal(persons[1:], persons[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64)


def _chosen(rows: pa.RecordBatch, most: int) -> pa.RecordBatch:
    starts = _starts(rows)
    sizes = np.diff(starts, append=rows.num_rows)
    if sizes.max() <= most:
        return rows
    return rows.filter(pa.array(_kept(rows, sizes, most)))


def _kept(
    rows: pa.RecordBatch, sizes: Int64[np.ndarray, " persons"], most: int
) -> Bool[np.ndarray, " rows"]:
    keep = np.ones(rows.num_rows, dtype=bool)
    where = np.flatnonzero(np.repeat(sizes > most, sizes))
    keys = rows.column("key").take(pa.array(where)).cast(pa.binary()).to_pylist()
    hashes = np.frombuffer(b"".join(map(_hash, keys)), dtype="<u8")
    many = sizes[sizes > most]
    owner = np.repeat(np.arange(many.size), many)
    order = np.lexsort((hashes, owner))
    place = np.arange(where.size) - np.repeat(np.cumsum(many) - many, many)
    keep[where[order[place >= most]]] = False
    return keep


def _hash(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=8, key=_SALT).digest()


def _check_keys(batch: pa.RecordBatch, last: tuple[str, str] | None) -> tuple[str, str]:
    """Refuse a key that a person has twice: it would be a file that was named twice."""
    persons, keys = batch.column("person"), batch.column("key")
    same = pc.and_(pc.equal(persons[1:], persons[:-1]), pc.equal(keys[1:], keys[:-1]))
    doubles = pc.sum(same).as_py() or 0
    doubles += last == (persons[0].as_py(), keys[0].as_py())
    if doubles:
        raise DataError(
            expected="each key once",
            got=f"at least {doubles} rows that repeat the key of another",
            fix="name each source once; two files may hold the same records",
        )
    return persons[-1].as_py(), keys[-1].as_py()


@final
class PersonIndex:
    """Bounds a stream of rows and notes where each person's rows begin.

    Attributes:
        rows_in: Rows that came.
        rows_out: Rows that were kept.
    """

    def __init__(self, schema: Schema, path: Path, file: IO[bytes] | None) -> None:
        self.rows_in = self.rows_out = 0
        self._most = schema.rows_per_person
        self._path = path
        self._file = file
        self._digest = hashlib.sha256()
        self._persons = 0

    @property
    def dropped(self) -> int:
        """Rows beyond the bound, which are not used."""
        return self.rows_in - self.rows_out

    def bounded(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows to store, without their ``person``; all of them where a row is the unit.

        Raises:
            DataError: A person has two rows of one key.
        """
        if self._file is None:
            for batch in batches:
                self.rows_in += batch.num_rows
                self.rows_out += batch.num_rows
                yield batch
            return
        for rows in bounded(self._counted(batches), self._most):
            self._note(rows, self._file)
            self.rows_out += rows.num_rows
            yield rows.drop_columns(["person"])

    def written(self) -> Persons | None:
        """Return what the manifest says about persons, once all rows have passed; None without."""
        if self._file is None:
            return None
        self._file.flush()
        os.fsync(self._file.fileno())
        return Persons(self._path.name, self._persons, self._digest.hexdigest())

    def sealed(self, content_hash: str) -> str:
        """Return the content hash of the rows together with whose they are."""
        if self._file is None:
            return content_hash
        return hashlib.sha256(f"{content_hash} {self._digest.hexdigest()}".encode()).hexdigest()

    def _counted(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self.rows_in += batch.num_rows
            yield batch

    def _note(self, rows: pa.RecordBatch, file: IO[bytes]) -> None:
        starts = _starts(rows)
        names = rows.column("person").take(pa.array(starts)).cast(pa.binary()).to_pylist()
        entries = np.empty(starts.size, dtype=ENTRY)
        entries["first"] = starts + self.rows_out
        hashes = np.frombuffer(b"".join(map(person_entry, names)), dtype="<u8").reshape(-1, 2)
        entries["split"], entries["shard"] = hashes[:, 0], hashes[:, 1]
        raw = entries.tobytes()
        self._digest.update(raw)
        file.write(raw)
        self._persons += starts.size


@contextlib.contextmanager
def index_persons(schema: Schema, folder: Path) -> Iterator[PersonIndex]:
    """Open the index of a store that is being written.

    Args:
        schema: Says whether a person may have several rows, and how many are used.
        folder: The store's, where the index goes; no file where a row is the unit.
    """
    path = folder / FILE
    if schema.person is None:
        yield PersonIndex(schema, path, None)
        return
    with path.open("wb") as file:
        yield PersonIndex(schema, path, file)
