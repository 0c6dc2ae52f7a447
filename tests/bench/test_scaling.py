"""`dither bench scaling`: the promised cases, whole runs of both engines, table and refusals."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dither.bench import scaling, scaling_worker
from dither.bench.scaling import Scaling
from dither.bench.scaling_cases import (
    CASES,
    NAMES,
    Contender,
    contenders,
    rows_of,
    shares,
    table,
)
from dither.cli.main import main
from dither.data.build import build_store
from dither.data.synth import write_synthetic

# Two processes of eight contenders and eight shares: slow where other tests take the cores.
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("scaling")]

BY_NAME = {case.name: case for case in CASES}


def test_the_cases_and_targets_are_the_promised_ones() -> None:
    assert {name: BY_NAME[name].target for name in NAMES} == {
        "ddp/2": 0.59,
        "reduce/2": 0.59,
        "private-over-plain/ddp/2": 1.1,
        "private-over-plain/reduce/2": 1.1,
        "reduce-over-ddp/2": 1.0,
        "plain-ddp/2": None,
        "plain-reduce/2": None,
    }
    assert [part.name for part in BY_NAME["ddp/2"].over] == ["ddp/2", "ddp/1"]
    assert [part.name for part in BY_NAME["reduce/2"].over] == ["reduce/2", "reduce/1"]


def test_contenders_are_told_apart_and_made_once() -> None:
    parts = contenders(CASES)
    assert {part.name for part in parts} == {
        f"{plain}{engine}/{count}"
        for plain in ("", "plain-")
        for engine in ("ddp", "reduce")
        for count in (1, 2)
    }
    assert len(parts) == 8
    assert [part.of for part in shares("ddp")] == [0, 2, 4, 64, 1024]
    everything = {*parts, *shares("ddp"), *shares("reduce")}
    assert len({part.name for part in everything}) == len(everything)


TIMES = {
    "ddp/2": [0.5, 0.6], "ddp/1": [1.0, 1.0],
    "plain-ddp/2": [0.25, 0.2], "plain-ddp/1": [0.25, 0.5],
    "reduce/2": [0.25, 0.3],
}  # fmt: skip


def test_a_row_is_made_of_pairs_of_one_round() -> None:
    speed = rows_of(BY_NAME["ddp/2"], TIMES, steps=10.0, detail="x")
    assert speed.ours == pytest.approx(5.5)
    assert (speed.baseline, speed.unit) == (10.0, "s")
    assert speed.ratio == pytest.approx(0.55)
    assert (speed.metric, speed.baseline_name, speed.pairs) == ("time", "ddp/1", 2)
    engines = rows_of(BY_NAME["reduce-over-ddp/2"], TIMES, steps=10.0, detail="x")
    assert engines.ratio == pytest.approx(0.5)
    assert (engines.baseline_name, engines.target) == ("ddp/2", 1.0)


def test_private_over_plain_is_a_ratio_of_ratios() -> None:
    row = rows_of(BY_NAME["private-over-plain/ddp/2"], TIMES, steps=10.0, detail="x")
    # At two processes 2 and 3, at one 4 and 2: by rounds 0.5 and 1.5.
    assert row.ours == pytest.approx(2.5)
    assert row.baseline == pytest.approx(3.0)
    assert (row.ratio_low, row.ratio, row.ratio_high) == pytest.approx((0.75, 1.0, 1.25))
    assert (row.metric, row.unit, row.baseline_name) == ("ratio", "", "one process")


def test_the_table_has_speed_up_and_cost() -> None:
    parts = [Contender("ddp", True, 2), Contender("ddp", False, 2), Contender("ddp", True, 1)]
    lines = table(parts, TIMES, steps=3600.0, trained=7, auroc={"ddp/2": 0.7}, price=0.5)
    assert [(line.private, line.processes) for line in lines] == [(True, 1), (True, 2), (False, 2)]
    one, two, plain = lines
    assert (one.seconds, one.speed_up, one.cost, one.auroc) == (3600.0, 1.0, 0.5, None)
    assert two.seconds == pytest.approx(0.55 * 3600)
    assert two.speed_up == pytest.approx(1 / 0.55)
    assert two.cost == pytest.approx(0.5 * 2 * 0.55)
    assert (two.steps, two.auroc) == (7, 0.7)
    assert plain.speed_up == pytest.approx(0.375 / 0.225)
    unpriced = table(parts[:1], TIMES, steps=1.0, trained=1, auroc={}, price=None)
    assert unpriced[0].cost is None
    assert unpriced[0].speed_up == pytest.approx(1 / 0.55)


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("persons") / "p.parquet", 45_000, seed=3)


@pytest.fixture(scope="module")
def measured(persons: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One whole, short measurement from the command line."""
    folder = tmp_path_factory.mktemp("scaling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "effort", lambda full: (2, 2))
        path, figure = folder / "scaling.json", folder / "scaling.svg"
        words = ["--data", str(persons), "--price", "0.05", "--figure", str(figure)]
        assert main(["bench", "scaling", "--json", str(path), *words]) == 0
    assert figure.read_bytes().startswith(b"<?xml")
    return json.loads(path.read_text())


@pytest.mark.full
def test_a_run_measures_both_engines_on_one_and_two_processes(measured: Any) -> None:
    rows = {row["case"]: row for row in measured["rows"]}
    assert list(rows) == list(NAMES)
    for row in rows.values():
        assert row["ratio"] is not None, row["detail"]
        assert row["ratio"] > 0.0
        assert row["pairs"] == 2
    # An epoch's time, not a step's: two and a bit steps of 8192.
    epochs = {(line["engine"], line["private"], line["processes"]): line["seconds"]
              for line in measured["table"]}  # fmt: skip
    assert len(epochs) == 8
    assert rows["ddp/2"]["ours"] == pytest.approx(epochs["ddp", True, 2])
    assert rows["plain-reduce/2"]["baseline"] == pytest.approx(epochs["reduce", False, 1])
    assert measured["records"] / measured["batch_size"] > 1.0


@pytest.mark.full
def test_every_contender_learns_the_same(measured: Any) -> None:
    """Equal steps of equal batches from equal weights: only noise and samples differ."""
    lines = measured["table"]
    assert len({line["steps"] for line in lines}) == 1
    for private in (True, False):
        found = [line["auroc"] for line in lines if line["private"] is private]
        assert len(found) == 4
        assert max(found) - min(found) < 0.15


@pytest.mark.full
def test_costs_are_those_of_the_processes(measured: Any) -> None:
    for line in measured["table"]:
        hours = line["processes"] * line["seconds"] / 3600.0
        assert line["cost"] == pytest.approx(0.05 * hours)


@pytest.mark.full
def test_the_projection_is_of_many_ranks_and_both_networks(measured: Any) -> None:
    points = measured["projection"]
    assert {(p["engine"], p["ranks"]) for p in points} == {
        (engine, ranks) for engine in ("ddp", "reduce") for ranks in (4, 64, 1024)
    }
    assert len({p["network"] for p in points}) == 2
    for point in points:
        assert point["computing"] > 0.0
        assert point["summing"] > 0.0
        seconds = point["computing"] + point["summing"]
        steps = measured["records"] / measured["batch_size"]
        assert point["seconds_an_epoch"] == pytest.approx(steps * seconds)


def test_a_job_survives_the_way_to_the_ranks(tmp_path: Path) -> None:
    job = scaling_worker.Job(
        store=tmp_path / "store", folder=tmp_path, contenders=contenders(CASES), rounds=2, steps=3
    )
    assert scaling_worker.Job.from_json(job.to_json()) == job


def test_ranks_that_fail_are_rows_that_say_so(
    persons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [sys.executable, "-c", "raise ValueError('no such luck')"]
    monkeypatch.setattr(scaling_worker, "command", lambda job: failing)
    bench = Scaling(data=persons, rounds=2)
    rows = list(bench.rows(["ddp/2", "reduce/2"]))
    assert [(row.case, row.ratio, row.target) for row in rows] == [
        ("ddp/2", None, 0.59), ("reduce/2", None, 0.59)
    ]  # fmt: skip
    assert all("no such luck" in row.detail for row in rows)
    assert bench.to_json()["table"] == bench.to_json()["projection"] == []


def test_records_that_are_too_few_or_sensitive_are_refused(
    tmp_path: Path, persons: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    few = write_synthetic(tmp_path / "few.parquet", 2000, seed=1)
    assert main(["bench", "scaling", "--data", str(few)]) == 2
    assert "at least 16384 records" in capsys.readouterr().err
    sensitive = partial(build_store, sensitive=True)
    monkeypatch.setattr(scaling, "build_store", sensitive)
    assert main(["bench", "scaling", "--data", str(persons)]) == 2
    assert "public records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scaling", "--price", "0"), "--price above 0"),
        (("scaling", "--price", "nan"), "--price above 0"),
        (("scaling", "--data", "nowhere"), "census records at nowhere"),
        (("scaling", "--figure", "scaling.txt"), ".svg"),
        (("scaling", "--tune"), "bench allreduce"),
        (("scaling", "--simulate", "4"), "bench allreduce"),
        (("scaling", "--cases", "ddp/3"), "ddp/2"),
        (("train", "--price", "1"), "bench scaling"),
        (("allreduce", "--data", "x"), "bench scaling"),
        (("clip", "--figure", "x.svg"), "bench allreduce"),
        (("scaling", "--host"), "bench precision"),
        (("data", "--seeds", "3"), "bench quant"),
        (("data", "--mbit", "5"), "bench allreduce"),
        (("precision", "--hours", "1"), "bench quant"),
    ],
)
def test_options_out_of_place_are_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    assert main(["bench", words[0], "--json", str(path), *words[1:]]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not path.exists()


def test_a_case_family_chooses_its_engines() -> None:
    chosen = [replace(case) for case in CASES if case.name.startswith("private-over-plain")]
    assert {part.engine for part in contenders(chosen)} == {"ddp", "reduce"}
