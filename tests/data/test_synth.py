"""Generated records: exact number, faithful universes and margins, a learnable label."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import dither
from dither.data import ACS, Categorical, Numeric, build_store
from dither.data.acs import STATES
from dither.data.synth import CHUNK_ROWS, write_synthetic
from dither.data.synth_model import STATE_WEIGHTS, draw_persons, unemployment_probability
from dither.errors import ConfigError, OutputError


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than one chunk."""
    path = tmp_path_factory.mktemp("large") / "persons.parquet"
    return write_synthetic(path, CHUNK_ROWS + 70_000, seed=5)


@pytest.fixture(scope="module")
def persons(large: Path) -> pd.DataFrame:
    return pd.read_parquet(large)


def test_number_of_rows_is_exact_and_keys_are_distinct(persons: pd.DataFrame) -> None:
    assert len(persons) == CHUNK_ROWS + 70_000
    assert not persons.duplicated(["SERIALNO", "SPORDER"]).any()
    assert persons.SERIALNO.str.fullmatch(r"2024(HU|GQ)\d{7}").all()


def test_every_code_is_in_the_dictionary(persons: pd.DataFrame) -> None:
    for column in ACS.columns:
        values = persons["STATE" if column.name == "ST" else column.name]
        if isinstance(column, Numeric):
            assert values.between(column.lower, column.upper).all()
            continue
        codes = {float(code) for code in column.codes}
        assert set(values.dropna().astype(float)) <= codes, column.name
        assert column.blank is not None or values.notna().all(), column.name


def test_blanks_follow_the_universes_of_the_dictionary(persons: pd.DataFrame) -> None:
    age = persons.AGEP
    assert (persons.ESR.isna() == (age < 16)).all()
    assert (persons.MIL.isna() == (age < 17)).all()
    assert (persons.SCHL.isna() == (age < 3)).all()
    assert (persons.LANX.isna() == (age < 5)).all()
    assert (persons.ENG.isna() == (persons.LANX != 1)).all()
    assert (persons.MAR[age < 15] == 5).all()
    assert ((persons.MIL == 1) == persons.ESR.isin([4, 5])).all()
    assert ((persons.NATIVITY == 2) == (persons.CIT >= 4)).all()


def test_margins_are_those_declared(persons: pd.DataFrame) -> None:
    force = persons[persons.ESR.isin([1, 2, 3])]
    assert (force.ESR == 3).mean() == pytest.approx(0.045, abs=0.006)
    assert 0.44 < len(force) / len(persons) < 0.54
    california = STATE_WEIGHTS[STATES.index("06")] / sum(STATE_WEIGHTS)
    assert (persons.STATE == "06").mean() == pytest.approx(california, abs=0.01)
    assert len(STATE_WEIGHTS) == len(STATES) == 51


def test_label_is_learnable_from_the_features(large: Path, tmp_path: Path) -> None:
    store = build_store(large, "unemployment", tmp_path / "store")
    split = store.split()
    features, labels = store.gather(split.train[:40_000])
    model = LogisticRegression(max_iter=300).fit(features, labels)
    unseen, truth = store.gather(split.test)
    learned = roc_auc_score(truth, model.predict_proba(unseen)[:, 1])
    assert 0.69 < learned < 0.75


def test_auroc_of_the_published_model_bounds_what_can_be_learned() -> None:
    columns = draw_persons(np.random.default_rng(0), 200_000, 1).columns
    force = np.isin(columns["ESR"], (1, 2, 3))
    probability = unemployment_probability(columns)[force]
    assert 0.71 < roc_auc_score(columns["ESR"][force] == 3, probability) < 0.76


def test_seed_decides_and_a_shorter_file_is_a_beginning(tmp_path: Path) -> None:
    first = write_synthetic(tmp_path / "a.csv", 3000, seed=1).read_bytes()
    assert write_synthetic(tmp_path / "b.csv", 3000, seed=1).read_bytes() == first
    assert write_synthetic(tmp_path / "c.csv", 3000, seed=2).read_bytes() != first
    assert first.startswith(write_synthetic(tmp_path / "d.csv", 1000, seed=1).read_bytes())


def test_layouts_hold_the_same_records(tmp_path: Path) -> None:
    stores = []
    for suffix in ("csv", "zip", "parquet"):
        path = write_synthetic(tmp_path / f"persons.{suffix}", 4000, seed=4, year=2018)
        stores.append(build_store(path, "employment", tmp_path / suffix))
    assert stores[0] == stores[1] == stores[2]


def test_census_layout_names_the_state_by_year(tmp_path: Path) -> None:
    old = write_synthetic(tmp_path / "old.zip", 10, year=2018)
    with zipfile.ZipFile(old) as archive:
        (name,) = archive.namelist()
        header, first = archive.read(name).decode().splitlines()[:2]
    assert header.startswith("RT,SERIALNO,SPORDER,PUMA,PWGTP,AGEP,ST,")
    assert first.startswith("P,2018")
    new = write_synthetic(tmp_path / "new.csv", 10).read_text().splitlines()
    assert ",STATE," in new[0]
    assert len(new) == 11
    columns = [c.name for c in ACS.columns if isinstance(c, Categorical) and c.name != "ST"]
    assert set(columns) <= set(header.split(","))


def test_progress_ends_at_all_rows(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_synthetic(tmp_path / "a.csv", 50, progress=lambda *said: told.append(said))
    assert told == [(50, 50)]


def test_bad_requests_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 rows"):
        write_synthetic(tmp_path / "a.csv", 0)
    with pytest.raises(ConfigError, match="suffix"):
        write_synthetic(tmp_path / "a.txt", 5)
    with pytest.raises(OutputError, match="place to write"):
        write_synthetic("/proc/a.csv", 5)
    assert list(tmp_path.iterdir()) == []
    write_synthetic(tmp_path / "a.csv", 5)
    with pytest.raises(OutputError, match="another --out"):
        write_synthetic(tmp_path / "a.csv", 5)


PEAK = """
import sys
from dither.data.synth import write_synthetic
from dither.memory import resident
write_synthetic(sys.argv[1], int(sys.argv[2]))
print(resident().peak)
"""


@pytest.mark.full
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    assert dither.__file__ is not None
    root = str(Path(dither.__file__).parents[1])
    peaks = []
    for rows in (1_000_000, 5_000_000):
        command = [sys.executable, "-c", PEAK, str(tmp_path / f"{rows}.csv"), str(rows)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={"PYTHONPATH": root}
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 100e6
