"""`dither bench train`: private steps of the census model against plain ones, without a pool."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from dither.bench.clip_models import ClipCase
from dither.bench.clip_steps import plain_run, private_run
from dither.bench.harness import Case, Row, measure
from dither.clipping.loss import per_example
from dither.train.models import mlp

_SIZES = (1024, 4096)
_TARGET = 1.6


def rows(*, full: bool = False) -> Iterator[Row]:
    """Yield one row a batch size; batches are ready, so sampling and gathering are not counted."""
    for size in _SIZES:
        case = _case(size)
        data = case.batch(size)
        plain = plain_run(case, case.build(), data)
        with private_run(case, case.build(), data, noise_pool=False) as private:
            pair = Case(case.name, "plain", private.step, plain, target=case.target)
            yield measure(pair, pairs=20 if full else 8)


def _case(size: int) -> ClipCase:
    return ClipCase(
        name=f"acs_mlp/{size}",
        batch_size=size,
        target=_TARGET,
        build=partial(mlp, 135, (128, 64), 2, seed=0),
        batch=_batch,
        loss_fn=per_example(nn.CrossEntropyLoss()),  # type: ignore[arg-type]
    )


def _batch(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 135), torch.randint(0, 2, (size,))
