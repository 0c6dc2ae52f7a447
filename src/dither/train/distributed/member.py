"""What the ranks of a run agree on: its options, its records, its promise, and when to stop.

Rank 0 decides and writes; the others follow. All of it is public, and none of it derives from
records but the content hash of their store, which all ranks that hold it know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from dither import __version__
from dither.config import RUNNING, TrainConfig
from dither.data.build import Progress
from dither.data.store import RecordStore
from dither.errors import ConfigError, MismatchError
from dither.privacy.events import Unit
from dither.privacy.plan import Plan
from dither.reduce import small
from dither.reduce.protections.compare import secret_tag
from dither.train.distributed.place import Place
from dither.train.distributed.secret import cluster_secret
from dither.train.distributed.world import World
from dither.train.run import Run, open_run
from dither.train.setup import make_plan, open_store

# Options of the moment that ranks must share, too.
_SHARED = ("engine", "transport", "algorithm", "timeout")
# Ranks look for a request to stop about this often: each look is a message or two.
_LOOK_SECONDS = 0.2


def require_started(config: TrainConfig, place: Place) -> None:
    """Refuse options that ask for other processes than there are.

    Raises:
        ConfigError: Names the option.
    """
    size = place.world_size
    if config.nproc not in {None, size} or (config.nproc and _foreign(place)):
        raise ConfigError(
            expected="--nproc in a process of its own, or processes that a launcher has started",
            got=f"--nproc {config.nproc} in one of {size} processes of {place.launcher}"
            if _foreign(place)
            else f"--nproc {config.nproc} in one process",
            fix="leave --nproc out under torchrun, mpiexec and srun; from Python start ranks with "
            "one of these",
        )


def _foreign(place: Place) -> bool:
    return place.launcher not in {"none", "dither"}


def agree_on_options(world: World, config: TrainConfig) -> None:
    """Refuse ranks with different options or versions. Places on their hosts may differ.

    Raises:
        MismatchError: On all ranks, naming what differs.
    """
    options = config.public()
    kept = {name: value for name, value in options.items() if name not in RUNNING - {*_SHARED}}
    facts = {**kept, "resume": config.resume is not None, "version": __version__}
    world.require_same({name: json.dumps(value) for name, value in facts.items()})


def where_to_go_on(world: World, config: TrainConfig) -> bool:
    """Return, on all ranks, whether an earlier start of this run is to be resumed.

    It is where --resume names it, and where the same command is started again by a launcher: its
    folder then holds an unfinished run of the same options.
    """

    def look() -> bool:
        return config.resume is not None or _unfinished(config, world.place)

    found = world.first("look at the run folder", look)
    return world.broadcast(b"resume" if found else b"new") == b"resume"


def _unfinished(config: TrainConfig, place: Place) -> bool:
    folder = config.out
    if place.launcher == "none" or folder is None or not (folder / "run.json").is_file():
        return False
    if (folder / "summary.json").is_file():
        return False  # finished: a restart must not pass an old model off as a new one
    started = open_run(folder).config
    public = started.public()
    same = all(public.get(n) == v for n, v in config.public().items() if n not in RUNNING)
    # --nproc says itself that a folder is taken, as one process does, but for its own restarts.
    mine = place.restarts > 0 or place.launcher != "dither"
    return mine and same and _same_places(started, config)


def _same_places(started: TrainConfig, given: TrainConfig) -> bool:
    """Return whether records and ledger, where they are named, are those of before."""

    def places(config: TrainConfig) -> list[list[Path]]:
        ledger, store = config.ledger, config.store
        return [
            [path.absolute() for path in named if path is not None]
            for named in ([ledger], [store], config.data)
        ]

    pairs = zip(places(started), places(given), strict=True)
    return all(not now or now == before for before, now in pairs)


def open_same_store(world: World, config: TrainConfig, progress: Progress | None) -> RecordStore:
    """Open the record store on all ranks; rank 0 first, which builds it where there is none.

    That all hold the same records they find out by tags under a key of their own: the network must
    not see a digest of records (`secret_tag`).

    Raises:
        MismatchError: The stores hold other records; on all ranks.
        DataError: There is none here; `ReduceError` on the other ranks.
    """
    store = world.first("open its records", lambda: open_store(config, progress))
    store = world.act("open its records", lambda: store or open_store(config))
    secret = world.act("read its secret", lambda: cluster_secret(config.cluster_secret))
    if world.endpoint is not None:
        tag = secret_tag(world.endpoint, store.id.encode(), authentication=secret)
        world.require_same({"record store": tag})
    return store


def same_plan(world: World, config: TrainConfig, records: int, unit: Unit = Unit.RECORD) -> Plan:
    """Return rank 0's plan on all ranks; each makes sure that its own options say so.

    Raises:
        ConfigError: The options make no plan.
        MismatchError: The plan is not what this rank's options and records ask for; on it alone.
    """
    plan = world.first("make a plan", lambda: make_plan(config, records, unit))
    text = world.broadcast(b"" if plan is None else json.dumps(plan.to_json()).encode())
    found = Plan.from_json(json.loads(text))

    def check() -> Plan:
        chosen = replace(config, epsilon=None, noise_multiplier=found.noise_multiplier)
        if config.noise_multiplier not in {None, found.noise_multiplier} or (
            make_plan(chosen, records, unit) != found
        ):
            raise MismatchError(
                expected="a plan that follows from this rank's options and records",
                got="another one from rank 0",
                fix="start all ranks with the same options, records and version of dither",
            )
        return found

    return world.act("make the same plan", check)


def same_run(world: World, run: Run | None, config: TrainConfig, store: Path | None) -> Run:
    """Return rank 0's run on all ranks; only rank 0 may write into its folder.

    Args:
        world: All ranks.
        run: On rank 0.
        config: This rank's options.
        store: This rank's record store; None for where rank 0 has it.
    """
    text = b""
    if run is not None:
        facts = {
            "id": run.id,
            "config": run.config.to_json(),
            "plan": None if run.plan is None else run.plan.to_json(),
            "probes": None if run.probes is None else run.probes.to_json(),
            "store": str(run.store),
            "folder": str(run.folder),
        }
        text = json.dumps(facts).encode()
    told: dict[str, Any] = json.loads(world.broadcast(text))
    if run is not None:
        return run
    started = TrainConfig.from_json(told["config"])
    plan, probes = told["plan"], told["probes"]
    return Run(
        folder=Path(told["folder"]),
        id=told["id"],
        config=_with_own_places(started, config),
        plan=None if plan is None else Plan.from_json(plan),
        store=store or Path(config.store or told["store"]),
        probes=None if probes is None else Plan.from_json(probes),
    )


def _with_own_places(started: TrainConfig, own: TrainConfig) -> TrainConfig:
    """Return a run's options with this host's places, where it was given any."""
    if own.resume is not None:
        return started.resumed(own)
    places = {name: getattr(own, name) for name in ("data", "store", "ledger", "cluster_secret")}
    return replace(started.resumed(own), **{name: v for name, v in places.items() if v})


@final
class StopTogether:
    """Ends all ranks at one step once any of them is asked to stop.

    They ask each other after some steps only, as many as fit `_LOOK_SECONDS` by rank 0's clock.

    Args:
        world: All ranks.
        stop: Whether this rank was asked.
    """

    def __init__(self, world: World, stop: Callable[[], bool]) -> None:
        self._world = world
        self._stop = stop
        self._steps = 1
        self._left = 1
        self._looked = time.monotonic()
        self.stopped = False

    def __call__(self) -> bool:
        """Return, after a step and on all ranks alike, whether to stop here."""
        if self._world.endpoint is None:
            self.stopped = self._stop()
            return self.stopped
        self._left -= 1
        if self._left == 0:
            self._look(self._world)
        return self.stopped

    def _look(self, world: World) -> None:
        now = time.monotonic()
        pace = max(now - self._looked, 1e-6) / self._steps
        self._looked = now
        wanted = max(1, min(2 * self._steps, round(_LOOK_SECONDS / pace)))
        asked = 1 if self._stop() else 0
        body = bytes([asked]) + (wanted if world.is_first else 0).to_bytes(31, "big")
        assert world.endpoint is not None  # noqa: S101 - asked where it is called
        found = small.largest(world.endpoint, body)
        self.stopped = found[0] == 1
        self._steps = self._left = max(1, int.from_bytes(found[1:], "big"))
