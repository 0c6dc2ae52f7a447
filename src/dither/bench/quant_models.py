"""The models of `dither bench quant`: narrow ones with GroupNorm, of plain `torch.nn`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUP = 4  # channels that GroupNorm takes together


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(max(1, width // _GROUP), width)


def cnn(channels: int, widths: tuple[tuple[int, int], ...], head: int) -> nn.Module:
    """Return 3x3 convolutions with GroupNorm, then two linear layers.

    Args:
        channels: Of the input.
        widths: Width and stride of each convolution.
        head: Width between the linear layers.
    """
    layers: list[nn.Module] = []
    before = channels
    for width, stride in widths:
        convolution = nn.Conv2d(before, width, 3, stride, padding=1)
        layers += [convolution, _norm(width), nn.ReLU()]
        before = width
    flat = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * before, head), nn.ReLU()]
    return nn.Sequential(*layers, *flat, nn.Linear(head, 10))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 1512.03385), GroupNorm for BatchNorm.

    Args:
        before: Channels of the input.
        width: Of the output; the shortcut is a 1x1 convolution where they differ.
        stride: Of the first convolution and the shortcut.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if before != width or stride != 1:
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(
    channels: int, width: int, *, stages: int = 3, blocks: int = 1, stride: int = 1
) -> nn.Module:
    """Return a ResNet of 2·stages·blocks + 2 layers, beside shortcuts; 3 stages of 3: ResNet-20.

    Args:
        channels: Of the input.
        width: Of the first stage; each further one doubles it and halves the image.
        stages: Their number.
        blocks: In each stage.
        stride: Of the first convolution.
    """
    stem = [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), _norm(width), nn.ReLU()]
    widths = [width, *(width << stage for stage in range(stages) for _ in range(blocks))]
    body = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
    return nn.Sequential(*stem, *body, *head)


class Residual(nn.Module):
    """A linear layer beside a shortcut, normalised before it.

    Args:
        width: Of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        out: Tensor = x + F.relu(self.linear(self.norm(x)))
        return out


def deep_mlp(inputs: int, width: int, depth: int, classes: int) -> nn.Module:
    """Return a narrow multi-layer perceptron, deep enough that a schedule has a choice.

    Args:
        inputs: Width of the input.
        width: Of the hidden layers.
        depth: Number of residual layers.
        classes: Number of logits.
    """
    hidden = [Residual(width) for _ in range(depth)]
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), *hidden, nn.LayerNorm(width), nn.Linear(width, classes)
    )


def small_resnet(channels: int) -> nn.Module:
    """Return a ResNet whose blocks are all at a sixteenth of the image's side, about.

    Args:
        channels: Of the input.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, padding=1, bias=False),
        _norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, padding=1, bias=False),
        _norm(16),
        nn.ReLU(),
        Block(16, 16, 2),
        *(Block(16, 16, 1) for _ in range(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


# Where one layer is more than a tenth of the compute, all schedules must take it to reach 90 %:
# many layers of about equal size leave them a choice.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mnist-cnn": lambda: small_resnet(1),
    "cifar-cnn": lambda: cnn(3, ((16, 2), (16, 1), (32, 2), (32, 1), (32, 2), (32, 1)), 32),
    "cifar-resnet": lambda: resnet(3, 12, stages=2, blocks=3, stride=2),
    "resnet20": lambda: resnet(3, 16, stages=3, blocks=3),
    "acs-mlp": lambda: deep_mlp(135, 64, 10, 2),
}


def build(name: str, seed: int) -> nn.Module:
    """Return a model with the public weights of a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()
