"""The reference engine against a plain loop of autograd, and its sensitivity by adjacency."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.clipping import NORM_EDGES, ClippedSum, Clipping
from dither.clipping.engine import ClippingEngine, clipped_sum
from dither.clipping.loss import per_example
from dither.errors import ConfigError, ModelError
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.privacy.events import Relation, SamplerKind
from dither.privacy.ticket import SampleTicket

CLIP = 0.7


def make_mlp(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def make_batch(size: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    inputs = scale * torch.randn(size, 6, generator=generator)
    return inputs, torch.randint(0, 3, (size,), generator=generator)


def ticket() -> SampleTicket:
    return SampleTicket(SamplerKind.POISSON, 0.1, secret=True)


def run(model: nn.Module, data: object, clip: float = CLIP) -> ClippedSum:
    loss = per_example(nn.CrossEntropyLoss())
    return clipped_sum(model, loss, data, ticket(), clipping=Clipping(clip), entropy=OsEntropy())


def flat(result: ClippedSum) -> Tensor:
    parts = [t.double().reshape(-1) for chunk in result.bounded.chunks for t in chunk.values()]
    return torch.cat(parts)


def by_loop(model: nn.Module, data: tuple[Tensor, Tensor], clip: float = CLIP) -> Tensor:
    """One backward an example, in float64: nothing in common with the engine but the formula."""
    precise = copy.deepcopy(model).double()
    parameters = [p for p in precise.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for x, y in zip(data[0].double(), data[1], strict=True):
        loss = F.cross_entropy(precise(x[None]), y[None])
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
        total += gradient * min(1.0, clip / float(gradient.norm()))
    return total


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600])
def test_equals_a_loop_over_examples(size: int) -> None:
    model, data = make_mlp(), make_batch(size)
    torch.testing.assert_close(flat(run(model, data)), by_loop(model, data), rtol=1e-5, atol=1e-5)


def test_both_clipped_and_unclipped_examples_are_exercised() -> None:
    model, data = make_mlp(), make_batch(200)
    result = run(model, data, clip=1.5)
    assert 0 < result.diagnostics.clipped < 200
    torch.testing.assert_close(flat(result), by_loop(model, data, 1.5), rtol=1e-5, atol=1e-5)


def test_an_empty_batch_gives_zeros_of_the_right_shapes() -> None:
    model = make_mlp()
    result = run(model, make_batch(0))
    (chunk,) = result.bounded.chunks
    assert {n: t.shape for n, t in chunk.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert flat(result).abs().sum() == 0.0
    assert result.diagnostics.batch_size == 0


def test_every_trainable_parameter_is_in_the_sum_and_no_frozen_one() -> None:
    model = make_mlp()
    model.register_parameter("unused", nn.Parameter(torch.ones(5)))
    model.get_parameter("0.weight").requires_grad_(False)
    result = run(model, make_batch(10))
    (chunk,) = result.bounded.chunks
    assert set(chunk) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert result.bounded.dimension == sum(t.numel() for t in chunk.values())
    assert chunk["unused"].abs().sum() == 0.0


def test_tied_weights_count_once_with_both_uses() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6, bias=False)
            self.second = nn.Linear(6, 6, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, data = Tied(), make_batch(20)
    result = run(model, data)
    assert result.bounded.dimension == 36
    torch.testing.assert_close(flat(result), by_loop(model, data), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_removing_one_record_moves_the_sum_by_at_most_the_charged_sensitivity(scale: float) -> None:
    """Adjacency at batch 4096, rows shifted by the removal; the slack charged is 0.2 % of C."""
    model, (x, y) = make_mlp(), make_batch(4096, scale)
    whole = flat(run(model, (x, y)))
    for removed in (0, 1000, 4095):
        keep = torch.arange(4096) != removed
        distance = float((whole - flat(run(model, (x[keep], y[keep])))).norm())
        assert distance <= CLIP * 1.002
    assert distance > 0.1 * CLIP  # the bound is not vacuous


def test_other_rows_round_as_before_when_one_is_removed() -> None:
    """Inputs whose pre-activations are rounding noise: a chunk of another shape would flip ReLUs.

    Without chunks of one shape this moved the sum by more than 2 C.
    """
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(160, 128, bias=False), nn.ReLU(), nn.Linear(128, 2))
    with torch.no_grad():
        first = model.get_parameter("0.weight")
        _, _, basis = torch.linalg.svd(first.double())
        null = basis[128:]
    mix = torch.randn(268, null.shape[0], generator=generator, dtype=torch.float64)
    x = (1e6 * mix @ null).float()
    x[:2] = torch.randn(2, 160, generator=generator)  # plain ones, for the check of the first rows
    y = torch.randint(0, 2, (268,), generator=generator)
    whole = flat(run(model, (x, y)))
    for removed in (2, 3, 5, 11, 100):
        keep = torch.arange(268) != removed
        assert float((whole - flat(run(model, (x[keep], y[keep])))).norm()) <= CLIP * 1.003


def test_products_and_norms_stay_wide_under_autocast() -> None:
    """In bf16, removing one of 4096 aligned records would move the sum by 1.6 C."""
    model = nn.Linear(6, 3)
    x, y = torch.ones(4096, 6), torch.zeros(4096, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        whole = flat(run(model, (x, y)))
        less = flat(run(model, (x[1:], y[1:])))
    assert float((whole - less).norm()) <= CLIP * 1.002
    torch.testing.assert_close(whole, flat(run(model, (x, y))), rtol=0.02, atol=0.0)


def test_a_model_that_keeps_examples_is_refused() -> None:
    class Keeping(nn.Linear):
        previous: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if self.previous is not None:
                output = output + self.previous
            self.previous = output.detach()
            return output

    with pytest.raises(ModelError, match="previous"):
        run(Keeping(6, 3), make_batch(300))


def test_a_loss_that_keeps_examples_is_refused() -> None:
    kept: list[Tensor] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        kept.append(output)
        return F.cross_entropy(output, target, reduction="none")

    with pytest.raises(ModelError, match="variable of the loss"):
        clipped_sum(
            make_mlp(),
            loss,
            make_batch(300),
            ticket(),
            clipping=Clipping(1.0),
            entropy=OsEntropy(),
        )


@pytest.mark.parametrize("expected", [1, 8, 30, 256, 5000])
def test_the_chunk_size_is_a_speed_option(expected: int) -> None:
    model, data = make_mlp(), make_batch(100)
    result = clipped_sum(
        model,
        per_example(nn.CrossEntropyLoss()),
        data,
        ticket(),
        clipping=Clipping(CLIP, microbatch_size=expected),
        entropy=OsEntropy(),
    )
    torch.testing.assert_close(flat(result), by_loop(model, data), rtol=1e-5, atol=1e-5)


def test_one_large_entry_does_not_hide_many_small_ones() -> None:
    """A float32 sum of squares in one piece would lose the small ones and clip too little."""
    x = torch.full((1, 3_000_000), 2.0e-4)
    x[0, 0] = 1.0
    model = nn.Linear(3_000_000, 1, bias=False)
    result = clipped_sum(
        model,
        lambda output, _: output[:, 0],
        (x, torch.zeros(1)),
        ticket(),
        clipping=Clipping(0.5),
        entropy=OsEntropy(),
    )
    assert float(flat(result).norm()) <= 0.5 * 1.0005


def test_one_examples_contribution_ignores_the_others() -> None:
    model, (x, y) = make_mlp(), make_batch(64)
    alone = flat(run(model, (x[:1], y[:1])))
    changed = x.clone()
    changed[1:] *= -3.0
    with_others = flat(run(model, (changed, y))) - flat(run(model, (changed[1:], y[1:])))
    torch.testing.assert_close(with_others, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_a_non_finite_gradient_counts_as_zero(poison: float) -> None:
    model, (x, y) = make_mlp(), make_batch(300)
    spoiled = x.clone()
    spoiled[7] = poison
    keep = torch.arange(300) != 7
    result = run(model, (spoiled, y))
    assert result.diagnostics.non_finite == 1
    torch.testing.assert_close(
        flat(result), flat(run(model, (x[keep], y[keep]))), rtol=1e-5, atol=1e-5
    )


def test_dropout_masks_are_fresh_each_call_and_differ_between_examples() -> None:
    model = make_mlp(dropout=0.5)
    x, y = make_batch(1)
    same = (x.expand(64, -1), y.expand(64))
    assert not torch.equal(flat(run(model, same)), flat(run(model, same)))
    single = [flat(run(model, (x, y))) for _ in range(20)]
    assert len({tuple(s.tolist()) for s in single}) > 1


def test_dropout_does_not_follow_or_disturb_the_global_generator() -> None:
    """A user's seed covers initialisation only (PRIVACY-REVIEW A5)."""
    model, data = make_mlp(dropout=0.5), make_batch(64)
    torch.manual_seed(0)
    first = flat(run(model, data))
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)
    torch.manual_seed(0)
    assert not torch.equal(flat(run(model, data)), first)


