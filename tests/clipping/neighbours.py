"""Models, batches and neighbouring data sets for adjacency tests, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.clipping import oracle
from tests.clipping.zoo import Composed
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.clipping import ClippedSum
from dither.clipping.engine import ClippingEngine
from dither.clipping.loss import ModelLoss
from dither.privacy.events import Relation

CLIP = 0.8
CHARGED_SLACK = 2e-3  # the plan's default


def weighed(model: nn.Module, batch: Any) -> Tensor:
    """Return each example's loss times its weight: NaN there takes the example out."""
    *inputs, target, weight = batch
    output = model(*inputs)
    if output.shape[1] == 1:
        line: Tensor = output[:, 0] * weight
        return line
    loss: Tensor = F.cross_entropy(output, target, reduction="none") * weight
    return loss


LOSS = ModelLoss(weighed)


@dataclass(frozen=True)
class Model:
    """A model and the shape of its input.

    Attributes:
        make: Makes it, with dropout of so much.
        shape: Of one example.
        vocabulary: Number of tokens, None for features.
    """

    make: Callable[[float], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int | None = None

    def batch(self, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, targets of three classes and weights far apart."""
        generator = torch.Generator().manual_seed(seed)
        whole = (rows, *self.shape)
        inputs = (
            torch.randn(whole, generator=generator)
            if self.vocabulary is None
            else torch.randint(0, self.vocabulary, whole, generator=generator)
        )
        target = torch.randint(0, 3, (rows,), generator=generator)
        return inputs, target, torch.exp(3.0 * torch.randn(rows, generator=generator))


def _mlp(dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def _cnn(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def _transformer(dropout: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, batch_first=True)
    return Composed(
        lambda m, x: m.head(m.layer(m.table(x) + m.place).mean(1)),
        table=nn.Embedding(9, 8),
        place=nn.Parameter(torch.randn(1, 5, 8)),
        layer=layer,
        head=nn.Linear(8, 3),
    )


def _lstm(dropout: float) -> nn.Module:
    return Composed(
        lambda m, x: m.head(m.layer(x)[0][:, -1]),
        layer=nn.LSTM(4, 6, num_layers=2, dropout=dropout, batch_first=True),
        head=nn.Linear(6, 3),
    )


def _bag(dropout: float) -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 6, padding_idx=0), nn.Dropout(dropout), nn.Linear(6, 3))


def _tied(dropout: float) -> nn.Module:
    return Composed(
        lambda m, x: m.head(m.drop(m.layer(torch.tanh(m.layer(x))))),
        layer=nn.Linear(6, 6),
        drop=nn.Dropout(dropout),
        head=nn.Linear(6, 3),
    )


MODELS: dict[str, Model] = {
    "mlp": Model(_mlp, (10,)),
    "cnn": Model(_cnn, (3, 6, 6)),
    "transformer": Model(_transformer, (5,), 9),
    "lstm": Model(_lstm, (5, 4)),
    "bag": Model(_bag, (5,), 9),
    "tied": Model(_tied, (6,)),
}
LINE = Model(lambda _: nn.Linear(1, 1, bias=False), (1,))  # its gradient is weight times input


def made(name: str, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """Return a model with fresh parameters."""
    torch.manual_seed(seed)
    return (LINE if name == "line" else MODELS[name]).make(dropout)


def poisoned(batch: tuple[Tensor, ...], row: int) -> tuple[Tensor, ...]:
    """Return the batch with an example whose loss is not a number: it counts as zero."""
    *rest, weight = batch
    changed = weight.clone()
    changed[row] = torch.nan
    return (*rest, changed)


def without(batch: tuple[Tensor, ...], row: int) -> tuple[Tensor, ...]:
    """Return the batch with an example gone and all behind it one place ahead."""
    keep = torch.arange(batch[0].shape[0]) != row
    return tuple(leaf[keep] for leaf in batch)


def distance(engine: ClippingEngine, one: Any, other: Any) -> float:
    """Return how far two sums are apart, as a multiple of the clip bound."""
    first = oracle.as_vector(engine(one, oracle.ticket()))
    second = oracle.as_vector(engine(other, oracle.ticket()))
    return float((first - second).norm()) / CLIP


def charged(result: ClippedSum, relation: Relation) -> float:
    """Return the largest distance that is paid for, as a multiple of the clip bound."""
    slack = result.bounded.slack[relation]
    assert slack <= CHARGED_SLACK * 1.5
    return 1.0 + max(slack, 0.0)
