"""A task with every kind of column, hostile texts, and the written rules as a slow oracle."""

from __future__ import annotations

import csv
import math
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dither.data import (
    Between,
    Categorical,
    KeyColumn,
    Numeric,
    OneOf,
    Schema,
    StageCounts,
    Task,
)
from dither.data.engines import Engine
from dither.data.reader import open_tables
from dither.data.schema import Column, Condition

TASK = Task(
    "fraud",
    Schema(
        name="transactions",
        key=(KeyColumn("id"), KeyColumn("part", "integer")),
        features=(
            Categorical("grade", ("3", "01", "02", "10"), blank="ungraded"),
            Numeric("amount", -5, 100, impute=7.5),
            Categorical("kind", ("visa", "über", "01"), impute="über"),
            Categorical("sex", ("1", "2")),
            Categorical("shop", ("7", "08"), other="a rare shop", blank="no shop"),
            Categorical("word", ("a", "b"), other="another word"),
            Numeric("spend", 0, 50, clip=True, impute=3),
        ),
        context=(Categorical("status", ("1", "2", "3"), blank="none"), Numeric("weight", 0, 9)),
        source="test",
    ),
    where=(OneOf("status", ("1", "2")), Between("weight", 1, 9)),
    label=OneOf("status", ("2",)),
)

NUMBERS = ["", "0", "1", "01", "2", "002", "3", "10", "1.0", "2.00", "1.5", "-1", " 1", "1 ", "1e0"]
HOSTILE = [
    *("x", "NULL", "nan", "inf", "²", "é", "'", '"', "1;2", "99999999999999999999", "1_0", "+1"),
    *("0x1", "1f", "1d", "١", "𝟙", "\\N", "\\", "#", "1,0", "null", "1\u00a0", "1.", "0000000001"),
]
AMOUNTS = [
    *("100", "100.0001", "-5", "-5.01", "1e2", "+7", ".5", "5.", "1e400", "-1e400", "4.9e-324"),
    *("-0", "-0.0", "0.1", "1e-7", "33.333333333333336", "1E1", "1e", "--1", "9007199254740993"),
]
USUAL = ["1", "2", "02"]
KINDS = ["", "visa", "VISA", "über", "01", "1", " visa", "a,b", 'q"q', "visa\t", "a'b"]

Outcome = tuple[str, list[int], list[float], int]
Row = dict[str, str]


def oracle_column(column: Column, text: str) -> tuple[int, float | None]:
    """Position (0 blank or number, -1 unknown, -2 missing) and value, by the written rules."""
    if not text:
        return -2, None
    if isinstance(column, Numeric):
        if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", text):
            return -1, None
        value = float(text)
        known = math.isfinite(value) if column.clip else column.lower <= value <= column.upper
        return (0 if known else -1), value
    unknown = -1 if column.other is None else 0
    if column.numbered:
        if not re.fullmatch(r"[0-9]{1,9}(\.0+)?", text):
            return unknown, None
        codes = [int(code) for code in column.codes]
        number = int(text.partition(".")[0])
        return (codes.index(number) + 1 if number in codes else unknown), None
    return (column.codes.index(text) + 1 if text in column.codes else unknown), None


def holds(condition: Condition, position: int, value: float | None) -> bool:
    if isinstance(condition, Between):
        return value is not None and condition.lower <= value <= condition.upper
    column = TASK.schema.column(condition.column)
    assert isinstance(column, Categorical)
    return position in {column.position(code) for code in condition.codes}


def stored(column: Column, value: float | None) -> float:
    """The number that the store holds."""
    assert isinstance(column, Numeric)
    number = float(column.impute or 0.0) if value is None else value
    return min(max(number, column.lower), column.upper) if column.clip else number


@dataclass
class Oracle:
    """Runs the pipeline's rules on one row after the other."""

    records: list[Outcome] = field(default_factory=list)
    in_scope: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        found = {c.name: oracle_column(c, row[c.name]) for c in TASK.schema.columns}
        scope = all(holds(c, *found[c.column]) for c in TASK.where)
        label = holds(TASK.label, *found[TASK.label.column])
        self.in_scope += scope
        codes, values, valid = [], [], True
        for column in TASK.schema.columns:
            position, value = found[column.name]
            if position == -2 and isinstance(column, Categorical) and column.blank:
                position = 0
            elif position == -2 and column.impute is not None:
                position = 0
                if isinstance(column, Categorical):
                    position = column.position(str(column.impute))
            judged = scope or column.name in TASK.condition_columns
            if judged and position < 0:
                tally = self.unknown if position == -1 else self.missing
                tally[column.name] = tally.get(column.name, 0) + 1
                valid = False
            if column in TASK.schema.categorical:
                codes.append(position)
            elif column in TASK.schema.numeric:
                values.append(stored(column, value) if position >= 0 else math.nan)
        if scope and valid:
            self.records.append((f"{row['id']}-{int(row['part'])}", codes, values, int(label)))


