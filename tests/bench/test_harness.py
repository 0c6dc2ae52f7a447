"""The harness measures what it says, and writes the one JSON form."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dither.bench import train as train_bench
from dither.bench.harness import Case, Row, measure, not_measured, result
from dither.cli.main import main


def test_the_ratio_is_ours_over_the_baseline() -> None:
    case = Case("sleep", "nap", lambda: time.sleep(0.06), lambda: time.sleep(0.02))
    row = measure(case, pairs=6)
    assert None not in (row.ratio, row.ratio_low, row.ratio_high)
    assert 1.5 < (row.ratio or 0.0) < 4.5
    assert (row.ratio_low or 0.0) <= (row.ratio or 0.0) <= (row.ratio_high or 0.0)


def test_contenders_take_turns_in_alternating_order() -> None:
    order: list[str] = []
    measure(Case("x", "y", lambda: order.append("o"), lambda: order.append("b")), pairs=4)
    text = "".join(order)
    assert text in {"obboobboobbo", "boobboobboob"}


def test_each_side_has_its_own_preparation() -> None:
    order: list[str] = []
    case = Case(
        "x",
        "y",
        lambda: order.append("o"),
        lambda: order.append("b"),
        prepare=lambda: order.append("p"),
        prepare_baseline=lambda: order.append("q"),
    )
    measure(case, pairs=2, warm_up=0)
    assert "".join(order) in {"poqbqbpo", "qbpopoqb"}


def test_what_could_not_be_measured_is_a_row_with_its_reason() -> None:
    (row,) = result("clip", [not_measured("c", "peer", "it failed")])["rows"]
    assert (row["ratio"], row["pairs"], row["detail"]) == (None, 0, "it failed")
    json.dumps(row, allow_nan=False)


def test_the_json_form() -> None:
    row = Row("c", "time", "s", 1.0, 2.0, "plain", 0.5, 0.4, 0.6, 8)
    value = result("train", [row])
    assert set(value) == {"bench", "date", "host", "rows"}
    assert {"case", "metric", "unit", "ours", "baseline", "baseline_name", "ratio"} <= set(
        value["rows"][0]
    )
    assert value["host"]["simd"] in {"avx512", "avx2", "neon", "portable"}
    assert {"cpu", "cores", "torch", "python"} <= set(value["host"])


def test_a_bench_writes_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real bench, its smallest case."""
    whole = train_bench.rows

    def smallest(*, full: bool = False) -> object:
        return [next(iter(whole(full=full)))]

    monkeypatch.setattr(train_bench, "rows", smallest)
    path = tmp_path / "out.json"
    assert main(["bench", "train", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["case"] == "acs_mlp/1024"
    assert row["ours"] > 0.0 < row["baseline"]
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    capsys.readouterr()
    assert main(["bench", "train", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["bench"] == "train"


def test_an_unknown_bench_or_an_unwritable_target_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "nothing"]) == 2
    assert main(["bench", "train", "--json", str(tmp_path / "no" / "where.json")]) == 2
    assert capsys.readouterr().out == ""


def test_the_list_names_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list"]) == 0
    assert "train" in capsys.readouterr().out