def test_a_seeded_run_repeats() -> None:
    model, data = make_mlp(dropout=0.5), make_batch(64)
    loss = per_example(nn.CrossEntropyLoss())
    sums = [
        flat(
            clipped_sum(
                model, loss, data, ticket(), clipping=Clipping(1.0), entropy=InsecureSeed(5)
            )
        )
        for _ in range(2)
    ]
    assert torch.equal(*sums)


def test_nothing_is_left_on_the_model() -> None:
    model = make_mlp()
    before = copy.deepcopy(model.state_dict())
    run(model, make_batch(10))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_activations_end_with_their_chunk() -> None:
    """Not at the garbage collector's next visit: until then each chunk would need fresh memory."""
    model = make_mlp()
    engine = ClippingEngine(
        model, per_example(nn.CrossEntropyLoss()), Clipping(CLIP, microbatch_size=8), OsEntropy()
    )
    engine(make_batch(32), ticket())  # with its checks
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        alive.append(sum(one() is not None for one in seen))
        seen.append(weakref.ref(inputs[0]))

    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    last.register_forward_pre_hook(watch)  # what it is given is recorded for its weight
    for _ in range(2):  # the second call is checked anew, the third is not
        seen.clear()
        alive.clear()
        gc.collect()
        gc.disable()
        try:
            engine(make_batch(32), ticket())
        finally:
            gc.enable()
    assert len(seen) == 4
    assert max(alive) <= 1  # of the chunk before, while the next one starts
    assert not any(one() is not None for one in seen)


