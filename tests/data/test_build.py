"""Whole builds: real Census files against pandas, equal stores, shared stores, memory."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dither.data import (
    Categorical,
    KeyColumn,
    Numeric,
    OneOf,
    RecordStore,
    Schema,
    Task,
    build_store,
    build_with_counts,
    cached_store,
)
from dither.errors import ConfigError

Person = Callable[..., dict[str, str]]
Write = Callable[..., Path]
Rows = list[dict[str, str]]
ZIPS_2018 = ("csv_pwy_2018.zip", "csv_pvt_2018.zip")


@pytest.fixture(scope="module")
def zips(shared_data: Path) -> list[Path]:
    return [shared_data / "acs" / name for name in ZIPS_2018]


@pytest.fixture(scope="module")
def recount(zips: list[Path]) -> pd.DataFrame:
    """The persons of both zips, read by pandas as text."""
    frames = []
    for path in zips:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".csv"))
            with archive.open(name) as stream:
                frames.append(pd.read_csv(stream, dtype=str))
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("task", ["unemployment", "employment"])
def test_census_zips_of_two_states_equal_a_pandas_recount(
    zips: list[Path], recount: pd.DataFrame, tmp_path: Path, task: str
) -> None:
    if task == "unemployment":
        kept = recount[recount.ESR.isin(["1", "2", "3"])]
        positive = kept.ESR == "3"
    else:
        age, weight = recount.AGEP.astype(int), recount.PWGTP.astype(int)
        kept = recount[(age > 16) & (age < 90) & (weight >= 1)]
        positive = kept.ESR == "1"
    built = build_with_counts(zips, task, tmp_path / "store")
    assert built.counts.read == len(recount) == 5740 + 6436
    assert len(built.store) == built.counts.kept == built.counts.in_scope == len(kept)
    assert built.counts.positives == int(positive.sum())
    features, labels = built.store.gather(np.arange(len(kept)))
    assert int(labels.sum()) == int(positive.sum())
    # Every margin, not only the totals.
    for index, name in enumerate(built.store.feature_names):
        if "=" in name:
            column, code = name.split("=")
            expected = int((kept[column].astype(float) == float(code)).sum())
            assert int(features[:, index].sum()) == expected, name
    expected_age = kept.AGEP.astype(float).sum() / 99
    assert float(features[:, 51].double().sum()) == pytest.approx(expected_age, rel=1e-6)


def test_stores_are_equal_however_the_records_came(
    zips: list[Path], recount: pd.DataFrame, tmp_path: Path
) -> None:
    first = build_store(zips, "unemployment", tmp_path / "first")
    other_order = build_store(zips[::-1], "unemployment", tmp_path / "second")
    numbers = recount.sample(frac=1, random_state=0)
    for column in [c for c in numbers if c not in {"SERIALNO", "ST", "RT"}]:
        try:
            numbers[column] = pd.to_numeric(numbers[column])
        except ValueError:
            continue
    numbers = numbers.rename(columns={"ST": "STATE"})
    # Columns with blanks are floats here ("16.0"), the state is text with leading zeros.
    numbers.to_parquet(tmp_path / "numbers.parquet")
    as_parquet = build_store(tmp_path / "numbers.parquet", "unemployment", tmp_path / "third")
    assert first.id == other_order.id == as_parquet.id
    shards = [s.sha256 for s in first.manifest.shards]
    assert shards == [s.sha256 for s in as_parquet.manifest.shards]
    assert first != build_store(zips[:1], "unemployment", tmp_path / "fourth")


def test_task_is_part_of_the_content(synthetic: Path, store: RecordStore, tmp_path: Path) -> None:
    assert build_store(synthetic, "employment", tmp_path / "store") != store


def test_csv_with_other_line_ends_quotes_and_column_order(
    write_csv: Write, two_classes: Rows, tmp_path: Path
) -> None:
    plain = write_csv(two_classes)
    hostile = tmp_path / "hostile.csv"
    names = sorted(two_classes[0])
    lines = [",".join(f'"{row[name]}"' for name in names) for row in two_classes[::-1]]
    text = "\r\n".join([",".join(names), *lines]) + "\r\n"
    hostile.write_bytes(b"\xef\xbb\xbf" + text.encode())
    first = build_store(plain, "unemployment", tmp_path / "first")
    assert first == build_store(hostile, "unemployment", tmp_path / "second")


def test_only_person_records_are_read(
    write_csv: Write, two_classes: Rows, person: Person, tmp_path: Path
) -> None:
    persons = write_csv([*two_classes, person(50, RT="H", ESR="")], "psam_p56.csv")
    houses = write_csv([{"RT": "H", "SERIALNO": "2018HU0000001", "NP": "2"}], "psam_h56.csv")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.write(houses, "psam_h56.csv")
        archive.write(persons, "../psam_p56.csv")
    built = build_with_counts(tmp_path / "both.zip", "unemployment", tmp_path / "store")
    assert built.counts.read == len(built.store) == 12


def test_a_folder_stands_for_the_tables_in_it(
    write_csv: Write, two_classes: Rows, person: Person, tmp_path: Path
) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    write_csv(two_classes, "states/a.csv")
    write_csv([person(90), person(91)], "states/b.csv")
    (folder / "SHA256SUMS").write_text("not a table")
    assert len(build_store(folder, "unemployment", tmp_path / "store")) == 14


def test_a_users_own_table_is_sensitive_unless_said_otherwise(tmp_path: Path) -> None:
    task = Task(
        "fraud",
        Schema(
            name="transactions",
            key=(KeyColumn("id"),),
            features=(
                Numeric("amount", 0, 1000, impute=50),
                Categorical("kind", ("visa", "master")),
            ),
            context=(Categorical("fraud", ("no", "yes")),),
            source="the card company's handbook",
        ),
        where=(),
        label=OneOf("fraud", ("yes",)),
    )
    rows = {
        "id": ["a", "b", "c"],
        "amount": [1.5, None, 1000.0],
        "kind": ["master", "visa", "visa"],
        "fraud": ["no", "yes", "no"],
    }
    pq.write_table(pa.table(rows), tmp_path / "cards.parquet")
    store = build_store(tmp_path / "cards.parquet", task, tmp_path / "store")
    assert store.manifest.sensitive
    features, labels = store.gather(np.arange(3))
    expected = torch.tensor([[0.0015, 0, 1], [0.05, 1, 0], [1, 1, 0]])
    torch.testing.assert_close(features, expected)
    assert labels.tolist() == [0, 1, 0]
    assert RecordStore.open(store.path).task == task
    declared = {constant.name: constant for constant in store.manifest.public_inputs}
    assert declared["imputation of amount"].value == "50.0"
    public = build_store(tmp_path / "cards.parquet", task, tmp_path / "public", sensitive=False)
    assert not public.manifest.sensitive
    assert public == store


def test_census_records_may_be_declared_sensitive(synthetic: Path, tmp_path: Path) -> None:
    store = build_store(synthetic, "unemployment", tmp_path / "store", sensitive=True)
    assert store.manifest.sensitive


def test_progress_ends_at_all_records(synthetic: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    store = build_store(
        synthetic, "unemployment", tmp_path / "s", progress=lambda *said: told.append(said)
    )
    assert told[-1] == ("write", len(store), len(store))
    assert {stage for stage, _, _ in told} == {"unpack", "validate", "write"}


def test_cached_store_is_built_once(synthetic: Path, tmp_path: Path) -> None:
    first = cached_store(synthetic, "unemployment")
    built = first.path.stat().st_mtime_ns
    again = cached_store(synthetic, "unemployment")
    assert again.path == first.path
    assert first.path.parent == tmp_path / "home" / "stores"
    assert again.path.stat().st_mtime_ns == built
    assert cached_store(synthetic, "employment").path != first.path


def test_same_records_share_one_store_and_ledger_whatever_file_they_came_in(
    synthetic: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(synthetic, dtype=str)
    frame.sample(frac=1, random_state=1).to_parquet(tmp_path / "shuffled.parquet")
    first = cached_store(synthetic, "unemployment")
    other = cached_store(tmp_path / "shuffled.parquet", "unemployment", on_invalid="drop")
    assert other.ledger_path == first.ledger_path


def test_cached_store_is_rebuilt_when_it_was_deleted(synthetic: Path) -> None:
    first = cached_store(synthetic, "unemployment")
    for file in first.path.iterdir():
        file.unlink()
    first.path.rmdir()
    assert cached_store(synthetic, "unemployment") == first


def test_cached_store_keeps_its_declaration(synthetic: Path) -> None:
    cached_store(synthetic, "unemployment")
    with pytest.raises(ConfigError, match="sensitive=False"):
        cached_store(synthetic, "unemployment", sensitive=True)


def _cache(source: Path, home: Path, queue: multiprocessing.Queue[tuple[str, int]]) -> None:
    os.environ["DITHER_HOME"] = str(home)
    found = cached_store(source, "unemployment")
    queue.put((str(found.path), found.path.stat().st_mtime_ns))


def test_two_processes_that_build_at_once_get_one_store(synthetic: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[str, int]] = context.Queue()
    home = tmp_path / "common"
    workers = [context.Process(target=_cache, args=(synthetic, home, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = {queue.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert len(found) == 1
    assert sorted(p.suffix for p in (home / "stores").iterdir()) == ["", "", ""]


KILLED = """
import os, signal, sys
from dither.data import build_store
def die(stage, done, total):
    if stage == "write":
        os.kill(os.getpid(), signal.SIGKILL)
