"""What is refused, what falls back, what is left alone, and what the engine leaves behind."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.clipping import oracle
from tests.clipping.zoo import CASES, PLAIN, Batch, Composed, floats, score
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.clipping import Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.loss import ModelLoss, per_example
from dither.errors import DitherWarning, ModelError
from dither.noise.entropy import OsEntropy

CLIP = Clipping(0.5, microbatch_size=5)
Function = Callable[[Any, Tensor], Tensor]


def composed(function: Function) -> Composed:
    torch.manual_seed(2)
    return Composed(function, layer=nn.Linear(4, 4), out=nn.Linear(4, 3)).double()


def batch(rows: int = 9) -> tuple[Tensor]:
    return (floats(4)(rows),)


def run(model: nn.Module, loss: ModelLoss = PLAIN, data: Any = None) -> oracle.Named:
    return oracle.as_named(oracle.clip_sum(model, loss, batch() if data is None else data, CLIP))


def is_right(model: nn.Module, loss: ModelLoss = PLAIN, data: Any = None) -> None:
    given = batch() if data is None else data
    found = run(model, loss, given)
    wanted = oracle.summed(oracle.by_loop(model, loss, given), CLIP.style, CLIP.l2_clip, model)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-9, msg=key)


MIXING: dict[str, Function] = {
    "centred": lambda m, x: m.out((y := m.layer(x)) - y.mean(0)),
    "batch_norm": lambda m, x: m.out(F.batch_norm(m.layer(x), None, None, training=True)),
    "softmax": lambda m, x: m.out(m.layer(x).softmax(0)),
    "attention_over_examples": lambda m, x: m.out(
        F.scaled_dot_product_attention(*(m.layer(x)[None],) * 3)[0]
    ),
    "sorted": lambda m, x: m.out(m.layer(x)).sort(0).values,
    "neighbour": lambda m, x: m.out(m.layer(x) + x.roll(1, 0)),
    "detached_statistics": lambda m, x: m.out(m.layer(x) / (1.0 + x.detach().square().mean())),
    "cumulative": lambda m, x: m.out(m.layer(x).flip(0).cumsum(0).flip(0)),
}


@pytest.mark.parametrize("name", MIXING)
def test_models_that_mix_examples_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="example"):
        run(composed(MIXING[name]))


def test_mixing_that_only_some_batches_show_is_seen_alone() -> None:
    """The first example has the largest entry, whatever the others are."""
    data = (batch()[0].clone(),)
    data[0][0, 0] = 10.0
    model = composed(lambda m, x: m.out(m.layer(x) / x.abs().max()))
    with pytest.raises(ModelError, match="for an example alone"):
        is_right(model, data=data)


LOSSES: dict[str, Callable[[nn.Module, Batch], Tensor]] = {
    "divided_by_what_the_batch_holds": lambda model, data: (
        score(model(*data)) / (data[0][:, 0] > 0).sum().clamp(min=1)
    ),
    "contrastive": lambda model, data: ((y := model(*data)) @ y.t()).log_softmax(1).diagonal(),
    "mean_for_all": lambda model, data: score(model(*data)).mean().expand(data[0].shape[0]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_mix_examples_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="example"):
        run(composed(lambda m, x: m.out(m.layer(x))), ModelLoss(LOSSES[name]))


class Buffered(nn.Module):
    """Keeps a moving average of what it sees."""

    def __init__(self, *, used: bool, in_place: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.average: Tensor
        self.register_buffer("average", torch.zeros(4))
        self.used, self.in_place = used, in_place

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach().mean(0)
        if self.in_place:
            self.average.mul_(0.9).add_(seen)
        else:
            self.average = 0.9 * self.average + seen
        output: Tensor = self.layer(x - self.average if self.used else x)
        return output


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_buffers_that_examples_update_are_refused(used: bool, in_place: bool) -> None:
    """They would be released beside the parameters, without clipping and noise."""
    model = Buffered(used=used, in_place=in_place).double()
    with pytest.raises(ModelError):
        run(model)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda n: nn.BatchNorm1d(n, affine=False)])
def test_batch_norm_in_training_is_refused(kind: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), kind(3)).double()
    with pytest.raises(ModelError):
        run(model)


def test_a_batch_of_one_shows_mixing_as_well() -> None:
    """Padding beside it stands for the others."""
    with pytest.raises(ModelError, match="example"):
        run(composed(MIXING["centred"]), data=batch(1))


def test_recorded_inputs_that_change_in_place_fall_back_or_come_out_right() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x * 1.0
        out: Tensor = m.layer(y)
        with torch.no_grad():
            y.detach().mul_(0.0)  # behind autograd's back
        return out

    with pytest.warns(DitherWarning, match="changed in place"), pytest.raises(ModelError):
        run(composed(forward))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.out(m.layer(x).relu_()),
        lambda m, x: m.out(m.layer(x).mul_(2.0).add_(x)),
        lambda m, x: m.out(F.dropout(m.layer(x), 0.0, inplace=True)),
    ],
)
def test_outputs_may_change_in_place(function: Function) -> None:
    is_right(composed(function))


class Rotary(nn.Module):
    """Caches a table of constants when it is first needed, on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(4, dtype=x.dtype).cos()
        output: Tensor = self.layer(x * self.table)
        return output


