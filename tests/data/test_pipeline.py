"""The recode rules, engine by engine, against a slow row-by-row oracle, on hostile texts."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.hostile import (
    AMOUNTS,
    HOSTILE,
    KINDS,
    NUMBERS,
    USUAL,
    Outcome,
    assert_equal_to_oracle,
    staged,
)

from dither.data import Categorical, KeyColumn, Schema, StageCounts
from dither.data.engines import DuckDB, Engine, Rows
from dither.data.pipeline import code_type
from dither.errors import ConfigError

ENGINES = [DuckDB(threads=1), Rows()]

code = st.sampled_from(NUMBERS + HOSTILE)
amount = st.one_of(
    st.sampled_from([*NUMBERS, *HOSTILE, *AMOUNTS]),
    st.integers(-8, 110).map(str),
    st.floats(-6, 101, width=32).map(lambda x: f"{x:.6f}"),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"[+-]?[0-9]{0,3}\.?[0-9]{0,3}([eE][+-]?[0-9]{0,2})?", fullmatch=True),
)
usual = st.sampled_from(USUAL)
words = st.one_of(st.sampled_from(KINDS), st.text("aäb𝟙\t '\"", max_size=3))
rows_of_texts = st.lists(
    st.fixed_dictionaries(
        {
            "grade": code,
            "amount": amount,
            "kind": words,
            "sex": st.one_of(usual, code),
            "shop": code,
            "word": words,
            "spend": amount,
            "status": st.one_of(usual, code),
            "weight": st.one_of(st.just("1"), amount),
        }
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=rows_of_texts)
def test_engine_agrees_with_the_row_by_row_oracle(
    engine: Engine, texts: list[dict[str, str]]
) -> None:
    rows = [{"id": f"k{i:03d}", "part": f"{i % 3:02d}"} | row for i, row in enumerate(texts)]
    assert_equal_to_oracle(*staged(rows, engine), rows)


def good(number: int, **changes: str) -> dict[str, str]:
    row = {"id": f"k{number}", "part": "1", "grade": "3", "amount": "1", "kind": "visa"}
    row |= {"sex": "1", "shop": "7", "word": "a", "spend": "2", "status": "1", "weight": "1"}
    return row | changes


def run(rows: list[dict[str, str]], engine: Engine) -> tuple[StageCounts, list[Outcome]]:
    counts, records, _ = staged(rows, engine)
    return counts, records


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_records_come_in_key_order_with_integer_parts_as_numbers(engine: Engine) -> None:
    rows = [good(2, part="10"), good(10, part="1"), good(2, part="09"), good(1)]
    _, records = run(rows, engine)
    assert [record[0] for record in records] == ["k1-1", "k10-1", "k2-9", "k2-10"]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_missing_values_become_the_declared_constants_or_are_named(engine: Engine) -> None:
    rows = [
        good(1, amount="", kind="", grade="", shop="", spend=""),
        *(good(2, sex=""), good(3, status="", sex="9"), good(4, word="")),
    ]
    counts, records = run(rows, engine)
    assert records == [("k1-1", [0, 2, 1, 0, 1], [7.5, 3.0], 0)]
    assert counts.missing["sex"] == 1, "a row out of scope is not judged by its features"
    assert counts.unknown["sex"] == 0
    assert counts.missing["word"] == 1, "what is missing is no other word"
    assert counts.out_of_scope == 1


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_texts_outside_a_released_vocabulary_and_bounds_are_kept(engine: Engine) -> None:
    rows = [good(1, shop="9", word="z", spend="51"), good(2, shop="x", spend="-1e300")]
    rows += [good(3, spend="1e400"), good(4, spend="many")]
    counts, records = run(rows, engine)
    assert records == [
        ("k1-1", [1, 1, 1, 0, 0], [1.0, 50.0], 0),
        ("k2-1", [1, 1, 1, 0, 1], [1.0, 0.0], 0),
    ]
    assert counts.unknown["spend"] == 2, "what is no finite number has no bound next to it"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_conditions_look_at_the_number_as_it_was_read(engine: Engine) -> None:
    rows = [good(1, weight="9"), good(2, weight="9.5"), good(3, weight="0.5")]
    counts, records = run(rows, engine)
    assert counts.in_scope == 1
    assert [record[0] for record in records] == ["k1-1"]
    assert counts.unknown["weight"] == 1


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_rows_without_a_key_are_counted_and_left_out(engine: Engine) -> None:
    counts, records = run([good(1), good(2, id=""), good(3, part="x")], engine)
    assert counts.keyless == 2
    assert [record[0] for record in records] == ["k1-1"]


def test_a_vocabulary_of_more_than_255_codes_takes_two_bytes() -> None:
    def coded(count: int) -> Schema:
        column = Categorical("c", tuple(map(str, range(count))))
        return Schema("s", (KeyColumn("id"),), (column,), (), "test")

    assert code_type(coded(255)) == "uint8"
    assert code_type(coded(256)) == "uint16"
    with pytest.raises(ConfigError, match="at most 32767 codes"):
        code_type(coded(1 << 15))