build_store(sys.argv[1], "unemployment", sys.argv[2], progress=die)
"""


def test_killed_build_leaves_no_store_and_the_next_one_sweeps(
    synthetic: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "stores"
    command = [sys.executable, "-c", KILLED, str(synthetic), str(parent / "store")]
    done = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": _source_root()})
    assert done.returncode == -9
    left = list(parent.iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".store.")
    build_store(synthetic, "unemployment", parent / "store")
    assert [p.name for p in parent.iterdir()] == ["store"]


def _source_root() -> str:
    import dither

    assert dither.__file__ is not None
    return str(Path(dither.__file__).parents[1])


MEASURED = """
import sys, time
from dither.data import RecordStore, build_with_counts
from dither.memory import resident
built = build_with_counts(sys.argv[1], "unemployment", sys.argv[2])
start = time.perf_counter()
store = RecordStore.open(sys.argv[2], verify=True)
seconds = time.perf_counter() - start
peak = resident().peak
print(len(store), built.counts.positives, built.counts.read, seconds, peak)
"""


def test_all_of_2024_in_bounded_memory_and_opened_at_once(
    shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "acs" / "acs_pums_2024_persons.parquet"
    command = [sys.executable, "-c", MEASURED, str(source), str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": _source_root()}
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    records, positives, read, seconds, peak = done.stdout.split()
    assert (int(records), int(positives), int(read)) == (1_328_061, 54_328, 2_736_891)
    assert float(seconds) < 1.5
    assert float(peak) < 2.0e9
