"""Spark against the other engines: equal stores, and clear errors where it cannot run.

One session serves the whole module: its Java process takes seconds to start.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.data.hostile import TASK, assert_equal_to_oracle, hostile_rows, staged, write_csv
from tests.data.test_engines import (
    HOSTILE_CSV,
    PERSONS,
    TYPED,
    ZIPS_2018,
    census_lines,
    hostile_csv,
    same,
    typed_table,
)

import dither
from dither.bench.data import DataBench
from dither.data import build_with_counts
from dither.data.engines import Spark, java
from dither.data.engines.lines import splittable
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DataError, DitherError, OutputError

pytestmark = pytest.mark.xdist_group("spark")

# A short life: little memory, little compiling, one task at a time.
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.memory": "700m",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}


def why_not() -> str | None:
    try:
        java.check_spark()
    except DitherError as error:
        return f"Spark cannot run here: {error.got}"
    return None


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The program's own Spark, which lends every build a session."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    import signal

    from pyspark.sql import SparkSession

    before = signal.getsignal(signal.SIGINT)
    builder = SparkSession.builder.master("local[2]").appName("tests")
    builder = builder.config("spark.local.dir", str(tmp_path_factory.mktemp("spark")))
    builder = builder.config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()
    signal.signal(signal.SIGINT, before)


def test_hostile_rows_agree_with_the_oracle(spark: Any) -> None:
    rows = hostile_rows(3000, seed=20)
    assert_equal_to_oracle(*staged(rows, Spark(), batch=500), rows)


def test_hostile_rows_in_parquet_agree_with_the_oracle(spark: Any) -> None:
    rows = hostile_rows(500, seed=21)
    assert_equal_to_oracle(*staged(rows, Spark(), parquet=True, batch=500), rows)


def test_census_zips_of_2018_give_the_store_that_duckdb_writes(
    spark: Any, shared_data: Path, tmp_path: Path
) -> None:
    zips = [shared_data / "acs" / name for name in ZIPS_2018]
    ours = build_with_counts(zips, "unemployment", tmp_path / "spark", engine="spark")
    theirs = build_with_counts(zips, "unemployment", tmp_path / "duckdb", engine="duckdb")
    same(ours, theirs)
    assert ours.counts.read == 5740 + 6436


def test_rows_of_2024_give_the_store_that_duckdb_writes(
    spark: Any, shared_data: Path, tmp_path: Path
) -> None:
    whole = pq.ParquetFile(shared_data / "acs" / "acs_pums_2024_persons.parquet")
    pq.write_table(whole.read_row_group(0).slice(0, 60_000), tmp_path / "some.parquet")
    built = [
        build_with_counts(tmp_path / "some.parquet", "unemployment", tmp_path / name, engine=name)
        for name in ("spark", "duckdb")
    ]
    same(*built)


@pytest.mark.full
def test_all_of_2024_gives_the_store_that_duckdb_writes(
    spark: Any, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "acs" / "acs_pums_2024_persons.parquet"
    built = [
        build_with_counts(source, "unemployment", tmp_path / name, engine=name)
        for name in ("spark", "duckdb")
    ]
    assert len(built[0].store) == 1_328_061
    same(*built)


def test_numbers_dates_flags_and_persons_give_equal_stores(spark: Any, tmp_path: Path) -> None:
    pq.write_table(typed_table(), tmp_path / "typed.parquet")
    rng = np.random.default_rng(3)
    visits = [
        {
            "visit": str(i),
            "patient": f"p{rng.integers(30):02d}" if i else "",
            "cost": f"{rng.uniform(0, 100):.3f}",
            "ill": str(rng.integers(2)),
        }
        for i in range(150)
    ]
    path = write_csv(visits, tmp_path / "visits.csv")
    for source, task in ((tmp_path / "typed.parquet", TYPED), (path, PERSONS)):
        built = [
            build_with_counts(
                source, task, tmp_path / f"{task.name}-{name}", engine=name, on_invalid="drop"
            )
            for name in ("spark", "duckdb")
        ]
        same(*built)


@pytest.mark.parametrize("name", HOSTILE_CSV)
def test_what_is_a_row_of_csv(spark: Any, synthetic: Path, tmp_path: Path, name: str) -> None:
    path = hostile_csv(synthetic, tmp_path, name)
    if not HOSTILE_CSV[name][1]:
        with pytest.raises(DataError, match="broken row") as caught:
            build_with_counts(path, "unemployment", tmp_path / "store", engine="spark")
        assert "2024HU" not in str(caught.value)
        assert caught.value.__cause__ is None, "Spark's own error quotes the row"
        assert not (tmp_path / "store").exists()
        return
    built = build_with_counts(path, "unemployment", tmp_path / "store", engine="spark")
    assert built.counts.read == 799
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(census_lines(synthetic)[:800]) + "\n")
    assert built.store == build_with_counts(plain, "unemployment", tmp_path / "plain").store


def test_bytes_that_are_not_text_are_refused(spark: Any, tmp_path: Path) -> None:
    path = write_csv(hostile_rows(20, seed=4), tmp_path / "t.csv")
    path.write_bytes(path.read_bytes() + b"\xff\xfe,1\n")
    with pytest.raises(DataError, match="text in UTF-8"):
        build_with_counts(path, TASK, tmp_path / "store", engine="spark")


def test_a_corrupt_parquet_file_is_refused(spark: Any, tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pq.write_table(typed_table(), path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(200) + data[204:])
    with pytest.raises(DataError, match="corrupt"):
        build_with_counts(path, TYPED, tmp_path / "store", engine="spark", on_invalid="drop")


def test_an_unknown_code_is_named_with_its_rows(
    spark: Any, synthetic: Path, tmp_path: Path
) -> None:
    lines = synthetic.read_text().splitlines()[:300]
    at = lines[0].split(",").index("ESR")
    bad = [line.split(",") for line in lines[1:4]]
    for row in bad:
        row[at] = "7"
    path = tmp_path / "bad.csv"
    path.write_text("\n".join([lines[0], *map(",".join, bad), *lines[4:]]) + "\n")
    with pytest.raises(DataError, match=r"column ESR.*'7' in 3 rows"):
        build_with_counts(path, "unemployment", tmp_path / "store", engine="spark")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"]


def test_files_with_odd_names_are_found(spark: Any, synthetic: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a b{c}[d]*?é%20"
    folder.mkdir()
    path = folder / "x,[y].csv"
    path.write_text("\n".join(synthetic.read_text().splitlines()[:400]) + "\n")
    built = build_with_counts(path, "unemployment", folder / "store*", engine="spark")
    assert built.counts.read == 399


def test_a_full_disk_leaves_nothing(spark: Any, synthetic: Path, small_disk: Any) -> None:
    disk = small_disk(100)
    with pytest.raises(OutputError, match="full disk"):
        build_with_counts(synthetic, "unemployment", disk / "store", engine="spark")
    assert list(disk.iterdir()) == []


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # pyspark's own collect
def test_a_running_spark_goes_on_and_keeps_its_settings(
    spark: Any, synthetic: Path, tmp_path: Path
) -> None:
    import signal

    spark.conf.set("spark.sql.ansi.enabled", "false")
    spark.range(3).createOrReplaceTempView("source_0")
    handler = signal.getsignal(signal.SIGINT)
    build_with_counts(synthetic, "unemployment", tmp_path / "store", engine="spark")
    assert spark.conf.get("spark.sql.ansi.enabled") == "false"
    assert spark.sql("SELECT count(*) FROM source_0").collect()[0][0] == 3
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(ConfigError, match=r"the master local\[2\]"):
        build_with_counts(
            synthetic, "unemployment", tmp_path / "other", engine=Spark(master="local[7]")
        )


def test_the_bench_times_spark_against_rows(spark: Any, synthetic: Path) -> None:
    bench = DataBench(data=synthetic)
    row = next(iter(bench.rows(("spark",))))
    assert (row.case, row.baseline_name, row.target) == ("spark", "rows", 0.5)
    assert row.ratio is not None
    assert row.ratio > 0
    assert "session start" in row.detail
    facts = bench.to_json()["engines"]
    assert facts["spark"]["records"] == facts["rows"]["records"] > 1000


# Below, nothing needs a session.


@pytest.fixture
def no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's own variables out of the way."""
    monkeypatch.delenv("JAVA_HOME", raising=False)


