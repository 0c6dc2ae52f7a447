"""A record store: memory-mapped shards of codes, one-hot encoded when rows are gathered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from dither.data.schema import Categorical, Task
from dither.data.store.manifest import Manifest, Shard, read_manifest
from dither.data.store.split import Split, by_key, by_row_number, check_split
from dither.data.store.writer import arrow_schema
from dither.errors import ConfigError, DataError

LEDGER = "ledger.sqlite"


@dataclass(frozen=True)
class _Rows:
    """One shard's columns as views of the mapped file."""

    keys: pa.StringArray
    codes: np.ndarray
    values: np.ndarray
    labels: np.ndarray


class RecordStore:
    """Records of one task, opened without reading them; two are equal if their contents are.

    Args:
        path: The store's folder.
        manifest: Its checked manifest.
        shards: Its mapped shards.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[_Rows]) -> None:
        self.path = path
        self.manifest = manifest
        self._shards = tuple(shards)
        self._encoding = _Encoding(manifest.task)
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
        return cls(folder, manifest, shards)

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
        """Hold out a fixed public part of the records for testing.

        Under ``zero_out`` and ``replace_one`` row numbers are public, so a public hash of the
        row number decides. Under ``add_remove`` one more record shifts the numbers of all that
        follow: a split by row number would move *other* records between training and test, so
        neighbouring data sets would differ in many training records and the guarantee (and
        parallel composition over shards) would fail. There, each record's stable key alone
        decides.

        Args:
            test_fraction: Expected share of test records, in [0, 1).
            relation: The plan's neighbouring relation.

        Raises:
            ConfigError: The fraction or the relation is not valid.
        """
        check_split(test_fraction, relation)
        if relation == "add_remove":
            return by_key(self._keys(), test_fraction)
        return by_row_number(len(self), test_fraction)

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

    def _located(self, rows: np.ndarray) -> Iterator[tuple[_Rows, np.ndarray | slice, np.ndarray]]:
        """Per touched shard: which places of the batch it fills, and from which of its rows."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise ConfigError(
                expected=f"row numbers in [0, {len(self)})",
                got=f"[{rows.min()}, {rows.max()}]",
                fix="draw rows from store.split() or range(len(store))",
            )
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


class _Encoding:
    """One-hot encoding and scaling of the schema's features, vectorised."""

    def __init__(self, task: Task) -> None:
        starts, names, number_at, bounds, start = [], [], [], [], 0
        for column in task.schema.features:
            if isinstance(column, Categorical):
                starts.append(start)
                names += [f"{column.name}={code}" for code in column.codes]
            else:
                number_at.append(start)
                names.append(column.name)
                bounds.append((column.lower, column.upper))
            start += column.width
        self.names = tuple(names)
        # Position 1 is a vocabulary's first column; 0, the blank, has none.
        self._before = np.array(starts, dtype=np.int64) - 1
        self._number_at = np.array(number_at, dtype=np.int64)
        self._lower = np.array([low for low, _ in bounds], dtype=np.float32)
        self._span = np.array([high - low for low, high in bounds], dtype=np.float32)

    def encode(self, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        rows, width = len(codes), len(self.names)
        features = np.zeros((rows, width), dtype=np.float32)
        row_start = np.arange(rows, dtype=np.int64)[:, None] * width
        places = (codes.astype(np.int64) + self._before + row_start)[codes > 0]
        features.reshape(-1)[places] = 1.0
        features[:, self._number_at] = (values - self._lower) / self._span
        return features


class StoreDataset(Dataset[tuple[Tensor, Tensor]]):
    """Some rows of a store as a PyTorch data set; whole batches are gathered at once.

    Args:
        store: The records.
        rows: The rows that make up the data set, say ``store.split().train``.
    """

    def __init__(self, store: RecordStore, rows: Int64[np.ndarray, " rows"]) -> None:
        self.store = store
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, " features"], Int64[Tensor, ""]]:
        features, labels = self.store.gather(self.rows[[index]])
        return features[0], labels[0]

    def __getitems__(
        self, indices: list[int]
    ) -> tuple[Float[Tensor, "batch features"], Int64[Tensor, " batch"]]:
        """A whole batch, already stacked: use it with ``collate_fn=lambda batch: batch``."""
        return self.gather_batch(np.asarray(indices, dtype=np.int64))

    def gather_batch(
        self, rows: Int64[np.ndarray, " batch"]
    ) -> tuple[Float[Tensor, "batch features"], Int64[Tensor, " batch"]]:
        """A whole batch of the data set's rows, for `dither.sampling.loader.PoissonLoader`."""
        return self.store.gather(self.rows[rows])


def _map_shard(path: Path, shard: Shard, task: Task, verify: bool) -> _Rows:
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
    return _Rows(
        keys=batch.column("key"),
        codes=batch.column("codes").flatten().to_numpy().reshape(shard.rows, -1),
        values=batch.column("values").flatten().to_numpy().reshape(shard.rows, -1),
        labels=batch.column("label").to_numpy(),
    )
