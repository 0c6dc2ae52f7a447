"""From options to everything a run needs: store, split, plan, model, optimizer, account."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from dither.clipping.arithmetic import required_slack
from dither.clipping.gradients import Loss
from dither.clipping.loss import per_example
from dither.clipping.styles import Automatic, PerLayer, Style
from dither.clipping.validate import check_model
from dither.config import TrainConfig
from dither.data.build import Progress, cached_store
from dither.data.statistics import require_charged
from dither.data.store import RecordStore, Split, StoreDataset
from dither.errors import CheckpointError, ConfigError, DataError, LedgerError
from dither.noise.entropy import Entropy, entropy_of_rank
from dither.precision.controller import Controller
from dither.privacy.account import Account
from dither.privacy.events import Relation, Unit
from dither.privacy.guard import unprotected
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.trust import CENTRAL, parse_trust
from dither.sampling.loader import PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.adaptive import AdaptiveBound, AdaptiveClip, quantile_samples
from dither.train.distributed.accounts import open_rank_account, open_rank_ledger
from dither.train.distributed.replicas import same_weights
from dither.train.distributed.world import World
from dither.train.models import mlp, rows_loss
from dither.train.precision import make_precision, probes_beside
from dither.train.run import Run

_SLACK = 2e-3  # share of C; Plan's default


@dataclass(frozen=True)
class Parts:
    """A run's moving parts on this rank.

    Attributes:
        store: All records.
        split: Training and held-out units: rows, or persons.
        rows: Training units that this rank samples from.
        model: The same on all ranks.
        optimizer: Over its parameters.
        loss_fn: Per-example loss.
        entropy: Of this rank alone.
        books: Ledger that this rank keeps, if it does.
        account: Who pays; None without privacy.
        adaptive: Moves the bound; None where it is fixed.
        precision: Chooses layers that run in low precision; None without.
    """

    store: RecordStore
    split: Split
    rows: Int64[np.ndarray, " rows"]
    model: nn.Module
    optimizer: Optimizer
    loss_fn: Loss
    entropy: Entropy
    books: Ledger | None
    account: Account | None
    adaptive: AdaptiveBound | None
    precision: Controller | None = None

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Everything of the run that is charged: gradients first, then what goes beside them."""
        probe = None if self.precision is None else self.precision.probe
        beside = (None if part is None else part.account for part in (self.adaptive, probe))
        return tuple(account for account in (self.account, *beside) if account is not None)

    @property
    def ledger(self) -> Ledger:
        """The ledger that this rank keeps.

        Raises:
            LedgerError: It keeps none; rank 0 always does.
        """
        if self.books is None:
            raise LedgerError(
                expected="a ledger on this rank",
                got="none: under trust central only rank 0 keeps one",
                fix="ask rank 0",
            )
        return self.books

    def loader(self, batches: int, rate: float) -> PoissonLoader:
        """Return a loader of fresh Poisson batches of this rank's training records."""
        dataset = StoreDataset(self.store, self.rows)
        sampler = PoissonSampler(len(dataset), rate, self.entropy.stream("sampling"))
        return PoissonLoader(dataset, sampler, batches)


def open_store(config: TrainConfig, progress: Progress | None = None) -> RecordStore:
    """Return the run's record store, built from raw files at first use."""
    if config.store is not None:
        return RecordStore.open(config.store)
    return cached_store(
        config.data,
        config.task,
        on_invalid=config.on_invalid,
        sensitive=config.sensitive,
        progress=progress,
    )


def split_store(config: TrainConfig, store: RecordStore) -> Split:
    """Return training and held-out rows.

    Raises:
        DataError: The held-out records are all of one class, so no curve can be drawn.
    """
    split = store.split(config.test_fraction, config.relation)
    labels = set(store.labels(store.rows_of(split.test)).tolist())
    if len(labels) < 2:
        raise DataError(
            expected="held-out records of both classes",
            got=f"{split.test.size} {store.manifest.unit}s of "
            f"{'one class' if labels else 'no class'}",
            fix="use more records or a larger --test-fraction",
        )
    return split


