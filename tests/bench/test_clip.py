"""`dither bench clip`: the promised cases, fair work on both sides, and no slow way out."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import apis

from dither.bench import clip, memory, opacus
from dither.bench.clip_models import CASES, ClipCase, next_token_loss
from dither.bench.clip_steps import plain_run, private_run
from dither.bench.harness import Row
from dither.cli.main import main

BY_NAME = {case.name: case for case in CASES}
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    least = clip.Effort(least=2, most=2, seconds=0.0)
    monkeypatch.setattr(clip, "_PLAIN", (least, least))
    monkeypatch.setattr(clip, "_PEER", (least, least))
    monkeypatch.setattr(clip, "MEMORY_CASES", ())
    monkeypatch.setattr(clip, "THREADS", 1)


class _SlowWayError(Exception):
    pass


@contextmanager
def no_torch_func(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail whatever maps a function over examples with `torch.func`, however it was imported."""

    def trap(*_: object, **__: object) -> None:
        raise _SlowWayError

    with monkeypatch.context() as patched:
        patched.setattr(apis, "vmap_impl", trap)
        yield


def test_the_trap_catches_torch_func(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = torch.func.vmap(torch.func.grad(torch.sin))
    mapped(torch.ones(2))
    with no_torch_func(monkeypatch), pytest.raises(_SlowWayError):
        mapped(torch.ones(2))


@each_case
def test_no_case_takes_the_torch_func_fallback(
    case: ClipCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning that one does would be an error here, as every warning."""
    model, data = case.build(), case.batch(4)
    before = [p.detach().clone() for p in model.parameters()]
    with (
        no_torch_func(monkeypatch),
        private_run(case, model, data, noise_pool=False) as private,
    ):
        private.step()
    after = list(model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_cases_and_targets_are_the_promised_ones() -> None:
    assert {case.name: case.target for case in CASES} == {
        "mlp/256": 1.35,
        "mlp/1024": 1.2,
        "mlp/4096": 1.2,
        "cnn": 1.35,
        "resnet20_gn": 1.5,
        "transformer": 1.25,
        "embedding": 2.0,
        "lstm": 2.5,
    }
    sizes = [256, 1024, 4096, 256, 128, 16, 1024, 64]
    assert [case.batch_size for case in CASES] == sizes


@each_case
def test_twins_start_equal_and_train_everything(case: ClipCase) -> None:
    model, twin = case.build(), case.build()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.requires_grad
        assert torch.equal(mine, theirs)
    inputs, targets = case.batch(3)
    losses = case.loss_fn(model(inputs), targets)
    assert losses.shape == (3,)
    gradients = torch.autograd.grad(losses.sum(), list(model.parameters()))
    assert all(gradient.any() for gradient in gradients)


def test_the_transformer_does_not_see_the_future() -> None:
    model = BY_NAME["transformer"].build().eval()
    tokens = torch.randint(0, 1000, (1, 128))
    changed = tokens.clone()
    changed[0, 64:] = (changed[0, 64:] + 1) % 1000
    with torch.no_grad():
        first, second = model(tokens), model(changed)
    torch.testing.assert_close(first[:, :64], second[:, :64])
    assert not torch.allclose(first[:, 64:], second[:, 64:])


def test_the_token_loss_is_a_mean_over_each_examples_own_tokens() -> None:
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    alone = [nn.functional.cross_entropy(logits[i], targets[i]) for i in range(2)]
    torch.testing.assert_close(next_token_loss(logits, targets), torch.stack(alone))


def _clipped_moves(case: ClipCase, data: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return how one noiseless step at C = 1 moves each parameter, one example at a time."""
    model = case.build()
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    size = data[0].shape[0]
    for row in range(size):
        inputs, target = (part[row : row + 1] for part in data)
        gradients = torch.autograd.grad(case.loss_fn(model(inputs), target).sum(), parameters)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        factor = min(1.0, 1.0 / norm)
        total = [t + factor * g for t, g in zip(total, gradients, strict=True)]
    return [-1e-3 / size * gradient for gradient in total]


def _places(case: ClipCase) -> list[int]:
    """Return where the adapted model has each parameter of the case's own, by initial values."""
    adapted = list(opacus.adapt(case.build()).parameters())
    places: list[int] = []
    for p in case.build().parameters():
        same = (i for i, q in enumerate(adapted) if i not in places and torch.equal(p, q))
        places.append(next(same))
    assert sorted(places) == list(range(len(adapted)))
    return places


@pytest.mark.parametrize("mode", opacus.MODES)
@pytest.mark.parametrize("name", ["mlp/256", "cnn", "transformer", "embedding", "lstm"])
def test_the_peer_does_the_same_work(name: str, mode: str) -> None:
    """One step of it, without noise, is that of DP-SGD on the case's own model."""
    pytest.importorskip("opacus", exc_type=ImportError)
    case = BY_NAME[name]
    data, places, model = case.batch(3), _places(case), case.build()
    opacus.private_step(mode, model, case.loss_fn, data, noise_multiplier=0.0)()
    after = list(model.parameters())
    expected = torch.cat([move.flatten() for move in _clipped_moves(case, data)])
    moved = torch.cat(
        [
            (after[place] - p).detach().flatten()
            for place, p in zip(places, case.build().parameters(), strict=True)
        ]
    )
    assert float((moved - expected).norm()) < 0.03 * float(expected.norm())


def test_the_peers_noise_is_there() -> None:
    pytest.importorskip("opacus", exc_type=ImportError)
    case = BY_NAME["mlp/256"]
    model, data = case.build(), case.batch(8)
    opacus.private_step("ghost", model, case.loss_fn, data)()
    moves = torch.cat(
        [
            ((b - a) / 1e-3).detach().flatten()
            for a, b in zip(case.build().parameters(), model.parameters(), strict=True)
        ]
    )
    assert float(moves.std()) == pytest.approx(1 / 8, rel=0.05)


def test_allocations_beyond_the_free_memory_fail_and_leave_no_limit_behind() -> None:
    if sys.platform == "win32":
        pytest.skip("no such limit on Windows")
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with opacus.bounded_memory(), pytest.raises(RuntimeError, match="allocate"):
        torch.empty(1 << 42, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def _rows(tmp_path: Path, *arguments: str) -> list[dict[str, object]]:
    path = tmp_path / "clip.json"
    assert main(["bench", "clip", "--json", str(path), "--cases", *arguments]) == 0
    rows: list[dict[str, object]] = json.loads(path.read_text())["rows"]
    return rows


@pytest.mark.usefixtures("_quick")
def test_a_run_measures_plain_every_mode_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opacus", exc_type=ImportError)
    monkeypatch.setattr(opacus, "MODES", ("ghost", "nonsense"))
    threads = torch.get_num_threads()
    plain, ghost, nonsense, best, mean = _rows(tmp_path, "mlp/256")
    assert (plain["case"], plain["baseline_name"], plain["target"]) == ("mlp/256", "plain", 1.35)
    assert ghost["baseline_name"] == "opacus-ghost"
    assert nonsense["baseline_name"] == "opacus-nonsense"
    assert nonsense["ratio"] is None
    assert str(nonsense["detail"]).startswith("ValueError: ")
    assert (best["metric"], best["ratio"]) == ("best_mode", ghost["ratio"])
    assert mean["ratio"] == pytest.approx(ghost["ratio"])
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr()
    assert "mlp/256, opacus-nonsense: ValueError: " in shown.err
    assert "not run" in shown.out


@pytest.mark.usefixtures("_quick")
def test_a_run_without_the_peer_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    absent, plain = _rows(tmp_path, "mlp/256")
    assert (absent["baseline_name"], absent["ratio"]) == ("opacus", None)
    assert "dither[bench]" in str(absent["detail"])
    assert plain["baseline_name"] == "plain"


def test_unknown_cases_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    assert main(["bench", "clip", "--json", str(path), "--cases", "mlp/7"]) == 2
    assert main(["bench", "train", "--json", str(path), "--cases", "mlp"]) == 2
    assert not path.exists()
    assert "mlp/256" in capsys.readouterr().err


def _row(metric: str, baseline: str, seconds: float | None, ratio: float | None) -> Row:
    return Row("c", metric, "s", 1.0, seconds, baseline, ratio, ratio, ratio, 4)


def test_the_best_mode_is_the_hardest_to_beat_and_means_are_geometric() -> None:
    modes = [
        _row("time", "opacus-hooks", 4.0, 0.25),
        _row("time", "opacus-ew", None, None),
        _row("time", "opacus-ghost", 2.0, 0.5),
    ]
    best = clip.best_mode("c", modes)
    assert (best.baseline, best.ratio, best.target) == (2.0, 0.5, 1 / 1.2)
    assert "opacus-ghost" in best.detail
    nothing = clip.best_mode("d", modes[1:2])
    assert nothing.ratio is None
    (mean,) = clip.geometric_mean([*modes, best, nothing, _row("best_mode", "x", 1.0, 0.125)])
    assert mean.ratio == pytest.approx(0.25)
    assert mean.detail.startswith("2 of 3 cases")
    assert list(clip.geometric_mean(modes)) == []


def test_the_pools_noise_is_paid_by_the_private_side() -> None:
    """What the pool makes while the baseline is timed would be noise for nothing."""
    case = BY_NAME["mlp/256"]
    data = case.batch(16)
    with private_run(case, case.build(), data) as private:
        paired = clip.paired(case, "plain", private, plain_run(case, case.build(), data))
        assert paired.prepare_baseline is not None
        paired.prepare()
        spent = private.pool()
        assert spent is not None
        assert spent.used + spent.dry == 2 * private.parameters
        paired.prepare_baseline()
        rested = private.pool()
        paired.baseline()
        assert rested == private.pool()


def test_a_peak_is_seen_however_short_and_whatever_was_before() -> None:
    large, small = 192 << 20, 48 << 20
    script = (
        "from dither.bench import memory\n"
        f"bytearray(b'1') * {large}\n"
        f"print(memory.peak_growth(lambda: bytearray(b'1') * {small}), memory.peak_growth(bool))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    grown, idle = map(int, done.stdout.split())
    assert grown == pytest.approx(small, rel=0.1)
    assert idle < 1 << 20


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    """More than the activations of the hidden layers, less than all per-example gradients."""
    peak = memory.peak_in_child("mlp/1024", "plain", 1)
    assert 1024 * 512 * 4 * 2 < peak < 1024 * 296_962 * 4


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="the neither process: KeyError: 'neither'"):
        memory.peak_in_child("mlp/256", "neither", 1)


def test_a_failed_memory_process_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("the private process: it ended")

    monkeypatch.setattr(memory, "peak_in_child", fail)
    row = clip.memory_row(BY_NAME["mlp/4096"], 4)
    assert (row.metric, row.ratio, row.detail) == (
        "peak_memory",
        None,
        "the private process: it ended",
    )
