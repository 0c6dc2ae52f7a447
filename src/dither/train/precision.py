"""Low precision in a training run: from options to a controller, and what it writes down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from dither.clipping.gradients import Loss
from dither.config import TrainConfig
from dither.noise.entropy import Entropy
from dither.precision.controller import Controller, fresh_seed, make_controller
from dither.precision.options import Dynamic
from dither.precision.probe import ProbeOptions
from dither.precision.recipe import parse_recipe
from dither.precision.schedules import parse_schedule
from dither.privacy.account import Account
from dither.privacy.events import Event, Relation
from dither.privacy.plan import Plan
from dither.sampling.gather import Collate, gather_of
from dither.sampling.loader import PoissonBatch, PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.distributed.world import World

_NO_ROWS = np.empty(0, np.int64)  # of a data set: a batch that has its shapes and nobody


def dynamic_precision(config: TrainConfig) -> Dynamic | None:
    """Return the options of low precision, where it is asked for.

    Raises:
        ConfigError: No such recipe.
    """
    if config.precision is None:
        return None
    return Dynamic(
        parse_recipe(config.precision),
        schedule=parse_schedule(config.schedule, config.quantized),
        by=config.quantized_by,
        rotate_every=config.rotate_every,
        probe=ProbeOptions(
            every=config.probe_every, share=config.probe_share, clip=config.probe_clip
        ),
        seed=config.schedule_seed,
    )


def probes_beside(config: TrainConfig, records: int) -> tuple[tuple[Event, int], ...]:
    """Return what a run's probes cost, of a budget that covers them.

    Args:
        config: With a budget.
        records: n, declared.
    """
    dynamic = dynamic_precision(config)
    if dynamic is None or config.epsilon is None or not config.private:
        return ()
    return dynamic.beside(
        epsilon=config.epsilon,
        delta=config.delta,
        records=records,
        batch_size=float(config.batch_size),
        steps=config.steps,
        relation=Relation(config.relation),
    )


def probe_plan(config: TrainConfig, gradients: Plan | None, world_size: int) -> Plan | None:
    """Return the promise of a run's probes; None without any.

    Raises:
        ConfigError: No noise keeps them within their share, or no lattice holds that noise.
    """
    dynamic = dynamic_precision(config)
    if dynamic is None or gradients is None:
        return None
    plan = dynamic.probe_plan(gradients, config.epsilon)
    if plan is not None:
        plan.bind(plan.l2_clip, len(config.hidden) + 1, world_size)
    return plan


def same_seed(world: World, dynamic: Dynamic) -> int:
    """Return rank 0's seed of the choices on all ranks. Collective."""
    drawn = fresh_seed(dynamic) if world.is_first else 0
    return int.from_bytes(world.broadcast(drawn.to_bytes(8, "big")), "big")


def make_precision(
    config: TrainConfig,
    *,
    model: nn.Module,
    loss_fn: Loss,
    dataset: Any,
    records: int,
    account: Account | None,
    probes: Plan | None,
    entropy: Entropy,
    world: World,
    store: str,
) -> Controller | None:
    """Return what chooses a run's layers; None without low precision. All ranks call it together.

    Args:
        config: The options.
        model: To be trained.
        loss_fn: Per-example loss.
        dataset: This rank's training records, `GathersBatches`.
        records: n of all ranks, public.
        account: Who pays; None without privacy.
        probes: Promise of the probes.
        entropy: Of this rank alone.
        world: All ranks.
        store: Content hash of the records.
    """
    dynamic = dynamic_precision(config)
    if dynamic is None:
        return None
    draw = None
    if probes is not None:
        draw = fresh_samples(dataset, probes.sampling_rate, entropy.stream("probe sampling"))
    return make_controller(
        dynamic,
        model,
        loss_fn,
        dataset.gather_batch(_NO_ROWS),
        records=records,
        batch_size=float(config.batch_size),
        steps=config.steps,
        account=account,
        probe_plan=probes,
        draw=draw,
        entropy=entropy,
        seed=same_seed(world, dynamic),
        store=store,
    )


def controller_over(
    loader: DataLoader[Any],
    dynamic: Dynamic | None,
    *,
    model: nn.Module,
    loss_fn: Loss,
    account: Account,
    entropy: Entropy,
    epsilon: float | None,
) -> Controller | None:
    """Return what chooses layers in a loop of the user's own; None without low precision.

    Args:
        loader: Of the training records; probes draw samples of the same.
        dynamic: The options.
        model: To be trained.
        loss_fn: Per-example loss.
        account: Who pays.
        entropy: Secret randomness.
        epsilon: Budget of the whole run; by default that of its gradients.
    """
    if dynamic is None:
        return None
    plan = account.plan
    merge: Collate = loader.collate_fn
    shapes = gather_of(loader.dataset, merge, entropy.stream("probe shapes"))
    return make_controller(
        dynamic,
        model,
        loss_fn,
        shapes(_NO_ROWS),
        records=plan.records,
        batch_size=plan.expected_batch_size,
        steps=plan.steps,
        account=account,
        probe_plan=dynamic.probe_plan(plan, epsilon),
        draw=fresh_samples(
            loader.dataset, plan.sampling_rate, entropy.stream("probe sampling"), collate=merge
        ),
        entropy=entropy,
    )


def fresh_samples(
    dataset: Any, rate: float, entropy: Entropy, collate: Collate | None = None
) -> Callable[[], PoissonBatch]:
    """Return a function that draws fresh Poisson samples, apart from those of the gradients.

    Args:
        dataset: Map-style data set, that of the gradients.
        rate: Sampling rate.
        entropy: Secret randomness, for these samples alone.
        collate: Merges items; PyTorch's default when None.
    """
    loader = PoissonLoader(dataset, PoissonSampler(len(dataset), rate, entropy), 1, collate=collate)
    return lambda: next(iter(loader))
