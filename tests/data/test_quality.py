"""What became of the rows: exactly to the operator, released and charged to others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dither.cli.main import main
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
from dither.data.quality import QUALITY, read_quality, release_quality
from dither.errors import DataError, LedgerError, OutputError
from dither.privacy.events import ApproximateDP, Relation, Unit
from dither.privacy.ledger import Ledger

pytest.importorskip("opendp")

TABLE = {
    "name": "visits",
    "key": (KeyColumn("WHO"), KeyColumn("NUMBER", "integer")),
    "features": (Numeric("AGE", 0, 100), Categorical("WARD", ("A", "B"))),
    "context": (Categorical("BACK", ("0", "1")),),
    "source": "form 12",
}
RECORDS = Task("return", Schema(**TABLE), (), OneOf("BACK", ("1",)))  # type: ignore[arg-type]
PERSONS = Task(
    "return",
    Schema(**TABLE, person=KeyColumn("WHO"), rows_per_person=2),  # type: ignore[arg-type]
    (),
    OneOf("BACK", ("1",)),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "visits.csv"
    lines = ["WHO,NUMBER,AGE,WARD,BACK"]
    for who in range(1000):
        for number in (1, 2, 3):
            age = "" if who % 10 == 0 else str(who % 90)
            ward = "Z" if who % 20 == 1 else "A"
            lines.append(f"w{who:04d},{number},{age},{ward},{int(number == 1)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def build(table: Path, task: Task, out: Path) -> Built:
    return build_with_counts(table, task, out, on_invalid="drop")


def book(store: RecordStore, relation: Relation = Relation.ZERO_OUT) -> Ledger:
    return Ledger.create(
        store.ledger_path, store=store.id, unit=Unit(store.manifest.unit), relation=relation
    )


def test_the_operator_has_exact_counts_and_times_by_stage(table: Path, tmp_path: Path) -> None:
    built = build(table, RECORDS, tmp_path / "store")
    rows = built.record.to_json()["rows"]
    assert [rows["read"], rows["kept"], rows["positives"]] == [3000, 2550, 850]
    assert rows["missing"] == {"AGE": 300}
    assert rows["unknown"] == {"WARD": 150}
    assert {"validate", "write"} <= set(built.seconds)
    assert all(seconds >= 0 for seconds in built.seconds.values())


def test_released_counts_are_charged_first_and_close(table: Path, tmp_path: Path) -> None:
    store = build(table, RECORDS, tmp_path / "store").store
    ledger = book(store)
    found = release_quality(store, ledger, epsilon=2.0)
    ((event, count),) = ledger.events()
    assert isinstance(event, ApproximateDP)
    assert event.epsilon == pytest.approx(2.0, rel=1e-6)
    assert count == 1
    exact = dict(
        zip(
            ("out of scope", "left out as invalid", "stored, negative", "stored, positive"),
            (0, 450, 1700, 850),
            strict=True,
        )
    )
    assert found.stages.keys() == exact.keys()
    # e⁻¹² at most for each of the seven
    assert all(abs(found.stages[name] - n) <= 4 * found.accuracy for name, n in exact.items())
    assert found.column_accuracy is not None
    assert abs(found.columns["AGE"] - 300) <= 4 * found.column_accuracy
    assert abs(found.columns["WARD"] - 150) <= 4 * found.column_accuracy
    assert found.column_accuracy == pytest.approx(3 * found.accuracy, rel=1e-6)  # three columns
    assert found.positive_share == pytest.approx(1 / 3, abs=0.03)
    assert read_quality(store.path) == found
    with pytest.raises(OutputError, match="charge"):
        release_quality(store, ledger, epsilon=2.0)


def test_of_persons_only_bounded_rows_are_counted(table: Path, tmp_path: Path) -> None:
    store = build(table, PERSONS, tmp_path / "store").store
    found = release_quality(store, book(store), epsilon=1.0)
    assert set(found.stages) == {"stored, negative", "stored, positive"}
    assert found.columns == {}
    single = build(table, RECORDS, tmp_path / "records").store
    alone = release_quality(single, book(single), epsilon=2.0)
    assert found.accuracy == pytest.approx(2 * alone.accuracy, rel=1e-6)  # k = 2 rows a person
    assert sum(found.stages.values()) == pytest.approx(len(store), abs=60)


def test_replacing_a_record_needs_twice_the_noise(table: Path, tmp_path: Path) -> None:
    stores = [build(table, RECORDS, tmp_path / name).store for name in ("one", "two")]
    near = release_quality(stores[0], book(stores[0]), epsilon=1.0)
    far = release_quality(stores[1], book(stores[1], Relation.REPLACE_ONE), epsilon=1.0)
    assert far.accuracy == pytest.approx(2 * near.accuracy, rel=1e-6)


def test_an_account_of_another_unit_is_not_charged(table: Path, tmp_path: Path) -> None:
    store = build(table, PERSONS, tmp_path / "store").store
    ledger = Ledger.create(tmp_path / "l.sqlite", store=store.id, unit=Unit.RECORD)
    with pytest.raises(LedgerError, match="per person"):
        release_quality(store, ledger, epsilon=1.0)
    assert not ledger.events()
    assert read_quality(store.path) is None


def test_altered_counts_are_refused(table: Path, tmp_path: Path) -> None:
    store = build(table, RECORDS, tmp_path / "store").store
    (store.path / QUALITY).write_text('{"stages": 1}')
    with pytest.raises(DataError, match="altered"):
        read_quality(store.path)


def test_the_command_line_shows_one_and_releases_the_other(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build(table, RECORDS, tmp_path / "store").store
    assert main(["data", "report", str(store.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operator"]["rows"]["kept"] == 2550
    assert main(["data", "report", str(store.path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("for your eyes only")
    assert "share of positives: 0.3333" in said
    assert main(["data", "report", str(store.path), "--epsilon", "1"]) == 0
    released = json.loads(capsys.readouterr().out)["released"]
    assert "operator" not in released
    assert Ledger.open(store.ledger_path).epsilon(1e-9) == pytest.approx(1.0, rel=1e-3)


def test_a_copied_store_does_not_show_counts_that_its_account_never_paid(
    table: Path, tmp_path: Path
) -> None:
    from dither.train.run import describe_store

    store = build(table, RECORDS, tmp_path / "store").store
    ledger = book(store)
    release_quality(store, ledger, epsilon=1.0)
    split = store.split()
    assert describe_store(store, split, ledger, None)["quality"]["epsilon"] > 0
    shutil.copytree(store.path, tmp_path / "copy")
    (tmp_path / "copy" / "ledger.sqlite").unlink()
    copy = RecordStore.open(tmp_path / "copy")
    assert describe_store(copy, split, book(copy), None)["quality"] is None
    assert np.array_equal(copy.split().train, split.train)
