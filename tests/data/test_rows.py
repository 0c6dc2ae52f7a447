"""The sequential engine: bounded memory, and files it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.hostile import TASK, assert_equal_to_oracle, hostile_rows, staged, write_csv

from dither.data import build_with_counts
from dither.data.engines import Rows
from dither.data.reader import open_tables
from dither.errors import DataError


@pytest.mark.parametrize("run_rows", [1, 7, 64, 10_000])
def test_sorted_runs_on_disk_merge_to_the_same_records(run_rows: int) -> None:
    rows = hostile_rows(300, seed=1)
    assert_equal_to_oracle(*staged(rows, Rows(run_rows=run_rows)), rows)


def test_runs_lie_in_the_work_folder_and_can_be_read_twice(tmp_path: Path) -> None:
    path = write_csv(hostile_rows(200, seed=2), tmp_path / "table.csv")
    tables = open_tables([path], TASK.schema, tmp_path)
    with Rows(run_rows=20).stage(tables, TASK, tmp_path) as found:
        assert len(list((tmp_path / "runs").iterdir())) >= 3
        first = [batch.to_pylist() for batch in found.batches(50)]
        assert first == [batch.to_pylist() for batch in found.batches(50)]
        assert max(len(batch) for batch in first) <= 50


def test_several_tables_are_one(tmp_path: Path) -> None:
    rows = hostile_rows(200, seed=3)
    whole = write_csv(rows, tmp_path / "whole.csv")
    parts = [write_csv(rows[i::3], tmp_path / f"part-{i}.csv") for i in range(3)]
    first = build_with_counts(whole, TASK, tmp_path / "a", engine="rows", on_invalid="drop")
    second = build_with_counts(parts, TASK, tmp_path / "b", engine="rows", on_invalid="drop")
    assert first.store.id == second.store.id
    assert first.counts == second.counts


def test_a_broken_row_is_named_by_line_and_not_quoted(tmp_path: Path) -> None:
    rows = hostile_rows(20, seed=4)
    path = write_csv([{**row, "id": f"k{i}"} for i, row in enumerate(rows)], tmp_path / "t.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], lines[6] + ",secret", *lines[7:]]) + "\n")
    with pytest.raises(DataError, match="broken row at line") as caught:
        build_with_counts(path, TASK, tmp_path / "store", engine="rows")
    assert "secret" not in str(caught.value)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = write_csv(hostile_rows(20, seed=4), tmp_path / "t.csv")
    path.write_bytes(path.read_bytes() + b"\xff\xfe,1\n")
    with pytest.raises(DataError, match="text in UTF-8"):
        build_with_counts(path, TASK, tmp_path / "store", engine="rows")
