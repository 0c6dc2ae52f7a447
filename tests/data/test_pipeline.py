"""The recode rules against a slow row-by-row oracle, on hostile texts."""

from __future__ import annotations

import csv
import math
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from dither.data.engines import DuckDB
from dither.data.pipeline import code_type
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
        ),
        context=(Categorical("status", ("1", "2", "3"), blank="none"), Numeric("weight", 0, 9)),
        source="test",
    ),
    where=(OneOf("status", ("1", "2")), Between("weight", 1, 9)),
    label=OneOf("status", ("2",)),
)

Outcome = tuple[str, list[int], list[float], int]


def oracle_column(column: Column, text: str) -> tuple[int, float | None]:
    """Position (0 blank or number, -1 unknown, -2 missing) and value, by the written rules."""
    if not text:
        return -2, None
    if isinstance(column, Numeric):
        if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", text):
            return -1, None
        value = float(text)
        return (0 if column.lower <= value <= column.upper else -1), value
    if column.numbered:
        if not re.fullmatch(r"[0-9]{1,9}(\.0+)?", text):
            return -1, None
        known = [int(code) for code in column.codes]
        number = int(text.partition(".")[0])
        return (known.index(number) + 1 if number in known else -1), None
    return (column.codes.index(text) + 1 if text in column.codes else -1), None


def holds(condition: Condition, position: int, value: float | None) -> bool:
    if isinstance(condition, Between):
        return value is not None and condition.lower <= value <= condition.upper
    column = TASK.schema.column(condition.column)
    assert isinstance(column, Categorical)
    return position in {column.position(code) for code in condition.codes}


@dataclass
class Oracle:
    """Runs the pipeline's rules on one row after the other."""

    records: list[Outcome] = field(default_factory=list)
    in_scope: int = 0
    invalid: dict[str, int] = field(default_factory=dict)

    def add(self, row: dict[str, str]) -> None:
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
                position, value = 0, float(column.impute) if isinstance(column, Numeric) else None
                if isinstance(column, Categorical):
                    position = column.position(str(column.impute))
            judged = scope or column.name in TASK.condition_columns
            if judged and position < 0:
                self.invalid[column.name] = self.invalid.get(column.name, 0) + 1
                valid = False
            if column in TASK.schema.categorical:
                codes.append(position)
            elif column in TASK.schema.numeric:
                values.append(value if value is not None else math.nan)
        if scope and valid:
            self.records.append((f"{row['id']}-{int(row['part'])}", codes, values, int(label)))


def staged(rows: list[dict[str, str]]) -> tuple[StageCounts, list[Outcome]]:
    """Run the same rows through CSV and DuckDB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        tables = open_tables([path], TASK.schema, Path(folder))
        with DuckDB(threads=1).stage(tables, TASK, Path(folder)) as found:
            records: list[Outcome] = []
            for batch in found.batches(7):
                for row in batch.to_pylist():
                    codes = [row[f"c_{i}"] for i in range(3)]
                    records.append((row["key"], codes, [row["v_0"]], row["label"]))
            return found.counts(), records


NUMBERS = ["", "0", "1", "01", "2", "002", "3", "10", "1.0", "2.00", "1.5", "-1", " 1", "1 ", "1e0"]
HOSTILE = ["x", "NULL", "nan", "inf", "²", "é", "'", '"', "1;2", "99999999999999999999", "1_0"]
code = st.sampled_from(NUMBERS + HOSTILE)
amount = st.one_of(
    st.sampled_from(
        [*NUMBERS, *HOSTILE, "100", "100.0001", "-5", "-5.01", "1e2", "+7", ".5", "5."]
    ),
    st.integers(-8, 110).map(str),
    st.floats(-6, 101, width=32).map(lambda x: f"{x:.6f}"),
)
usual = st.sampled_from(["1", "2", "02"])
rows_of_texts = st.lists(
    st.fixed_dictionaries(
        {
            "grade": code,
            "amount": amount,
            "kind": st.sampled_from(["", "visa", "VISA", "über", "01", "1", " visa", "a,b", 'q"q']),
            "sex": st.one_of(usual, code),
            "status": st.one_of(usual, code),
            "weight": st.one_of(st.just("1"), amount),
        }
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows_of_texts)
def test_duckdb_agrees_with_the_row_by_row_oracle(texts: list[dict[str, str]]) -> None:
    rows = [{"id": f"k{i:03d}", "part": f"{i % 3:02d}"} | row for i, row in enumerate(texts)]
    oracle = Oracle()
    for row in rows:
        oracle.add(row)
    counts, records = staged(rows)
    assert counts.read == len(rows)
    assert counts.in_scope == oracle.in_scope
    assert counts.invalid == dict(sorted(oracle.invalid.items()))
    assert [r[0] for r in records] == [r[0] for r in oracle.records]
    assert [r[1] for r in records] == [r[1] for r in oracle.records]
    assert [r[3] for r in records] == [r[3] for r in oracle.records]
    for ours, theirs in zip(records, oracle.records, strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=1e-6)


def good(number: int, **changes: str) -> dict[str, str]:
    row = {"id": f"k{number}", "part": "1", "grade": "3", "amount": "1", "kind": "visa"}
    return row | {"sex": "1", "status": "1", "weight": "1"} | changes


def test_records_come_in_key_order_with_integer_parts_as_numbers() -> None:
    rows = [good(2, part="10"), good(10, part="1"), good(2, part="09"), good(1)]
    _, records = staged(rows)
    assert [record[0] for record in records] == ["k1-1", "k10-1", "k2-9", "k2-10"]


def test_missing_values_become_the_declared_constants_or_are_named() -> None:
    rows = [good(1, amount="", kind="", grade=""), good(2, sex=""), good(3, status="", sex="9")]
    counts, records = staged(rows)
    assert records == [("k1-1", [0, 2, 1], [7.5], 0)]
    assert counts.missing["sex"] == 1, "a row out of scope is not judged by its features"
    assert counts.unknown["sex"] == 0
    assert counts.out_of_scope == 1


def test_rows_without_a_key_are_counted_and_left_out() -> None:
    counts, records = staged([good(1), good(2, id=""), good(3, part="x")])
    assert counts.keyless == 2
    assert [record[0] for record in records] == ["k1-1"]


def test_a_vocabulary_of_more_than_255_codes_takes_two_bytes() -> None:
    def coded(count: int) -> Schema:
        column = Categorical("c", tuple(map(str, range(count))))
        return Schema("s", (KeyColumn("id"),), (column,), (), "test")

    assert code_type(coded(255)) == "uint8"
    assert code_type(coded(256)) == "uint16"
