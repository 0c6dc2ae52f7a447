"""The guarantee in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dither.errors import DataError
from dither.privacy.events import Relation, Unit
from dither.report import Statement, guarantee_statement
from dither.report.folder import read_run
from dither.report.words import count, duration, plain, rounded_up, size

MakeRun = Callable[..., Path]


def statement(path: Path) -> Statement:
    run = read_run(path)
    return guarantee_statement(run.about, run.summary, spent=run.spent, starts=run.starts)


def words(paragraphs: tuple[Any, ...]) -> str:
    return " ".join(f"{item.heading}: {item.text}" for item in paragraphs)


def test_promise_names_every_part(make_run: MakeRun) -> None:
    found = statement(make_run())
    assert found.private
    text = words(found.promise)
    for part in (
        "one row of the record store",
        "contribution to every sum is zero",
        "δ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1e-7",
        "One trusted party",
        "Poisson sampling",
        "0.8123 times the sensitivity",
        "PLD (dp-accounting)",
        "ε = 1.129",
        "dp-accounting 0.6.0",
        "torch 2.13.0",
    ):
        assert part in text


def test_limits_name_what_is_not_covered(make_run: MakeRun) -> None:
    text = words(statement(make_run()).limits)
    for part in (
        "without noise",
        "265,612",
        "n, class_weights, imputation",
        "How long steps took",
        "operator watched",
        "operating system's cryptographic generator",
        "Other releases",
    ):
        assert part in text
    assert "A weak δ" not in text


def test_weak_delta_is_told(make_run: MakeRun) -> None:
    text = words(statement(make_run(about={"plan": {"delta": 0.01}})).limits)
    assert "δ = 0.01 is not below 1/n" in text


@pytest.mark.parametrize("relation", list(Relation))
def test_every_relation_has_its_own_words(make_run: MakeRun, relation: Relation) -> None:
    text = words(statement(make_run(about={"plan": {"relation": str(relation)}})).promise)
    expected = {"zero_out": "is zero in the other", "add_remove": "one unit more"}
    assert expected.get(relation, "replaced by any other") in text
    assert str(relation) in text


@pytest.mark.parametrize("unit", list(Unit))
def test_every_unit_has_its_own_words(make_run: MakeRun, unit: Unit) -> None:
    text = words(statement(make_run(about={"plan": {"unit": str(unit)}})).promise)
    expected = {"record": "one row", "person": "all rows of one person", "rank": "of one rank"}
    assert expected[unit] in text


@pytest.mark.parametrize(
    ("trust", "part"),
    [
        ("central", "One trusted party"),
        ("local", "all other ranks together"),
        ("distributed(2)", "colluding ranks"),
    ],
)
def test_every_trust_has_its_own_words(make_run: MakeRun, trust: str, part: str) -> None:
    assert part in words(statement(make_run(about={"plan": {"trust": trust}})).promise)


def test_full_batches_are_not_called_sampled(make_run: MakeRun) -> None:
    text = words(statement(make_run(about={"plan": {"sampler": "full"}})).promise)
    assert "Poisson" not in text
    assert "Every training record enters every step" in text


def test_seeded_run_promises_nothing(make_run: MakeRun) -> None:
    found = statement(make_run(about={"seeded": True}))
    assert not found.private
    assert not found.promise
    assert found.limits


@pytest.mark.parametrize("sensitive", [True, None])
def test_force_on_records_not_known_to_be_public(make_run: MakeRun, sensitive: bool | None) -> None:
    run = make_run(about={"forced": True, "store": {"sensitive": sensitive}})
    assert not statement(run).private


def test_epsilon_of_a_running_run_may_not_hide_an_unprotected_release(make_run: MakeRun) -> None:
    run = make_run(finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 401, "epsilon": None, "auroc": 0.7, "loss": 0.2}) + "\n")
    assert not statement(run).private


def test_wrong_types_are_refused(make_run: MakeRun) -> None:
    run = make_run(summary={"privacy": {"epsilon": "0.1"}})
    with pytest.raises(DataError, match=r"privacy\.epsilon"):
        statement(run)


@given(st.floats(1e-12, 1e6))
def test_bounds_are_never_rounded_down(value: float) -> None:
    shown = float(rounded_up(value))
    assert value <= shown <= value * 1.0011


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (rounded_up(0.99991), "1"),
        (rounded_up(0.12341), "0.1235"),
        (rounded_up(None), "∞"),
        (rounded_up(float("inf")), "∞"),
        (plain(1e-7), "1e-7"),
        (plain(2.0), "2"),
        (plain(0.98210000001), "0.98210000001"),
        (count(1328061), "1,328,061"),
        (duration(59.94), "59.9 s"),
        (duration(3725), "1 h 02 min"),
        (duration(61.2), "1 min 01 s"),
        (size(3 * 2**30), "3.00 GiB"),
        (size(512), "512 B"),
    ],
)
def test_numbers_as_readers_read_them(shown: str, text: str) -> None:
    assert shown == text


def test_a_run_on_several_ranks_says_so(make_run: MakeRun) -> None:
    about = {"plan": {"trust": "local"}, "config": {"engine": "ddp"}}
    path = make_run(about=about, summary={"ranks": 4, "privacy": {"trust": "local"}})
    found = statement(path)
    promise, limits = words(found.promise), words(found.limits)
    assert "4 processes (ranks) by engine ddp" in promise
    assert "carries 2 times the noise" in promise
    assert "1.6246 in place of 0.8123" in promise
    assert "ledger.rank-r.sqlite" in promise
    assert "messages are not padded" in limits
    assert "whole record store on every rank" in limits
    lines = [
        {"step": step, "ranks": ranks, "engine": "reduce"} for step, ranks in ((0, 4), (50, 2))
    ]
    (path / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    promise = words(statement(path).promise)
    assert "started 2 times: from step 0 on 4, from step 50 on 2 processes" in promise
    assert "carries 1.414 times the noise" in promise


def test_a_run_on_one_rank_says_nothing_of_ranks(make_run: MakeRun) -> None:
    found = statement(make_run(summary={"ranks": 1}))
    assert "ranks)" not in words(found.promise)
    assert "not padded" not in words(found.limits)
