"""How a store was built, for its operator's eyes only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dither.data.counts import StageCounts
from dither.errors import DataError

BUILD_RECORD = "operator.json"
"""File in a store's folder; as private as the records beside it."""


@dataclass(frozen=True)
class BuildRecord:
    """How a store was built: for the operator's private eyes.

    Args:
        engine: What ran the pipeline.
        counts: Exact row counts by stage.
        seconds: By stage: ``hash`` (digests of the sources), ``unpack``, ``session`` (an engine's
            start), ``validate``, ``count``, ``write``.
    """

    engine: str
    counts: StageCounts
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        seconds = {stage: round(value, 6) for stage, value in self.seconds.items()}
        return {"engine": self.engine, "seconds": seconds, "rows": self.counts.to_json()}


def read_build_record(store: str | Path) -> BuildRecord | None:
    """How a store was built; None where nothing tells.

    Args:
        store: The store's folder.

    Raises:
        DataError: The record was altered.
    """
    path = Path(store) / BUILD_RECORD
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        counts = StageCounts.from_json(value["rows"])
        return BuildRecord(value["engine"], counts, dict(value["seconds"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            expected=f"the record of a build at {path} as dither wrote it",
            got="one that was altered or cut short",
            fix="remove it; the store itself does not need it",
        ) from error
