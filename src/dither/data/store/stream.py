"""A store read as a stream: shard after shard, from any file system, ahead of its use.

`RecordStore` maps local files and reads any row at once. Where a store lies on object storage or on
a slow network disk that is the wrong way round; there whole shards are fetched in order, each
checked against the manifest, while the one before is used.

A stream has no random access, so what it yields is no Poisson sample, and no private step may be
charged as if it were: `PoissonLoader` and `make_private` refuse it by its type. It serves
evaluation, statistics and unprotected training of public records. For private training copy the
store to a local disk and open it as a `RecordStore`.
"""

from __future__ import annotations

import hashlib
import queue
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dither.data.store.encoding import Encoding, ShardRows, rows_of
from dither.data.store.manifest import FILE, Manifest, Shard, read_manifest
from dither.data.store.writer import arrow_schema
from dither.errors import ConfigError, DataError

Batch = tuple[Float[Tensor, "batch features"], Int64[Tensor, " batch"]]


@dataclass(frozen=True)
class _Piece:
    """Some rows of one shard."""

    shard: Shard
    first: int
    end: int


@final
class StoreStream(IterableDataset[Batch]):
    """The records of a store, in order or shuffled within each shard, as batches.

    Give it to a `DataLoader` with ``batch_size=None``. Each rank, and each worker of a rank's
    loader, reads a stretch of rows of its own; together they read every row once.

    Args:
        location: The store's folder: a path, or a URI that `pyarrow.fs` knows (``s3://``,
            ``gs://``, ``hdfs://``, ``file://``).
        batch_size: Rows of a batch; a shard's last one may be shorter.
        rank: Whose stretch, 0 ≤ rank < world_size.
        world_size: R.
        prefetch: Shards that are fetched ahead; memory holds two more than these.
        shuffle: Whether rows change places within their shard, anew at each pass.
        verify: Whether each shard is compared with its checksum.

    Raises:
        ConfigError: A number is out of range, or the location is of no known kind.
        DataError: There is no store, or its manifest was altered.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        shuffle: bool = False,
        verify: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1 or prefetch < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                expected="a batch size and a prefetch of at least 1, and a rank in [0, world size)",
                got=f"{batch_size}, {prefetch}, and rank {rank} of {world_size}",
                fix="choose for instance batch_size=4096, prefetch=2",
            )
        self.location = str(location)
        self.manifest = self._read_manifest()
        self._batch_size = batch_size
        self._part = (rank, world_size)
        self._prefetch = prefetch
        self._shuffle = shuffle
        self._verify = verify

    def __iter__(self) -> Iterator[Batch]:
        """Yield features (float32) and labels of this rank's and worker's rows.

        Raises:
            DataError: A shard is missing, altered or truncated.
        """
        encoding = Encoding(self.manifest.task)
        for piece, rows in self._fetched(self._pieces()):
            places = np.arange(piece.first, piece.end)
            if self._shuffle:
                np.random.default_rng().shuffle(places)
            for start in range(0, len(places), self._batch_size):
                some = places[start : start + self._batch_size]
                features = encoding.encode(rows.codes[some], rows.values[some])
                labels = torch.from_numpy(rows.labels[some].astype(np.int64))
                yield torch.from_numpy(features), labels

    @property
    def records(self) -> int:
        """Rows of this rank."""
        first, end = _stretch(self.manifest.records, *self._part)
        return end - first

    def _pieces(self) -> list[_Piece]:
        first, end = _stretch(self.manifest.records, *self._part)
        worker = get_worker_info()
        if worker is not None:
            low, high = _stretch(end - first, worker.id, worker.num_workers)
            first, end = first + low, first + high
        return list(_cut(self.manifest, first, end))

    def _fetched(self, pieces: list[_Piece]) -> Iterator[tuple[_Piece, ShardRows]]:
        """Yield the pieces in order, each with its shard, while a thread fetches the next ones."""
        ready: queue.Queue[ShardRows | Exception] = queue.Queue(maxsize=self._prefetch)
        stop = threading.Event()

        def fetch() -> None:
            for piece in pieces:
                try:
                    found: ShardRows | Exception = self._shard(piece.shard)
                except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                    found = error
                while not stop.is_set():
                    try:
                        ready.put(found, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if stop.is_set() or isinstance(found, Exception):
                    return

        thread = threading.Thread(target=fetch, name="dither-prefetch", daemon=True)
        thread.start()
        try:
            for piece in pieces:
                found = ready.get()
                if isinstance(found, Exception):
                    raise found
                yield piece, found
        finally:
            stop.set()
            thread.join()

    def _shard(self, shard: Shard) -> ShardRows:
        raw = self._bytes(shard.file)
        if self._verify and hashlib.sha256(raw).hexdigest() != shard.sha256:
            raise self._broken(shard.file, "other bytes (its checksum differs)")
        try:
            batch = pa.ipc.open_file(pa.BufferReader(raw)).get_batch(0)
        except (pa.ArrowInvalid, OSError, IndexError) as error:
            raise self._broken(shard.file, "a truncated or corrupt file") from error
        if batch.num_rows != shard.rows or not batch.schema.equals(
            arrow_schema(self.manifest.task)
        ):
            raise self._broken(shard.file, "rows or columns of another task")
        return rows_of(batch)

    def _read_manifest(self) -> Manifest:
        raw = self._bytes(FILE)
        with tempfile.TemporaryDirectory(prefix="dither-stream-") as folder:
            (Path(folder) / FILE).write_bytes(raw)
            return read_manifest(Path(folder))

    def _bytes(self, name: str) -> pa.Buffer:
        with self._errors(name):
            files, folder = _file_system(self.location)
            with files.open_input_file(f"{folder}/{name}") as stream:
                return stream.read_buffer()

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._broken(name, "no such file") from error
        except (pa.ArrowException, OSError) as error:
            said = str(error).splitlines()[0][:200] or type(error).__name__
            raise self._broken(name, said) from error

    def _broken(self, name: str, got: str) -> DataError:
        return DataError(
            expected=f"{name} of the store {self.location} as dither wrote it",
            got=got,
            fix="check the location and the network, restore the file, or build the store again",
        )


def _file_system(location: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a location, and the folder's path in it.

    Raises:
        ConfigError: Of no known kind.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).absolute())
    try:
        files, folder = pafs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, ValueError) as error:
        raise ConfigError(
            expected="a path, or a URI that pyarrow.fs knows (s3://, gs://, hdfs://, file://)",
            got=location,
            fix="mount the storage and give its path",
        ) from error
    return files, folder.rstrip("/")


def _stretch(rows: int, part: int, parts: int) -> tuple[int, int]:
    """First and last row (excluded) of one of so many stretches that differ by a row at most."""
    return rows * part // parts, rows * (part + 1) // parts


def _cut(manifest: Manifest, first: int, end: int) -> Iterator[_Piece]:
    """The shards that rows [first, end) lie in, and where."""
    start = 0
    for shard in manifest.shards:
        low, high = max(first - start, 0), min(end - start, shard.rows)
        if low < high:
            yield _Piece(shard, low, high)
        start += shard.rows
