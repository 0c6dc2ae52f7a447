"""The unprotected baseline: same sampler, same gather, same divisor, no clipping, no noise."""

from __future__ import annotations

import time
from typing import final

from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from dither.clipping.gradients import Loss
from dither.clipping.loss import losses_of
from dither.sampling.loader import PoissonBatch


@final
class PlainStep:
    """Makes ordinary steps on the batches of a Poisson loader. NOT PRIVATE.

    Args:
        model: Trained in place.
        optimizer: Over its parameters.
        loss_fn: Per-example loss.
        expected_batch_size: Divides the summed loss, as in the private step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        loss_fn: Loss,
        expected_batch_size: float,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._loss_fn = loss_fn
        self._divisor = expected_batch_size

    def __call__(self, batch: PoissonBatch) -> dict[str, float]:
        """Make one step and return its time, in seconds, as the part ``optimizer``."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        losses = tree_leaves(losses_of(self.model, self._loss_fn, batch.data))
        loss = sum(part.sum() for part in losses) / self._divisor
        loss.backward()
        self.optimizer.step()
        return {"optimizer": time.perf_counter() - start}
