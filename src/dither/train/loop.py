"""The training loop: readable from top to bottom."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from dither.config import TrainConfig
from dither.data.build import Progress
from dither.errors import BudgetExhaustedError, StoppedError
from dither.files import write_json
from dither.privacy.accountant import epsilon
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonBatch
from dither.train.adaptive import AdaptiveBound
from dither.train.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from dither.train.evaluate import held_out
from dither.train.plain import PlainStep
from dither.train.run import (
    Run,
    append_lines,
    check_free,
    create_run,
    describe_store,
    exclusive,
    keep_lines,
    open_run,
)
from dither.train.setup import (
    Parts,
    assemble,
    check_model_size,
    make_plan,
    open_ledger,
    open_store,
    split_store,
    style,
    unprotected_reason,
)
from dither.train.step import PrivateStep
from dither.train.summary import operator_line, summarise


@runtime_checkable
class Watcher(Protocol):
    """Is told how a run goes on. Gets released values only."""

    def started(self, run: Run, first_step: int, last_step: int) -> None:
        """The loop begins."""

    def stepped(self, step: int) -> None:
        """One step is done."""

    def evaluated(self, line: dict[str, Any]) -> None:
        """Held-out metrics of a checkpoint."""


Stop = Callable[[], bool]


def never() -> bool:
    """Return False: nobody asks the run to stop."""
    return False


@dataclass
class _Position:
    """Where the loop stands."""

    step: int
    spent: int
    seconds: float
    epsilon: float | None = None
    timing: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    saved: int = -1

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add times by part."""
        for part, value in seconds.items():
            self.timing[part] += value


def run_training(
    config: TrainConfig,
    watcher: Watcher | None = None,
    building: Progress | None = None,
    stop: Stop = never,
) -> Path:
    """Train as the options say, or go on with a run, and return its folder.

    Guarantee: as the run's plan says, for everything at the top of the folder but the held-out
    metrics, which are exact; the folder ``private/`` is the operator's. Charges come before
    releases, so after any crash the ledger is never below what was released, and at most one lease
    above it. A resumed run never exceeds its plan: steps that were charged and lost are not made
    up for.

    Args:
        config: The options.
        watcher: Told of progress.
        building: Told of the progress of building a record store and of calibrating.
        stop: Asked after every step; on True the run saves a checkpoint and ends, to be resumed.

    Raises:
        StoppedError: ``stop`` said so.
        DitherError: Bad options, records, ledger, checkpoint or disk; see `dither.errors`.
    """
    config.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.resume is not None:
        return _resume(open_run(config.resume), watcher, stop)
    assert config.out is not None  # noqa: S101 - checked above
    check_free(config.out)
    if config.ledger is not None:
        config = replace(config, ledger=config.ledger.absolute())
    store = open_store(config, building)
    split = split_store(config, store)
    if building and config.private:
        building("calibrate", 0, None)
    plan = make_plan(config, int(split.train.size)) if config.private else None
    if building and config.private:
        building("calibrate", 1, 1)
    ledger = open_ledger(config, store)
    reason = unprotected_reason(config, ledger)  # refuses before anything is written
    check_model_size(config, plan, store)
    run = create_run(config, plan, describe_store(store, split, ledger, plan), store.path)
    with exclusive(run):
        parts = assemble(run, store, split, ledger, reason)
        return _train(run, parts, _Position(0, 0, 0.0), watcher, stop)


def _resume(run: Run, watcher: Watcher | None, stop: Stop) -> Path:
    with exclusive(run):
        store = open_store(TrainConfig(store=run.store))
        split = split_store(run.config, store)
        ledger = open_ledger(run.config, store, create=False)
        parts = assemble(run, store, split, ledger, unprotected_reason(run.config, ledger))
        path = latest_checkpoint(run.checkpoints)
        position = _Position(0, 0, 0.0)
        if path is not None:
            found = load_checkpoint(path, run.id, parts.model, parts.optimizer)
            if found.head is not None:
                parts.ledger.require(found.head)
            position = _Position(found.step, found.spent, found.seconds, saved=found.step)
            position.add(found.timing)
            if parts.adaptive is not None and found.bound is not None:
                parts.adaptive.resume(found.bound, found.step)
        if parts.account is not None:
            # What was charged may have been released, whether or not its model survived.
            position.spent = parts.account.steps_charged
        keep_lines(run.folder / "metrics.jsonl", position.step)
        keep_lines(run.private / "training.jsonl", position.step)
        return _train(run, parts, position, watcher, stop)


