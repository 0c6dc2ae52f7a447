"""Records: schema, reader, pipeline, engines, and the record store."""

from __future__ import annotations

from dither.data.acs import ACS, EMPLOYMENT, TASKS, UNEMPLOYMENT, find_task
from dither.data.build import Built, build_store, build_with_counts, cached_store
from dither.data.counts import StageCounts
from dither.data.schema import Between, Categorical, KeyColumn, Numeric, OneOf, Schema, Task
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
