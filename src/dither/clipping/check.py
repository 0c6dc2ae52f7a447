"""Book-keeping against each example alone: rules and layouts are believed only once shown right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from dither.clipping.batches import Batch
from dither.clipping.forms import Form
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
from dither.clipping.loss import by_rows, losses_of
from dither.clipping.sums import Sum, Workspace
from dither.errors import ModelError

EXAMPLES = 2
_TOLERANCE = 0.02
_SAME = 1e-4
_COARSE = 0.2  # where the model computes in bf16


@dataclass(frozen=True)
class Alone:
    """One example by itself, by plain autograd.

    Attributes:
        gradients: By parameter.
    """

    gradients: dict[str, Tensor]


def with_other_examples(chunk: Chunk) -> Chunk:
    """Return the chunk with copies of its first example behind the first ones."""

    def replaced(leaf: Tensor) -> Tensor:
        changed = leaf.clone()
        changed[min(EXAMPLES, chunk.real) :] = leaf[0]
        return changed

    return Chunk(tree_map(replaced, chunk.data), chunk.rows, chunk.real)


def each_alone(
    model: nn.Module, loss_fn: Loss, batch: Batch, rows: int, inventory: Inventory
) -> list[Alone]:
    """Differentiate the first examples one at a time, each as a batch of one."""
    found = []
    for index in range(min(EXAMPLES, rows, batch.rows)):
        parameters = inventory.parameters
        data = batch.chunk(index, index + 1, 1).data
        with torch.enable_grad(), inventory.eagerly():
            loss = by_rows(losses_of(model, loss_fn, data), 1).sum()
        gradients = (
            torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            if loss.requires_grad
            else [None] * len(parameters)
        )
        known = {
            name: gradient.to_dense().double()
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }
        found.append(Alone(known))
    return found


def check_no_mixing(gradients: Gradients, others: Gradients, examples: int) -> None:
    """Refuse a model whose results for one example depend on the others in the batch.

    Shapes are the same, so the first examples' results must be too, to the last bit where kernels
    treat rows alike; a little room is left for those that do not.

    Args:
        gradients: Of a chunk.
        others: Of a chunk of that shape with the same first examples and other ones behind.
        examples: How many are the same.

    Raises:
        ModelError: It does.
    """
    for index in range(examples):
        for one, other in zip(_figures(gradients, index), _figures(others, index), strict=True):
            if _finite(one, other) and abs(one - other) > _SAME * (abs(one) + abs(other)):
                raise ModelError(
                    expected="a model and a loss that treat every example by itself",
                    got="other results for an example when the rest of its batch changes",
                    fix="take out what looks across the batch: statistics, a mean over it, routing "
                    "by capacity, contrastive terms",
                )


def _figures(gradients: Gradients, index: int) -> list[float]:
    return [
        float(gradients.losses[index]),
        sum(_norms(form)[index] ** 2 for form in gradients.forms.values()),
    ]


def _norms(form: Form) -> list[float]:
    norms: list[float] = torch.stack([x.double() for x in form.lengths()]).prod(0).tolist()
    return norms


def disagreement(gradients: Gradients, alone: list[Alone]) -> str | None:
    """Return where book-keeping differs from each example alone, None where it does not.

    Args:
        gradients: Of a chunk that begins with these examples.
        alone: The examples.
    """
    names = {name for example in alone for name in example.gradients} | set(gradients.forms)
    scales = [_size(example) for example in alone]
    for name in sorted(names):
        form = gradients.forms.get(name)
        for index, (example, scale) in enumerate(zip(alone, scales, strict=True)):
            truth = example.gradients.get(name)
            if form is None or truth is None:
                wrong = (truth is not None and float(truth.norm()) > _tolerance() * scale) or (
                    form is not None and _norms(form)[index] > _tolerance() * scale
                )
            else:
                wrong = _differs(form, index, truth, scale)
            if wrong:
                return name
    return None


def _differs(form: Form, index: int, truth: Tensor, scale: float) -> bool:
    total = Sum(truth, Workspace(), exact=True)
    norms = _norms(form)
    pick = torch.zeros(len(norms), dtype=torch.float64, device=truth.device)
    pick[index] = 1.0
    keep = pick > 0
    form.masked(keep).add_to(total, pick)
    found = total.result()
    found = found.to_dense() if found.is_sparse else found
    size = float(truth.norm())
    if not _finite(norms[index], size):
        return False
    off = float((found - truth).norm()), abs(norms[index] - size)
    return max(off) > _tolerance() * scale


def _size(example: Alone) -> float:
    norms = [float(gradient.norm()) for gradient in example.gradients.values()]
    return float(torch.tensor([*norms, 0.0], dtype=torch.float64).norm()) + 1e-12


def _finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)


def _tolerance() -> float:
    return _COARSE if torch.is_autocast_enabled("cpu") else _TOLERANCE


class NoRandomness(TorchFunctionMode):
    """Dropout off and other draws constant, so that a chunk and one example see the same."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function without its randomness."""
        options = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0]
        if func in _DRAWS:
            return _DRAWS[func](*args, **options)
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
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


def _half(*args: Any, **kwargs: Any) -> Tensor:
    return torch.full_like(torch.rand(*args, **kwargs), 0.5)


def _half_like(like: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return torch.full_like(like, 0.5)


def _fill(tensor: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return tensor.fill_(1.0)


_DRAWS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.rand: _half,
    torch.randn: _half,
    torch.rand_like: _half_like,
    torch.randn_like: _half_like,
    torch.bernoulli: _half_like,
    torch.Tensor.bernoulli_: _fill,
    torch.Tensor.bernoulli: _half_like,
    torch.Tensor.uniform_: _fill,
    torch.Tensor.normal_: _fill,
}
