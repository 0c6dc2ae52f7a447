"""The training loop: readable from top to bottom, the same on one rank and on many."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

from dither.config import TrainConfig
from dither.data.build import Progress
from dither.errors import BudgetExhaustedError, StoppedError
from dither.privacy.events import Unit
from dither.privacy.ledger import Ledger
from dither.train.checkpoint import latest_checkpoint, load_checkpoint
from dither.train.distributed.member import (
    StopTogether,
    agree_on_options,
    open_same_store,
    require_started,
    same_plan,
    same_run,
    where_to_go_on,
)
from dither.train.distributed.world import World, find_place, join
from dither.train.milestones import Milestones, Position
from dither.train.precision import probe_plan
from dither.train.preflight import check_free, check_start
from dither.train.run import (
    Run,
    create_run,
    describe_store,
    exclusive,
    keep_lines,
    note_start,
    open_run,
    unstarted_removed,
)
from dither.train.setup import (
    Parts,
    assemble,
    check_model_size,
    open_ledger,
    split_store,
    unprotected_reason,
)
from dither.train.steps import make_step
from dither.train.trace import Trace, profile_path
from dither.train.tracking import absolute, open_trackers
from dither.train.watching import Watcher, Watchers

__all__ = ["Stop", "Watcher", "never", "run_training", "share_cores", "train_in"]

Stop = Callable[[], bool]


def never() -> bool:
    """Return False: nobody asks the run to stop."""
    return False


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

    In processes that torchrun, mpiexec, srun or `dither train --nproc` have started, all of them
    train together: each samples its own part of the records, and rank 0 writes. Started again by
    its launcher, a run goes on from its last checkpoint by itself.

    Args:
        config: The options.
        watcher: Told of progress, on rank 0.
        building: Told of the progress of building a record store and of calibrating, on rank 0.
        stop: Asked after steps; once it says True on any rank, all save a checkpoint and end, to be
            resumed.

    Raises:
        StoppedError: ``stop`` said so.
        PeerError: Another rank is dead, or late by more than ``timeout``.
        MismatchError: Ranks came with different options, records or versions.
        DitherError: Bad options, records, ledger, checkpoint or disk; see `dither.errors`.
    """
    config.check()
    place = find_place()
    require_started(config, place)
    with join(place, transport=config.transport, timeout=config.timeout) as world:
        share_cores(config, world)
        return train_in(world, config, watcher, building, stop)


