"""`dither bench quant`: what is trained, what is concluded, whole small studies, refusals."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

from dither.bench import quant, quant_cases, quant_data, quant_models, quant_train
from dither.bench.quant import LINES, Study, append_line, read_lines
from dither.bench.quant_cases import (
    CASES,
    MAIN,
    NAMES,
    PAIRED_SEEDS,
    Case,
    Group,
    Training,
    trainings,
)
from dither.bench.quant_rows import rows_of
from dither.bench.quant_stats import Finding, amplifications, comparisons, findings, paired, ratio
from dither.cli.main import main
from dither.clipping.loss import per_example
from dither.errors import ConfigError, DataError
from dither.precision.layers import find_layers, measure_flops
from dither.precision.recipe import parse_recipe
from dither.precision.schedules import Candidates, Static

# Processes that import everything anew: slow where other tests take the cores.
pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("quant")]

TINY = Case(
    name="mnist/tiny",
    data="mnist",
    model="mnist-cnn",
    records=600,
    batch_size=60,
    steps=4,
    rotate_every=2,
    l2_clip=1.0,
    rates={"dp-sgd": 0.5, "sgd": 0.1},
    epsilon=1.0,  # its noise is found in half the time
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated images in the layout of the shared data."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for part, size in (("train", 6000), ("test", 300)):
        labels = draw.integers(0, 10, size).astype(np.uint8)
        images = draw.integers(0, 60, (size, 28, 28)).astype(np.uint8)
        for label in range(10):
            images[labels == label, 2 * label : 2 * label + 6, 8:20] += 150
        np.savez(folder / f"images/mnist_{part}.npz", x=images, y=labels)
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(quant_cases, "CASES", (TINY,))
    monkeypatch.setattr(quant, "CASES", (TINY,))
    monkeypatch.setattr(quant, "NAMES", (TINY.name,))
    return TINY


# What is trained.


def test_every_comparison_that_is_promised_is_in_the_default_study() -> None:
    counts = Counter(each.group for each in trainings())
    main_group = Group(MAIN.name, "dp-sgd", "luq-fp4", "dpquant", 0.9)
    for fraction in (0.75, 0.9):
        group = replace(main_group, fraction=fraction)
        assert counts[group] == counts[group.beside("random")] == PAIRED_SEEDS
        assert counts[group.beside("static")] == 3 * PAIRED_SEEDS
        assert counts[group.beside("none")] == counts[group.beside("all")] == PAIRED_SEEDS
    optimizers = {each.optimizer for each in trainings() if each.case is MAIN}
    assert optimizers == {"sgd", "dp-sgd", "dp-adam"}
    assert {each.case.data for each in trainings()} == {"mnist", "cifar10/16", "acs"}
    assert min(counts.values()) >= 3


def test_every_recipe_is_known_and_every_model_has_layers_to_choose_from() -> None:
    for name in {each.recipe for each in trainings(full=True)} - {"none"}:
        assert parse_recipe(name).name == name
    for case in CASES:
        assert len(find_layers(quant_models.build(case.model, seed=0))) >= 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("fraction", [0.75, 0.9])
def test_every_model_leaves_schedules_a_choice(case: Case, fraction: float) -> None:
    """Where all sets of so much compute were the same, no schedule could differ from another."""
    side = {"mnist": (1, 28, 28), "cifar10/16": (3, 16, 16), "cifar10/32": (3, 32, 32)}
    batch = torch.zeros(1, *side.get(case.data, (135,))), torch.zeros(1, dtype=torch.long)
    model = quant_models.build(case.model, seed=0)
    loss = per_example(nn.CrossEntropyLoss())
    flops = measure_flops(model, loss, batch)
    candidates = Candidates(tuple(flops), tuple(flops.values()))
    sets = [Static(fraction).choose(0, candidates, seed=seed, periods=1) for seed in range(60)]
    assert len(set(sets)) >= 3
    shares = [candidates.share(chosen) for chosen in sets]
    assert fraction - 1e-9 <= min(shares)
    assert max(shares) <= fraction + 0.1


def test_the_full_study_has_more_and_holds_the_default_one() -> None:
    groups = [{each.group for each in trainings(full=full)} for full in (False, True)]
    assert groups[0] < groups[1]
    assert "cifar10-32/resnet20" in {each.case.name for each in trainings(full=True)}
    assert len(set(trainings(full=True))) == len(trainings(full=True))


def test_seeds_come_in_turn_so_that_a_stopped_study_can_be_compared() -> None:
    seeds = [each.seed for each in trainings(cases=[MAIN.name])]
    assert seeds == sorted(seeds)
    assert {each.seed for each in trainings(cases=[MAIN.name], seeds=2)} == {0, 1}


def test_any_change_of_a_setting_is_another_training() -> None:
    one = Training(TINY, "dp-sgd", "int8", "random", 0.75, 0)
    others = [
        replace(one, case=replace(TINY, rates={**TINY.rates, "dp-sgd": 0.6})),
        replace(one, case=replace(TINY, steps=5)),
        replace(one, recipe="int4"),
        replace(one, seed=1),
        replace(one, subset=1),
    ]
    assert len({each.key for each in (one, *others)}) == 6
    assert json.loads(one.key)["delta"] == 1e-5


def test_resnets_have_the_depth_they_are_named_for() -> None:
    whole = quant_models.build("resnet20", seed=0)
    convolutions = [m for m in whole.modules() if isinstance(m, nn.Conv2d)]
    assert len([c for c in convolutions if c.kernel_size == (3, 3)]) + 1 == 20
    assert not [m for m in whole.modules() if isinstance(m, nn.BatchNorm2d)]
    assert whole(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_models_begin_with_the_weights_of_their_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name in quant_models.MODELS:
        one, same, other = (quant_models.build(name, seed) for seed in (1, 1, 2))
        flat = [nn.utils.parameters_to_vector(model.parameters()) for model in (one, same, other)]
        assert torch.equal(flat[0], flat[1])
        assert not torch.equal(flat[0], flat[2])
    assert torch.equal(before, torch.get_rng_state())


# What is concluded.


def finding(group: Group, values: list[float], **options: Any) -> Finding:
    told = {"compute": group.fraction, "epsilon": 8.0, "probe_share": 0.0, "seconds": 1.0}
    accuracy = dict(enumerate(values))
    return Finding(group, accuracy, trainings=len(values), **{**told, **options})


def test_pairs_are_tested_as_scipy_does_and_only_with_enough_seeds() -> None:
    ours = {seed: 40.0 + seed % 3 for seed in range(8)}
    theirs = {seed: 38.5 + (seed * 7) % 4 for seed in range(8)}
    found = paired(ours, theirs)
    assert found is not None
    pairs = [list(figures.values()) for figures in (ours, theirs)]
    assert found.p_t == pytest.approx(stats.ttest_rel(*pairs).pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(*pairs).pvalue)
    interval = stats.ttest_rel(*pairs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    few = paired({k: ours[k] for k in range(7)}, theirs)
    assert few is not None
    assert (few.seeds, few.p_t, few.p_wilcoxon) == (7, None, None)
    assert paired(ours, {9: 1.0}) is None


def test_one_pair_has_no_interval_and_json_has_no_infinity() -> None:
    one = paired({0: 3.0}, {0: 1.0})
    assert one is not None
    assert (one.mean, one.low, one.high) == (2.0, -math.inf, math.inf)
    assert one.to_json()["low"] is None
    json.dumps(one.to_json(), allow_nan=False)


def test_a_ratio_of_losses_has_an_interval_that_covers_what_it_should() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        above, below = draw.normal(6.0, 1.0, 8).tolist(), draw.normal(2.0, 0.5, 8).tolist()
        times, low, high = ratio(above, below)
        assert times == pytest.approx(np.mean(above) / np.mean(below))
        assert low is not None
        assert high is not None
        covered += low <= 3.0 <= high
    assert 45 <= covered <= 60  # 95 % in theory, less for a bootstrap of eight
    assert ratio([1.0, 2.0], [-1.0, 0.5]) == (None, None, None)
    _, low, high = ratio([4.0, 4.0], [3.0, -1.0])
    assert low is not None
    assert high is None


def test_static_is_the_mean_of_its_sets_and_failures_are_left_out() -> None:
    one = Training(MAIN, "dp-sgd", "luq-fp4", "static", 0.9, 0)
    line = {"compute": 0.9, "epsilon": 8.0, "probe_epsilon": 0.0, "cpu_seconds": 2.0}
    results: list[tuple[Training, dict[str, Any]]] = [
        (replace(one, subset=subset), {**line, "accuracy": value})
        for subset, value in enumerate((0.3, 0.4, 0.5))
    ]
    results.append((replace(one, seed=1), {"error": "it broke"}))
    (found,) = findings(results).values()
    assert found.accuracy == {0: pytest.approx(40.0)}
    assert found.trainings == 3


def test_the_claims_are_judged_by_rows() -> None:
    ours = Group(MAIN.name, "dp-sgd", "luq-fp4", "dpquant", 0.9)
    noise = [0.0, 0.3, -0.2, 0.1, -0.1, 0.2, -0.3, 0.05]
    plain = replace(ours, optimizer="sgd")
    cases: list[tuple[Group, float, dict[str, Any]]] = [
        (ours, 48.5, {"probe_share": 0.019}),
        (ours.beside("static"), 45.0, {}),
        (ours.beside("random"), 46.0, {}),
        (ours.beside("none"), 50.0, {}),
        (ours.beside("all"), 40.0, {}),
        (plain.beside("none"), 60.0, {"epsilon": None, "probe_share": None}),
        (plain.beside("all"), 58.0, {"epsilon": None, "probe_share": None}),
    ]
    found = {
        group: finding(group, [mean + wiggle for wiggle in noise[shift:] + noise[:shift]], **more)
        for shift, (group, mean, more) in enumerate(cases)
    }
    rows = {(row.case, row.metric, row.baseline_name): row for row in rows_of(found)}
    assert rows[ours.name, "points lost", "allowed"].ratio == pytest.approx(0.75)
    static = rows[ours.name, "error", "static"]
    assert static.ratio is not None
    assert static.ratio < 1.0 == static.target
    assert "p = " in static.detail
    assert rows[ours.name, "probe share", "allowed"].ratio == pytest.approx(0.95)
    name = f"{MAIN.name}/dp-sgd/luq-fp4/all"
    loss = rows[name, "points lost without privacy", "lost by dp-sgd"]
    assert loss.ours == pytest.approx(2.0)
    assert loss.baseline == pytest.approx(10.0)
    assert loss.ratio == pytest.approx(0.2)
    assert loss.target == pytest.approx(1 / 3)
    assert loss.ratio_low is not None
    assert loss.ratio_high is not None
    assert loss.ratio_low < 0.2 < loss.ratio_high
    (amplified,) = amplifications(found)
    assert amplified.times == pytest.approx(5.0)
    (judged,) = [each for each in comparisons(found) if each.group == ours]
    assert judged.lost.mean == pytest.approx(1.5)
    assert judged.against["random"].mean == pytest.approx(2.5)
    assert judged.against["random"].p_t is not None
    assert judged.against["random"].p_t < 1e-4
    json.dumps([judged.to_json(), amplified.to_json()], allow_nan=False)


# Records.


def test_pixels_are_means_of_blocks() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    found = quant_data.pooled(images, 2)
    assert found.shape == (2, 2, 2, 3)
    block = images[1, 2:, :2, 1].astype(float)
    assert found[1, 1, 0, 1] == round(block.mean())
    assert np.array_equal(quant_data.pooled(images, 4), images)


def test_held_out_records_are_neither_trained_on_nor_tested_on(
    digits: Path, tmp_path: Path
) -> None:
    path = quant_data.prepare(digits, "mnist", tmp_path)
    parts = quant_data.load(path, 900)
    rows = [{x.numpy().tobytes() for x in part.tensors[0]} for part in vars(parts).values()]
    assert [len(part) for part in rows] == [900, quant_data.HELD_OUT, 300]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    with pytest.raises(ConfigError, match="1001 records"):
        quant_data.load(path, 1001)


def test_cifar_is_read_from_jpegs(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    jpegs = []
    for level in (20, 220):
        file = tmp_path / f"{level}.jpg"
        image.new("RGB", (32, 32), (level, 100, 0)).save(file, quality=95)
        jpegs.append(file.read_bytes())
    table = pa.table({"jpeg": jpegs, "label": pa.array([3, 7], pa.int8())})
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"images/cifar10_{part}.parquet")
    with np.load(quant_data.prepare(tmp_path, "cifar10/16", tmp_path / "out")) as arrays:
        assert arrays["x"].shape == (2, 3, 16, 16)
        assert np.abs(arrays["x"][1, 0].astype(int) - 220).max() <= 4
        assert arrays["test_y"].tolist() == [3, 7]


def test_records_that_are_broken_or_absent_are_said(tmp_path: Path) -> None:
    assert "mnist_train.npz" in str(quant_data.missing(tmp_path, "mnist"))
    (tmp_path / "images").mkdir()
    for part in ("train", "test"):
        np.savez(tmp_path / f"images/mnist_{part}.npz", wrong=np.zeros(3))
    assert quant_data.missing(tmp_path, "mnist") is None
    with pytest.raises(DataError, match="records of mnist"):
        quant_data.prepare(tmp_path, "mnist", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_accuracy_counts_what_is_not_finite_as_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()
            return torch.where(x[:, :1] > 0, logits, torch.nan)

    x = torch.tensor([[1.0], [1.0], [-1.0], [1.0]])
    y = torch.tensor([0, 1, 0, 0])
    assert quant_train.accuracy(Broken(), TensorDataset(x, y)) == 0.5


# Whole small studies.


def trained(line: dict[str, Any]) -> dict[str, Any]:
    assert "error" not in line, line["error"]
    return line


@pytest.mark.full
@pytest.mark.parametrize("schedule", ["dpquant", "static"])
def test_a_private_training_pays_for_all_it_releases(
    schedule: str, digits: Path, tmp_path: Path
) -> None:
    records = quant_data.prepare(digits, "mnist", tmp_path)
    file = quant_train.stored_promise(TINY, tmp_path, probes=schedule == "dpquant")
    promised = quant_train.Promise.from_json(json.loads(file.read_text()))
    assert promised.epsilon == pytest.approx(TINY.epsilon, rel=0.01)
    job = quant_train.Job(
        Training(TINY, "dp-sgd", "luq-fp4", schedule, 0.75, 0), records, file, "held_out"
    )
    line = trained(quant_train.run(job))
    probes = 2 if schedule == "dpquant" else 0
    assert line["charged"] == {"gradients": 4, "probes": probes}
    assert line["epsilon"] <= TINY.epsilon
    assert (0.0 < line["probe_epsilon"] <= 0.02 * TINY.epsilon) == bool(probes)
    assert 0.0 <= line["accuracy"] <= 1.0
    assert line["compute"] >= 0.75
    assert len(line["precision"]["periods"]) == 2
    json.dumps(line, allow_nan=False)


def test_the_same_subset_is_the_same_layers_and_another_one_is_not(
    digits: Path, tmp_path: Path
) -> None:
    records = quant_data.prepare(digits, "mnist", tmp_path)
    case = replace(TINY, steps=2, rotate_every=1)

    def chosen(subset: int) -> list[list[int]]:
        one = Training(case, "sgd", "int8", "static", 0.5, 0, subset)
        line = trained(quant_train.run(quant_train.Job(one, records, None)))
        return [period["chosen"] for period in line["precision"]["periods"]]

    sets = [chosen(subset) for subset in (0, 0, 1, 2, 3)]
    assert sets[0] == sets[1]
    assert all(periods[0] == periods[1] for periods in sets)
    assert len({tuple(periods[0]) for periods in sets}) > 1


def test_a_training_that_goes_wrong_is_a_line_that_says_so(digits: Path, tmp_path: Path) -> None:
    records = quant_data.prepare(digits, "mnist", tmp_path)
    case = replace(TINY, records=10**6)
    line = quant_train.run(
        quant_train.Job(Training(case, "sgd", "none", "none", 0.0, 0), records, None)
    )
    assert "beside 5000 held out" in line["error"]
    assert "accuracy" not in line


def test_a_study_is_made_kept_and_shown(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full precision and all layers, private and plain."""
    ends = replace(TINY, ends=True)
    for module in (quant_cases, quant):
        monkeypatch.setattr(module, "CASES", (ends,))
    monkeypatch.setattr(quant, "NAMES", (ends.name,))
    monkeypatch.setattr(quant_cases, "NOISY", ("luq-fp4",))
    out, path = tmp_path / "out", tmp_path / "q.json"
    words = ["bench", "quant", "--data", str(digits), "--out", str(out), "--processes", "1"]
    words += ["--seeds", "1", "--json", str(path), "--figure", str(tmp_path / "q.svg")]
    assert main(words) == 0
    lines = (out / LINES).read_text().splitlines()
    assert len(lines) == len(trainings(seeds=1)) == 4
    found = json.loads(path.read_text())
    assert found["trainings"] == {"made": 4, "failed": 0, "left": 0}
    assert {json.loads(line)["key"] for line in lines} == set(read_lines(out / LINES))
    assert {each["schedule"] for each in found["findings"]} == {"none", "all"}
    assert (tmp_path / "q.svg").read_bytes().startswith(b"<?xml")
    assert "mnist/tiny" in capsys.readouterr().out


