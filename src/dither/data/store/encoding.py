"""From a shard's columns to the model's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dither.data.schema import Categorical, Task


@dataclass(frozen=True)
class ShardRows:
    """One shard's columns, as views of the file's bytes."""

    keys: pa.StringArray
    codes: np.ndarray
    values: np.ndarray
    labels: np.ndarray


def rows_of(batch: pa.RecordBatch) -> ShardRows:
    """A shard's columns out of its one batch, without a copy."""
    rows = batch.num_rows
    return ShardRows(
        keys=batch.column("key"),
        codes=batch.column("codes").flatten().to_numpy().reshape(rows, -1),
        values=batch.column("values").flatten().to_numpy().reshape(rows, -1),
        labels=batch.column("label").to_numpy(),
    )


class Encoding:
    """One-hot encoding and scaling of the schema's features, vectorised."""

    def __init__(self, task: Task) -> None:
        starts, names, number_at, bounds, start = [], [], [], [], 0
        logarithmic = []
        for column in task.schema.features:
            if isinstance(column, Categorical):
                starts.append(start)
                names += [f"{column.name}={code}" for code in column.codes]
            else:
                number_at.append(start)
                names.append(column.name)
                bounds.append((column.lower, column.upper))
                logarithmic.append(column.scale == "log")
            start += column.width
        self.names = tuple(names)
        # Position 1 is a vocabulary's first column; 0, the blank, has none.
        self._before = np.array(starts, dtype=np.int64) - 1
        self._number_at = np.array(number_at, dtype=np.int64)
        self._lower = np.array([low for low, _ in bounds], dtype=np.float32)
        self._span = np.array([high - low for low, high in bounds], dtype=np.float32)
        self._logarithmic = np.flatnonzero(logarithmic)

    def encode(self, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the model's inputs: one row each of one-hot codes and scaled numbers."""
        rows, width = len(codes), len(self.names)
        features = np.zeros((rows, width), dtype=np.float32)
        row_start = np.arange(rows, dtype=np.int64)[:, None] * width
        places = (codes.astype(np.int64) + self._before + row_start)[codes > 0]
        features.reshape(-1)[places] = 1.0
        scaled = (values - self._lower) / self._span
        for column in self._logarithmic:
            above = np.maximum(values[:, column] - self._lower[column], 0.0)
            scaled[:, column] = np.log1p(above) / np.log1p(self._span[column])
        features[:, self._number_at] = scaled
        return features
