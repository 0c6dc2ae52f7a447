"""`dither bench precision`: its rows, its targets, its report of the processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dither.bench import precision
from dither.bench.clip import threads
from dither.bench.clip_models import CASES, ClipCase
from dither.bench.harness import Row
from dither.cli.main import main
from dither.precision.capability import cpu, processor
from dither.precision.cost import measure_rates
from dither.precision.recipe import RECIPES
from dither.train.models import mlp

AMX = cpu("with AMX", frozenset({"amx_bf16", "amx_int8"}), library=True)
NONE = cpu("without", frozenset({"avx2"}), library=True)


def _row(metric: str, ratio: float) -> Row:
    return Row(
        "transformer", metric, "s", ratio, 1.0, "float32 private", ratio, ratio, ratio, 9, metric
    )


def _small(name: str) -> ClipCase:
    case = next(case for case in CASES if case.name == name)
    return replace(case, batch_size=8)


def test_the_best_recipe_has_the_target_where_there_are_matrix_units() -> None:
    rows = [_row("bf16", 0.8), _row("int8", 0.7)]
    best = precision.best("transformer", rows, AMX)
    assert (best.metric, best.ratio, best.target) == ("time", 0.7, 0.77)
    assert best.detail == "int8"
    assert precision.best("mlp/4096", rows, AMX).target == 0.65
    assert precision.best("cnn", rows, AMX).target is None


def test_a_processor_without_matrix_units_says_so() -> None:
    best = precision.best("transformer", [_row("bf16", 0.8)], NONE)
    assert best.target is None
    assert "no matrix units here" in best.detail


@pytest.mark.parametrize("name", ["mlp/256", "transformer"])
def test_layers_of_a_case_and_what_is_projected(name: str) -> None:
    case = _small(name)
    shapes = precision.layer_shapes(case, case.batch(case.batch_size))
    assert shapes[0].input_gradient == (name == "transformer")  # embeddings pass gradients on
    assert all(shape.input_gradient for shape in shapes[1:])
    if name == "mlp/256":
        assert [(s.rows, s.inputs, s.outputs) for s in shapes] == [
            (8, 64, 512),
            (8, 512, 512),
            (8, 512, 2),
        ]
    else:
        assert {s.rows for s in shapes} == {8 * 128}
        assert len(shapes) == 4 * 4 + 1
    found = list(precision.projections(name, shapes))
    assert [p.format for p in found] == ["fp8", "fp4"]
    for projection in found:
        assert 1.0 < projection.speedup < projection.all_products
    if name == "transformer":
        assert found[1].speedup == pytest.approx(3 / (2 * 0.325 + 1))


def test_steps_are_measured_and_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(_small("mlp/256"), name="mlp/4096", build=lambda: mlp(64, (16, 16), 2, seed=0))
    monkeypatch.setattr(precision, "CASES", (small,))
    monkeypatch.setattr(precision, "_PAIRS", (2, 2))
    monkeypatch.setattr(precision, "THREADS", 1)
    bench = precision.PrecisionBench()
    rows = list(bench.rows())
    assert [row.metric for row in rows] == ["bf16", "int8", "time"]
    assert all(row.ratio is not None and row.ratio > 0 for row in rows)
    assert all(processor().described() in row.detail for row in rows)
    assert all(row.baseline_name == "float32 private" for row in rows)
    value = bench.to_json()
    assert [one["recipe"] for one in value["layers"]] == ["bf16", "int8"]
    assert len(value["layers"][0]["layers"]) == 3
    assert value["projected"]["published"] == 2.21
    json.dumps(value)


def test_the_capability_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure_rates
    monkeypatch.setattr(
        precision,
        "measure_rates",
        lambda recipes, device: real(
            recipes, rows=32, inputs=32, outputs=32, device=device, repeats=1
        ),
    )
    target = tmp_path / "host.json"
    assert main(["bench", "precision", "--host", "--json", str(target)]) == 0
    value = json.loads(target.read_text())
    assert value["devices"]["cpu"]["processor"]["units"] == list(processor().units)
    rates = value["devices"]["cpu"]["rates"]
    assert [rate["recipe"] for rate in rates] == [*RECIPES]
    assert {rate["kernel"].split()[0] for rate in rates} <= {"real", "emulated"}
    assert [row["case"] for row in value["rows"]][: len(RECIPES)] == [*RECIPES]
    shown = capsys.readouterr().out
    assert "emulated" in shown
    assert "luq-fp4" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clip", "--host"], "bench precision only"),
        (["noise", "--seeds", "3"], "bench quant only"),
        (["precision", "--host", "--cases", "cnn"], "one of them"),
        (["precision", "--cases", "lstm"], "mlp/4096"),
        (["precision", "--tune"], "allreduce only"),
    ],
)
def test_options_of_another_bench(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
