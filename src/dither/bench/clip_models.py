"""The cases of `dither bench clip`: ordinary models of plain `torch.nn`, and batches for them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither.clipping.loss import PerExampleLoss
from dither.train.models import mlp

_TOKENS = 128
_VOCABULARY = 1000
_ROWS = 100_000
_BAG = 32


@dataclass(frozen=True)
class ClipCase:
    """A model, its batch and its loss.

    Attributes:
        name: Variants after a slash: ``mlp/256``.
        batch_size: Examples a step.
        target: Largest ratio of the private step's time to the plain one's.
        build: Makes the model, always with the same weights. All its parameters are trained.
        batch: Makes ``(inputs, targets)`` of so many examples, from fresh entropy.
        loss_fn: One loss an example.
    """

    name: str
    batch_size: int
    target: float
    build: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    loss_fn: PerExampleLoss


class _Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 1512.03385, option A)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if before == width else 2
        self.widen = width - before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.widen:
            half = self.widen // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.widen - half))
        return F.relu(y + x)


class _Transformer(nn.Module):
    """Causal language model: 4 layers, width 256, 8 heads."""

    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(_VOCABULARY, width)
        self.position = nn.Embedding(_TOKENS, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 8, 4 * width, dropout=0.0, activation="gelu", batch_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device).repeat(tokens.shape[0], 1)
        x = self.token(tokens) + self.position(positions)
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class _LastState(nn.Module):
    """LSTM over the sequence, then a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy over each example's tokens, shape [batch]."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build_with_seed() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build()

    return build_with_seed


def _cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, width, pool in (
        (3, 32, nn.MaxPool2d(2)),
        (32, 64, nn.MaxPool2d(2)),
        (64, 64, nn.AdaptiveAvgPool2d(1)),
    ):
        convolution = nn.Conv2d(before, width, 3, padding=1)
        layers += [convolution, nn.GroupNorm(8, width), nn.ReLU(), pool]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def _resnet20() -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [_Residual(*pair) for pair in itertools.pairwise(widths)]
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)
    )


def _embedding() -> nn.Module:
    bag = nn.EmbeddingBag(_ROWS, 64, mode="mean")
    return nn.Sequential(bag, nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 2))


def _features(*shape: int, classes: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda size: (torch.randn(size, *shape), torch.randint(0, classes, (size,)))


def _text(size: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, _VOCABULARY, (size, _TOKENS + 1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def _bags(size: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, _ROWS, (size, _BAG)), torch.randint(0, 2, (size,))


_CLASSES = functools.partial(F.cross_entropy, reduction="none")
_IMAGES = _features(3, 32, 32, classes=10)

CASES: tuple[ClipCase, ...] = (
    *(
        ClipCase(
            f"mlp/{size}",
            size,
            target,
            lambda: mlp(64, (512, 512), 2, seed=0),
            _features(64, classes=2),
            _CLASSES,
        )
        for size, target in ((256, 1.35), (1024, 1.2), (4096, 1.2))
    ),
    ClipCase("cnn", 256, 1.35, _seeded(_cnn), _IMAGES, _CLASSES),
    ClipCase("resnet20_gn", 128, 1.5, _seeded(_resnet20), _IMAGES, _CLASSES),
    ClipCase("transformer", 16, 1.25, _seeded(_Transformer), _text, next_token_loss),
    ClipCase("embedding", 1024, 2.0, _seeded(_embedding), _bags, _CLASSES),
    ClipCase("lstm", 64, 2.5, _seeded(_LastState), _features(64, 64, classes=10), _CLASSES),
)
