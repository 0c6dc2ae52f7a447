"""Small models, one for each layer family and variant, and batches for them.

All are float64, so that a rule that is wrong by more than rounding shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dither.clipping.loss import ModelLoss

Batch = Any  # tensors with one row an example, in a tuple or a dict


class Composed(nn.Module):
    """Layers, parameters and the function that puts them together."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


@dataclass(frozen=True)
class Case:
    """A model with its batches.

    Attributes:
        make: Makes the model; called under a fixed seed.
        batch: Makes a batch of so many examples.
        loss: Model and batch to losses.
        slow: Functions without a rule that are warned of.
        falls_back: What the warning says where book-keeping cannot take the model.
        vmaps: Whether the reference can take it.
        bf16: Whether it can compute in bf16.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: ModelLoss
    slow: str | None = None
    falls_back: str | None = None
    vmaps: bool = True
    bf16: bool = True

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Return the model with no parameter or statistic at a value that hides a mistake."""
        torch.manual_seed(11)
        model = self.make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if "running" in name:
                    buffer.add_(0.5 * torch.rand_like(buffer))
        return model.to(dtype)


def score(outputs: Any) -> Tensor:
    """Return one number an example, ``[rows]``, in which each output counts differently."""
    flat = outputs.flatten(1)
    weights = torch.linspace(0.4, 1.6, flat.shape[1], dtype=flat.dtype)
    scored: Tensor = (flat * weights).sum(1) + 0.3 * flat.square().sum(1)
    return scored


def scored(model: nn.Module, batch: Batch) -> Tensor:
    """Score the only output of a model."""
    return score(model(*batch))


PLAIN = ModelLoss(scored)
CASES: dict[str, Case] = {}


