"""From options to everything a run needs: store, split, plan, model, optimizer, account."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from dither.clipping.arithmetic import required_slack
from dither.clipping.gradients import Loss
from dither.clipping.loss import per_example
from dither.clipping.styles import Automatic, PerLayer, Style
from dither.clipping.validate import check_model
from dither.config import TrainConfig
from dither.data.build import Progress, cached_store
from dither.data.store import RecordStore, Split, StoreDataset
from dither.errors import CheckpointError, ConfigError, DataError
from dither.noise.entropy import Entropy, InsecureSeed, OsEntropy
from dither.privacy.account import Account
from dither.privacy.events import Relation, Unit
from dither.privacy.guard import unprotected
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.adaptive import AdaptiveBound, AdaptiveClip, quantile_samples
from dither.train.models import mlp
from dither.train.run import Run

_SLACK = 2e-3  # share of C; Plan's default


@dataclass(frozen=True)
class Parts:
    """A run's moving parts. ``account`` is None without privacy, ``adaptive`` where B is fixed."""

    store: RecordStore
    split: Split
    model: nn.Module
    optimizer: Optimizer
    loss_fn: Loss
    entropy: Entropy
    ledger: Ledger
    account: Account | None
    adaptive: AdaptiveBound | None

    def loader(self, batches: int, rate: float) -> PoissonLoader:
        """Return a loader of fresh Poisson batches of training records."""
        dataset = StoreDataset(self.store, self.split.train)
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
    labels = set(store.labels(split.test).tolist())
    if len(labels) < 2:
        raise DataError(
            expected="held-out records of both classes",
            got=f"{split.test.size} records of {'one class' if labels else 'no class'}",
            fix="use more records or a larger --test-fraction",
        )
    return split


def make_plan(config: TrainConfig, train_records: int) -> Plan:
    """Return the promise that these options make about this many training records.

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
            numeric_slack=slack,
        )
    assert config.epsilon is not None  # noqa: S101 - checked with the options
    size = {"records": records, "batch_size": config.batch_size, "steps": config.steps}
    adaptive = adaptive_clip(config)
    return Plan.calibrate(
        epsilon=config.epsilon,
        **size,
        beside=() if adaptive is None else adaptive.beside(**size),
        delta=config.delta,
        l2_clip=config.l2_clip,
        relation=relation,
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


def check_model_size(config: TrainConfig, plan: Plan | None, store: RecordStore) -> None:
    """Refuse a model whose noisy sums no lattice holds, before anything is written."""
    widths = (store.feature_dim, *config.hidden, 2)
    if plan is not None:
        dimension = sum((before + 1) * after for before, after in itertools.pairwise(widths))
        plan.bind(plan.l2_clip, dimension)


def open_ledger(config: TrainConfig, store: RecordStore, *, create: bool = True) -> Ledger:
    """Return the account of the store's records; a resumed run's must be there already.

    Raises:
        LedgerError: It belongs to other records, or counts under another relation.
    """
    path = config.ledger or Path(store.ledger_path)
    name = store.id if config.account is None else f"account {config.account}"
    if not create:
        return Ledger.open(path, store=name)
    return Ledger.create(
        path,
        store=name,
        unit=Unit(store.manifest.unit),
        relation=Relation(config.relation),
        sensitive=store.manifest.sensitive,
    )


def unprotected_reason(config: TrainConfig, ledger: Ledger) -> str | None:
    """Return why this run is not private, None if it is; refuse it on sensitive records."""
    if not config.private:
        return unprotected(ledger, "--no-private training", force=config.force)
    if config.insecure_seed is not None:
        return unprotected(ledger, f"--insecure-seed {config.insecure_seed}", force=config.force)
    return None


def assemble(
    run: Run, store: RecordStore, split: Split, ledger: Ledger, reason: str | None
) -> Parts:
    """Build model, optimizer and account of a run; ``reason`` is why it is not private."""
    config = run.config
    entropy: Entropy = (
        OsEntropy() if config.insecure_seed is None else InsecureSeed(config.insecure_seed)
    )
    model = mlp(store.feature_dim, config.hidden, 2, config.seed)
    check_model(model)
    weights = torch.tensor(store.task.class_weights, dtype=torch.float32)
    account = None
    if (run.plan is None) != (reason is not None and config.insecure_seed is None):
        raise CheckpointError(
            expected="a plan exactly where the run's options are private",
            got="an edited run folder",
            fix="restore run.json and private/run.json, or start a new run",
        )
    if run.plan is not None:
        account = Account(
            ledger, run.id, run.plan, lease=config.lease, insecure=reason, records=store.id
        )
    elif reason is not None:
        ledger.record_non_private(run.id, reason, {})
    clip = adaptive_clip(config)
    adaptive = None
    if clip is not None and account is not None:
        dataset = StoreDataset(store, split.train)
        draw = quantile_samples(dataset, account.plan.sampling_rate, entropy)
        adaptive = AdaptiveBound(clip, account, draw, entropy, records=store.id)
    return Parts(
        store=store,
        split=split,
        model=model,
        optimizer=_optimizer(config, model),
        loss_fn=per_example(nn.CrossEntropyLoss(weight=weights)),
        entropy=entropy,
        ledger=ledger,
        account=account,
        adaptive=adaptive,
    )


def _optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    return torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum)
