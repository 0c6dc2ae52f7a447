"""Initial weights follow from their seed alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from dither.train.models import mlp


def test_threads_do_not_draw_from_each_others_seeds() -> None:
    wanted = mlp(40, (64, 64), 2, seed=3).state_dict()
    together = threading.Barrier(4)

    def make(_: int) -> list[dict[str, torch.Tensor]]:
        together.wait()
        return [mlp(40, (64, 64), 2, seed=3).state_dict() for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for found in (state for states in pool.map(make, range(4)) for state in states):
            assert all(torch.equal(found[name], value) for name, value in wanted.items())