def share_cores(config: TrainConfig, world: World) -> None:
    """Give each rank its part of its host's cores, unless the user or a launcher says otherwise."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif world.world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        nearby = world.hosts.count(world.hosts[world.rank])
        torch.set_num_threads(max(1, torch.get_num_threads() // nearby))


def train_in(
    world: World,
    config: TrainConfig,
    watcher: Watcher | None = None,
    building: Progress | None = None,
    stop: Stop = never,
) -> Path:
    """Do what `run_training` does among ranks that have met already."""
    if not world.is_first:
        watcher = building = None
    agree_on_options(world, config)
    world.act("start with these options", lambda: check_start(config, world.world_size))
    if where_to_go_on(world, config):
        return _resume(world, config, watcher, stop)
    return _begin(world, config, watcher, building, stop)


def _begin(
    world: World,
    config: TrainConfig,
    watcher: Watcher | None,
    building: Progress | None,
    stop: Stop,
) -> Path:
    out = config.out
    assert out is not None  # noqa: S101 - checked with the options
    config = _with_absolute_places(config)
    world.first("make a run folder", lambda: check_free(out))
    store = open_same_store(world, config, building)
    split = world.act("split its records", lambda: split_store(config, store))
    if building and config.private:
        building("calibrate", 0, None)
    unit = Unit(store.manifest.unit)
    plan = same_plan(world, config, int(split.train.size), unit) if config.private else None
    if building and config.private:
        building("calibrate", 1, 1)
    ledger = world.act("open its ledger", lambda: open_ledger(config, store, world))
    reason = _same_reason(world, config, ledger)  # refuses before anything is written
    world.act("hold this model", lambda: check_model_size(config, plan, store, world.world_size))

    def create() -> Run:
        assert ledger is not None  # noqa: S101 - rank 0 has one
        about = describe_store(store, split, ledger, plan)
        return create_run(
            config, plan, about, store.path, probe_plan(config, plan, world.world_size)
        )

    made = world.first("make a run folder", create)
    run = same_run(world, made, config, store.path)
    with unstarted_removed(run if world.is_first else None):
        world.first("hold the run folder", lambda: world.keep(exclusive(run)))
        parts = assemble(run, store, split, ledger=ledger, reason=reason, world=world)
        return _train(world, run, parts, Position(), watcher=watcher, stop=stop)


def _resume(world: World, config: TrainConfig, watcher: Watcher | None, stop: Stop) -> Path:
    run = _reopened(world, config)
    world.act("start with these options", lambda: check_start(run.config, world.world_size))
    world.first("hold the run folder", lambda: world.keep(exclusive(run)))
    own = world.is_first or config.resume is not None
    store = open_same_store(world, TrainConfig(store=run.store) if own else config, None)
    split = world.act("split its records", lambda: split_store(run.config, store))
    ledger = world.act(
        "open its ledger", lambda: open_ledger(run.config, store, world, create=False)
    )
    reason = _same_reason(world, run.config, ledger)
    parts = assemble(run, store, split, ledger=ledger, reason=reason, world=world)
    position = _position(world, run, parts)

    def forget_what_was_lost() -> None:
        keep_lines(run.folder / "metrics.jsonl", position.step)
        keep_lines(run.private / "training.jsonl", position.step)

    world.first("drop lines of lost steps", forget_what_was_lost)
    return _train(world, run, parts, position, watcher=watcher, stop=stop)


def _reopened(world: World, config: TrainConfig) -> Run:
    """Return the run to go on with, on all ranks, with the options of how it runs given now."""

    def reopen() -> Run:
        folder = config.resume or config.out
        assert folder is not None  # noqa: S101 - checked with the options
        found = open_run(folder)
        return replace(found, config=found.config.resumed(_with_absolute_places(config)))

    return same_run(world, world.first("open the run", reopen), config, None)


def _position(world: World, run: Run, parts: Parts) -> Position:
    """Load the last checkpoint, on all ranks, and return where it stood."""
    path = latest_checkpoint(run.checkpoints) if world.is_first else None
    position = Position()
    if world.broadcast(b"some" if path else b"none") == b"some":
        books = parts.books
        found = load_checkpoint(
            path,
            run.id,
            parts.model,
            parts.optimizer,
            ranks=world.ranks,
            account=None if books is None else books.header.id,
        )
        if books is not None and found.head is not None:
            head = found.head
            world.act("find its charges", lambda: books.require(head))
        else:
            world.act("find its charges", lambda: None)
        position = Position(found.step, found.spent, found.seconds, saved=found.step)
        position.add(found.timing)
        if parts.account is not None:
            parts.account.catch_up(found.spent)
        if parts.adaptive is not None and found.bound is not None:
            parts.adaptive.resume(found.bound, found.step)
        if parts.precision is not None and found.precision is not None:
            parts.precision.resume(found.precision)
    if parts.account is not None:
        # What was charged may have been released, whether or not its model survived.
        position.spent = parts.account.steps_charged
    return position


def _train(
    world: World,
    run: Run,
    parts: Parts,
    position: Position,
    *,
    watcher: Watcher | None,
    stop: Stop,
) -> Path:
    left = run.config.steps - position.step
    if parts.account is not None:
        left = min(left, parts.account.steps_left)
    last = position.step + left
    asked = StopTogether(world, stop)
    with ExitStack() as held:
        watchers = _watchers(world, run, watcher, position.step, held)
        trace = _trace(world, run, held)
        step = held.enter_context(closing(make_step(run, parts, world)))
        milestones = Milestones(run, parts, world, watchers, step)
        world.first("note this start", lambda: note_start(run, position.step, world.world_size))
        watchers.started(run, position.step, last)
        if position.step == 0:
            milestones.checkpoint(position)
        every = run.config.checkpoint_every or max(1, run.config.steps // 10)
        before = time.perf_counter()
        for batch in parts.loader(left, _rate(run, parts)):
            waited = time.perf_counter() - before
            position.add({"sample": batch.seconds, "gather": waited - batch.seconds})
            try:
                made = step(batch, position.step + 1)
            except BudgetExhaustedError:  # another process resumed this run and took the rest
                break
            position.advance(made.seconds)
            milestones.note(made.line)
            if trace is not None:
                trace.add(position.step, step.spans())
            watchers.stepped(position.step)
            if position.step % every == 0 or position.step == last:
                milestones.checkpoint(position)
            position.seconds += time.perf_counter() - before
            before = time.perf_counter()
            if asked():
                break
        if position.saved != position.step:
            milestones.checkpoint(position)
        _end(parts, last, position, stopped=asked.stopped)
        return milestones.finish(position)


def _end(parts: Parts, last: int, position: Position, *, stopped: bool) -> None:
    for account in parts.accounts:
        account.give_back()
    if position.step < last and stopped:
        raise StoppedError(
            expected=f"to reach step {last}",
            got=f"a request to stop at step {position.step}; a checkpoint was saved",
            fix="go on with dither train --resume and this run's folder",
        )


def _watchers(
    world: World, run: Run, watcher: Watcher | None, first_step: int, held: ExitStack
) -> Watchers:
    """Return who is told on this rank: nobody but on rank 0."""
    track, private = run.config.track, run.config.track_private

    def reach() -> Watchers:
        return held.enter_context(open_trackers(run, track, private, first_step))

    return Watchers(watcher, world.first("reach its trackers", reach))


def _trace(world: World, run: Run, held: ExitStack) -> Trace | None:
    """Return what notes the first steps, and is written at the end, however that comes."""
    if run.config.profile is None:
        return None
    trace, path = Trace(world.rank), profile_path(run.config.profile, world.rank)
    held.callback(lambda: trace.write(path))
    return trace


def _rate(run: Run, parts: Parts) -> float:
    if run.plan is not None:
        return run.plan.sampling_rate
    return min(1.0, run.config.batch_size / int(parts.split.train.size))


def _same_reason(world: World, config: TrainConfig, ledger: Ledger | None) -> str | None:
    """Return on all ranks why the run is not private, None if it is, as rank 0's ledger says."""
    found = world.first("train unprotected", lambda: unprotected_reason(config, ledger))
    return world.broadcast((found or "").encode()).decode() or None


def _with_absolute_places(config: TrainConfig) -> TrainConfig:
    """Return options that hold wherever the run goes on."""
    return replace(
        config,
        ledger=None if config.ledger is None else config.ledger.absolute(),
        cluster_secret=None if config.cluster_secret is None else config.cluster_secret.absolute(),
        profile=None if config.profile is None else config.profile.absolute(),
        track=absolute(config.track),
        track_private=absolute(config.track_private),
    )
