"""Small tables in the Census layout, written row by row, for the data tests."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from dither.data import RecordStore, build_store
from dither.data.synth import write_synthetic

Row = Mapping[str, str]
WriteCsv = Callable[..., Path]

ADULT = {
    "RT": "P",
    "SERIALNO": "2018HU0000001",
    "SPORDER": "01",
    "ST": "56",
    "PWGTP": "20",
    "AGEP": "40",
    "SEX": "1",
    "MAR": "1",
    "SCHL": "16",
    "RAC1P": "1",
    "HISP": "01",
    "CIT": "1",
    "NATIVITY": "1",
    "DIS": "2",
    "MIL": "4",
    "LANX": "2",
    "ENG": "",
    "ESR": "1",
}


def _person(number: int, **changes: str) -> dict[str, str]:
    return ADULT | {"SERIALNO": f"2018HU{number:07d}"} | changes


@pytest.fixture(scope="session")
def person() -> Callable[..., dict[str, str]]:
    """A valid adult in the labour force with this household number, and changes to it."""
    return _person


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Write rows as a CSV file, with the columns of the first."""

    def write(rows: Iterable[Row], name: str = "psam_p56.csv") -> Path:
        listed = list(rows)
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(listed[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(listed)
        return path

    return write


@pytest.fixture(scope="session")
def two_classes() -> list[dict[str, str]]:
    """Ten employed and two unemployed persons."""
    return [_person(i) for i in range(10)] + [_person(i, ESR="3") for i in range(10, 12)]


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 generated persons as CSV."""
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "persons.csv", 5000, seed=3)


@pytest.fixture(scope="session")
def store(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    """Their labour force as a store."""
    return build_store(synthetic, "unemployment", tmp_path_factory.mktemp("store") / "store")
