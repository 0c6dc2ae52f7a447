"""The schema against the published dictionaries, and what a schema refuses."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from dither.data import (
    ACS,
    EMPLOYMENT,
    TASKS,
    UNEMPLOYMENT,
    Between,
    Categorical,
    KeyColumn,
    Numeric,
    OneOf,
    Schema,
    Task,
    find_task,
)
from dither.errors import ConfigError


def published_values(path: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Per column of the dictionary: low, high, meaning of each coded value."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    with gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="") as stream:
        for row in csv.reader(stream):
            if row and row[0] == "VAL":
                entry = (row[4], row[5], row[6])
                values = found.setdefault(row[1], [])
                if entry not in values:
                    values.append(entry)
    return found


@pytest.mark.parametrize("year", [2018, 2021])
def test_vocabularies_and_blanks_equal_the_published_dictionary(
    shared_data: Path, year: int
) -> None:
    values = published_values(shared_data / "acs" / f"PUMS_Data_Dictionary_{year}.csv.gz")
    coded = [column for column in ACS.columns if isinstance(column, Categorical)]
    assert len(coded) == 13
    for column in coded:
        published = values[column.name]
        codes = [low for low, high, _ in published if "b" not in low]
        assert all(low == high for low, high, _ in published)
        # Puerto Rico has files of its own and is not one of the 50 states and DC.
        expected = [code for code in codes if (column.name, code) != ("ST", "72")]
        assert list(column.codes) == expected, column.name
        blanks = any("b" in low for low, _, _ in published)
        assert (column.blank is not None) == blanks, column.name


@pytest.mark.parametrize("year", [2018, 2021])
def test_numeric_bounds_equal_the_published_dictionary(shared_data: Path, year: int) -> None:
    values = published_values(shared_data / "acs" / f"PUMS_Data_Dictionary_{year}.csv.gz")
    for column in ACS.columns:
        if isinstance(column, Numeric):
            published = values[column.name]
            assert column.lower == min(float(low) for low, _, _ in published)
            assert column.upper == max(float(high) for _, high, _ in published)


def test_acs_has_135_features_and_51_states() -> None:
    assert ACS.feature_dim == 135
    state = ACS.column("ST")
    assert isinstance(state, Categorical)
    assert len(state.codes) == 51
    assert {"01", "11", "56"} <= set(state.codes)
    assert not {"03", "07", "14", "43", "52", "72"} & set(state.codes)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_task_survives_json(task: Task) -> None:
    assert Task.from_json(task.to_json()) == task


def test_leading_zeros_do_not_matter_for_numbered_codes() -> None:
    column = Categorical("SCHL", ("01", "02", "16"))
    assert column.position("1") == column.position("01") == 1
    assert column.position("016") == 3
    words = Categorical("kind", ("a", "01"))
    assert words.position("01") == 2
    with pytest.raises(ConfigError, match="'1'"):
        words.position("1")


def test_tasks_are_found_by_name_or_as_themselves() -> None:
    assert find_task("employment") is EMPLOYMENT
    assert find_task(UNEMPLOYMENT) is UNEMPLOYMENT


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"employment, unemployment.*'income'"):
        find_task("income")


def schema(*features: Categorical | Numeric) -> Schema:
    return Schema("s", (KeyColumn("id"),), features, (), "test")


def test_schema_refuses_contradictions() -> None:
    sex = Categorical("SEX", ("1", "2"))
    with pytest.raises(ConfigError, match="same code twice"):
        Categorical("SEX", ("1", "01"))
    with pytest.raises(ConfigError, match="impute code"):
        Categorical("SEX", ("1", "2"), impute="3")
    with pytest.raises(ConfigError, match="lower < upper"):
        Numeric("age", 5, 5)
    with pytest.raises(ConfigError, match="each column once"):
        schema(sex, sex)
    with pytest.raises(ConfigError, match="column of schema"):
        schema(sex).column("AGEP")


def test_task_refuses_conditions_that_do_not_fit() -> None:
    table = schema(Categorical("SEX", ("1", "2")), Numeric("age", 0, 99))
    with pytest.raises(ConfigError, match="OneOf for column age"):
        Task("t", table, (), OneOf("age", ("1",)))
    with pytest.raises(ConfigError, match="Between for column SEX"):
        Task("t", table, (), Between("SEX", 0, 1))
    with pytest.raises(ConfigError, match="'3'"):
        Task("t", table, (), OneOf("SEX", ("3",)))