def make_plan(config: TrainConfig, train_records: int, unit: Unit = Unit.RECORD) -> Plan:
    """Return the promise that these options make about this many training records.

    Where the unit is a person, persons are what is counted, sampled and clipped: n, the batch size
    and C are theirs, and all rows of one are one contribution.

    Raises:
        ConfigError: The batch is larger than the data, or an option is out of range.
    """
    records = train_records if config.declared_records is None else config.declared_records
    if not config.batch_size <= records:
        raise ConfigError(
            expected=f"an expected batch size of at most {records}, so a sampling rate up to 1",
            got=str(config.batch_size),
            fix="lower --batch-size",
        )
    relation = Relation(config.relation)
    slack = max(_SLACK, 1.01 * required_slack(relation, config.batch_size))
    if config.noise_multiplier is not None:
        return Plan(
            records=records,
            sampling_rate=config.batch_size / records,
            steps=config.steps,
            l2_clip=config.l2_clip,
            noise_multiplier=config.noise_multiplier,
            delta=config.delta,
            relation=relation,
            unit=unit,
            trust=parse_trust(config.trust),
            numeric_slack=slack,
        )
    assert config.epsilon is not None  # noqa: S101 - checked with the options
    size = {"records": records, "batch_size": config.batch_size, "steps": config.steps}
    adaptive = adaptive_clip(config)
    quantiles = () if adaptive is None else adaptive.beside(**size)
    return Plan.calibrate(
        epsilon=config.epsilon,
        **size,
        beside=(*quantiles, *probes_beside(config, records)),
        delta=config.delta,
        l2_clip=config.l2_clip,
        relation=relation,
        unit=unit,
        trust=parse_trust(config.trust),
        numeric_slack=slack,
    )


def adaptive_clip(config: TrainConfig) -> AdaptiveClip | None:
    """Return the options of adaptive clipping, where it is asked for."""
    if config.clipping != "adaptive":
        return None
    return AdaptiveClip() if config.clip_quantile is None else AdaptiveClip(config.clip_quantile)


def style(config: TrainConfig) -> Style | None:
    """Return how gradients are clipped, None for flat and adaptive clipping."""
    styles: dict[str, Style] = {"automatic": Automatic(), "per_layer": PerLayer()}
    return styles.get(config.clipping)


def check_model_size(
    config: TrainConfig, plan: Plan | None, store: RecordStore, world_size: int = 1
) -> None:
    """Refuse a model whose noisy sums no lattice holds, before anything is written."""
    widths = (store.feature_dim, *config.hidden, 2)
    if plan is not None:
        dimension = sum((before + 1) * after for before, after in itertools.pairwise(widths))
        plan.bind(plan.l2_clip, dimension, world_size)


def open_ledger(
    config: TrainConfig, store: RecordStore, world: World, *, create: bool = True
) -> Ledger | None:
    """Return the account of the store's records that this rank keeps, None if it keeps none.

    A resumed run's must be there already. Where constants of the store were released from the
    records, it is the one that was charged for them.

    Raises:
        LedgerError: It belongs to other records, counts under another relation, or was not charged
            for the store's released constants.
    """
    if store.task.released:
        return _charged_ledger(config, store, world)
    return open_rank_ledger(
        world,
        config.ledger or Path(store.ledger_path),
        parse_trust(config.trust) if config.private else CENTRAL,
        store=store.id if config.account is None else f"account {config.account}",
        unit=Unit(store.manifest.unit),
        relation=Relation(config.relation),
        sensitive=store.manifest.sensitive,
        create=create,
    )


def _charged_ledger(config: TrainConfig, store: RecordStore, world: World) -> Ledger | None:
    trust = parse_trust(config.trust)
    if config.private and trust.name != "central":
        raise ConfigError(
            expected="trust central: the store's constants were released by one party that sees "
            "all records",
            got=f"--trust {config.trust}",
            fix="use --trust central, or a description with public constants only",
        )
    if world.rank > 0:
        return None
    if config.ledger is None:
        raise LedgerError(
            expected="the ledger that the store's released constants were charged to",
            got="no --ledger",
            fix="give --ledger the file that `dither data statistics` has charged",
        )
    name = None if config.account is None else f"account {config.account}"
    ledger = Ledger.open(config.ledger, store=name)
    require_charged(store.task, ledger)
    manifest = store.manifest
    ledger.require_kind(
        Unit(manifest.unit), Relation(config.relation), sensitive=manifest.sensitive
    )
    return ledger


