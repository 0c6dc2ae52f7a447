"""Models of the command line. The library takes any `nn.Module`."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def mlp(inputs: int, hidden: tuple[int, ...], classes: int, seed: int | None = None) -> nn.Module:
    """Return a ReLU multi-layer perceptron.

    Args:
        inputs: Width of the input.
        hidden: Widths of the hidden layers, none for logistic regression.
        classes: Number of logits.
        seed: Seed of the initial weights, which are public; fresh entropy when None. The global
            generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        layers: list[nn.Module] = []
        widths = (inputs, *hidden)
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
