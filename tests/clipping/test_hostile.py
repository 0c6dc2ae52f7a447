"""What a hostile reader tried: each of these once moved the sum by more than is charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.clipping import Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.forms import Ghost
from dither.clipping.gradients import Loss
from dither.clipping.loss import ModelLoss
from dither.clipping.styles import Flat
from dither.errors import ConfigError, DitherWarning, ModelError
from dither.noise.entropy import OsEntropy
from dither.privacy.events import SamplerKind
from dither.privacy.ticket import SampleTicket


def weighed(output: Tensor, target: Tensor) -> Tensor:
    """Square loss with a weight; NaN takes the example out."""
    wanted, weight = target.unbind(1)
    return weight * (output[:, 0] - wanted).square()


def engine_of(
    model: nn.Module, loss: Loss = weighed, clipping: Clipping | None = None
) -> ClippingEngine:
    return ClippingEngine(model, loss, clipping or Clipping(1.0), OsEntropy())


def examples(count: int = 16, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.stack([torch.randn(count, generator=generator), torch.ones(count)], 1)
    return torch.randn(count, width, generator=generator), targets


def flat(engine: ClippingEngine, data: Any) -> Tensor:
    result = engine(data, SampleTicket(SamplerKind.POISSON, 0.1, secret=True))
    (chunk,) = result.bounded.chunks
    parts = [t.to_dense() if t.is_sparse else t for t in chunk.values()]
    return torch.cat([part.double().reshape(-1) for part in parts])


class Mixing(nn.Module):
    """A linear model with something done to its hidden rows."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 4)
        self.last = nn.Linear(4, 1)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(torch.tanh(self.first(x))))  # type: ignore[no-any-return]