@pytest.mark.full
def test_a_study_goes_on_where_it_was_stopped(
    digits: Path, tmp_path: Path, tiny: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path, figure = tmp_path / "out", tmp_path / "q.json", tmp_path / "q.svg"
    words = ["bench", "quant", "--data", str(digits), "--out", str(out), "--processes", "2"]
    assert main([*words, "--seeds", "1", "--json", str(tmp_path / "first.json")]) == 0
    lines = (out / LINES).read_text().splitlines()
    assert len(lines) == len(trainings(seeds=1)) == 14
    # A torn line, as of a process that was killed, is made again; all others are kept.
    (out / LINES).write_text("\n".join(lines[1:]) + "\n" + lines[0][:40])
    again = [*words, "--seeds", "2", "--json", str(path), "--figure", str(figure)]
    assert main(again) == 0
    found = json.loads(path.read_text())
    assert found["trainings"] == {"made": 28, "failed": 0, "left": 0}
    assert len((out / LINES).read_text().splitlines()) == 13 + 1 + 15
    kept = [json.loads(line)["key"] for line in lines]
    assert len(set(kept)) == 14
    assert set(kept) <= set(read_lines(out / LINES))
    schedules = {each["schedule"] for each in found["findings"]}
    assert schedules == {"none", "all", "static", "random", "dpquant"}
    for each in found["findings"]:
        assert each["trainings"] == (6 if each["schedule"] == "static" else 2)
        assert each["seeds"] == [0, 1]
    for each in found["comparisons"]:
        assert each["lost"]["seeds"] == 2
        assert each["lost"]["p_t"] is None  # of two seeds
    assert {row["case"] for row in found["rows"]} >= {
        "mnist/tiny/dp-sgd/luq-fp4/dpquant/0.9",
        "mnist/tiny/sgd/luq-fp4/all",
    }
    assert figure.read_bytes().startswith(b"<?xml")
    shown = capsys.readouterr().out
    assert "points lost" in shown
    assert tiny.name in shown


@pytest.mark.full
def test_a_study_out_of_time_says_what_is_left(
    digits: Path, tmp_path: Path, tiny: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.records == 600
    monkeypatch.setattr(quant, "_in_turn", lambda *_: iter(()))
    monkeypatch.setattr(quant, "stored_promise", len_of_path)
    study = Study(digits, tmp_path / "out", seeds=1, processes=1, hours=1e-9)
    assert list(study.rows()) == []
    assert study.left == 14
    assert study.to_json()["trainings"] == {"made": 0, "failed": 0, "left": 14}


def len_of_path(_case: Case, folder: Path, *, probes: bool) -> Path:
    """Stand in for a promise where nothing is trained."""
    return folder / str(probes)


def test_lines_after_a_torn_one_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / LINES
    path.write_text('{"key": "a", "part": "te')
    append_line(path, {"key": "b", "part": "test", "accuracy": 0.5})
    append_line(path, {"key": "c", "part": "test", "error": "broke"})
    append_line(path, {"key": "d", "part": "held_out", "accuracy": 0.5})
    assert set(read_lines(path)) == {"b"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nowhere"), "records in nowhere"),
        (("--full",), "--out"),
        (("--hours", "1"), "--out"),
        (("--hours", "0", "--out", "x"), "--hours above 0"),
        (("--seeds", "0"), "--seeds from 1"),
        (("--processes", "0"), "--processes from 1"),
        (("--simulate", "4"), "--simulate"),
        (("--price", "1"), "--price"),
        (("--cases", "mnist/mlp"), "mnist/cnn"),
        (("--figure", "quant.txt"), ".svg"),
    ],
)
def test_options_out_of_place_are_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    assert main(["bench", "quant", "--json", str(path), "--data", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not path.exists()


def test_a_folder_without_any_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "quant", "--data", str(tmp_path)]) == 2
    assert "no mnist_train.npz" in capsys.readouterr().err.replace("\n", " ")


def test_the_names_of_cases_are_those_of_the_study() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(CASES)
