"""The one writer of record stores, whatever engine the rows come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from dither.data.pipeline import code_type
from dither.data.schema import Task
from dither.data.store.content import ContentHash
from dither.data.store.manifest import Shard
from dither.errors import DataError

SHARD_ROWS = 1 << 20


def arrow_schema(task: Task) -> pa.Schema:
    """Columns of a shard: ``key``, ``codes``, ``values``, ``label``."""
    code = pa.uint8() if code_type(task.schema) == "uint8" else pa.uint16()
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("codes", pa.list_(code, len(task.schema.categorical)), nullable=False),
            pa.field("values", pa.list_(pa.float32(), len(task.schema.numeric)), nullable=False),
            pa.field("label", pa.uint8(), nullable=False),
        ]
    )


def write_shards(
    batches: Iterable[pa.RecordBatch], task: Task, folder: Path, shard_rows: int = SHARD_ROWS
) -> tuple[tuple[Shard, ...], str]:
    """Write sorted batches as shards of a fixed number of rows.

    Args:
        batches: An engine's records, in key order.
        task: Fixes the columns.
        folder: Where the shards go; exists and is empty.
        shard_rows: Rows of every shard but the last.

    Returns:
        The shards and the content hash.

    Raises:
        DataError: A key occurs twice.
        OSError: The disk is full or fails.
    """
    schema, content = arrow_schema(task), ContentHash(task)
    shards: list[Shard] = []
    pending: list[pa.RecordBatch] = []
    waiting, last_key = 0, None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        packed = _packed(batch, task, schema)
        if task.schema.person is None:  # else persons have been checked one by one
            last_key = _check_keys(packed.column("key"), last_key)
        _hash(packed, content)
        pending.append(packed)
        waiting += packed.num_rows
        while waiting >= shard_rows:
            whole = pa.concat_batches(pending)
            shards.append(_write_shard(whole.slice(0, shard_rows), folder, len(shards)))
            pending = [whole.slice(shard_rows)]
            waiting -= shard_rows
    if waiting:
        shards.append(_write_shard(pa.concat_batches(pending), folder, len(shards)))
    return tuple(shards), content.hexdigest()


def _packed(batch: pa.RecordBatch, task: Task, schema: pa.Schema) -> pa.RecordBatch:
    def stacked(prefix: str, count: int, kind: pa.DataType) -> pa.Array:
        columns = [
            batch.column(f"{prefix}_{i}").to_numpy(zero_copy_only=False) for i in range(count)
        ]
        rows = np.stack(columns, axis=1) if columns else np.empty((batch.num_rows, 0))
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1), type=kind.value_type)
        if count:
            return pa.FixedSizeListArray.from_arrays(flat, type=kind)
        return pa.array([[]] * batch.num_rows, type=kind)

    codes = stacked("c", len(task.schema.categorical), schema.field("codes").type)
    values = stacked("v", len(task.schema.numeric), schema.field("values").type)
    key, label = batch.column("key").cast(pa.string()), batch.column("label").cast(pa.uint8())
    return pa.record_batch([key, codes, values, label], schema=schema)


def _key_parts(keys: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    _, offsets, data = keys.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[keys.offset : keys.offset + len(keys) + 1]
    raw = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, np.uint8)
    return np.diff(ends), raw[ends[0] : ends[-1]]


def _check_keys(keys: pa.StringArray, before: str | None) -> str:
    doubles = pa.compute.sum(pa.compute.equal(keys[1:], keys[:-1])).as_py() or 0
    doubles += before is not None and before == keys[0].as_py()
    if doubles:
        raise DataError(
            expected="each key once",
            got=f"at least {doubles} rows that repeat the key of another",
            fix="name each source once; two files may hold the same records",
        )
    return str(keys[-1].as_py())


def _hash(batch: pa.RecordBatch, content: ContentHash) -> None:
    lengths, data = _key_parts(batch.column("key"))
    rows = batch.num_rows
    codes = batch.column("codes").flatten().to_numpy().reshape(rows, -1)
    values = batch.column("values").flatten().to_numpy().reshape(rows, -1)
    content.update(lengths, data, codes, values, batch.column("label").to_numpy())


def _write_shard(rows: pa.RecordBatch, folder: Path, index: int) -> Shard:
    path = folder / f"shard-{index:05d}.arrow"
    # A fresh copy: a slice would be written with its offsets, so bytes would depend on batches.
    whole = pa.concat_batches([rows, rows.slice(0, 0)])
    with path.open("wb") as stream:
        with pa.ipc.new_file(stream, whole.schema) as writer:
            writer.write_batch(whole)
        stream.flush()
        os.fsync(stream.fileno())
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Shard(path.name, whole.num_rows, digest)