def test_a_table_converted_like_an_example_is_still_shared() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.register_buffer("table", torch.randn(16, 3, dtype=torch.float64))
            self.map = nn.Linear(3, 5)
            self.head = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            places = self.map(self.table.to(x))
            return self.head(torch.tanh(x + 1e-2 * places.mean(0)))  # type: ignore[no-any-return]

    engine = engine_of(Positions(), clipping=Clipping(1.0, microbatch_size=4))
    x, y = examples()
    engine_ref = ClippingEngine(
        engine.model, weighed, Clipping(1.0), OsEntropy(), method="reference"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # a fallback is as good
        found = flat(engine, (x, y))
    torch.testing.assert_close(found, flat(engine_ref, (x, y)), rtol=1e-4, atol=1e-5)


def written(x: Tensor) -> Tensor:
    """Examples copied through a view of a constant."""
    room = x.new_zeros(x.shape)
    room[:, :].copy_(x)
    return room


@pytest.mark.parametrize(
    "make",
    [
        written,
        lambda x: x.new_tensor(x),
        lambda x: torch.full_like(x, 0.0) + x,
        lambda x: torch.empty_like(x).copy_(x),
    ],
    ids=["view", "new_tensor", "full_like", "copy"],
)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_examples_in_what_was_a_constant_still_count(make: Callable[[Tensor], Tensor]) -> None:
    class Rewritten(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(make(x))

    torch.manual_seed(0)
    model = Rewritten(5, 1)
    plain = nn.Linear(5, 1)
    plain.load_state_dict(model.state_dict())
    found = flat(engine_of(model), examples())
    torch.testing.assert_close(found, flat(engine_of(plain), examples()))


def test_gram_entries_below_float32_are_measured_wide() -> None:
    left, right = torch.full((1, 70, 150), 1e-23), torch.full((1, 70, 150), 1e16)
    exact = 70 * 1e-7 * 150
    assert float(Ghost(left, right).lengths(wide=True)[0]) == pytest.approx(exact, rel=0.01)


def test_the_size_of_chunks_does_not_follow_the_tokens() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 1))
    targets = examples()[1]
    sizes = []
    for tokens in (torch.zeros(16, 6, dtype=torch.int64), torch.arange(96).view(16, 6) % 50):
        engine = engine_of(model)
        flat(engine, (tokens, targets))
        sizes.append(set(engine._row_bytes.values()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_first_examples_without_a_gradient_show_nothing(weight: float) -> None:
    x, y = examples()
    y[:2, 1] = weight
    with pytest.raises((ModelError, DitherWarning), match="rest of its batch"):
        flat(engine_of(Mixing(lambda h: h - h.mean(0))), (x, y))


def test_a_batch_without_any_gradient_is_taken_one_by_one() -> None:
    x, y = examples()
    y[:, 1] = 0.0
    assert flat(engine_of(nn.Linear(5, 1)), (x, y)).abs().sum() == 0.0


def sometimes(h: Tensor) -> Tensor:
    return 0.7 * h + 0.3 * h.roll(1, 0) if torch.rand(1) < 0.5 else h


def crowded(h: Tensor) -> Tensor:
    return h - h.mean(0) if h.shape[0] > 8 else h


@pytest.mark.filterwarnings("ignore::dither.errors.DitherWarning")  # a fallback is no refusal
@pytest.mark.parametrize("mix", [sometimes, crowded], ids=["sometimes", "crowded"])
def test_mixing_that_few_examples_do_not_show_is_refused(mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ModelError):
        flat(engine_of(Mixing(mix)), examples())


def test_mixing_that_only_runs_forward_is_not_believed() -> None:
    engine = engine_of(Mixing(lambda h: h + 1e-2 * (h.cumsum(0) - h)))
    with pytest.raises((ModelError, DitherWarning)):
        flat(engine, examples())


def test_state_behind_an_underscore_is_found() -> None:
    class Keeping(nn.Linear):
        _old: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self._old = x.mean(0)
            return super().forward(x)

    with pytest.raises(ModelError, match="_old"):
        flat(engine_of(Keeping(5, 1)), examples())


@pytest.mark.filterwarnings("ignore::dither.errors.DitherWarning")  # a fallback is no refusal
def test_a_loss_divided_by_the_batch_size_is_refused() -> None:
    with pytest.raises(ModelError, match="size of the batch"):
        flat(engine_of(nn.Linear(5, 1), lambda o, t: weighed(o, t) / len(t)), examples())


def test_batch_statistics_without_parameters_are_refused_whenever_they_begin() -> None:
    class Late(Mixing):
        def __init__(self) -> None:
            super().__init__(lambda h: h)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("variance", torch.ones(4))
            self.mix = lambda h: F.batch_norm(h, self.mean, self.variance, training=self.training)  # type: ignore[arg-type]

    engine = engine_of(Late().eval())
    flat(engine, examples())
    engine.model.train()
    with pytest.raises(ModelError, match="batch_norm"):
        flat(engine, examples())


def test_mixing_that_begins_later_is_found_at_the_next_check() -> None:
    model = Mixing(lambda h: h)
    engine = engine_of(model)
    flat(engine, examples())
    model.mix = lambda h: h - 0.1 * h.mean(0)
    with pytest.raises(ModelError):
        flat(engine, examples())  # calls 2, 4, 8, ... check again


def test_a_generator_of_the_models_own_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    drop = Mixing(lambda h: h * torch.bernoulli(torch.full_like(h, 0.5), generator=generator))
    with pytest.raises(ModelError, match="generator"):
        flat(engine_of(drop), examples())


def test_a_style_that_turns_bad_is_refused() -> None:
    class Late:
        calls = 0

        def factors(self, squares: Any, l2_clip: float) -> Any:
            self.calls += 1
            found = Flat().factors(squares, l2_clip)
            return {name: f * (1.0 if self.calls < 3 else 4.0) for name, f in found.items()}

    engine = engine_of(nn.Linear(5, 1), clipping=Clipping(0.01, Late()))
    flat(engine, examples())
    flat(engine, examples())
    with pytest.raises(ConfigError, match="Late"):
        flat(engine, examples())


def test_a_tiny_gradient_does_not_change_another_norm() -> None:
    """Norms below float32's range are computed wide, for their own row alone."""
    torch.manual_seed(0)
    model = nn.Linear(600, 1)
    x, y = torch.randn(16, 600), examples()[1]
    engine = engine_of(model, clipping=Clipping(1e-3))
    whole = engine.norms((x, y))
    y[3, 1] = 1e-25
    changed = engine.norms((x, y))
    others = torch.arange(16) != 3
    assert torch.equal(whole[others], changed[others])
    assert float(changed[3]) > 0.0


def test_a_sum_is_unreadable_once_its_memory_is_used_anew() -> None:
    engine = engine_of(nn.Linear(5, 1))
    ticket = SampleTicket(SamplerKind.POISSON, 0.1, secret=True)
    first = engine(examples(), ticket)
    flat(engine, examples())
    with pytest.raises(Exception, match="another batch"):
        list(first.bounded.chunks)


def test_a_model_loss_is_compared_too() -> None:
    def paired(model: nn.Module, batch: Any) -> Tensor:
        output: Tensor = model(batch[0])[:, 0]
        return (output - output.roll(1, 0)).square()

    with pytest.raises(ModelError, match="rest of its batch"):
        flat(engine_of(nn.Linear(5, 1), ModelLoss(paired)), examples())
