"""The one-run audit: train once with canaries, guess which were in, bound ε from below.

Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run" (2305.08846).
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from dither.audit.bounds import check_confidence
from dither.audit.canaries import (
    GradientCanaries,
    RecordCanaries,
    check_count,
    draw_records,
    fresh_generator,
    place,
)
from dither.audit.defect import WeakNoise, check_share
from dither.audit.findings import Finding, finding
from dither.audit.scores import LEARNT, Channel, LikelihoodScore, Rule, choose_rule, guess
from dither.config import AuditRunConfig, TrainConfig
from dither.data.store import RecordStore, Split, StoreDataset
from dither.errors import ConfigError, LedgerError
from dither.privacy.account import Account
from dither.privacy.events import Unit
from dither.privacy.guard import unprotected
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.distributed.world import World, join
from dither.train.run import Run
from dither.train.setup import Parts, assemble, make_plan, open_ledger, open_store, split_store
from dither.train.step import PrivateStep

Told = Callable[[int, int], None]

# Share of inserted records guessed on either side, where no simulation says what is best.
_BLACK_BOX_SHARE = 0.05


def ignore(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class OneRun:
    """What one audited run gave.

    Attributes:
        run: Its name in the ledger.
        plan: What it claimed.
        finding: What follows from the guesses.
        scores: Of the canaries.
        included: Which were in.
        releases: Noisy sums that the audit saw leave.
        charged: Releases that the ledger has for it.
        seconds: Wall time.
    """

    run: str
    plan: Plan
    finding: Finding
    scores: Float[np.ndarray, " canaries"]
    included: Bool[np.ndarray, " canaries"]
    releases: int
    charged: int
    seconds: float


@dataclass(frozen=True)
class Audited:
    """A store and a promise that an audit is about.

    Attributes:
        config: The audit's options.
        train: The same as options of a run.
        store: The records.
        split: Of which the training part is trained on.
        plan: The claim.
    """

    config: AuditRunConfig
    train: TrainConfig
    store: RecordStore
    split: Split
    plan: Plan

    @property
    def channel(self) -> Channel:
        """What is public about its noise and samples."""
        plan, dimension = self.plan, self.dimension
        lattice = plan.bind(plan.l2_clip, dimension)
        sigma = lattice.sigma * lattice.step / plan.l2_clip
        return Channel(plan.steps, plan.sampling_rate, sigma, plan.delta)

    @property
    def dimension(self) -> int:
        """Coordinates of the model."""
        widths = (self.store.feature_dim, *self.train.hidden, 2)
        return sum((a + 1) * b for a, b in itertools.pairwise(widths))

    @property
    def rule(self) -> Rule:
        """How many guesses are made, decided from public numbers."""
        count = self.config.canaries
        if self.config.score == "white-box":
            return choose_rule(self.channel, count)
        side = max(1, round(count * _BLACK_BOX_SHARE))
        return Rule(side, side)


def prepare(config: AuditRunConfig) -> Audited:
    """Open a store and make the claim that will be audited; charges nothing.

    Raises:
        ConfigError: Options out of range, or an audit that the store does not allow.
        DataError: No store there.
    """
    _check_options(config)
    train = _train_options(config)
    train.check()
    store = open_store(train)
    if config.defect is not None and store.manifest.sensitive:
        raise ConfigError(
            expected="a store that is not sensitive for --defect, which takes noise away",
            got=f"the sensitive records in {store.path}",
            fix="show the defect on generated records: dither data synth, then dither data build",
        )
    inserted = config.canaries if config.score == "black-box" else 0
    if inserted and store.rows_per_unit > 1:
        raise ConfigError(
            expected="one row a person for --score black-box",
            got=f"up to {store.rows_per_unit}",
            fix="use --score white-box",
        )
    split = split_store(train, store)
    plan = make_plan(train, int(split.train.size) + inserted, Unit(store.manifest.unit))
    audited = Audited(config, train, store, split, plan)
    if config.score == "white-box":
        check_count(config.canaries, audited.dimension)
    return audited


def _check_options(config: AuditRunConfig) -> None:
    """Refuse now what would else be found after a training that was charged."""
    check_confidence(config.confidence)
    if config.defect is not None:
        check_share(config.defect)
    if config.canaries < 2 or config.repeat < 1 or config.trials < 1:
        raise ConfigError(
            expected="at least 2 --canaries, and 1 of --repeat and --trials",
            got=f"{config.canaries}, {config.repeat}, {config.trials}",
            fix="leave them out for 5000 canaries and one run",
        )
    if config.score == "white-box" and config.steps <= LEARNT:
        raise ConfigError(
            expected=f"more than {LEARNT} --steps: the first {LEARNT} only teach the score how the "
            "records move a coordinate",
            got=str(config.steps),
            fix="audit as many steps as you train",
        )
    if config.score != "white-box" and config.power:
        raise ConfigError(
            expected="--score white-box with --power, whose scores can be simulated",
            got=config.score,
            fix="leave --score out",
        )


def audit_run(audited: Audited, told: Told = ignore) -> OneRun:
    """Train once with canaries, as promised and charged, and see what they give away.

    The run is a run like any other: the real loader, clipping, charges, release and optimizer. Its
    releases are charged to the store's ledger before they leave; canaries cost nothing more
    (`dither.audit.canaries`), and what comes out is made of released sums (white-box) or of the
    released model (black-box). With a defect it has less noise than its plan says: then it is
    written into the ledger as not private first, and only on records that are not sensitive.

    Args:
        audited: Store and claim.
        told: Of steps made, and of all.

    Raises:
        BudgetExhaustedError: The ledger is ahead of the plan.
        LedgerError: More was released than charged: a bug of dither.
        ConfigError: Several processes, or too many canaries for the model.
    """
    with join() as world:
        if world.world_size > 1:
            raise ConfigError(
                expected="an audit in one process",
                got=f"{world.world_size} processes",
                fix="run it without torchrun or mpiexec",
            )
        ledger = open_ledger(audited.train, audited.store, world)
        assert ledger is not None  # noqa: S101 - rank 0 keeps one
        return _audit(audited, ledger, world, told)


def _audit(audited: Audited, ledger: Ledger, world: World, told: Told) -> OneRun:
    start, draw, config = time.perf_counter(), fresh_generator(), audited.config
    rule = audited.rule  # first: registered before anything is released
    parts, account, run = _parts(audited, ledger, world)
    if config.score == "white-box":
        scores, included, seen = _white_box(audited, parts, account, draw, told)
    else:
        scores, included, seen = _black_box(audited, parts, account, draw, told)
    account.give_back()
    charged = account.steps_charged
    if charged < seen:
        raise LedgerError(
            expected=f"a charge for each of the {seen} sums that left",
            got=f"{charged} charges for run {run}",
            fix="report this as a bug, with the ledger",
        )
    found = guess(scores, included, rule)
    return OneRun(
        run=run,
        plan=audited.plan,
        finding=finding(found, audited.plan, config.confidence),
        scores=scores,
        included=included,
        releases=seen,
        charged=charged,
        seconds=time.perf_counter() - start,
    )


def _parts(audited: Audited, ledger: Ledger, world: World) -> tuple[Parts, Account, str]:
    """Return model, optimizer and account of a new run; a defect is written down first."""
    name, config, plan = f"audit-{uuid.uuid4().hex}", audited.train, audited.plan
    run = Run(Path(), name, config, plan, audited.store.path)
    parts = assemble(run, audited.store, audited.split, ledger=ledger, reason=None, world=world)
    account = parts.account
    if audited.config.defect is not None:
        what = f"an audit's defect: {audited.config.defect:g} of the noise"
        reason = unprotected(ledger, what, force=False)
        account = Account(ledger, name, plan, insecure=reason, records=audited.store.id)
    assert account is not None  # noqa: S101 - the run is private
    return parts, account, name


def _step(
    audited: Audited, parts: Parts, account: Account, beside: GradientCanaries | None
) -> PrivateStep:
    defect = audited.config.defect
    noise = None if defect is None else WeakNoise(parts.entropy.stream("noise").key(), defect)
    return PrivateStep(
        parts.model,
        parts.optimizer,
        loss_fn=parts.loss_fn,
        account=account,
        entropy=parts.entropy,
        beside=beside,
        noise=noise,
    )


def _white_box(
    audited: Audited, parts: Parts, account: Account, draw: np.random.Generator, told: Told
) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"], int]:
    plan, count = audited.plan, audited.config.canaries
    canaries = GradientCanaries(
        place(parts.model, count, draw),
        rate=plan.sampling_rate,
        l2_clip=plan.l2_clip,
        score=LikelihoodScore(count, audited.channel, l2_clip=plan.l2_clip),
        draw=draw,
    )
    step = _step(audited, parts, account, canaries)
    for made, batch in enumerate(parts.loader(plan.steps, plan.sampling_rate), start=1):
        step(batch)
        told(made, plan.steps)
    step.close()
    return canaries.score.values, canaries.included, canaries.seen


def _black_box(
    audited: Audited, parts: Parts, account: Account, draw: np.random.Generator, told: Told
) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"], int]:
    plan, store, count = audited.plan, audited.store, audited.config.canaries
    features, labels = draw_records(store.task.schema, count, draw)
    included = draw.random(count) < 0.5
    dataset = RecordCanaries(StoreDataset(store, parts.rows), features, labels, included)
    sampler = PoissonSampler(len(dataset), plan.sampling_rate, parts.entropy.stream("sampling"))
    step = _step(audited, parts, account, None)
    for made, batch in enumerate(PoissonLoader(dataset, sampler, plan.steps), start=1):
        step(batch)
        told(made, plan.steps)
    step.close()
    return _log_odds(parts.model, features, labels), included, step.steps_made


def _log_odds(
    model: nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> Float[np.ndarray, " m"]:
    """Return the model's log-odds of each canary's label: high where it was learnt.

    Of a model that noise drove out of float32's range they say nothing, and count as even.
    """
    with torch.inference_mode():
        logits = model(features).double()
    odds = (logits[:, 1] - logits[:, 0]) * (2.0 * labels - 1.0)
    found: Float[np.ndarray, " m"] = odds.nan_to_num(0.0, 0.0, 0.0).numpy()
    return found


def _train_options(config: AuditRunConfig) -> TrainConfig:
    given: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            *("store", "epsilon", "noise_multiplier", "delta", "steps", "batch_size", "l2_clip"),
            *("hidden", "optimizer", "learning_rate", "momentum", "relation", "declared_records"),
            *("test_fraction", "seed", "ledger", "account"),
        )
    }
    return TrainConfig(out=Path("audit"), **given)
