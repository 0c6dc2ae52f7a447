"""rows = DuckDB = map-reduce: equal stores of real census files and of hostile rows."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.hostile import TASK, hostile_rows, judge, staged, write_csv, write_parquet

from dither.data import (
    Categorical,
    KeyColumn,
    Numeric,
    OneOf,
    RecordStore,
    Schema,
    Task,
    build_with_counts,
)
from dither.data.build import Built
from dither.data.engines import DuckDB, Engine, Rows, Spark, Streaming, find_engine
from dither.errors import ConfigError, DataError, OutputError

HERE = ("duckdb", "rows")
ZIPS_2018 = ("csv_pwy_2018.zip", "csv_pvt_2018.zip")


def same(first: Built, second: Built) -> None:
    """Every byte that a store promises, and the counts."""
    assert first.store.id == second.store.id
    ours = json.loads((first.store.path / "manifest.json").read_text())
    theirs = json.loads((second.store.path / "manifest.json").read_text())
    assert ours == theirs, "the manifest does not tell the engine"
    for shard in first.store.manifest.shards:
        mine = (first.store.path / shard.file).read_bytes()
        assert mine == (second.store.path / shard.file).read_bytes()
    assert first.counts == second.counts


def test_all_engines_have_their_names() -> None:
    for name in ("duckdb", "rows", "spark", "streaming"):
        assert find_engine(name).name == name
    engine = Rows()
    assert find_engine(engine) is engine
    assert isinstance(find_engine("spark", master="local[2]"), Spark)


def test_a_master_is_for_spark_only() -> None:
    with pytest.raises(ConfigError, match="engine spark"):
        find_engine("duckdb", master="local[2]")
    with pytest.raises(ConfigError, match="engine spark"):
        find_engine(Rows(), master="local[2]")


def test_census_zips_of_2018_give_equal_stores(shared_data: Path, tmp_path: Path) -> None:
    zips = [shared_data / "acs" / name for name in ZIPS_2018]
    for task in ("unemployment", "employment"):
        built = [
            build_with_counts(zips, task, tmp_path / f"{task}-{engine}", engine=engine)
            for engine in HERE
        ]
        assert built[0].counts.read == 5740 + 6436
        same(*built)


def test_the_first_rows_of_2024_give_equal_stores(shared_data: Path, tmp_path: Path) -> None:
    whole = pq.ParquetFile(shared_data / "acs" / "acs_pums_2024_persons.parquet")
    pq.write_table(whole.read_row_group(0).slice(0, 60_000), tmp_path / "some.parquet")
    built = [
        build_with_counts(tmp_path / "some.parquet", "unemployment", tmp_path / name, engine=name)
        for name in HERE
    ]
    assert len(built[0].store) > 10_000
    same(*built)


@pytest.mark.full
def test_all_of_2024_gives_equal_stores(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "acs" / "acs_pums_2024_persons.parquet"
    built = [
        build_with_counts(source, "unemployment", tmp_path / name, engine=name)
        for name in (*HERE, "streaming")
    ]
    assert len(built[0].store) == 1_328_061
    same(built[0], built[1])
    same(built[0], built[2])


@pytest.mark.parametrize("parquet", [False, True], ids=["csv", "parquet"])
def test_hostile_rows_give_equal_stores(tmp_path: Path, parquet: bool) -> None:
    rows = hostile_rows(3000, seed=5)
    path = tmp_path / f"table.{'parquet' if parquet else 'csv'}"
    (write_parquet if parquet else write_csv)(rows, path)
    built = [
        build_with_counts(path, TASK, tmp_path / name, engine=name, on_invalid="drop")
        for name in HERE
    ]
    same(*built)
    assert len(built[0].store) == len(judge(rows).records) > 500


@pytest.mark.parametrize("engine", [DuckDB(threads=1), Rows()], ids=lambda e: e.name)
def test_csv_and_parquet_of_the_same_texts_are_one(engine: Engine) -> None:
    rows = hostile_rows(400, seed=6)
    assert staged(rows, engine) == staged(rows, engine, parquet=True, batch=1000)


TYPED = Task(
    "typed",
    Schema(
        name="typed",
        key=(KeyColumn("id", "integer"), KeyColumn("day")),
        features=(
            Numeric("f32", -1e30, 1e30),
            Numeric("f64", -1e30, 1e30),
            Numeric("decimal", 0, 10),
            Categorical("whole", ("1", "02", "10"), other="else"),
            Categorical("flag", ("true", "false")),
            Categorical("word", ("a", "b"), other="else"),
        ),
        context=(Categorical("label", ("0", "1")),),
        source="test",
    ),
    where=(),
    label=OneOf("label", ("1",)),
)


def typed_table() -> pa.Table:
    f64 = [0.1, -0.0, 1e22, 2.5e-8, 123456789.0, 1e16, 5e-324, 3.0]
    return pa.table(
        {
            "id": pa.array(range(8), pa.int64()),
            "day": pa.array([dt.date(2024, 1, 1 + i) for i in range(8)]),
            "f32": pa.array(np.array(f64, dtype=np.float32)),
            "f64": pa.array(f64),
            "decimal": pa.array([decimal.Decimal(i).scaleb(-7) for i in range(8)]),
            "whole": pa.array([1.0, 2.0, 10.0, 1.5, -0.0, 1e10, 2.0, 1.0]),
            "flag": pa.array([True, False] * 4),
            "word": pa.array(["a", "b", "c", "", "a", "b", "a", "ä"]).dictionary_encode(),
            "label": pa.array([0, 1] * 4, pa.uint8()),
            "unused": pa.array([dt.datetime(2024, 1, 1)] * 8, pa.timestamp("ns")),
        }
    )


def test_columns_of_numbers_dates_and_flags_give_equal_stores(tmp_path: Path) -> None:
    pq.write_table(typed_table(), tmp_path / "typed.parquet")
    built = [
        build_with_counts(
            tmp_path / "typed.parquet", TYPED, tmp_path / name, engine=name, on_invalid="drop"
        )
        for name in HERE
    ]
    same(*built)
    assert len(built[0].store) == 7, "the row without a word is left out"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("day", pa.array([dt.datetime(2024, 1, 1)] * 8)),
        ("day", pa.array([1.5] * 8)),
        ("word", pa.array([1.5] * 8)),
        ("f64", pa.array([b"1"] * 8)),
        ("whole", pa.array([[1]] * 8)),
    ],
    ids=["timestamp key", "float key", "float words", "bytes", "lists"],
)
def test_a_column_type_that_engines_spell_differently_is_refused(
    tmp_path: Path, column: str, values: pa.Array
) -> None:
    table = typed_table()
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, tmp_path / "typed.parquet")
    with pytest.raises(DataError, match=f"column {column}"):
        build_with_counts(tmp_path / "typed.parquet", TYPED, tmp_path / "store")


HOSTILE_CSV: dict[str, tuple[Callable[[list[str]], str], bool]] = {
    "crlf": (lambda lines: "\r\n".join(lines) + "\r\n", True),
    "no last line end": ("\n".join, True),
    "byte order mark": (lambda lines: "\ufeff" + "\n".join(lines) + "\n", True),
    "empty lines": (lambda lines: "\n\n".join(lines) + "\n\n\n", True),
    "all quoted": (
        lambda lines: (
            "\n".join(",".join(f'"{f}"' for f in line.split(",")) for line in lines) + "\n"
        ),
        True,
    ),
    "line end in quotes": (
        lambda lines: (
            "\n".join([lines[0], lines[1].replace("x,", '"x\n1,2",', 1), *lines[2:]]) + "\n"
        ),
        True,
    ),
    "a line of blanks": (lambda lines: "\n".join([*lines[:5], "  ", *lines[5:]]) + "\n", False),
    "a field too many": (lambda lines: "\n".join([*lines, lines[-1] + ",1"]) + "\n", False),
    "a field too few": (lambda lines: "\n".join([*lines, "1,2"]) + "\n", False),
    "text after a quote": (
        lambda lines: "\n".join([lines[0], lines[1].replace("x,", '"x"y,', 1), *lines[2:]]) + "\n",
        False,
    ),
    "a quote left open": (
        lambda lines: "\n".join([*lines[:-1], lines[-1].replace("x,", '"x,', 1)]) + "\n",
        False,
    ),
}


def census_lines(path: Path) -> list[str]:
    """The lines of a CSV with a first column that nobody reads."""
    with path.open(newline="") as stream:
        rows = [["NOTE", *row] for row in csv.reader(stream)]
    return [",".join(["x" if i else "NOTE", *row[1:]]) for i, row in enumerate(rows)]


def hostile_csv(source: Path, folder: Path, name: str) -> Path:
    path = folder / "hostile.csv"
    write, _ = HOSTILE_CSV[name]
    path.write_bytes(write(census_lines(source)[:800]).encode())
    return path


@pytest.mark.parametrize("name", HOSTILE_CSV)
@pytest.mark.parametrize("engine", HERE)
def test_engines_agree_on_what_is_a_row_of_csv(
    synthetic: Path, tmp_path: Path, name: str, engine: str
) -> None:
    path = hostile_csv(synthetic, tmp_path, name)
    if not HOSTILE_CSV[name][1]:
        with pytest.raises(DataError, match="broken row"):
            build_with_counts(path, "unemployment", tmp_path / "store", engine=engine)
        assert not (tmp_path / "store").exists()
        return
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(census_lines(synthetic)[:800]) + "\n")
    built = build_with_counts(path, "unemployment", tmp_path / "store", engine=engine)
    assert built.store == build_with_counts(plain, "unemployment", tmp_path / "plain").store
    assert built.counts.read == 799


def test_names_that_differ_by_case_only_are_refused(synthetic: Path, tmp_path: Path) -> None:
    lines = census_lines(synthetic)[:10]
    path = tmp_path / "twice.csv"
    path.write_text("\n".join([lines[0].replace("NOTE", "sex"), *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="distinct column names"):
        build_with_counts(path, "unemployment", tmp_path / "store")


PERSONS = Task(
    "visits",
    Schema(
        name="visits",
        key=(KeyColumn("visit", "integer"),),
        features=(Numeric("cost", 0, 100),),
        context=(Categorical("ill", ("0", "1")),),
        source="test",
        person=KeyColumn("patient"),
        rows_per_person=2,
    ),
    where=(),
    label=OneOf("ill", ("1",)),
)


@pytest.mark.parametrize("seed", [1, 2])
def test_rows_of_one_person_are_bounded_alike_by_all_engines(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "visit": str(i),
            "patient": f"p{rng.integers(30):02d}",
            "cost": f"{rng.uniform(0, 100):.3f}",
            "ill": str(rng.integers(2)),
        }
        for i in range(200)
    ]
    rows.append({"visit": "900", "patient": "", "cost": "1", "ill": "1"})
    path = write_csv(rows, tmp_path / "visits.csv")
    built = [
        build_with_counts(path, PERSONS, tmp_path / name, engine=name, on_invalid="drop")
        for name in HERE
    ]
    same(*built)
    patients = {row["patient"] for row in rows if row["patient"]}
    per = {p: sum(row["patient"] == p for row in rows) for p in patients}
    assert len(built[0].store) == sum(min(2, number) for number in per.values())
    assert built[0].counts.keyless == 1
    assert built[0].counts.bounded == 200 - len(built[0].store)


@pytest.mark.parametrize("engine", [Rows(run_rows=500), Streaming()], ids=lambda e: e.name)
@pytest.mark.parametrize("kib", [12, 60])
def test_a_full_disk_leaves_nothing(
    synthetic: Path, small_disk: Callable[[int], Path], engine: Engine, kib: int
) -> None:
    disk = small_disk(kib)
    with pytest.raises(OutputError, match="full disk"):
        build_with_counts(synthetic, "unemployment", disk / "store", engine=engine)
    assert list(disk.iterdir()) == []


def test_a_store_tells_its_operator_how_it_was_built(synthetic: Path, tmp_path: Path) -> None:
    from dither.data.build import read_build_record

    built = build_with_counts(synthetic, "unemployment", tmp_path / "store", engine="rows")
    record = read_build_record(tmp_path / "store")
    assert record is not None
    assert record.engine == "rows"
    assert record.counts.read == built.counts.read == 5000
    assert record.counts.positives == built.counts.positives
    assert set(record.seconds) == {"hash", "unpack", "session", "validate", "count", "write"}
    assert sum(record.seconds.values()) > 0
    assert record.counts.to_json() == built.counts.to_json()
    assert RecordStore.open(tmp_path / "store") == built.store
    (tmp_path / "store" / "operator.json").write_text("{")
    with pytest.raises(DataError, match="altered"):
        read_build_record(tmp_path / "store")
    (tmp_path / "store" / "operator.json").unlink()
    assert read_build_record(tmp_path / "store") is None