def floats(*shape: int) -> Callable[[int], Tensor]:
    """Return a maker of inputs whose first rows do not depend on how many there are."""

    def make(rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return torch.stack(
            [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(rows)]
            or [torch.zeros(shape, dtype=torch.float64)]
        )[:rows]

    return make


def tokens(*shape: int, most: int = 7) -> Callable[[int], Tensor]:
    """Return a maker of token numbers below ``most``, with repetitions."""

    def make(rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(6)
        return torch.stack(
            [torch.randint(0, most, shape, generator=generator) for _ in range(max(rows, 1))]
        )[:rows]

    return make


def together(*makers: Callable[[int], Any]) -> Callable[[int], Batch]:
    """Return a maker of tuples."""
    return lambda rows: tuple(make(rows) for make in makers)


def add(
    name: str,
    make: Callable[[], nn.Module],
    *makers: Callable[[int], Any],
    loss: ModelLoss = PLAIN,
    **options: Any,
) -> None:
    """Add a case with a batch of the made tensors."""
    CASES[name] = Case(make, together(*makers), loss, **options)


def frozen(model: nn.Module, *names: str) -> nn.Module:
    """Freeze parameters by name."""
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def _linear() -> None:
    add("linear", lambda: nn.Linear(4, 3), floats(4))
    add("linear_no_bias", lambda: nn.Linear(4, 3, bias=False), floats(4))
    add("linear_sequence", lambda: nn.Linear(4, 3), floats(5, 4))
    add("linear_images", lambda: nn.Linear(4, 3), floats(2, 3, 4))
    add("linear_bias_only", lambda: frozen(nn.Linear(4, 3), "weight"), floats(5, 4))
    add("linear_frozen_bias", lambda: frozen(nn.Linear(4, 3), "bias"), floats(4))
    add("mlp", _mlp, floats(4))
    add("frozen_below", lambda: frozen(_mlp(), "0.weight", "0.bias"), floats(4))
    add("frozen_above", lambda: frozen(_mlp(), "2.weight", "2.bias"), floats(4))
    add(
        "linear_time_first",
        lambda: Composed(
            lambda m, x: m.b(torch.tanh(m.a(x.transpose(0, 1)))).transpose(0, 1),
            a=nn.Linear(4, 6),
            b=nn.Linear(6, 2),
        ),
        floats(5, 4),
    )
    add(
        "linear_folded",
        lambda: Composed(
            lambda m, x: m.b(torch.tanh(m.a(x.flatten(0, 1)))).view(x.shape[0], -1),
            a=nn.Linear(4, 6),
            b=nn.Linear(6, 2),
        ),
        floats(5, 4),
    )
    add(
        "matmul",
        lambda: Composed(
            lambda m, x: torch.tanh(x @ m.w) @ m.v.t() + m.b,
            w=nn.Parameter(torch.randn(4, 5)),
            v=nn.Parameter(torch.randn(3, 5)),
            b=nn.Parameter(torch.randn(3)),
        ),
        floats(4),
    )
    add(
        "addmm",
        lambda: Composed(
            lambda m, x: torch.addmm(m.b, x.reshape(-1, 4), m.w).view(x.shape[0], 5, 3),
            w=nn.Parameter(torch.randn(4, 3)),
            b=nn.Parameter(torch.randn(3)),
        ),
        floats(5, 4),
    )
    add(
        "lora",
        lambda: frozen(
            Composed(
                lambda m, x: m.base(x) + 0.5 * m.up(m.down(x)),
                base=nn.Linear(4, 6),
                down=nn.Linear(4, 2, bias=False),
                up=nn.Linear(2, 6, bias=False),
            ),
            "base.weight",
            "base.bias",
        ),
        floats(5, 4),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def _convolutions() -> None:
    make = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    turned: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    sizes = {1: (4, 9), 2: (4, 6, 5), 3: (4, 4, 3, 5)}
    options: dict[str, dict[str, Any]] = {
        "plain": {"padding": 1},
        "no_bias": {"bias": False},
        "strided": {"stride": 2, "padding": 1},
        "dilated": {"dilation": 2, "padding": 2},
        "grouped": {"groups": 2},
        "depthwise": {"groups": 4, "padding": "same"},
        "same": {"padding": "same", "dilation": 2},
        "even_same": {"padding": "same", "kernel_size": 2},
        "valid": {"padding": "valid"},
        "pointwise": {"kernel_size": 1},
        "pointwise_strided": {"kernel_size": 1, "stride": 2},
        "reflect": {"padding": 1, "padding_mode": "reflect"},
        "replicate": {"padding": 1, "padding_mode": "replicate"},
        "circular": {"padding": 1, "padding_mode": "circular"},
    }
    for dims, kind in make.items():
        for name, option in options.items():
            if dims != 2 and name in {"no_bias", "valid", "pointwise_strided", "depthwise"}:
                continue
            given = {"kernel_size": 3, **option}
            add(f"conv{dims}d_{name}", _layer(kind, 4, 4, **given), floats(*sizes[dims]))
    turned_options: dict[str, dict[str, Any]] = {
        "plain": {},
        "strided": {"stride": 2, "padding": 1, "output_padding": 1},
        "grouped": {"groups": 2, "bias": False},
        "dilated": {"dilation": 2},
    }
    for dims, kind in turned.items():
        for name, option in turned_options.items():
            made = _layer(kind, 4, 2, kernel_size=3, **option)
            add(f"conv_transpose{dims}d_{name}", made, floats(4, *(3,) * dims))
    add(
        "cnn",
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        floats(3, 6, 6),
    )
    add(
        "conv_frames",  # several images an example, examples and frames in one axis
        lambda: Composed(
            lambda m, x: m.layer(x.flatten(0, 1)).view(x.shape[0], -1), layer=nn.Conv2d(2, 3, 2)
        ),
        floats(3, 2, 4, 4),
    )


def _between(made: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 3), made(), nn.Linear(3, 2))


def _layer(kind: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: kind(*args, **kwargs)


def _tables() -> None:
    add("embedding", lambda: nn.Embedding(7, 3), tokens(5))
    add("embedding_one", lambda: nn.Embedding(7, 3), tokens())
    add("embedding_grid", lambda: nn.Embedding(7, 3), tokens(2, 4))
    add("embedding_padding", lambda: nn.Embedding(7, 3, padding_idx=-5), tokens(5))
    add("embedding_sparse", lambda: nn.Embedding(7, 3, sparse=True), tokens(5), vmaps=False)
    add("bag_sum", lambda: nn.EmbeddingBag(7, 3, mode="sum"), tokens(5))
    add("bag_mean", lambda: nn.EmbeddingBag(7, 3, mode="mean"), tokens(5))
    add(
        "bag_padding_sum",
        lambda: nn.EmbeddingBag(7, 3, mode="sum", padding_idx=2),
        tokens(6, most=4),
    )
    add(
        "bag_padding_mean",
        lambda: nn.EmbeddingBag(7, 3, mode="mean", padding_idx=-5),
        tokens(6, most=4),
    )
    add(
        "bag_weighted",
        lambda: Composed(
            lambda m, x, w: m.layer(x, per_sample_weights=w),
            layer=nn.EmbeddingBag(7, 3, mode="sum", padding_idx=1),
        ),
        tokens(5),
        floats(5),
    )
    add(
        "bag_max",
        lambda: nn.EmbeddingBag(7, 3, mode="max"),
        tokens(5),
        slow="embedding_bag",
        vmaps=False,
    )
    add(
        "positions",
        lambda: Composed(
            lambda m, x: m.token(x) + m.place(torch.arange(x.shape[1])),
            token=nn.Embedding(7, 3),
            place=nn.Embedding(5, 3),
        ),
        tokens(5),
    )
    add(
        "positions_expanded",
        lambda: Composed(
            lambda m, x: m.token(x) + m.place(torch.arange(x.shape[1]).expand(x.shape)),
            token=nn.Embedding(7, 3),
            place=nn.Embedding(5, 3),
        ),
        tokens(5),
    )
    add(
        "tied_embedding",
        lambda: Composed(
            lambda m, x: nn.functional.linear(torch.tanh(m.table(x)), m.table.weight),
            table=nn.Embedding(7, 3),
        ),
        tokens(5),
    )


def _norms() -> None:
    add("layer_norm", lambda: nn.LayerNorm(4), floats(4))
    add("layer_norm_sequence", lambda: nn.LayerNorm(4), floats(5, 4))
    add("layer_norm_two_axes", lambda: nn.LayerNorm((3, 4)), floats(2, 3, 4))
    add("layer_norm_no_bias", lambda: nn.LayerNorm(4, bias=False), floats(5, 4))
    add("rms_norm", lambda: nn.RMSNorm(4, eps=1e-3), floats(4))
    add("rms_norm_sequence", lambda: nn.RMSNorm((3, 4)), floats(2, 3, 4))
    add("group_norm", lambda: nn.GroupNorm(2, 4), floats(4, 5))
    add("group_norm_flat", lambda: nn.GroupNorm(2, 6), floats(6))
    add("group_norm_images", lambda: nn.GroupNorm(4, 4), floats(4, 3, 2))
    add("instance_norm", lambda: nn.InstanceNorm1d(4, affine=True), floats(4, 6))
    add("instance_norm_images", lambda: nn.InstanceNorm2d(4, affine=True), floats(4, 3, 2))
    add("batch_norm_eval", lambda: nn.BatchNorm1d(4).eval(), floats(4))
    add("batch_norm_eval_images", lambda: nn.BatchNorm2d(4).eval(), floats(4, 3, 2))
    plain: dict[str, Callable[[], nn.Module]] = {
        "layer": lambda: nn.LayerNorm(3, elementwise_affine=False),
        "rms": lambda: nn.RMSNorm(3, elementwise_affine=False),
        "group": lambda: nn.GroupNorm(1, 5, affine=False),
        "instance": lambda: nn.InstanceNorm1d(5),
        "batch": lambda: nn.BatchNorm1d(5, affine=False).eval(),
    }
    for name, norm in plain.items():
        add(
            f"{name}_norm_without_affine",
            _between(norm),
            floats(5, 4),
        )
    add(
        "group_norm_frames",
        lambda: Composed(
            lambda m, x: m.layer(x.flatten(0, 1)).view(x.shape[0], -1), layer=nn.GroupNorm(2, 4)
        ),
        floats(3, 4, 2),
    )


_linear()
_convolutions()
_tables()
_norms()

from tests.clipping import zoo_blocks  # noqa: E402, F401 - adds attention, recurrence and the rest
