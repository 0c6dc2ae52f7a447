"""The zoo, second part: attention, recurrence, bare parameters, reuse, losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tests.clipping.zoo import CASES, Batch, Case, Composed, add, floats, score, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.loss import ModelLoss


def _attention() -> None:
    options: dict[str, dict[str, Any]] = {
        "time_first": {},
        "no_bias": {"bias": False},
        "batch_first": {"batch_first": True},
        "separate": {"kdim": 5, "vdim": 3},
        "bias_kv": {"add_bias_kv": True},
        "zero_attn": {"add_zero_attn": True, "batch_first": True},
    }
    for name, option in options.items():
        for weights in (False, True):
            add(
                f"attention_{name}{'_weights' if weights else ''}",
                partial(_cross, option, weights),
                floats(4, 4),
                floats(3, option.get("kdim", 4)),
                floats(3, option.get("vdim", 4)),
            )
    add("self_attention", lambda: _self(None), floats(4, 4))
    causal = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    add("self_attention_masked", lambda: _self(causal), floats(4, 4))
    added = torch.linspace(-1.0, 1.0, 16).view(4, 4).double()
    add("self_attention_added", lambda: _self(added), floats(4, 4), bf16=False)
    add("self_attention_padding", _padded_attention, floats(4, 4), _padding)
    add(
        "encoder_layer",
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        floats(3, 4),
    )
    add(
        "encoder_layer_time_first",
        lambda: Composed(
            lambda m, x: m.layer(x.transpose(0, 1)).transpose(0, 1),
            layer=nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, norm_first=True),
        ),
        floats(3, 4),
    )
    add(
        "decoder_layer",
        lambda: nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        floats(3, 4),
        floats(5, 4),
    )
    add("scaled_dot_product", _scaled_dot_product, floats(3, 4))


def _cross(option: dict[str, Any], weights: bool) -> nn.Module:
    first = option.get("batch_first", False)

    def forward(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = (q, k, v) if first else tuple(x.transpose(0, 1) for x in (q, k, v))
        output, seen = m.layer(*given, need_weights=weights)
        output = output if first else output.transpose(0, 1)
        return output if seen is None else torch.cat([output.flatten(1), seen.flatten(1)], 1)

    return Composed(forward, layer=nn.MultiheadAttention(4, 2, **option))


def _self(mask: Tensor | None) -> nn.Module:
    return Composed(
        lambda m, x: m.layer(x, x, x, attn_mask=mask, need_weights=False)[0],
        layer=nn.MultiheadAttention(4, 2, batch_first=True),
    )


def _padded_attention() -> nn.Module:
    return Composed(
        lambda m, x, mask: m.layer(x, x, x, key_padding_mask=mask, need_weights=False)[0],
        layer=nn.MultiheadAttention(4, 2, batch_first=True),
    )


def _padding(rows: int) -> Tensor:
    return torch.arange(4)[None] > torch.arange(rows)[:, None] % 3 + 1


def _scaled_dot_product() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = m.out(seen.transpose(1, 2).flatten(2))
        return output

    return Composed(forward, qkv=nn.Linear(4, 12), out=nn.Linear(4, 3))


def _recurrence() -> None:
    def last(m: Any, x: Tensor) -> Tensor:
        states, ends = m.layer(x)
        ends = ends[1] if isinstance(ends, tuple) else ends
        return torch.cat([states.flatten(1), ends.transpose(0, 1).flatten(1)], 1)

    def time_first(m: Any, x: Tensor) -> Tensor:
        states: Tensor = m.layer(x.transpose(0, 1))[0]
        return states.transpose(0, 1)

    def made(function: Callable[..., Any], kind: Any, **options: Any) -> nn.Module:
        return Composed(function, layer=kind(4, 3, **options))

    kinds: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
    for name, kind in kinds.items():
        add(
            name,
            partial(made, last, kind, batch_first=True),
            floats(5, 4),
            vmaps=False,
        )
        add(
            f"{name}_deep_time_first",
            partial(made, time_first, kind, num_layers=2, bidirectional=True),
            floats(3, 4),
            vmaps=False,
        )


def _bare() -> None:
    forms: dict[str, Any] = {
        "scale": (lambda m, x: m.p * x, (4,), floats(5, 4)),
        "scale_one_number": (lambda m, x: x * m.p, (), floats(5, 4)),
        "scale_channels": (lambda m, x: x * m.p, (4, 1, 1), floats(4, 3, 2)),
        "shift": (lambda m, x: (x + m.p).tanh(), (4,), floats(4)),
        "shift_in_place": (lambda m, x: x.tanh().add_(m.p).tanh(), (4,), floats(5, 4)),
        "difference": (lambda m, x: (m.p - x).tanh(), (4,), floats(4)),
        "less": (lambda m, x: (x - m.p).tanh(), (4,), floats(4)),
        "divided": (lambda m, x: x / (m.p.exp() + 1.0), (4,), floats(4)),
        "positions": (lambda m, x: (x + m.p).tanh(), (1, 5, 4), floats(5, 4)),
    }
    for name, (function, shape, batch) in forms.items():
        add(
            f"bare_{name}",
            partial(_with_parameter, function, shape),
            batch,
        )
    add(
        "bare_positions_time_first",
        lambda: Composed(
            lambda m, x: (x.transpose(0, 1) + m.p).tanh().transpose(0, 1), p=_parameter(5, 1, 4)
        ),
        floats(5, 4),
    )
    for way in ("expand", "repeat"):

        def forward(m: Any, x: Tensor, way: str = way) -> Tensor:
            rows = x.shape[0]
            token = m.p.expand(rows, -1, -1) if way == "expand" else m.p.repeat(rows, 1, 1)
            joined: Tensor = torch.cat([token, x], 1) @ m.w
            return joined.tanh()

        add(
            f"class_token_{way}",
            partial(_with_parameter, forward, (1, 1, 4), w=(4, 3)),
            floats(3, 4),
        )
    add("convnext_block", _convnext, floats(3, 5, 5))


def _with_parameter(
    function: Callable[..., Any], shape: tuple[int, ...], **others: tuple[int, ...]
) -> nn.Module:
    shapes = {"p": shape, **others}
    return Composed(function, **{name: _parameter(*sizes) for name, sizes in shapes.items()})


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def _convnext() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.depth(x).permute(0, 2, 3, 1))
        y = m.gamma * m.down(F.gelu(m.up(y)))
        output: Tensor = x + y.permute(0, 3, 1, 2)
        return output

    return Composed(
        forward,
        depth=nn.Conv2d(3, 3, 3, padding=1, groups=3),
        norm=nn.LayerNorm(3),
        up=nn.Linear(3, 5),
        down=nn.Linear(5, 3),
        gamma=nn.Parameter(torch.randn(3)),
    )


def _reuse() -> None:
    add("tied_weights", _tied, floats(4))
    add(
        "used_twice",
        lambda: Composed(lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=nn.Linear(4, 4)),
        floats(5, 4),
    )
    add(
        "conv_used_twice",
        lambda: Composed(
            lambda m, x: m.layer(torch.tanh(m.layer(x))), layer=nn.Conv2d(3, 3, 3, padding=1)
        ),
        floats(3, 4, 4),
    )
    add("lstm_cells", _cells, floats(3, 4))
    add("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), floats(4))
    add(
        "made_of_two",  # a weight that is an expression of two parameters
        lambda: Composed(
            lambda m, x: F.linear(x, m.a * m.b),
            a=nn.Parameter(torch.randn(3, 4)),
            b=nn.Parameter(torch.randn(3, 1)),
        ),
        floats(4),
    )


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def _cells() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], 3)
        for time in range(x.shape[1]):
            hidden, cell = m.cell(x[:, time], (hidden, cell))
        return torch.cat([hidden, cell], 1)

    return Composed(forward, cell=nn.LSTMCell(4, 3))


def _generic() -> None:
    add(
        "bilinear",
        lambda: nn.Bilinear(3, 4, 2),
        floats(3),
        floats(4),
        slow="bilinear",
    )
    add(
        "einsum",
        lambda: Composed(
            lambda m, x: torch.einsum("rtc,cd->rtd", x, m.w), w=nn.Parameter(torch.randn(4, 3))
        ),
        floats(5, 4),
        slow="einsum",
    )
    add(
        "prelu",
        lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3)),
        floats(4),
        slow="prelu",
    )


def _losses() -> None:
    pair = lambda: Composed(  # noqa: E731
        lambda m, x: (m.a(x), m.b(torch.tanh(m.a(x)))), a=nn.Linear(4, 3), b=nn.Linear(3, 2)
    )

    def several(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        first, second = model(*batch)
        return {"mean": first.tanh(), "square": second.square()}

    def outputs(model: nn.Module, batch: Batch) -> Tensor:
        first, second = model(*batch)
        return score(first) + score(second)

    def twice(model: nn.Module, batch: Batch) -> Tensor:
        (x,) = batch
        near, far = model(x), model(x.flip(1) * 0.5)
        total: Tensor = (near - far).square().sum(1) + score(far)
        return total

    def from_dict(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")

    add("several_losses", pair, floats(4), loss=ModelLoss(several))
    add("several_outputs", pair, floats(4), loss=ModelLoss(outputs))
    add("called_twice", lambda: _mlp_of(3), floats(4), loss=ModelLoss(twice))
    features, labels = floats(4), tokens(most=3)
    CASES["dict_batches"] = Case(
        lambda: _mlp_of(3),
        lambda rows: {"x": features(rows), "labels": labels(rows)},
        ModelLoss(from_dict),
    )


def _mlp_of(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))


_attention()
_recurrence()
_bare()
_reuse()
_generic()
_losses()