def unprotected_reason(config: TrainConfig, ledger: Ledger | None) -> str | None:
    """Return why this run is not private, None if it is; refuse it on sensitive records.

    Ranks without a ledger return None; rank 0 has one and tells them.
    """
    if ledger is None:
        return None
    if not config.private:
        return unprotected(ledger, "--no-private training", force=config.force)
    if config.insecure_seed is not None:
        return unprotected(ledger, f"--insecure-seed {config.insecure_seed}", force=config.force)
    return None


def assemble(
    run: Run,
    store: RecordStore,
    split: Split,
    *,
    ledger: Ledger | None,
    reason: str | None,
    world: World,
) -> Parts:
    """Build model, optimizer and account of a run on this rank; all ranks call it together.

    Args:
        run: The run.
        store: Its records.
        split: Training and held-out rows.
        ledger: That this rank keeps.
        reason: Why the run is not private.
        world: All ranks.
    """
    config = run.config
    if (run.plan is None) != (reason is not None and config.insecure_seed is None):
        raise CheckpointError(
            expected="a plan exactly where the run's options are private",
            got="an edited run folder",
            fix="restore run.json and private/run.json, or start a new run",
        )
    entropy = entropy_of_rank(config.insecure_seed, world.rank)
    rows = store.shard(split.train, world.rank, world.world_size, config.relation)
    model = mlp(store.feature_dim, config.hidden, 2, config.seed)
    check_model(model)
    same_weights(world, model)
    account = _account(run, store, ledger, reason=reason, world=world)
    weights = torch.tensor(store.task.class_weights, dtype=torch.float32)
    parts = Parts(
        store=store,
        split=split,
        rows=rows,
        model=model,
        optimizer=_optimizer(config, model),
        loss_fn=_loss(store, weights),
        entropy=entropy,
        books=ledger,
        account=account,
        adaptive=_adaptive(config, store, rows, account, entropy),
    )
    return replace(parts, precision=_precision(run, parts, world))


def _account(
    run: Run, store: RecordStore, ledger: Ledger | None, *, reason: str | None, world: World
) -> Account | None:
    """Return who pays; write down a run that promises nothing."""
    if run.plan is None:
        if reason is not None and ledger is not None:
            ledger.record_non_private(run.id, reason, {})
        return None
    return open_rank_account(
        world.ranks,
        ledger,
        run.id,
        run.plan,
        lease=run.config.lease,
        insecure=reason,
        records=store.id,
    )


def _precision(run: Run, parts: Parts, world: World) -> Controller | None:
    return make_precision(
        run.config,
        model=parts.model,
        loss_fn=parts.loss_fn,
        dataset=StoreDataset(parts.store, parts.rows),
        records=int(parts.split.train.size) if run.plan is None else run.plan.records,
        account=parts.account,
        probes=run.probes,
        entropy=parts.entropy,
        world=world,
        store=parts.store.id,
    )


def _loss(store: RecordStore, weights: Tensor) -> Loss:
    criterion = nn.CrossEntropyLoss(weight=weights)
    if store.rows_per_unit == 1:
        return per_example(criterion)
    return per_example(rows_loss(weights))


def _adaptive(
    config: TrainConfig,
    store: RecordStore,
    rows: Int64[np.ndarray, " rows"],
    account: Account | None,
    entropy: Entropy,
) -> AdaptiveBound | None:
    clip = adaptive_clip(config)
    if clip is None or account is None:
        return None
    draw = quantile_samples(StoreDataset(store, rows), account.plan.sampling_rate, entropy)
    return AdaptiveBound(clip, account, draw, entropy, records=store.id)


def _optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    return torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum)
