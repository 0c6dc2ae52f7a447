"""A record store: memory-mapped shards of codes, one-hot encoded when rows are gathered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dither.data.schema import Task
from dither.data.store.encoding import Encoding, ShardRows, rows_of
from dither.data.store.manifest import Manifest, Shard, read_manifest
from dither.data.store.persons import PersonRows
from dither.data.store.shard import by_hash as shard_by_hash
from dither.data.store.shard import by_key as shard_by_key
from dither.data.store.shard import by_row_number as shard_by_row_number
from dither.data.store.shard import check_shard
from dither.data.store.split import Split, by_hash, by_key, by_row_number, check_split
from dither.data.store.writer import arrow_schema
from dither.errors import ConfigError, DataError

LEDGER = "ledger.sqlite"


class RecordStore:
    """Records of one task, opened without reading them; two are equal if their contents are.

    Args:
        path: The store's folder.
        manifest: Its checked manifest.
        shards: Its mapped shards.
        persons: Whose rows are whose, where the unit is a person with several rows.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        shards: Sequence[ShardRows],
        persons: PersonRows | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._persons = persons
        self._shards = tuple(shards)
        self._encoding = Encoding(manifest.task)
        self._code = arrow_schema(manifest.task).field("codes").type.value_type.to_pandas_dtype()

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> RecordStore:
        """Map a store's shards.

        Args:
            path: The store's folder.
            verify: Whether to compare every shard with its checksum (reads all bytes once).

        Raises:
            DataError: The manifest or a shard is missing, altered, or of another format.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        shards = [_map_shard(folder / s.file, s, manifest.task, verify) for s in manifest.shards]
        if sum(shard.rows for shard in manifest.shards) != manifest.records:
            raise DataError(
                expected=f"{manifest.records} records in the shards of {folder}",
                got=str(sum(shard.rows for shard in manifest.shards)),
                fix="build the store again",
            )
        if manifest.persons is None:
            return cls(folder, manifest, shards)
        about, records = manifest.persons, manifest.records
        persons = PersonRows.open(folder, about, records, verify=verify)
        return cls(folder, manifest, shards, persons)

    @property
    def units(self) -> int:
        """Number of persons, or of records where a record is the unit of privacy."""
        return self.manifest.units

    @property
    def rows_per_unit(self) -> int:
        """k: how many rows one unit has at most."""
        return self.task.schema.rows_per_person

    def spans(
        self, units: Int64[np.ndarray, " batch"]
    ) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
        """Return the first row of each unit, and how many rows it has: between 1 and k.

        Raises:
            ConfigError: A unit's number is out of range.
        """
        _check_numbers(units, self.units, "units")
        if self._persons is None:
            return units, np.ones_like(units)
        return self._persons.spans(units)

    def rows_of(self, units: Int64[np.ndarray, " units"]) -> Int64[np.ndarray, " rows"]:
        """Return all rows of some units, in their order.

        Raises:
            ConfigError: A unit's number is out of range.
        """
        first, count = self.spans(units)
        if self._persons is None:
            return first
        before = np.cumsum(count) - count
        return np.repeat(first - before, count) + np.arange(int(count.sum()))

    def __len__(self) -> int:
        return self.manifest.records

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordStore) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"RecordStore({self.task.name}, {len(self)} records, {self.path})"

    @property
    def id(self) -> str:
        """The content hash. For a sensitive store it is as private as the records."""
        return self.manifest.content_hash

    @property
    def task(self) -> Task:
        """The task, with its schema and declared public constants."""
        return self.manifest.task

    @property
    def feature_dim(self) -> int:
        """Number of model inputs."""
        return self.task.schema.feature_dim

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the model inputs: ``AGEP``, ``SEX=1``, ..."""
        return self._encoding.names

    @property
    def ledger_path(self) -> Path:
        """Where this store's privacy ledger lives."""
        return self.path / LEDGER

    def gather(
        self, rows: Int64[np.ndarray, " batch"]
    ) -> tuple[Float[Tensor, "batch features"], Int64[Tensor, " batch"]]:
        """Features (one-hot codes, numbers scaled to [0, 1], float32) and labels of some rows.

        Args:
            rows: Row numbers in [0, n), in any order, repeats allowed, possibly none.

        Raises:
            ConfigError: A row number is out of range.
        """
        codes, values, labels = self._take(rows)
        features = torch.from_numpy(self._encoding.encode(codes, values))
        return features, torch.from_numpy(labels.astype(np.int64))

    def labels(self, rows: Int64[np.ndarray, " batch"]) -> Int64[Tensor, " batch"]:
        """Labels of some rows: 1 for the positive class.

        Raises:
            ConfigError: A row number is out of range.
        """
        found = np.empty(len(rows), dtype=np.int64)
        for shard, where, local in self._located(rows):
            found[where] = shard.labels[local]
        return torch.from_numpy(found)

    def split(self, test_fraction: float = 0.2, relation: str = "zero_out") -> Split:
        """Hold out a fixed public part of the units (records, or persons) for testing.

        A person is on one side with all rows. Under ``zero_out`` and ``replace_one`` numbers of
        units are public, so a public hash of the number decides. Under ``add_remove`` one more
        record shifts the numbers of all that follow: a split by number would move *other* records
        between training and test, so neighbouring data sets would differ in many training records
        and the guarantee (and parallel composition over shards) would fail. There, each one's
        stable key alone decides.

        Args:
            test_fraction: Expected share of test records, in [0, 1).
            relation: The plan's neighbouring relation.

        Raises:
            ConfigError: The fraction or the relation is not valid.
        """
        check_split(test_fraction, relation)
        if relation != "add_remove":
            return by_row_number(self.units, test_fraction)
        if self._persons is not None:
            return by_hash(self._persons.split_hashes, test_fraction)
        return by_key(self._keys(), test_fraction)

    def shard(
        self,
        rows: Int64[np.ndarray, " rows"],
        rank: int,
        world_size: int,
        relation: str = "zero_out",
    ) -> Int64[np.ndarray, " shard"]:
        """Return one rank's fixed part of some units; all ranks' parts are disjoint and whole.

        All rows of a person are in one part. By position among the units under ``zero_out`` and
        ``replace_one`` (sizes differ by one at most), by a hash of each one's stable key under
        ``add_remove`` (sizes differ at random): see `dither.data.store.shard` for why, and for why
        a step's event does not change.

        Args:
            rows: Ascending numbers of units, say ``split().train``, the same on all ranks.
            rank: Whose part, 0 ≤ rank < world_size.
            world_size: R.
            relation: The plan's neighbouring relation.

        Raises:
            ConfigError: No such rank or relation.
        """
        check_shard(rank, world_size, relation)
        if relation != "add_remove":
            return shard_by_row_number(rows, rank, world_size)
        if self._persons is not None:
            return shard_by_hash(self._persons.shard_hashes, rows, rank, world_size)
        return shard_by_key(self._keys(), rows, rank, world_size)

    def _keys(self) -> Iterator[bytes]:
        for shard in self._shards:
            for start in range(0, len(shard.keys), 1 << 16):
                yield from shard.keys.slice(start, 1 << 16).cast(pa.binary()).to_pylist()

    def _take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        schema = self.task.schema
        codes = np.empty((len(rows), len(schema.categorical)), dtype=self._code)
        values = np.empty((len(rows), len(schema.numeric)), dtype=np.float32)
        labels = np.empty(len(rows), dtype=np.uint8)
        for shard, where, local in self._located(rows):
            codes[where] = shard.codes.take(local, axis=0)  # for short rows faster than an index
            values[where] = shard.values.take(local, axis=0)
            labels[where] = shard.labels.take(local)
        return codes, values, labels

    def _located(
        self, rows: np.ndarray
    ) -> Iterator[tuple[ShardRows, np.ndarray | slice, np.ndarray]]:
        """Per touched shard: which places of the batch it fills, and from which of its rows."""
        _check_numbers(rows, len(self), "rows")
        if len(self._shards) == 1:
            yield self._shards[0], slice(None), rows
            return
        owner, local = np.divmod(rows, self.manifest.shard_rows)
        if (owner[1:] >= owner[:-1]).all():  # as samples come: each shard fills one stretch
            ends = np.searchsorted(owner, np.arange(len(self._shards) + 1))
            stretches = zip(self._shards, map(slice, ends[:-1], ends[1:]), strict=True)
            yield from ((shard, where, local[where]) for shard, where in stretches)
            return
        for index in np.unique(owner):
            where = np.flatnonzero(owner == index)
            yield self._shards[index], where, local[where]


def _check_numbers(numbers: np.ndarray, below: int, what: str) -> None:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < below):
        raise ConfigError(
            expected=f"numbers of {what} in [0, {below})",
            got=f"[{numbers.min()}, {numbers.max()}]",
            fix="draw them from store.split() or range(store.units)",
        )


def _map_shard(path: Path, shard: Shard, task: Task, verify: bool) -> ShardRows:
    def broken(got: str) -> DataError:
        return DataError(
            expected=f"shard {path.name} of {path.parent} as dither wrote it",
            got=got,
            fix="restore the file, or build the store again",
        )

    if not path.is_file():
        raise broken("no such file")
    if verify:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                raise broken("other bytes (its checksum differs)")
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowInvalid, OSError, IndexError) as error:
        raise broken("a truncated or corrupt file") from error
    if batch.num_rows != shard.rows or not batch.schema.equals(arrow_schema(task)):
        raise broken(f"{batch.num_rows} rows or columns of another task")
    return rows_of(batch)