def test_sensitivity_follows_the_relation() -> None:
    bounded = run(make_mlp(), make_batch(3)).bounded
    assert bounded.sensitivity(Relation.ZERO_OUT) == CLIP
    assert bounded.sensitivity(Relation.ADD_REMOVE) == CLIP
    assert bounded.sensitivity(Relation.REPLACE_ONE) == 2 * CLIP


def test_diagnostics_count_every_example_once() -> None:
    found = run(make_mlp(), make_batch(123)).diagnostics
    assert found.batch_size == 123
    assert int(found.norm_counts.sum()) == 123
    above = NORM_EDGES.index(1.0)
    assert found.clipped <= int(found.norm_counts[above:].sum())


def test_a_norm_beyond_the_last_edge_is_in_the_open_bin() -> None:
    found = run(make_mlp(), make_batch(50, scale=1e4), clip=1e-3).diagnostics
    assert int(found.norm_counts[-1]) > 0


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_bound_must_be_finite_and_positive(clip: float) -> None:
    with pytest.raises(ConfigError):
        Clipping(clip)


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(3, 6),
        (torch.zeros(3, 6),),
        (torch.zeros(3, 6), torch.zeros(4, dtype=torch.int64)),
        {"x": torch.zeros(3, 6)},
        (torch.zeros(3, 6), [0, 1, 2]),
    ],
)
def test_batches_of_another_form_are_refused(data: object) -> None:
    with pytest.raises(ModelError, match="target"):
        run(make_mlp(), data)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_change_nothing(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(6, 6)
            self.inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
            self.recompute = recompute

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if self.recompute:
                return checkpoint(self.inner, x, use_reentrant=reentrant)  # type: ignore[no-any-return]
            return self.inner(x)  # type: ignore[no-any-return]

    if reentrant:
        with pytest.raises(ModelError, match="use_reentrant=False"):
            run(Checkpointed(True), make_batch(30))
        return
    found = flat(run(Checkpointed(True), make_batch(30)))
    torch.testing.assert_close(found, flat(run(Checkpointed(False), make_batch(30))))


def test_batches_with_more_inputs_than_the_model_takes_are_refused() -> None:
    x, y = make_batch(3)
    with pytest.raises(ModelError, match="2 inputs and a target"):
        run(make_mlp(), (x, x, y))


def test_a_loss_that_averages_over_the_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="reduction='none'"):
        clipped_sum(
            make_mlp(),
            F.cross_entropy,
            make_batch(4),
            ticket(),
            clipping=Clipping(1.0),
            entropy=OsEntropy(),
        )


def test_a_weighted_mean_keeps_its_weights() -> None:
    """A weighted mean over a batch of one would cancel them silently."""
    weights = torch.tensor([0.01, 0.01, 0.01])
    losses = [per_example(nn.CrossEntropyLoss(weight=w)) for w in (None, weights)]
    plain, weighted = (
        flat(
            clipped_sum(
                make_mlp(),
                loss,
                make_batch(8),
                ticket(),
                clipping=Clipping(1e6),
                entropy=OsEntropy(),
            )
        )
        for loss in losses
    )
    torch.testing.assert_close(weighted, 0.01 * plain)


def test_losses_with_trailing_axes_belong_to_their_example() -> None:
    model = nn.Linear(6, 4)
    x = torch.randn(5, 6)
    y = torch.randn(5, 4)
    result = clipped_sum(
        model,
        per_example(nn.MSELoss()),
        (x, y),
        ticket(),
        clipping=Clipping(1e6),
        entropy=OsEntropy(),
    )
    loss = ((model(x) - y) ** 2).sum()
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*model.parameters()])])
    torch.testing.assert_close(flat(result), expected.double(), rtol=1e-5, atol=1e-5)


def test_a_criterion_without_reduction_is_refused() -> None:
    class Own(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - target).square().mean()

    with pytest.raises(ModelError, match="reduction"):
        per_example(Own())


def test_the_users_criterion_is_not_changed() -> None:
    criterion = nn.CrossEntropyLoss()
    per_example(criterion)
    assert criterion.reduction == "mean"