def _train(
    run: Run, parts: Parts, position: _Position, watcher: Watcher | None, stop: Stop
) -> Path:
    left = run.config.steps - position.step
    if parts.account is not None:
        left = min(left, parts.account.steps_left)
    last = position.step + left
    every = run.config.checkpoint_every or max(1, run.config.steps // 10)
    step = _make_step(run, parts)
    if watcher:
        watcher.started(run, position.step, last)
    if position.step == 0:
        _checkpoint(run, parts, position, watcher)
    lines: list[dict[str, Any]] = []
    before = time.perf_counter()
    for batch in parts.loader(left, _rate(run, parts)):
        waited = time.perf_counter() - before
        position.add({"sample": batch.seconds, "gather": waited - batch.seconds})
        try:
            lines.append(step(batch, position))
        except BudgetExhaustedError:  # another process resumed this run and took the rest
            break
        if watcher:
            watcher.stepped(position.step)
        if position.step % every == 0 or position.step == last:
            append_lines(run.private / "training.jsonl", lines)
            lines = []
            _checkpoint(run, parts, position, watcher)
        position.seconds += time.perf_counter() - before
        before = time.perf_counter()
        if stop():
            break
    append_lines(run.private / "training.jsonl", lines)
    if position.saved != position.step:
        _checkpoint(run, parts, position, watcher)
    _end(parts, last, position, stop)
    return _finish(run, parts, position)


def _end(parts: Parts, last: int, position: _Position, stop: Stop) -> None:
    accounts = parts.account, None if parts.adaptive is None else parts.adaptive.account
    for account in accounts:
        if account is not None:
            account.give_back()
    if position.step < last and stop():
        raise StoppedError(
            expected=f"to reach step {last}",
            got=f"a request to stop at step {position.step}; a checkpoint was saved",
            fix="go on with dither train --resume and this run's folder",
        )


def _make_step(run: Run, parts: Parts) -> Callable[[PoissonBatch, _Position], dict[str, Any]]:
    if parts.account is None:
        plain = PlainStep(
            parts.model,
            parts.optimizer,
            loss_fn=parts.loss_fn,
            expected_batch_size=float(run.config.batch_size),
        )

        def plain_step(batch: PoissonBatch, position: _Position) -> dict[str, Any]:
            position.add(plain(batch))
            position.step += 1
            return {"step": position.step, "batch_size": batch.size}

        return plain_step
    mebibytes = run.config.memory_limit
    private = PrivateStep(
        parts.model,
        parts.optimizer,
        loss_fn=parts.loss_fn,
        account=parts.account,
        entropy=parts.entropy,
        style=style(run.config),
        adaptive=parts.adaptive,
        microbatch_size=run.config.microbatch_size,
        memory_limit=None if mebibytes is None else mebibytes << 20,
        noise_pool=run.config.noise_pool,
    )

    def private_step(batch: PoissonBatch, position: _Position) -> dict[str, Any]:
        metrics = private(batch)
        position.add(metrics.seconds)
        position.step += 1
        position.spent += 1
        return operator_line(position.step, metrics.operator)

    return private_step


def _rate(run: Run, parts: Parts) -> float:
    if run.plan is not None:
        return run.plan.sampling_rate
    return min(1.0, run.config.batch_size / int(parts.split.train.size))


def _checkpoint(run: Run, parts: Parts, position: _Position, watcher: Watcher | None) -> None:
    """Evaluate on held-out records, then save model, position and ledger head."""
    start = time.perf_counter()
    if run.plan is not None and parts.account is not None and parts.account.insecure is None:
        position.epsilon = _epsilon(run.plan, parts.adaptive, position.spent)
    metrics = held_out(parts.model, parts.store, parts.split.test).metrics()
    bound = None if parts.adaptive is None else parts.adaptive.bound
    line = {
        "step": position.step,
        "epsilon": position.epsilon,
        **metrics,
        "seconds": position.seconds,
        **({} if bound is None else {"clip_bound": bound}),
    }
    evaluated = time.perf_counter()
    # Lines first: those after the last whole checkpoint are dropped on resume.
    append_lines(run.folder / "metrics.jsonl", [line])
    where = Checkpoint(
        run=run.id,
        step=position.step,
        spent=position.spent,
        head=parts.ledger.head(),
        seconds=position.seconds,
        timing=position.timing,
        bound=bound,
    )
    save_checkpoint(run.checkpoints, where, parts.model, parts.optimizer)
    position.saved = position.step
    position.add({"evaluate": evaluated - start, "checkpoint": time.perf_counter() - evaluated})
    if watcher:
        watcher.evaluated(line)


def _epsilon(plan: Plan, adaptive: AdaptiveBound | None, spent: int) -> float:
    """Return ε of what was released so far, quantiles included."""
    events = [(plan.event, spent)]
    if adaptive is not None:
        events.append((adaptive.account.plan.event, adaptive.releases))
    return epsilon(events, plan.delta, plan.relation)


def _finish(run: Run, parts: Parts, position: _Position) -> Path:
    final = held_out(parts.model, parts.store, parts.split.test)
    save_weights(run.folder / "model.safetensors", parts.model)
    write_json(run.folder / "curves.json", final.curves())
    summary = summarise(
        run,
        parts,
        step=position.step,
        seconds=position.seconds,
        timing=position.timing,
        metrics=final.metrics(),
    )
    write_json(run.folder / "summary.json", summary)
    return run.folder
