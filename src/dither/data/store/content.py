"""The content hash: what makes two stores equal, whoever wrote them and however they are cut."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from jaxtyping import Float32, Int32, UInt, UInt8

from dither.data.schema import Task


class ContentHash:
    """SHA-256 over columns, each hashed as one stream, so that batch and shard sizes vanish.

    Keys enter as lengths and bytes, codes and values in little-endian order; the task (with its
    schema) enters as canonical JSON, since codes mean nothing without it.
    """

    def __init__(self, task: Task) -> None:
        text = json.dumps(task.to_json(), sort_keys=True, separators=(",", ":"))
        self._header = hashlib.sha256(text.encode()).digest()
        self._columns = [hashlib.sha256() for _ in range(5)]

    def update(
        self,
        key_lengths: Int32[np.ndarray, " rows"],
        key_bytes: UInt8[np.ndarray, " bytes"],
        codes: UInt[np.ndarray, "rows columns"],
        values: Float32[np.ndarray, "rows numbers"],
        labels: UInt8[np.ndarray, " rows"],
    ) -> None:
        """Add rows, in key order."""
        parts = (key_lengths.astype("<i4"), key_bytes, codes.astype("<u2"), values, labels)
        for column, part in zip(self._columns, parts, strict=True):
            little = part.astype(part.dtype.newbyteorder("<"), copy=False)
            column.update(np.ascontiguousarray(little).tobytes())

    def hexdigest(self) -> str:
        """The hash of all rows so far."""
        total = hashlib.sha256(self._header)
        for column in self._columns:
            total.update(column.digest())
        return total.hexdigest()
