"""Models and losses of the command line. The library takes any of them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from dither.data.store.dataset import IGNORED

# torch's layers draw from the process's one generator: two threads would draw from each other's.
_GENERATOR = threading.Lock()


def mlp(inputs: int, hidden: tuple[int, ...], classes: int, seed: int | None = None) -> nn.Module:
    """Return a ReLU multi-layer perceptron.

    Args:
        inputs: Width of the input.
        hidden: Widths of the hidden layers, none for logistic regression.
        classes: Number of logits.
        seed: Seed of the initial weights, which are public; fresh entropy when None. The global
            generator is left as it was.
    """
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        layers: list[nn.Module] = []
        widths = (inputs, *hidden)
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def rows_loss(
    weights: Float[Tensor, " classes"],
) -> Callable[
    [Float[Tensor, "batch rows classes"], Int64[Tensor, "batch rows"]], Float[Tensor, "batch rows"]
]:
    """Return the weighted cross-entropy of every row of a person, zero for those that pad.

    An example's loss is the sum over its rows, so a person's gradient is the sum over the person's
    rows, and is clipped as one. It is not divided by their number: a row counts the same whoever it
    is of, until the bound cuts in.

    Args:
        weights: Declared public weights of the classes.
    """

    def losses(
        logits: Float[Tensor, "batch rows classes"], labels: Int64[Tensor, "batch rows"]
    ) -> Float[Tensor, "batch rows"]:
        return F.cross_entropy(
            logits.transpose(1, 2), labels, weights, ignore_index=IGNORED, reduction="none"
        )

    return losses