@pytest.mark.skipif(why_not() is not None, reason="Spark cannot run here")
@pytest.mark.parametrize("named", ["", "-XX:+UseSerialGC", "-Xmx300m -XX:+UseG1GC"])
def test_java_starts_whatever_collector_its_user_named(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", named)
    done = subprocess.run(
        [java.find_java(), *java.driver_options().split(), "-version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("UseParallelGC" in java.driver_options()) == (not named)


def fake_java(folder: Path, says: str, status: int = 0) -> Path:
    path = folder / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


def refused(tmp_path: Path) -> ConfigError:
    source = tmp_path / "t.csv"
    write_csv(hostile_rows(5, seed=1), source)
    with pytest.raises(ConfigError) as caught:
        build_with_counts(source, TASK, tmp_path / "store", engine="spark")
    assert not (tmp_path / "store").exists()
    assert "--engine duckdb" in caught.value.fix
    return caught.value


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed")
def test_without_java_the_fix_is_named(
    no_spark: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "JAVA_HOME" in refused(tmp_path).expected
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere") as caught:
        java.check_spark()
    assert "openjdk-17" in caught.value.fix


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed")
@pytest.mark.parametrize(
    ("says", "status", "got"),
    [
        ('openjdk version "11.0.2" 2019-01-15', 0, "Java 11"),
        ('java version "1.8.0_401"', 0, "Java 8"),
        ('openjdk version "25" 2025-09-16', 0, "Java 25"),
        ("Error: could not find libjava.so", 1, "does not tell"),
    ],
)
def test_a_wrong_java_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, status: int, got: str
) -> None:
    fake_java(tmp_path / "jdk", says, status)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    error = refused(tmp_path)
    assert got in error.got
    assert "17" in error.expected


@pytest.mark.parametrize("says", ['openjdk version "17.0.15"', 'openjdk version "21" 2023-09-19'])
def test_a_right_java_is_taken(tmp_path: Path, says: str) -> None:
    assert java.java_version(fake_java(tmp_path / "jdk", says)) in java.JAVA


def test_without_pyspark_the_extra_is_named(tmp_path: Path) -> None:
    """In a process that cannot find it."""
    assert dither.__file__ is not None
    code = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'pyspark' else found(name, *a)"
        "\nfrom dither.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    source = write_synthetic(tmp_path / "t.csv", 50)
    words = ["data", "build", "--data", str(source), "--out", str(tmp_path / "s")]
    environment = os.environ | {"PYTHONPATH": str(Path(dither.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--engine", "spark"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.split())
    assert "no pyspark" in said
    assert "pip install 'dither[spark]'" in said
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("master", "words"),
    [
        ("localhost", "a Spark master: local"),
        ("spark://127.0.0.1:1", "that answers at spark://127.0.0.1:1"),
        ("spark://nowhere.invalid:7077", "no answer"),
    ],
)
def test_a_master_that_is_none_is_refused(tmp_path: Path, master: str, words: str) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    path = write_csv(hostile_rows(5, seed=1), tmp_path / "t.csv")
    with pytest.raises(ConfigError) as caught:
        build_with_counts(path, TASK, tmp_path / "store", engine=Spark(master=master))
    assert words in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a,b\n1,2\n", True),
        ("a,b\r\n1,2\r\n", True),
        ('a,b\n"1","2"\n', True),
        ('a,b\n"1\n2",3\n', False),
        ('a,b\n"say ""x""",3\n1,2\n', True),
        ("a,b\n\n1,2\n", True),
        ("a,b\n  \n1,2\n", False),
        ("a,b\n1,2\n\t", False),
        ('a,b\r"1\r2",3\r', False),
        ("é,ü\n1,𝟙\n", True),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 3, 1 << 22])
def test_where_a_file_may_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, whole: bool, block: int
) -> None:
    from dither.data.engines import lines

    monkeypatch.setattr(lines, "_BLOCK", block)
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    assert splittable(path, "t.csv") is whole


@pytest.mark.parametrize("block", [1, 2, 1 << 22])
def test_bytes_cut_short_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    from dither.data.engines import lines

    monkeypatch.setattr(lines, "_BLOCK", block)
    for wrong in (b"a,b\n1,\xc3", b"a\xffb\n", b"\xed\xa0\x80"):
        (tmp_path / "t.csv").write_bytes(wrong)
        with pytest.raises(DataError, match="text in UTF-8"):
            splittable(tmp_path / "t.csv", "t.csv")


KILLED = """
import os, signal, sys, threading, time
from dither.data import build_store
from dither.data.engines import Spark
def die():
    while True:
        for folder, _, files in os.walk(sys.argv[2]):
            if folder.endswith("staged") or "/staged/" in folder:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
threading.Thread(target=die, daemon=True).start()
build_store(sys.argv[1], "unemployment", sys.argv[2] + "/store", engine=Spark(master="local[1]"))
"""


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_build_that_is_killed_leaves_no_store_and_the_next_one_sweeps(tmp_path: Path) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    source = write_synthetic(tmp_path / "persons.csv", 200_000)
    parent = tmp_path / "stores"
    parent.mkdir()
    assert dither.__file__ is not None
    environment = os.environ | {"PYTHONPATH": str(Path(dither.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(parent)], check=False, env=environment
    )
    assert done.returncode == -9
    left = [path.name for path in parent.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".store.")
    build_with_counts(source, "unemployment", parent / "store", engine="duckdb")
    assert [path.name for path in parent.iterdir()] == ["store"]