def test_caches_of_constants_are_allowed() -> None:
    is_right(Rotary().double())


class Keeping(nn.Module):
    def __init__(self, what: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.kept: Any = None
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.kept = self.what(x, y)
        return y


@pytest.mark.parametrize(
    "what",
    [
        lambda x, y: x,
        lambda x, y: y,
        lambda x, y: y.detach().mean(),
        lambda x, y: {"deep": [y.detach().clone()]},
    ],
)
def test_tensors_of_the_batch_that_are_kept_are_refused(
    what: Callable[[Tensor, Tensor], Any],
) -> None:
    with pytest.raises(ModelError, match="kept"):
        run(Keeping(what).double())


class Doubled(torch.autograd.Function):
    """A product with a parameter that no torch function shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight * 2.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] * weight * 2.0, (gradients[0] * x * 2.0).sum(0)


doubled: Any = Doubled.apply


@pytest.mark.parametrize("alone", [True, False])
def test_a_parameter_that_only_a_custom_function_sees_is_noticed(alone: bool) -> None:
    """It would be left out of norm and sum; torch.func cannot take it either."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = doubled(x, m.p)
        output: Tensor = y if alone else m.layer(y)
        return output

    torch.manual_seed(0)
    model = Composed(forward, p=nn.Parameter(torch.randn(4)), layer=nn.Linear(4, 3)).double()
    with pytest.warns(DitherWarning, match="'p'"), pytest.raises(ModelError):
        run(model)


def test_a_custom_function_between_layers_needs_nothing() -> None:
    is_right(composed(lambda m, x: m.out(doubled(m.layer(x), torch.ones(4).double()))))


def test_boolean_masks_over_examples_are_noticed() -> None:
    """As many rows as the data say: no axis counts the examples any more."""

    def forward(m: Any, x: Tensor) -> Tensor:
        output: Tensor = x.new_zeros(x.shape[0], 4)
        chosen = x[:, 0] > 0
        output[chosen] = m.layer(x[chosen])
        return m.out(output)  # type: ignore[no-any-return]

    with pytest.warns(DitherWarning), pytest.raises(ModelError):
        run(composed(forward))


def test_a_course_that_depends_on_the_examples_is_noticed() -> None:
    """The first examples take one way, a later chunk another."""

    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.layer(x)
        if bool((x[:, 0] > 5.0).any()):
            hidden = m.layer(hidden)
        return m.out(hidden)  # type: ignore[no-any-return]

    data = (torch.cat([*[batch()[0]] * 4, torch.full((3, 4), 9.0, dtype=torch.float64)]),)
    with pytest.warns(DitherWarning, match="depends on the examples"), pytest.raises(ModelError):
        run(composed(forward), data=data)


RANDOM: dict[str, Function] = {
    "dropout": lambda m, x: m.out(F.dropout(m.layer(x), 0.5)),
    "drop_path": lambda m, x: m.out(
        x + m.layer(x) * (torch.rand(x.shape[0], 1, dtype=x.dtype) < 0.5) / 0.5
    ),
    "drop_path_bernoulli": lambda m, x: m.out(
        x + m.layer(x) * x.new_empty(x.shape[0], 1).bernoulli_(0.5)
    ),
    "noise": lambda m, x: m.out(m.layer(x) + torch.randn_like(x)),
    "noise_of_shape": lambda m, x: m.out(m.layer(x) + torch.randn(x.shape, dtype=x.dtype)),
    "uniform": lambda m, x: m.out(m.layer(x) * x.new_empty(x.shape).uniform_()),
    "channels": lambda m, x: m.out(torch.feature_dropout(m.layer(x)[:, None], 0.5, True)[:, 0]),
}


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_needs_no_fallback(name: str) -> None:
    """Any warning is an error; and it is still random."""
    model = composed(RANDOM[name])
    tried = oracle.engine(model, PLAIN, CLIP)
    one, other = (oracle.as_vector(tried(batch(), oracle.ticket())) for _ in range(2))
    assert tried.method == "bookkeeping"
    assert not torch.equal(one, other)
    assert float((one - other).norm()) <= 2 * 9 * CLIP.l2_clip


def test_dropout_inside_attention_needs_no_fallback() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.6, batch_first=True).double()
    data = (floats(5, 4)(9),)
    tried = oracle.engine(layer, PLAIN, CLIP)
    one, other = (oracle.as_vector(tried(data, oracle.ticket())) for _ in range(2))
    assert tried.method == "bookkeeping"
    assert not torch.equal(one, other)


