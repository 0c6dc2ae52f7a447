"""The mapper and the reducer: what they write, how it sorts, and the engine that pipes them."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.data.hostile import (
    TASK,
    assert_equal_to_oracle,
    hostile_rows,
    staged,
    write_csv,
    write_parquet,
)

from dither.data import build_with_counts
from dither.data.engines import Streaming
from dither.data.engines.mapreduce import Job, counts_of, decode, encode, map_rows, reduce_lines
from dither.errors import ConfigError, DataError

JOB = Job(TASK, tuple(hostile_rows(1, seed=0)[0]), "table.csv")


def record(name: str, part: int) -> tuple[object, ...]:
    return (name, part, bytes([1, 2]), (0.1, -0.0), True)


def test_a_record_survives_its_line() -> None:
    for name in ("k", "ü\t\n", "a b", "𝟙", "'\"\\"):
        line = encode(record(name, 7), JOB)
        assert line.count("\n") == 1
        assert line.count("\t") == 1
        assert decode(line, JOB, wide=False) == record(name, 7)
    wide = ("k", 1, (300, 2), (1e-7,), False)
    assert decode(encode(wide, JOB), JOB, wide=True) == wide


def test_lines_sort_as_keys_do() -> None:
    rng = random.Random(0)  # noqa: S311 - test data
    alphabet = "aAzZ01é𝟙 -\t\x01"
    keys = [
        ("".join(rng.choices(alphabet, k=rng.randint(1, 4))), rng.choice([1, 2, 10, 999_999_999]))
        for _ in range(500)
    ]
    lines = [encode(record(*key), JOB).encode() for key in set(keys)]
    found = [decode(line.decode(), JOB, wide=False)[:2] for line in sorted(lines)]
    assert found == sorted(set(keys))


def test_mapper_and_reducer_alone(tmp_path: Path) -> None:
    rows = hostile_rows(300, seed=8)
    path = write_csv(rows, tmp_path / "table.csv")
    mapped, told = io.StringIO(), io.StringIO()
    with path.open(newline="", encoding="utf-8") as stream:
        map_rows(JOB, stream, mapped, told)
    reduced = io.StringIO()
    lines = sorted(mapped.getvalue().splitlines(keepends=True), key=str.encode)
    reduce_lines([*lines, lines[-1]], reduced, told)
    assert "reporter:counter:dither,repeated,1\n" in told.getvalue()
    assert reduced.getvalue().count("\n") == len(lines) + 1
    counts, unknown = counts_of(told.getvalue().splitlines(), TASK)
    assert counts.read == 300
    assert counts.kept == len(lines)
    assert {name: sum(texts.values()) for name, texts in unknown.items()} == counts.unknown


def test_counters_of_several_mappers_add_up(tmp_path: Path) -> None:
    rows = hostile_rows(200, seed=9)
    told = io.StringIO()
    for part in (rows[:70], rows[70:]):
        with write_csv(part, tmp_path / "part.csv").open(newline="", encoding="utf-8") as stream:
            map_rows(JOB, stream, io.StringIO(), told)
    both, unknown = counts_of(told.getvalue().splitlines(), TASK)
    whole = io.StringIO()
    with write_csv(rows, tmp_path / "whole.csv").open(newline="", encoding="utf-8") as stream:
        map_rows(JOB, stream, io.StringIO(), whole)
    assert (both, unknown) == counts_of(whole.getvalue().splitlines(), TASK)


def test_the_pipes_agree_with_the_oracle() -> None:
    rows = hostile_rows(500, seed=10)
    assert_equal_to_oracle(*staged(rows, Streaming(), batch=100), rows)


def test_a_parquet_file_and_a_csv_file_in_one_build(tmp_path: Path) -> None:
    rows = hostile_rows(300, seed=11)
    sources = [
        write_csv(rows[:150], tmp_path / "a.csv"),
        write_parquet(rows[150:], tmp_path / "b.parquet"),
    ]
    piped = build_with_counts(sources, TASK, tmp_path / "s", engine="streaming", on_invalid="drop")
    plain = build_with_counts(sources, TASK, tmp_path / "r", engine="rows", on_invalid="drop")
    assert piped.store == plain.store
    assert piped.counts == plain.counts


def test_a_row_that_the_mapper_cannot_read_is_named(tmp_path: Path) -> None:
    path = write_csv(hostile_rows(20, seed=12), tmp_path / "t.csv")
    path.write_text(path.read_text() + "secret,too,short\n")
    with pytest.raises(DataError, match=r"broken row at line.*t\.csv|t\.csv.*broken row") as caught:
        build_with_counts(path, TASK, tmp_path / "store", engine="streaming")
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_without_sort_there_is_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(hostile_rows(20, seed=12), tmp_path / "t.csv")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="the program sort"):
        build_with_counts(path, TASK, tmp_path / "store", engine="streaming")


def test_the_commands_of_a_shell_do_the_same(tmp_path: Path) -> None:
    """What the module's own text tells a user of Hadoop to run."""
    import sys

    if shutil.which("sh") is None:
        pytest.skip("no shell")
    rows = hostile_rows(100, seed=13)
    path = write_csv(rows, tmp_path / "rows.csv")
    job = JOB.write(tmp_path / "job.json")
    module = f"'{sys.executable}' -m dither.data.engines.mapreduce"
    line = f"{module} map {job} < {path} | LC_ALL=C sort | {module} reduce {job}"
    import dither

    assert dither.__file__ is not None
    environment = os.environ | {"PYTHONPATH": str(Path(dither.__file__).parents[1])}
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=True, env=environment
    )
    assert "reporter:counter:dither,read,100" in done.stderr
    keys = [decode(found, JOB, wide=False)[:2] for found in done.stdout.splitlines()]
    assert keys == sorted(keys)
    assert len(keys) > 10
