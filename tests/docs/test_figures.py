"""Tables of measurements in the docs say what was recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_bytes())
    return found


def table(page: str, first: str) -> list[list[str]]:
    """The rows of the one table of a page whose first column has this title."""
    lines = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"| {first} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_scaling_is_as_recorded() -> None:
    lines = recorded("scaling.json")["table"]
    rows = table("concepts/distributed.md", "engine | training")
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        engine, training, processes, seconds, speed_up, auroc, cost = row
        assert (engine, int(processes)) == (line["engine"], line["processes"])
        assert (training == "private") == line["private"]
        assert seconds == f"{line['seconds']:.2f} s"
        assert speed_up == f"{line['speed_up']:.2f}"
        assert auroc == f"{line['auroc']:.3f}"
        assert cost == f"{line['cost']:.2e}"


def test_engines_are_as_recorded() -> None:
    found = recorded("data.json")
    rows = {row["case"]: row for row in found["rows"]}
    said = {row[0].split(" ")[0].strip("`,"): row for row in table("guides/spark.md", "engine")}
    assert {"duckdb", "rows", "spark", "streaming", "a", "fastDP's"} == said.keys()
    for name in ("duckdb", "spark", "streaming"):
        assert float(said[name][1].removesuffix(" s")) == pytest.approx(
            rows[name]["ours"], rel=5e-3
        )
        assert said[name][2] == f"{rows[name]['ratio']:.2f}"
    assert said["rows"][1] == f"{rows['rows']['ours']:.1f} s"
    assert said["a"][1] == f"{rows['rows']['baseline']:.2f} s"
    for name in ("duckdb", "rows", "spark", "streaming"):
        rate = found["engines"][name]["rows_per_second"]
        assert float(said[name][3].replace(",", "")) == pytest.approx(rate, rel=5e-3)


def test_sizes_are_as_recorded() -> None:
    text = " ".join((ROOT / "docs" / "guides" / "spark.md").read_text("utf-8").split())
    points = recorded("data.json")["scale"]
    memory = re.search(r"size: ([\d.]+), ([\d.]+) and ([\d.]+) GB", text)
    times = re.search(r"at ([\d.]+), ([\d.]+) and ([\d.]+) µs a person", text)
    assert memory is not None
    assert times is not None
    assert list(memory.groups()) == [f"{p['peak_bytes'] / 1e9:.2f}" for p in points]
    assert list(times.groups()) == [f"{1e6 * p['seconds'] / p['persons']:.2f}" for p in points]
    again = {row["case"]: row["ratio"] for row in recorded("data-spark.json")["rows"]}
    assert f"takes {again['spark']:.2f} times the time of `rows`" in text


def test_low_precision_steps_are_as_recorded() -> None:
    files = {"AMD EPYC": "precision.json", "Intel Xeon": "precision-amx.json"}
    for processor, model, *ratios in table("concepts/precision.md", "processor"):
        (name,) = [file for prefix, file in files.items() if processor.startswith(prefix)]
        rows = {(row["case"], row["metric"]): row["ratio"] for row in recorded(name)["rows"]}
        assert ratios == [f"{rows[model, recipe]:.2f}" for recipe in ("bf16", "int8")]


def plainly(number: float | None) -> str:
    return "∞" if number is None else f"{number:.2f}"


def studied(part: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """What the pieces of the study found; more seeds win."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    names = ("case", "optimizer", "recipe", "schedule", "fraction")
    for file in ("quant-full.json", "quant.json", "quant-mnist.json"):
        for each in recorded(file)[part]:
            found[tuple(str(each[name]) for name in names if name in each)] = each
    return found


def test_what_all_layers_cost_is_as_recorded() -> None:
    known = studied("amplifications")
    rows = table("guides/precision.md", "all layers")
    assert len(rows) == len(known)
    for case, recipe, private, plain, times, interval in rows:
        name, _, adam = case.partition(", ")
        found = known[name, "dp-adam" if adam else "dp-sgd", recipe]
        assert [private, plain] == [plainly(found[part]["mean"]) for part in ("private", "plain")]
        if found["times"] is None:
            assert [times, interval] == ["none lost", ""]
        else:
            assert times == plainly(found["times"])
            assert interval == f"{plainly(found['low'])} to {plainly(found['high'])}"


def test_what_schedules_cost_is_as_recorded() -> None:
    known = studied("comparisons")
    rows = table("guides/precision.md", "some layers")
    assert len(rows) == 6
    for case, share, lost, *gains in rows:
        fraction = str(float(share.removesuffix(" %")) / 100)
        found = known[case, "dp-sgd", "luq-fp4", "dpquant", fraction]
        assert lost == plainly(found["lost"]["mean"])
        pairs = [found["against"][other] for other in ("static", "random")]
        said = [[f"{p['mean']:+.2f}", "" if p["p_t"] is None else f"{p['p_t']:.2g}"] for p in pairs]
        assert gains == [text for pair in said for text in pair]
