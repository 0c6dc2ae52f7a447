"""What a user can get wrong with records: one clear error each, and nothing half-written."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dither.data import build_store, build_with_counts, cached_store
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DataError, DitherError, OutputError

Person = Callable[..., dict[str, str]]
Write = Callable[..., Path]
Rows = list[dict[str, str]]


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Build, expect this error, and check that nothing is left beside the sources."""

    def build(
        kind: type[DitherError], *sources: Path, task: str = "unemployment", engine: str = "duckdb"
    ) -> str:
        parent = tmp_path / "stores"
        with pytest.raises(kind) as caught:
            build_store(sources, task, parent / "store", engine=engine)
        assert not parent.exists() or list(parent.iterdir()) == []
        assert caught.value.expected
        assert caught.value.got
        assert caught.value.fix
        return str(caught.value)

    return build


def zipped(path: Path, *members: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            archive.write(member, member.name)
    return path


def test_missing_columns_are_all_named(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows
) -> None:
    rows = [{k: v for k, v in row.items() if k not in {"SCHL", "ST"}} for row in two_classes]
    text = refused(DataError, write_csv(rows))
    assert "ST or STATE, SCHL" in text
    assert "psam_p56.csv" in text


def test_unknown_code_is_named_with_its_rows_and_the_way_out(
    refused: Callable[..., str],
    write_csv: Write,
    two_classes: Rows,
    person: Person,
    tmp_path: Path,
) -> None:
    path = write_csv([*two_classes, person(20, SCHL="25"), person(21, SCHL="25")])
    text = refused(DataError, path)
    assert "column SCHL" in text
    assert "'25' in 2 rows" in text
    assert 'on_invalid="drop"' in text
    built = build_with_counts(path, "unemployment", tmp_path / "dropped", on_invalid="drop")
    assert built.counts.invalid == {"SCHL": 2}
    assert len(built.store) == 12


def test_unknown_status_is_refused_though_it_is_in_no_scope(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, person: Person
) -> None:
    assert "column ESR" in refused(DataError, write_csv([*two_classes, person(20, ESR="7")]))


def test_puerto_rico_is_not_in_the_vocabulary(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, person: Person
) -> None:
    assert "'72' in 1 rows" in refused(DataError, write_csv([*two_classes, person(20, ST="72")]))


def test_age_out_of_bounds_is_refused(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, person: Person
) -> None:
    assert "column AGEP" in refused(DataError, write_csv([*two_classes, person(20, AGEP="100")]))


def test_missing_value_is_named(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, person: Person
) -> None:
    text = refused(DataError, write_csv([*two_classes, person(20, AGEP="")]))
    assert "value of column AGEP" in text
    assert "none in 1 rows" in text


def test_row_without_key_is_refused(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, person: Person
) -> None:
    text = refused(DataError, write_csv([*two_classes, person(20, SPORDER="")]))
    assert "complete key" in text


@pytest.mark.parametrize("name", ["empty.csv", "empty.zip", "empty.parquet"])
def test_empty_file(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "an empty file" in refused(DataError, tmp_path / name)


def test_header_without_rows(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows
) -> None:
    path = write_csv(two_classes)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert "expected records" in refused(DataError, path)


def test_blank_first_line(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\nx\n")
    assert "header" in refused(DataError, tmp_path / "a.csv")


def test_no_record_in_scope(refused: Callable[..., str], write_csv: Write, person: Person) -> None:
    path = write_csv([person(1, ESR="6"), person(2, AGEP="10", ESR="")])
    assert "scope of task unemployment" in refused(DataError, path)


def test_one_class_label(refused: Callable[..., str], write_csv: Write, person: Person) -> None:
    assert "only label 0" in refused(DataError, write_csv([person(1), person(2)]))
    path = write_csv([person(1, ESR="3"), person(2, ESR="3")])
    assert "only label 1" in refused(DataError, path)


def test_truncated_zip(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "csv_pwy.zip", write_csv(two_classes))
    path.write_bytes(path.read_bytes()[:-30])
    text = refused(DataError, path)
    assert "csv_pwy.zip" in text
    assert "truncated or corrupt" in text


def test_corrupt_zip_with_a_bad_checksum(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, tmp_path: Path
) -> None:
    path = tmp_path / "csv_pwy.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(write_csv(two_classes), "psam_p56.csv")
    path.write_bytes(path.read_bytes().replace(b"2018HU0000003", b"2018HU0000093", 1))
    assert "truncated or corrupt" in refused(DataError, path)


def test_zip_without_csv(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    text = refused(DataError, zipped(tmp_path / "csv_pwy.zip", tmp_path / "readme.txt"))
    assert "none of them CSV" in text


def test_zip_with_households_only(
    refused: Callable[..., str], write_csv: Write, tmp_path: Path
) -> None:
    houses = write_csv([{"RT": "H", "SERIALNO": "2018HU0000001", "ST": "56"}], "psam_h56.csv")
    assert "SPORDER" in refused(DataError, zipped(tmp_path / "csv_hwy.zip", houses))


def test_broken_csv_row_is_named_by_line_and_not_quoted(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows
) -> None:
    path = write_csv(two_classes)
    lines = path.read_text().splitlines()
    lines[5] += ",one,field,too,many"
    path.write_text("\n".join(lines) + "\n")
    text = refused(DataError, path)
    assert "broken row at line 6" in text
    assert "too" not in text.replace("broken", "")
    assert "2018HU0000004" not in text


def test_csv_row_that_is_cut_short(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows
) -> None:
    path = write_csv(two_classes)
    path.write_text(path.read_text()[:-12])
    assert "broken row" in refused(DataError, path)


def test_csv_that_is_not_text(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows
) -> None:
    path = write_csv(two_classes)
    path.write_bytes(path.read_bytes().replace(b",16,", b",\xff\xfe,", 1))
    assert "psam_p56.csv" in refused(DataError, path)
    path.write_bytes(b"\xff\xfe\x00\x01\n")
    assert "not text" in refused(DataError, path)


@pytest.mark.parametrize("damage", ["footer", "page"])
def test_corrupt_parquet(refused: Callable[..., str], tmp_path: Path, damage: str) -> None:
    path = write_synthetic(tmp_path / "persons.parquet", 2000)
    data = bytearray(path.read_bytes())
    if damage == "footer":
        data = data[: len(data) // 2]
    else:
        data[200:1200] = bytes(1000)
    path.write_bytes(data)
    assert "corrupt" in refused(DataError, path)


def test_parquet_without_rows(refused: Callable[..., str], tmp_path: Path) -> None:
    path = write_synthetic(tmp_path / "persons.parquet", 10)
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pylist([], schema=schema), path)
    assert "got none" in refused(DataError, path)


def test_mixed_years(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, person: Person
) -> None:
    path = write_csv([*two_classes, person(1, SERIALNO="2019HU0000001")])
    assert "years 2018 to 2019" in refused(DataError, path)


def test_duplicate_keys(refused: Callable[..., str], write_csv: Write, two_classes: Rows) -> None:
    path = write_csv(two_classes)
    text = refused(DataError, path, path)
    assert "at least 12 rows" in text
    assert "2018HU" not in text


def test_missing_file_and_no_file(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "nothing there" in refused(DataError, tmp_path / "no.csv")
    assert "got none" in refused(DataError)
    (tmp_path / "folder").mkdir()
    assert "got none" in refused(DataError, tmp_path / "folder")


def test_unknown_suffix(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "persons.xlsx").write_text("x")
    assert "persons.xlsx" in refused(ConfigError, tmp_path / "persons.xlsx")


def test_unknown_task_engine_and_option(
    refused: Callable[..., str], write_csv: Write, two_classes: Rows, tmp_path: Path
) -> None:
    path = write_csv(two_classes)
    assert "'income'" in refused(ConfigError, path, task="income")
    assert "out of duckdb, rows, spark, streaming, got 'sqlite'" in refused(
        ConfigError, path, engine="sqlite"
    )
    with pytest.raises(ConfigError, match="on_invalid"):
        build_store(path, "unemployment", tmp_path / "s", on_invalid="guess")


def test_output_folder_that_is_not_empty(write_csv: Write, two_classes: Rows) -> None:
    path = write_csv(two_classes)
    out = path.parent / "out"
    out.mkdir()
    build_store(path, "unemployment", out)
    before = sorted(out.iterdir())
    with pytest.raises(OutputError, match="not empty"):
        build_store(path, "unemployment", out)
    assert sorted(out.iterdir()) == before
    with pytest.raises(OutputError, match="got a file"):
        build_store(path, "unemployment", path)


def test_output_that_cannot_be_written(write_csv: Write, two_classes: Rows) -> None:
    path = write_csv(two_classes)
    with pytest.raises(OutputError, match="place to write"):
        build_store(path, "unemployment", path / "below" / "a-file")
    with pytest.raises(OutputError, match="place to write"):
        build_store(path, "unemployment", "/proc/store")


# The stages of a build fill the disk at different sizes: unpacking, then shards.
@pytest.mark.parametrize("kib", [300, 1500, 4000, 7000])
def test_full_disk_leaves_nothing(
    small_disk: Callable[[int], Path], tmp_path: Path, kib: int
) -> None:
    source = write_synthetic(tmp_path / "persons.zip", 100_000)
    disk = small_disk(kib)
    with pytest.raises(OutputError, match="full disk"):
        build_store(source, "unemployment", disk / "store")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("share", [0.02, 0.4, 0.8, 0.98])
def test_full_disk_while_shards_are_written(
    small_disk: Callable[[int], Path], tmp_path: Path, share: float
) -> None:
    source = write_synthetic(tmp_path / "persons.parquet", 100_000)
    whole = build_with_counts(source, "unemployment", tmp_path / "store", shard_rows=10_000).store
    size = sum(path.stat().st_size for path in whole.path.glob("shard-*"))
    disk = small_disk(int(size * share) // 1024)
    with pytest.raises(OutputError) as caught:
        build_with_counts(source, "unemployment", disk / "store", shard_rows=10_000)
    assert caught.value.got == "a full disk"
    assert list(disk.iterdir()) == []
    more = f"remount,size={2 * size // 1024}k"
    subprocess.run(["mount", "-o", more, str(disk)], check=True)
    assert build_store(source, "unemployment", disk / "store") == whole


def test_full_disk_while_records_are_generated(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(500)
    with pytest.raises(OutputError, match="full disk"):
        write_synthetic(disk / "persons.csv", 100_000)
    assert list(disk.iterdir()) == []


def test_cached_build_that_fails_leaves_only_the_lock(
    write_csv: Write, person: Person, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="only label"):
        cached_store(write_csv([person(1), person(2)]), "unemployment")
    assert [p.name for p in (tmp_path / "home" / "stores").iterdir()] == ["lock"]
