"""`dither bench noise`: noise, encoding and masks against PyTorch's own, on one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from dither.bench.harness import Case, Row, measure, summarise
from dither.noise import simd
from dither.noise.codec import message_type
from dither.noise.gaussian import fill_gaussian
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.noise.rounded import fill_rounded_gaussian
from dither.noise.stream import add_mask
from dither.privacy.lattice import Lattice
from dither.train.models import mlp

SIGMA = 2.0**20
_SIZE = 1 << 20
_LARGE = 10_000_000
_PAIRS = 15
_STARVED = 60.0  # seconds


def rows(*, full: bool = False) -> Iterator[Row]:
    """Yield one row a case: the widest instruction set first, narrower ones as variants."""
    pairs = 3 * _PAIRS if full else _PAIRS
    with _one_thread():
        for name in reversed(simd.available()):
            variant = "" if name == simd.active() else f"/{name}"
            with simd.using(name):
                for case in (_gaussian(variant), *_lattice(variant), _mask(variant)):
                    yield measure(case, pairs=pairs)
        yield from _pool(pairs)
        yield _producer(pairs)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def bench_lattice(wire_bits: int) -> Lattice:
    """Return a lattice with σ = 2²⁰ fine steps and σ = 2⁷ wire steps."""
    return Lattice(
        step_exponent=-20,
        sigma=SIGMA,
        clamp=1 << 22,
        wire_shift=13,
        wire_bits=wire_bits,
        world_size=1,
    )


def _gaussian(variant: str) -> Case:
    ours, theirs, key = torch.empty(_SIZE), torch.empty(_SIZE), Key()
    return Case(
        f"gaussian_f32{variant}",
        "normal_",
        lambda: fill_gaussian(ours, key),
        theirs.normal_,
        detail=_detail(_SIZE, "float32", key),
    )


def _detail(size: int, types: str, key: Key) -> str:
    return f"{size} x {types}, {key.cipher}, {simd.active()}, one thread"


def _lattice(variant: str) -> Iterator[Case]:
    """Exact draw and encode in one pass, through the object that `release_sum` calls."""
    theirs = torch.empty(_SIZE)
    key = Key()
    fresh = FreshNoise(key)
    for name, bits, dtype in (
        ("lattice_i32", 32, np.float32),
        ("lattice_i16", 16, np.float32),
        ("lattice_i32_from_f64", 32, np.float64),
    ):
        grid = bench_lattice(bits)
        values = np.linspace(-2, 2, _SIZE, dtype=dtype)
        out = np.zeros(_SIZE, message_type(grid))
        ours = partial(fresh.encode, values, grid, out=out)
        detail = _detail(_SIZE, f"{values.dtype} to {out.dtype}, sigma 2^20 fine steps", key)
        yield Case(f"{name}{variant}", "normal_", ours, theirs.normal_, detail=detail)


def _mask(variant: str) -> Case:
    message, key = torch.zeros(_LARGE, dtype=torch.int32), Key()
    x, y = torch.ones(_LARGE), torch.ones(_LARGE)
    return Case(
        f"mask_i32{variant}",
        "add_",
        lambda: add_mask(message, key),
        lambda: x.add_(y),
        detail=_detail(_LARGE, "int32 in place", key),
    )


def _pool(pairs: int) -> Iterator[Row]:
    """Encode with ready noise: what stays on the critical path."""
    x, y = torch.ones(_LARGE), torch.ones(_LARGE)
    with NoisePool(SIGMA, capacity=_LARGE + (1 << 16)) as pool:
        for name, bits in (("pool_add", 16), ("pool_add_i32", 32)):
            grid = bench_lattice(bits)
            values, out = np.ones(_LARGE, np.float32), np.zeros(_LARGE, message_type(grid))
            yield measure(
                Case(
                    name,
                    "add_",
                    partial(pool.encode, values, grid, out=out),
                    lambda: x.add_(y),
                    prepare=partial(_wait_until_full, pool),
                    detail=f"{_LARGE} x float32 to {out.dtype}, ready noise, {simd.active()}",
                ),
                pairs=pairs,
            )
        if pool.stats().dry:
            raise RuntimeError("the pool ran dry, so this was no measurement of ready noise")


def _wait_until_full(pool: NoisePool, limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while (stats := pool.stats()).ready < _LARGE:
        if not stats.running or time.monotonic() > deadline:
            raise RuntimeError(f"the pool did not fill: {stats}")
        time.sleep(0.002)


def _producer(pairs: int) -> Row:
    """Time a draw of the pool's thread while this thread trains; the bare generator's beside it."""
    draws = np.empty(1 << 22, np.int32)
    key = Key()
    ours: list[float] = []
    bare: list[float] = []
    with NoisePool(SIGMA, capacity=1 << 23) as pool:
        model = mlp(64, (512, 512), 2, seed=0)
        train = partial(_train, model, torch.randn(256, 64), torch.randint(0, 2, (256,)))
        for index in range(-1, pairs):
            mine = _while_training(pool, train, draws)
            _wait_until_quiet(pool)
            start = time.perf_counter()
            fill_rounded_gaussian(draws, SIGMA, key)
            if index >= 0:
                ours.append(mine)
                bare.append((time.perf_counter() - start) / draws.size)
    detail = "time a draw of the pool's thread, beside a training step on the other core"
    return summarise(
        "pool_producer",
        "s/draw",
        ours=ours,
        baseline=bare,
        baseline_name="bare generator",
        detail=detail,
    )


def _train(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    loss = nn.functional.cross_entropy(model(inputs), targets)
    for parameter, gradient in zip(
        model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        parameter.data.sub_(gradient, alpha=0.01)


def _while_training(
    pool: NoisePool, train: partial[None], draws: np.ndarray[tuple[int], np.dtype[np.int32]]
) -> float:
    """Return seconds a draw of the producer, which always has room.

    On a busy machine its thread, which is last in line, may wait long for its first block.
    """
    pool.take(draws)
    filled, start = pool.stats().filled, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 0.25 or pool.stats().filled == filled:
        if elapsed > _STARVED:
            raise RuntimeError(f"the pool's thread got no processor for {_STARVED:g} s")
        train()
        stats = pool.stats()
        if stats.ready > stats.capacity // 2:
            pool.take(draws[: stats.ready - stats.capacity // 4])
    return elapsed / (pool.stats().filled - filled)


def _wait_until_quiet(pool: NoisePool) -> None:
    """Let the producer fill up, so that it does not disturb what is timed next."""
    while (stats := pool.stats()).running and stats.ready <= stats.capacity - (1 << 16):
        time.sleep(0.002)
