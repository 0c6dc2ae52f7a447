"""What became of the rows, and how the labels are balanced: released under DP, and charged.

Exact counts (`dither.data.build.read_build_record`) are the operator's. What others may see is a
release of its own: counts with Laplace noise, by OpenDP, charged to the store's ledger first.

Sensitivity. Of the stages (out of scope; left out as invalid; stored, by label) a row is in one, so
a record moves one count by one. Counts of missing and unknown values are one a column, and a record
may move them all: they get the other half of ε, and noise for as many as there are. Where the unit
is a person only stored rows are counted, of which a person has k at most: how many rows of theirs
were left out has no bound.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dither.data.build_record import BuildRecord, read_build_record
from dither.data.mechanisms import Histogram, Prepared, prepare
from dither.data.statistics import require_charged
from dither.data.store import RecordStore
from dither.errors import ConfigError, DataError, OutputError
from dither.files import write_json
from dither.privacy.events import ApproximateDP, Relation, Unit
from dither.privacy.ledger import Ledger

QUALITY = "quality.json"
"""File in a store's folder; what it holds was released."""

_STAGES = ("out of scope", "left out as invalid", "stored, negative", "stored, positive")
_LABELS = ("stored, negative", "stored, positive")


@dataclass(frozen=True)
class Quality:
    """Released counts of a store's rows.

    Attributes:
        stages: Rows by what became of them.
        columns: Rows by column whose value is missing or unknown; empty where the unit is a person.
        epsilon: ε charged for all of it.
        accuracy: What a stage's count is off by at most, with probability 95 % each.
        column_accuracy: The same for a column's.
        run: Its name in the ledger.
        account: Id of the ledger.
    """

    stages: dict[str, int]
    columns: dict[str, int]
    epsilon: float
    accuracy: float
    column_accuracy: float | None
    run: str
    account: str

    @property
    def positive_share(self) -> float:
        """Share of positives among stored rows, in [0, 1]; post-processing of the counts."""
        positive, negative = (max(0, self.stages[name]) for name in reversed(_LABELS))
        return positive / max(1, positive + negative)


def release_quality(store: RecordStore, ledger: Ledger, *, epsilon: float) -> Quality:
    """Release how many rows were kept and how their labels are balanced; write it into the store.

    Guarantee: ε-differentially private towards one unit of the ledger, charged before the counts
    are drawn.

    Args:
        store: The records.
        ledger: Their account.
        epsilon: ε of all counts together.

    Raises:
        OutputError: They were released before.
        LedgerError: The ledger is another one's.
        ConfigError: OpenDP is missing.
    """
    path = store.path / QUALITY
    if path.exists():
        raise OutputError(
            expected=f"no released counts yet in {store.path}",
            got="those of an earlier release",
            fix="use them; or remove the file to release (and charge) them again",
        )
    manifest = store.manifest
    ledger.require_kind(Unit(manifest.unit), ledger.header.relation, sensitive=manifest.sensitive)
    require_charged(store.task, ledger)
    build = read_build_record(store.path) if manifest.persons is None else None
    counts = _exact(store, build)
    doubled = 2 if ledger.header.relation is Relation.REPLACE_ONE else 1
    half = epsilon / 2 if build is not None else epsilon
    stages = _prepared(tuple(counts), half, doubled * store.rows_per_unit)
    names = tuple(column.name for column in store.task.schema.columns) if build else ()
    columns = _prepared(names, half, doubled * len(names)) if names else None
    total = stages.epsilon + (columns.epsilon if columns else 0.0)
    run = f"quality-{uuid.uuid4().hex[:12]}"
    words = stages.words + (f"; {columns.words}" if columns else "")
    ledger.record_plan(run, {"plan": {"statistic": "row counts", "mechanism": words}})
    ledger.charge(run, ApproximateDP(total), 1, limit=1)
    bad = {} if build is None else {name: _bad(build, name) for name in names}
    found = Quality(
        stages=dict(zip(counts, stages.run(counts), strict=True)),
        columns={} if columns is None else dict(zip(names, columns.run(bad), strict=True)),
        epsilon=total,
        accuracy=stages.accuracy,
        column_accuracy=None if columns is None else columns.accuracy,
        run=run,
        account=ledger.header.id,
    )
    write_json(path, {**vars(found), "positive_share": found.positive_share})
    return found


def read_quality(store: Path) -> Quality | None:
    """Return released counts; None where there are none.

    Raises:
        DataError: The file was altered.
    """
    path = store / QUALITY
    if not path.is_file():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        value.pop("positive_share")
        return Quality(**value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            expected=f"released counts at {path} as dither wrote them",
            got="a file that was altered or cut short",
            fix="restore it; what it held stays charged",
        ) from error


def _prepared(names: tuple[str, ...], epsilon: float, d_in: int) -> Prepared:
    if not epsilon > 0.0:
        raise ConfigError(
            expected="an epsilon above 0 for the counts",
            got=repr(epsilon),
            fix="give --epsilon, for instance 0.1",
        )
    return prepare(Histogram("rows", epsilon, codes=names), d_in)


def _exact(store: RecordStore, build: BuildRecord | None) -> dict[str, int]:
    if build is None:
        every = np.arange(store.units, dtype=np.int64)
        positive = sum(
            int(store.labels(store.rows_of(part)).sum())
            for part in np.array_split(every, 1 + store.units // (1 << 18))
        )
        return dict(zip(_LABELS, (len(store) - positive, positive), strict=True))
    rows = build.counts
    stored = (rows.kept - rows.positives, rows.positives)
    values = (rows.read - rows.in_scope, rows.in_scope - rows.kept, *stored)
    return dict(zip(_STAGES, values, strict=True))


def _bad(build: BuildRecord, column: str) -> int:
    return build.counts.unknown.get(column, 0) + build.counts.missing.get(column, 0)
