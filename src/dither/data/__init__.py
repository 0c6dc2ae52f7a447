"""Records: schema, reader, pipeline, engines, and the record store.

The names load on first use: a mapper of the engine ``streaming`` needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dither.data.acs import ACS, EMPLOYMENT, TASKS, UNEMPLOYMENT, find_task
    from dither.data.build import Built, build_store, build_with_counts, cached_store
    from dither.data.counts import StageCounts
    from dither.data.schema import (
        Between,
        Categorical,
        KeyColumn,
        Numeric,
        OneOf,
        Released,
        Schema,
        Task,
    )
    from dither.data.store import Manifest, PublicInput, RecordStore, Split, StoreDataset

__all__ = [
    "ACS",
    "EMPLOYMENT",
    "TASKS",
    "UNEMPLOYMENT",
    "Between",
    "Built",
    "Categorical",
    "KeyColumn",
    "Manifest",
    "Numeric",
    "OneOf",
    "PublicInput",
    "RecordStore",
    "Released",
    "Schema",
    "Split",
    "StageCounts",
    "StoreDataset",
    "Task",
    "build_store",
    "build_with_counts",
    "cached_store",
    "find_task",
]

_HOMES = {
    "ACS": "dither.data.acs",
    "EMPLOYMENT": "dither.data.acs",
    "TASKS": "dither.data.acs",
    "UNEMPLOYMENT": "dither.data.acs",
    "Between": "dither.data.schema",
    "Built": "dither.data.build",
    "Categorical": "dither.data.schema",
    "KeyColumn": "dither.data.schema",
    "Manifest": "dither.data.store",
    "Numeric": "dither.data.schema",
    "OneOf": "dither.data.schema",
    "PublicInput": "dither.data.store",
    "RecordStore": "dither.data.store",
    "Released": "dither.data.schema",
    "Schema": "dither.data.schema",
    "Split": "dither.data.store",
    "StageCounts": "dither.data.counts",
    "StoreDataset": "dither.data.store",
    "Task": "dither.data.schema",
    "build_store": "dither.data.build",
    "build_with_counts": "dither.data.build",
    "cached_store": "dither.data.build",
    "find_task": "dither.data.acs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dither.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
