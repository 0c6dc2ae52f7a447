"""The unprotected baseline: same sampler, same gather, same divisor, no clipping, no noise."""

from __future__ import annotations

import time
from typing import final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from dither.clipping.gradients import Loss
from dither.clipping.loss import losses_of
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.endpoint import Endpoint
from dither.sampling.loader import PoissonBatch


@final
class PlainStep:
    """Makes ordinary steps on the batches of a Poisson loader. NOT PRIVATE.

    With several ranks each brings the gradient of its own batch, and all step on the sum, which
    travels in clear: by ``endpoint``, after the backward pass, or by ``group``, in
    `DistributedDataParallel`, beside it.

    Args:
        model: Trained in place; the same on all ranks.
        optimizer: Over its parameters.
        loss_fn: Per-example loss.
        expected_batch_size: Of all ranks together; divides the summed loss, as in the private step.
        endpoint: This rank's end of the group.
        algorithm: For sums over it.
        group: Process group, in place of an endpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        loss_fn: Loss,
        expected_batch_size: float,
        endpoint: Endpoint | None = None,
        algorithm: str = "auto",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._loss_fn = loss_fn
        self._divisor = expected_batch_size
        self._endpoint = endpoint
        self._algorithm = algorithm
        self._run = model
        if group is not None:
            # It averages over ranks; their losses are to be summed.
            self._divisor /= dist.get_world_size(group)
            self._run = DistributedDataParallel(
                model, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def __call__(self, batch: PoissonBatch) -> dict[str, float]:
        """Make one step and return its time by part, in seconds.

        Raises:
            PeerError: A rank is dead or late.
        """
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=self._run is self.model)
        losses = tree_leaves(losses_of(self._run, self._loss_fn, batch.data))
        loss = sum(part.sum() for part in losses) / self._divisor
        loss.backward()
        if self._endpoint is not None:
            self._sum_over(self._endpoint)
        self.optimizer.step()
        return {"optimizer": time.perf_counter() - start}

    def _sum_over(self, endpoint: Endpoint) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([gradient.reshape(-1) for gradient in found])
        sum_over(endpoint, flat.numpy(), self._algorithm)
        parts = torch.split(flat, [p.numel() for p in trained])
        for parameter, part in zip(trained, parts, strict=True):
            parameter.grad = part.view_as(parameter)
