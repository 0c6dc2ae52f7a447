"""One private step: sample → clip → release → optimise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Unpack, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dither.noise.pool import Noise
from dither.release.release import release_sum
from dither.sampling.loader import PoissonBatch
from dither.train.applying import apply_gradient, gradient_dtype
from dither.train.base_step import BaseStep, Released, StepOptions
from dither.train.beside import Beside


@final
class PrivateStep(BaseStep):
    """Makes private steps; call it with each batch of the Poisson loader.

    Only the noisy sum divided by the *expected* batch size, a public number, ever stands in
    ``p.grad``; gradients are cleared again before it returns. An empty batch is a normal step.

    Args:
        model: Trained in place.
        optimizer: Any optimizer over the model's parameters; it only sees the noisy gradient, so
            momentum and Adam's moments are post-processing (DP-Adam).
        loss_fn: Per-example loss.
        account: The run that pays.
        entropy: Source of noise and dropout.
        style: How gradients become shorter; the sensitivity is the plan's clip bound in each.
        adaptive: Moves the bound, in place of a style.
        precision: Chooses layers that run in low precision; ``loss_fn`` must be its ``loss``.
        microbatch_size: Examples that pass through the model at a time. Changes speed and memory
            only, as does the next.
        memory_limit: Bytes that one pass may take, about.
        noise_pool: Make noise ahead, on a thread of its own: worth it where a core is idle and the
            model is large. Changes speed and nothing else.
        transport: Carries messages between ranks.
        bucket_size: Coordinates of the sum that travel together, on a thread of its own while the
            products of the next are computed; by default messages of about 1 MiB between several
            ranks, and one message on one. The same on all ranks. Changes speed and nothing else.
        beside: An audit's canaries.
        noise: In place of the step's own, for audits that must find a defect: a release refuses
            other noise than dither's, unless the account says that the run is not private.

    Raises:
        ConfigError: Options that exclude each other.
        ModelError: An optimizer of another model, or one that evaluates the loss again.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        beside: Beside | None = None,
        noise: Noise | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(model, optimizer, **options)
        self._beside = beside
        if noise is not None:
            self._noise = noise

    @cached_property
    def _mean(self) -> Tensor:
        """Where the noisy mean goes, step after step: of the size of one gradient."""
        return torch.empty(self._dimension, dtype=gradient_dtype(self.model))

    def _release(self, batch: PoissonBatch, start: float) -> Released:
        clipped = self._clip(batch)
        self._spans.add("forward", start)
        clipped_at = time.perf_counter()
        bounded = clipped.bounded
        if self._beside is not None:
            bounded = replace(bounded, chunks=self._beside.join(bounded.chunks))
        released = release_sum(
            bounded,
            self.account,
            self._transport,
            self._noise,
            scale=self._clip.scale,
            dtype=self._mean.dtype,
            out=self._mean,
            sender=self._sender,
            spans=self._spans,
        )
        if self._beside is not None:
            self._beside.released(released.tensors, self._clip.scale)
        return Released(clipped.diagnostics, released.saturated, clipped_at, released.tensors)

    def _apply(self, gradients: Mapping[str, Tensor]) -> None:
        apply_gradient(self.model, self.optimizer, gradients)