HOOKS = (
    "_backward_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_post_hooks",
)


def traces(model: nn.Module) -> dict[str, Any]:
    """Return all that could be left on a model."""
    modules = {
        name: (
            type(module),
            {key: id(value) for key, value in vars(module).items()},
            [len(getattr(module, table)) for table in HOOKS],
        )
        for name, module in model.named_modules()
    }
    parameters = {
        name: (
            id(p),
            p._version,
            p.grad is None,
            p.requires_grad,
            dict(vars(p)),
            getattr(p, "_backward_hooks", None),
            getattr(p, "_post_accumulate_grad_hooks", None),
        )
        for name, p in model.named_parameters()
    }
    return {"modules": modules, "parameters": parameters}


@pytest.mark.parametrize("name", ["cnn", "encoder_layer", "lstm", "tied_weights", "bilinear"])
def test_nothing_is_left_on_a_model(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before, state = traces(model), copy.deepcopy(model.state_dict())
    oracle.clip_sum(model, case.loss, case.batch(7), CLIP, oracle.warnings_of(case))
    assert traces(model) == before
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_gradients_of_others_are_left_alone() -> None:
    case = CASES["cnn"]
    model = case.model()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    oracle.clip_sum(model, case.loss, case.batch(7), CLIP)
    assert all(bool((p.grad == 7.0).all()) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())


def test_models_can_be_saved_and_copied_afterwards() -> None:
    case = CASES["encoder_layer"]
    model, data = case.model(), case.batch(5)
    first = run(model, case.loss, data)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    fresh = case.make().double()
    fresh.load_state_dict(model.state_dict())
    for other in (again, copy.deepcopy(model), fresh):
        for key, value in run(other, case.loss, data).items():
            assert torch.equal(value, first[key]), key


# ---- examples that show nothing ------------------------------------------------------------------


def test_examples_of_no_gradient_to_speak_of_are_no_reason_to_fall_back(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """A model sure of all its examples has gradients of 1e-22. By their squares, which underflow,
    book-keeping takes them for zero, and plain autograd does not: that shows nothing."""
    torch.manual_seed(0)
    last = nn.Linear(16, 2)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), last)
    with torch.no_grad():
        last.weight.mul_(100.0)
    inputs = torch.randn(400, 4)
    labels = model(inputs).argmax(1)
    margin = (model(inputs).max(1).values - model(inputs).min(1).values).detach()
    sure = (margin > 45) & (margin < 80)
    engine = ClippingEngine(model, per_example(nn.CrossEntropyLoss()), CLIP, OsEntropy())
    norms = engine.norms((inputs[sure], labels[sure]))
    assert norms.numel() >= 16
    assert float(norms.max()) < 1e-12
    assert engine.method == "bookkeeping"
    assert not [found for found in recwarn if "disagree" in str(found.message)]
    # It is believed once it is shown.
    doubtful = engine.norms((inputs[~sure], 1 - labels[~sure]))
    assert float(doubtful.max()) > 1.0
    assert engine.method == "bookkeeping"
