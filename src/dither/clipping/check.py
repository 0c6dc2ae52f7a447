"""Book-keeping against each example alone: rules and layouts are believed only once shown right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from dither.clipping.batches import Batch
from dither.clipping.forms import Form
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
from dither.clipping.reference import alone
from dither.clipping.sums import Sum, Workspace
from dither.clipping.unsupported import UnsupportedError
from dither.errors import ModelError

EXAMPLES = 2
_SAME = 1e-4
# Of a parameter's gradient, and of the whole one; more where the model computes in bf16.
_TOLERANCE = (0.02, 1e-4)
_COARSE = (0.2, 0.02)
_LEVELS = (0.01, 0.99)  # of random draws, in the one trial and in the other
_STARTS = 8  # places in a batch where examples with a gradient are looked for

Run: TypeAlias = Callable[[Chunk], Gradients]


@dataclass(frozen=True)
class Shown:
    """What a check has shown.

    Attributes:
        signatures: The ways in which parameters met examples.
        row_bytes: Memory that an example takes.
        slow: Functions without a rule, with their parameters.
        random: Whether the model draws random numbers.
    """

    signatures: frozenset[tuple[object, ...]]
    row_bytes: int
    slow: tuple[tuple[str, tuple[str, ...]], ...]
    random: bool


@dataclass(frozen=True)
class Alone:
    """One example by itself, by plain autograd.

    Attributes:
        gradients: By parameter.
        loss: Its loss.
    """

    gradients: dict[str, Tensor]
    loss: float

    @property
    def size(self) -> float:
        """Norm of the whole gradient."""
        norms = [float(gradient.norm()) for gradient in self.gradients.values()]
        return float(torch.tensor([*norms, 0.0], dtype=torch.float64).norm())


def show(
    run: Run,
    model: nn.Module,
    loss_fn: Loss,
    batch: Batch,
    *,
    inventory: Inventory,
    rows: int,
) -> Shown | None:
    """Compare book-keeping on a few examples with each of them alone.

    Twice, with another number of rows (what is not counted by examples cannot follow) and with
    random draws constant at another value.

    Args:
        run: Book-keeping.
        model: The model.
        loss_fn: Its loss.
        batch: Where the examples are taken from.
        inventory: Of the model.
        rows: Rows of the first trial.

    Returns:
        What was shown; None where no example tried has a finite gradient that is not zero, so that
        nothing could be.

    Raises:
        ModelError: Examples mix.
        UnsupportedError: Gradients differ.
    """
    failed: UnsupportedError | None = None
    for start in range(0, batch.rows, max(EXAMPLES, -(-batch.rows // _STARTS))):
        # Saturated examples have gradients of rounding noise; a wrong rule is wrong everywhere.
        try:
            shown = _show_at(
                run, model, loss_fn, batch, inventory=inventory, rows=rows, start=start
            )
        except UnsupportedError as error:
            failed = failed or error
            continue
        if shown is not None:
            return shown
    if failed is not None:
        raise failed
    return None


def _show_at(
    run: Run,
    model: nn.Module,
    loss_fn: Loss,
    batch: Batch,
    *,
    inventory: Inventory,
    rows: int,
    start: int,
) -> Shown | None:
    trials = []
    alone: list[Alone] = []
    draws_random = True
    for more, level in enumerate(_LEVELS):
        with NoRandomness(level) as draws:
            if draws_random:
                places = range(start, start + EXAMPLES)
                alone = _each_alone(model, loss_fn, batch, places, inventory)
            trials.append(_trial(run, batch, start, rows + more, alone))
        draws_random = draws.drew
    if not any(_seen(trial, alone) for trial in trials):
        return None
    first, second = trials
    return Shown(
        signatures=frozenset({first.signature, second.signature}),
        row_bytes=max(1, first.bytes // first.losses.shape[0]),
        slow=first.slow,
        random=draws_random,
    )


def _seen(gradients: Gradients, alone: list[Alone]) -> bool:
    """Return whether there was a gradient to compare."""
    sizes = [one.size for one in alone]
    sizes += [float(_norms(form)[: len(alone)].max()) for form in gradients.forms.values()]
    return any(1e-12 < size < float("inf") for size in sizes)


def _trial(run: Run, batch: Batch, start: int, rows: int, alone: list[Alone]) -> Gradients:
    chunk = batch.chunk(start, start + rows, rows)
    known = alone[:rows]
    gradients = run(chunk)
    _compare(gradients, run(exchanged(chunk, slice(EXAMPLES, None))), range(len(known)))
    _check_losses(gradients, known)
    wrong = disagreement(gradients, known)
    if wrong is not None:
        raise UnsupportedError(f"book-keeping and plain autograd disagree at '{wrong}'")
    return gradients


def _check_losses(gradients: Gradients, alone: list[Alone]) -> None:
    for index, example in enumerate(alone):
        together, apart = float(gradients.losses[index]), example.loss
        if _finite(together, apart) and abs(together - apart) > 1e-6 + 0.05 * (
            abs(together) + abs(apart)
        ):
            raise ModelError(
                expected="losses that depend neither on the rest nor on the size of the batch",
                got=f"{apart:.4g} for an example alone and {together:.4g} in "
                f"{gradients.losses.shape[0]} rows",
                fix="do not divide by the number of examples (the step divides by the expected "
                "one), and take out what looks across the batch",
            )


def check_whole(run: Run, chunk: Chunk, gradients: Gradients | None) -> None:
    """Exchange each half of a whole chunk and see that the other half stays as it was.

    Some models mix examples only in larger batches, or only forward.

    Args:
        run: Book-keeping.
        chunk: As it is.
        gradients: Of the chunk, where the model draws no random numbers.

    Raises:
        ModelError: Losses change.
        UnsupportedError: Gradients do.
    """
    if chunk.real < 2:
        return
    half = chunk.real // 2
    with NoRandomness(0.01):
        if gradients is None:
            gradients = run(replace(chunk, workspace=None))
        _compare(gradients, run(exchanged(chunk, slice(half, None))), range(half))
        _compare(gradients, run(exchanged(chunk, slice(0, half))), range(half, chunk.real))


def exchanged(chunk: Chunk, rows: slice) -> Chunk:
    """Return the chunk with copies of another example in place of some rows."""
    source = 0 if rows.start else min(chunk.real, chunk.rows) - 1

    def changed(leaf: Tensor) -> Tensor:
        copy = leaf.clone()
        copy[rows] = leaf[source]
        return copy

    return replace(chunk, data=tree_map(changed, chunk.data), workspace=None)


def _each_alone(
    model: nn.Module, loss_fn: Loss, batch: Batch, places: range, inventory: Inventory
) -> list[Alone]:
    """Differentiate examples one at a time, each as a batch of one."""
    found = []
    for index in places:
        if index < batch.rows:
            gradients, loss = alone(model, loss_fn, batch.chunk(index, index + 1, 1), inventory)
            wide = {name: gradient.double() for name, gradient in gradients.items()}
            found.append(Alone(wide, float(loss)))
    return found


def _compare(gradients: Gradients, others: Gradients, examples: range) -> None:
    """Refuse a model whose results for these examples change with the rest of the chunk.

    Shapes are the same, so results must be too, to the last bit where kernels treat rows alike; a
    little room is left for those that do not.

    Raises:
        ModelError: Losses change.
        UnsupportedError: Only gradients do, perhaps because examples were looked for on a wrong
            axis.
    """
    picked = torch.tensor(list(examples), device=gradients.losses.device)
    if not picked.numel():
        return
    if _differ(gradients.losses[picked], others.losses[picked]):
        raise ModelError(
            expected="a model and a loss that treat every example by itself",
            got="another loss for an example when the rest of its batch changes",
            fix="take out what looks across the batch: statistics, a mean over it, routing "
            "by capacity, contrastive terms",
        )
    for name in gradients.forms.keys() & others.forms.keys():
        if _differ(_norms(gradients.forms[name])[picked], _norms(others.forms[name])[picked]):
            raise UnsupportedError(
                f"an example's gradient at '{name}' changes with the rest of its batch"
            )


def _differ(one: Tensor, other: Tensor) -> bool:
    finite = torch.isfinite(one) & torch.isfinite(other)
    apart = (one - other).abs()[finite]
    # Gradients that are rounding noise may differ.
    allowed = _SAME * (one.abs() + other.abs())[finite]
    scale = torch.cat([one[finite].abs(), one.new_zeros(1)]).max()
    return bool((apart > allowed + _SAME * 0.1 * scale).any())


def _norms(form: Form) -> Tensor:
    return torch.stack([length.double() for length in form.lengths()]).prod(0)


def disagreement(gradients: Gradients, alone: list[Alone]) -> str | None:
    """Return where book-keeping differs from each example alone, None where it does not.

    Args:
        gradients: Of a chunk that begins with these examples.
        alone: The examples.
    """
    names = {name for example in alone for name in example.gradients} | set(gradients.forms)
    for name in sorted(names):
        form = gradients.forms.get(name)
        for index, example in enumerate(alone):
            if _wrong(form, index, example.gradients.get(name), example.size):
                return name
    return None


def _wrong(form: Form | None, index: int, truth: Tensor | None, scale: float) -> bool:
    own, whole = _COARSE if torch.is_autocast_enabled("cpu") else _TOLERANCE
    measured = 0.0 if form is None else float(_norms(form)[index])
    size = 0.0 if truth is None else float(truth.norm())
    if not _finite(measured, size):
        return False
    allowed = own * size + whole * scale
    if form is None or truth is None:
        return max(measured, size) > allowed
    total = Sum(truth, Workspace(), exact=True)
    pick = torch.zeros(_norms(form).shape[0], dtype=torch.float64, device=truth.device)
    pick[index] = 1.0
    form.masked(pick > 0).add_to(total, pick)
    found = total.result()
    found = found.to_dense() if found.is_sparse else found
    return max(float((found - truth).norm()), abs(measured - size)) > allowed


def _finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)


class NoRandomness(TorchFunctionMode):
    """Dropout off and other draws constant, so that a chunk and one example see the same.

    Args:
        level: What uniform draws are.
    """

    def __init__(self, level: float) -> None:
        super().__init__()
        self._level = level
        self.drew = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function without its randomness."""
        options = dict(kwargs or {})
        if func in _DROPOUTS or func in _DRAWS:
            self.drew = True
        if func in _DROPOUTS:
            return args[0]
        if func in _DRAWS:
            return _DRAWS[func](self._level, *args, **options)
        self.drew |= func in _WITH_DROPOUT or func in _RECURRENT
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            options.pop("dropout_p", None)
        if func in _RECURRENT and len(args) > 5:
            args = (*args[:5], 0.0, *args[6:])
        if func is F.multi_head_attention_forward:  # its own dropout happens out of our sight
            if len(args) > 10:
                args = (*args[:10], 0.0, *args[11:])
            else:
                options["dropout_p"] = 0.0
        return func(*args, **options)


_DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.feature_dropout,
    torch.alpha_dropout,
}
_WITH_DROPOUT = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


def _constant(level: float, *args: Any, **kwargs: Any) -> Tensor:
    return torch.full_like(torch.rand(*args, **kwargs), level)


def _like(level: float, like: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return torch.full_like(like, level)


def _fill(_level: float, tensor: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return tensor.fill_(1.0)


_DRAWS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.rand: _constant,
    torch.randn: _constant,
    torch.rand_like: _like,
    torch.randn_like: _like,
    torch.bernoulli: lambda _level, like, *_args, **_kwargs: torch.ones_like(like),
    torch.Tensor.bernoulli: lambda _level, like, *_args, **_kwargs: torch.ones_like(like),
    torch.Tensor.bernoulli_: _fill,
    torch.Tensor.uniform_: lambda level, tensor, *_args, **_kwargs: tensor.fill_(level),
    torch.Tensor.normal_: lambda level, tensor, *_args, **_kwargs: tensor.fill_(level),
}
