"""Tables as banks and spreadsheets write them: read alike by all engines, or refused with a fix."""

from __future__ import annotations

import random
import traceback
import zipfile
from pathlib import Path

import pytest

from dither.data import (
    Between,
    Built,
    Categorical,
    KeyColumn,
    Numeric,
    OneOf,
    Schema,
    Task,
    build_with_counts,
)
from dither.errors import ConfigError, DataError

HERE = ["duckdb", "rows", "streaming"]
HEADER = "ID,AGE,WARD,BACK\n"
ROWS = "".join(f"k{i},{i},A,{i % 2}\n" for i in range(10))
AGE = Numeric("AGE", 0, 110)
WARD = Categorical("WARD", ("A", "B"), other="another")


def task(*features: Categorical | Numeric, key: KeyColumn | None = None) -> Task:
    back = Categorical("BACK", ("0", "1"))
    schema = Schema("t", (key or KeyColumn("ID"),), features or (AGE, WARD), (back,), "test")
    return Task("t", schema, (), OneOf("BACK", ("1",)))


def built(text: str | bytes, folder: Path, asked: Task, engine: str, mode: str = "error") -> Built:
    path = folder / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return build_with_counts(path, asked, folder / engine, engine=engine, on_invalid=mode)


def test_a_header_in_the_middle_is_a_bad_row_to_all_engines(tmp_path: Path) -> None:
    text = HEADER + ROWS + HEADER + ROWS.replace("k", "m")
    found = [built(text, tmp_path, task(), engine, "drop") for engine in HERE]
    assert [f.counts.read for f in found] == [21] * 3
    assert [f.counts.invalid for f in found] == [{"AGE": 1, "BACK": 1}] * 3
    assert len({f.store.id for f in found}) == 1


@pytest.mark.parametrize("engine", HERE)
def test_a_header_may_hold_a_line_end_in_quotes(tmp_path: Path, engine: str) -> None:
    text = 'ID,AGE,WARD,BACK,"a\nnote"\n' + ROWS.replace("\n", ",x\n")
    assert built(text, tmp_path, task(), engine).counts.read == 10


@pytest.mark.parametrize(
    "codes",
    [
        [f"w{i:04d}é" for i in range(700)],
        [chr(0x20 + 37 * i) + "x" for i in range(300)],
        [str(7 * i) for i in range(700)],
    ],
    ids=["words", "unicode", "numbers with gaps"],
)
def test_long_vocabularies_are_found_alike(tmp_path: Path, codes: list[str]) -> None:
    draw = random.Random(3)  # noqa: S311 - test data
    draw.shuffle(codes)
    texts = [*codes, *(code + "0" for code in codes), "", "a", "zz", "-1", "\U0010ffff", "08"]
    quoted = [text.replace('"', '""') for text in texts]
    rows = "".join(f'k{i},1,"{text}",{i % 2}\n' for i, text in enumerate(quoted))
    asked = task(AGE, Categorical("WARD", tuple(codes)))
    found = [built(HEADER + rows, tmp_path, asked, engine, "drop") for engine in HERE]
    assert len({f.store.id for f in found}) == 1
    assert found[0].counts == found[1].counts
    assert found[0].counts.kept >= len(codes)
    assert found[0].counts.missing["WARD"] == 1


def test_codes_of_many_digits_are_words(tmp_path: Path) -> None:
    codes = ("4000001234567890", "0000001234567891")
    rows = "".join(f"k{i},1,{codes[i % 2]},{i // 2 % 2}\n" for i in range(8))
    found = [built(HEADER + rows, tmp_path, task(Categorical("WARD", codes)), e) for e in HERE]
    assert len({f.store.id for f in found}) == 1
    assert found[0].counts.kept == 8
    assert Categorical("WARD", codes).position("0000001234567891") == 2


@pytest.mark.parametrize("engine", HERE)
def test_a_long_number_as_a_whole_key_says_what_is_one(tmp_path: Path, engine: str) -> None:
    with pytest.raises(DataError, match="ID: a whole number of at most 9 digits"):
        built(
            HEADER + ROWS.replace("k", "4000000000000"),
            tmp_path,
            task(key=KeyColumn("ID", "integer")),
            engine,
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ((HEADER + ROWS).replace(",", ";"), "semicolons"),
        ((HEADER + ROWS).replace(",", "\t"), "tabs"),
        (HEADER.replace(",", ", ") + ROWS, "differ in case or by blanks: AGE, WARD, BACK"),
        (HEADER.lower() + ROWS, "differ in case or by blanks"),
        ((HEADER + ROWS).replace("\n", "\r"), "one kind of line end"),
        (HEADER + ROWS + "k99,1,,1\n", "declare what stands for it"),
        ((HEADER + ROWS + "k\xe9,1,A,1\n").encode("latin-1"), "save the table as UTF-8"),
    ],
    ids=["semicolons", "tabs", "blanks", "case", "old mac", "missing", "latin-1"],
)
@pytest.mark.parametrize("engine", ["duckdb", "rows"])
def test_what_spreadsheets_write_is_named(
    tmp_path: Path, engine: str, text: str | bytes, says: str
) -> None:
    with pytest.raises(DataError) as caught:
        built(text, tmp_path, task(), engine)
    assert says in str(caught.value)


def test_line_ends_of_two_kinds_are_named_where_they_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line ends of more than one kind"):
        built(HEADER + ROWS.replace("\n", "\r\n", 3), tmp_path, task(), "duckdb")


@pytest.mark.parametrize("engine", HERE)
def test_not_even_a_traceback_quotes_a_record(tmp_path: Path, engine: str) -> None:
    secret = str(4000_1234 * 10**8)
    with pytest.raises(DataError) as caught:
        built(HEADER + ROWS + f"k77,1,A,1,{secret}\n", tmp_path, task(), engine)
    assert secret not in "".join(traceback.format_exception(caught.value))


def test_what_systems_put_beside_files_is_no_table(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "._t.csv").write_bytes(b"\x00\x05\x16\x07")
    with zipfile.ZipFile(folder / "T.ZIP", "w") as archive:
        archive.writestr("t.csv", HEADER + ROWS)
        archive.writestr("__MACOSX/._t.csv", b"\x00\x05\x16\x07")
    assert build_with_counts(folder, task(), tmp_path / "store").counts.read == 10


def test_constants_that_no_store_can_hold_are_refused() -> None:
    for lower, upper in ((0, float("inf")), (float("-inf"), 0), (0, 1e300)):
        with pytest.raises(ConfigError, match="both finite"):
            Numeric("AGE", lower, upper)
    with pytest.raises(ConfigError, match=r"impute value in \[0, 110\]"):
        Numeric("AGE", 0, 110, impute=500)
    with pytest.raises(ConfigError, match="what an empty field means"):
        Categorical("WARD", ("", "A"))
    assert Between("AGE", 18, float("inf")).upper > 110