def judge(rows: Sequence[Row]) -> Oracle:
    oracle = Oracle()
    for row in rows:
        oracle.add(row)
    oracle.records.sort(key=lambda r: (r[0].rpartition("-")[0], int(r[0].rpartition("-")[2])))
    return oracle


def hostile_rows(count: int, seed: int) -> list[Row]:
    """Rows of which about half are in scope, each with one or two odd texts."""
    rng = random.Random(seed)  # noqa: S311 - test data
    texts = {
        "grade": NUMBERS + HOSTILE,
        "amount": NUMBERS + HOSTILE + AMOUNTS,
        "kind": KINDS + HOSTILE,
        "sex": NUMBERS + HOSTILE,
        "shop": NUMBERS + HOSTILE + ["7", "8", "08", "7.0"],
        "word": KINDS + HOSTILE + ["a", "b", "A"],
        "spend": NUMBERS + HOSTILE + AMOUNTS,
        "status": NUMBERS + HOSTILE,
        "weight": NUMBERS + HOSTILE + AMOUNTS,
    }
    usual = {"grade": "3", "amount": "1", "kind": "visa", "sex": "1", "shop": "7", "word": "a"}
    usual |= {"spend": "5", "status": "1", "weight": "1"}
    rows = []
    for i in range(count):
        odd = rng.sample(sorted(texts), rng.randint(0, 2))
        row = {name: rng.choice(texts[name]) if name in odd else usual[name] for name in usual}
        row["status"] = row["status"] if "status" in odd else rng.choice(["1", "2"])
        prefix = rng.choice(["k", "K", "é", "ß", "𝟙", "-", " "])
        rows.append({"id": f"{prefix}{i:04d}", "part": f"{i % 12:02d}"} | row)
    return rows


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(rows: Sequence[Row], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def staged(
    rows: Sequence[Row], engine: Engine, *, parquet: bool = False, batch: int = 7
) -> tuple[StageCounts, list[Outcome], dict[str, dict[str, int]]]:
    """Run rows through a file and an engine: counts, records, unknown texts by column."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / ("table.parquet" if parquet else "table.csv")
        (write_parquet if parquet else write_csv)(rows, path)
        tables = open_tables([path], TASK.schema, folder)
        with engine.stage(tables, TASK, folder) as found:
            counts = found.counts()
            unknown = {
                column: dict(found.unknown_codes(column))
                for column, number in counts.unknown.items()
                if number
            }
            return counts, outcomes(list(found.batches(batch))), unknown


def outcomes(batches: Sequence[pa.RecordBatch]) -> list[Outcome]:
    found: list[Outcome] = []
    for batch in batches:
        for row in batch.to_pylist():
            codes = [row[f"c_{i}"] for i in range(len(TASK.schema.categorical))]
            values = [row[f"v_{i}"] for i in range(len(TASK.schema.numeric))]
            found.append((row["key"], codes, values, int(row["label"])))
    return found


def assert_equal_to_oracle(
    counts: StageCounts,
    records: Sequence[Outcome],
    unknown: dict[str, dict[str, int]],
    rows: Sequence[Row],
) -> None:
    """Exact on integers and texts; on numbers exact after the rounding to float32."""
    oracle = judge(rows)
    assert counts.read == len(rows)
    assert counts.in_scope == oracle.in_scope
    assert {k: v for k, v in counts.unknown.items() if v} == oracle.unknown
    assert {k: v for k, v in counts.missing.items() if v} == oracle.missing
    assert counts.kept == len(oracle.records) == len(records)
    assert counts.positives == sum(record[3] for record in oracle.records)
    assert [r[0] for r in records] == [r[0] for r in oracle.records]
    assert [r[1] for r in records] == [r[1] for r in oracle.records]
    assert [r[3] for r in records] == [r[3] for r in oracle.records]
    ours = np.array([r[2] for r in records], dtype=np.float32)
    theirs = np.array([r[2] for r in oracle.records], dtype=np.float64).astype(np.float32)
    assert ours.tobytes() == theirs.tobytes(), "bit by bit, the sign of zero too"
    assert {name: sum(texts.values()) for name, texts in unknown.items()} == oracle.unknown
