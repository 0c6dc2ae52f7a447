"""`dither bench data`: rows, honesty, scale, figure, refusals; and the loop written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dither.bench import data as bench
from dither.bench.data import DataBench
from dither.bench.data_bare import bare_build
from dither.bench.data_scale import Point, export_csv, measure_scale, scale_rows
from dither.bench.harness import Row
from dither.cli.main import main
from dither.data.build import build_store
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DataError
from dither.report.data_scale import write_data_scale_figure

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("bench-data") / "persons.csv", 4000, seed=4)


def test_the_targets_are_the_promised_ones() -> None:
    assert bench._TARGETS == {"duckdb": 1 / 8, "spark": 1 / 2, "streaming": None}
    assert bench._HONEST == 1.5
    assert {"duckdb", "spark", "rows"} <= set(bench.NAMES)


def test_duckdb_against_rows_and_rows_against_the_bare_loop(persons: Path) -> None:
    measured = DataBench(data=persons)
    rows = {row.case: row for row in measured.rows(("duckdb", "rows"))}
    assert set(rows) == {"duckdb", "rows", "fastDP spark, published"}
    for name in ("duckdb", "rows"):
        row = rows[name]
        assert row.pairs == 2
        assert row.ratio is not None
        assert row.ours is not None
        assert 0 < row.ours < 600
    assert rows["duckdb"].baseline_name == "rows"
    assert rows["rows"].baseline_name == "bare csv.reader"
    facts = measured.to_json()["engines"]
    assert set(facts) == {"duckdb", "rows"}
    assert facts["duckdb"]["rows_read"] == 4000
    stages = facts["duckdb"]["stages"]
    assert len(stages) == 2
    assert {"hash", "unpack", "session", "validate", "count", "write"} == set(stages[0])
    ours = rows["duckdb"].ours
    assert ours is not None
    assert facts["duckdb"]["rows_per_second"] == pytest.approx(4000 / ours)
    assert sum(stages[0].values()) < 600


def test_what_fastdp_published_is_named_so() -> None:
    row = bench._published()
    assert row.pairs == 0
    assert row.ratio is not None
    assert 1 / row.ratio == pytest.approx(22, abs=0.5)
    assert "published, not run here" in row.detail


def test_spark_without_java_is_named_as_missing(
    persons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it runs, tests/data/test_spark.py times it."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    rows = list(DataBench(data=persons).rows(("spark",)))
    assert rows[0].case == "spark"
    assert rows[0].ratio is None
    assert "--engine duckdb" in rows[0].detail


def test_an_engine_that_writes_another_store_ends_the_bench(
    persons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "bare_build", lambda source, out: "another")
    with pytest.raises(AssertionError, match="2 different stores"):
        list(DataBench(data=persons).rows(("rows",)))


def test_the_bare_loop_writes_the_store_that_engines_write(persons: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    store = build_store(persons, "unemployment", tmp_path / "store")
    assert bare_build(persons, folder) == store.id
    assert [p.name for p in folder.iterdir()] == [shard.file for shard in store.manifest.shards]


@pytest.mark.parametrize(
    ("old", "new"), [("2024", "2023"), (",1,", ",77,"), ("HU", "H,U")], ids=["year", "code", "row"]
)
def test_the_bare_loop_checks_what_engines_check(
    persons: Path, tmp_path: Path, old: str, new: str
) -> None:
    lines = persons.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if i > 200 and line.endswith(",1"))  # employed
    lines[at] = lines[at].replace(old, new)
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(lines) + "\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"bad\.csv"):
        bare_build(path, tmp_path / "out")
    with pytest.raises(DataError):
        build_store(path, "unemployment", tmp_path / "store", engine="rows")


def test_the_export_is_the_csv_of_the_census(tmp_path: Path) -> None:
    parquet = write_synthetic(tmp_path / "persons.parquet", 3000, seed=4)
    path = export_csv(parquet, tmp_path / "persons.csv")
    assert '"' not in path.read_text()
    plain = write_synthetic(tmp_path / "plain.csv", 3000, seed=4)
    built = [
        build_store(source, "unemployment", tmp_path / source.stem)
        for source in (path, plain)
        if not (tmp_path / source.stem).exists()
    ]
    assert built[0].id == built[1].id
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"a": ["x,y"]}), bad)
    with pytest.raises(DataError, match=r"bad\.parquet"):
        export_csv(bad, tmp_path / "bad.csv")


def test_scale_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    (point,) = measure_scale(tmp_path, (2000,))
    assert point.persons == 2000
    assert 0 < point.records < 2000
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert 100e6 < point.peak_bytes < 2e9


@pytest.mark.full
def test_scale_grows_with_its_files(tmp_path: Path) -> None:
    points = measure_scale(tmp_path, (2000, 6000))
    assert [point.persons for point in points] == [2000, 6000]
    assert points[1].csv_bytes > 2.5 * points[0].csv_bytes
    rows = list(scale_rows(points))
    assert [(row.case, row.metric) for row in rows] == [
        ("scale/2000", "memory"),
        ("scale/6000", "memory"),
        ("scale", "time a row"),
    ]


def test_rows_of_scale_tell_what_was_missed() -> None:
    points = [Point(10, 5, 1.0, 1_000_000_000, 1000), Point(40, 20, 8.0, 3_000_000_000, 4000)]
    rows: list[Row] = list(scale_rows(points))
    assert rows[0].ratio == 0.5
    assert rows[1].ratio == 1.5
    assert rows[2].ratio == 2.0
    assert [row.target for row in rows] == [1.0, 1.0, 1.25]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_figure_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scale{suffix}"
    write_data_scale_figure(path, [(5_000_000, 6.0, 10**9), (20_000_000, 25.0, 15 * 10**8)])
    assert path.stat().st_size > 2000


def test_the_command_writes_rows_and_engines(
    persons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data.json"
    words = ["bench", "data", "--data", str(persons), "--cases", "duckdb", "--json", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr()
    value = json.loads(out.read_text())
    assert value["bench"] == "data"
    assert [row["case"] for row in value["rows"]] == ["duckdb", "fastDP spark, published"]
    assert value["engines"]["rows"]["records"] == value["engines"]["duckdb"]["records"]
    assert "validate" in shown.out
    assert "fastDP" in shown.err
    numbers = [row["ratio"] for row in value["rows"]]
    assert np.isfinite(numbers).all()
    assert not math.isnan(numbers[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "sqlite"], "cases of duckdb"),
        (["--figure", "x.svg"], "--full"),
        (["--price", "0.1"], "--price"),
        (["--tune"], "--tune"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--full", "--figure", "x.gif"], ".svg"),
    ],
)
def test_bad_options_exit_with_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "data", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_records_must_be_one_file(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write_synthetic(tmp_path / name, 100)
    with pytest.raises(ConfigError, match="one CSV or Parquet file"):
        list(DataBench(data=tmp_path).rows(("duckdb",)))
