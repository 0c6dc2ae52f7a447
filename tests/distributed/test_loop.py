"""The training loop on several ranks, which are threads here: what they agree on and who writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.options import options

from dither.config import TrainConfig
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import (
    ConfigError,
    DitherError,
    MismatchError,
    OutputError,
    PeerError,
    ReduceError,
    StoppedError,
)
from dither.privacy.ledger import Ledger
from dither.reduce.transports.threads import Observe, Outcomes, run_ranks, try_ranks
from dither.train.distributed.accounts import rank_ledger_path
from dither.train.distributed.place import Place
from dither.train.distributed.replicas import require_same_model, same_weights
from dither.train.distributed.world import World
from dither.train.loop import Stop, never, run_training, share_cores, train_in
from dither.train.models import mlp
from dither.train.run import open_run

# Runs that are unprotected on purpose; that they warn is tested with the guard.
pytestmark = pytest.mark.filterwarnings("ignore:.*NOT PRIVATE")


class Seen:
    """A watcher that writes down what it is told, and may break off."""

    def __init__(self, crash_at: int = -1) -> None:
        self.steps: list[int] = []
        self.lines: list[dict[str, Any]] = []
        self.figures: list[Mapping[str, float]] = []
        self._crash_at = crash_at

    def started(self, run: object, first_step: int, last_step: int) -> None:
        self.first, self.last = first_step, last_step

    def stepped(self, step: int) -> None:
        self.steps.append(step)
        if step == self._crash_at:
            raise KeyError("a crash")

    def evaluated(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        self.figures.append(figures)


def train(
    ranks: int,
    config: TrainConfig | Callable[[int], TrainConfig],
    *,
    watcher: Seen | None = None,
    stop: Callable[[int], Stop] = lambda _: never,
    place: Callable[[int], Place] | None = None,
    observe: Observe | None = None,
) -> Outcomes[Path]:
    """Train on threads; every rank but the first gets a watcher that must hear nothing."""

    def rank(endpoint: Any) -> Path:
        own = config if isinstance(config, TrainConfig) else config(endpoint.rank)
        own.check()
        world = World.over(endpoint)
        if place is not None:
            world.place = place(endpoint.rank)
        with world:
            told = watcher if world.is_first else Seen()
            folder = train_in(world, own, told, stop=stop(endpoint.rank))
            assert world.is_first or told is None or told.lines == []
            return folder

    return try_ranks(ranks, rank, timeout=120.0, observe=observe)


def whole(outcomes: Outcomes[Path]) -> Path:
    assert outcomes.errors == {}, outcomes.errors
    assert len(set(outcomes.results)) == 1
    return outcomes.results[0]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_bytes())  # type: ignore[no-any-return]


def steps_in(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize(
    ("ranks", "trust"), [(3, "central"), (2, "local"), (3, "distributed(1)"), (2, "distributed(1)")]
)
def test_ranks_train_together(store: RecordStore, tmp_path: Path, ranks: int, trust: str) -> None:
    seen = Seen()
    folder = whole(train(ranks, options(store, tmp_path / "run", trust=trust), watcher=seen))
    summary = summary_of(folder)
    assert summary["ranks"] == ranks
    assert summary["steps"] == {"planned": 20, "taken": 20, "charged": 20, "lost": 0}
    assert summary["privacy"]["trust"] == trust
    assert seen.steps == list(range(1, 21))
    assert [line["step"] for line in seen.lines] == [0, 5, 10, 15, 20]
    run = open_run(folder).id
    for rank in range(ranks):
        path = rank_ledger_path(Path(store.ledger_path), rank)
        assert path.exists() == (rank == 0 or trust != "central")
        if path.exists():
            assert Ledger.open(path).charged(run) == 20


def test_the_promise_is_that_of_one_process(store: RecordStore, tmp_path: Path) -> None:
    alone = summary_of(run_training(options(store, tmp_path / "one")))["privacy"]
    together = summary_of(whole(train(3, options(store, tmp_path / "three"))))["privacy"]
    assert together == alone


def test_rank_zero_tells_what_steps_cost(store: RecordStore, tmp_path: Path) -> None:
    seen = Seen()
    whole(train(2, options(store, tmp_path / "run", noise_pool=True), watcher=seen))
    assert len(seen.figures) == 4
    weights = 8 * store.feature_dim + 8 + 2 * 8 + 2
    for figures in seen.figures:
        assert figures["bytes_per_step"] in {2.0 * weights, 4.0 * weights}
        assert {"seconds/clip", "seconds/release", "seconds/sample", "pool/dry"} <= figures.keys()
        assert "seconds/evaluate" not in figures
        assert all(value >= 0.0 for value in figures.values())


def test_models_that_have_come_apart_are_noticed() -> None:
    def rank(endpoint: Any) -> None:
        with World.over(endpoint) as world:
            model = mlp(4, (3,), 2)  # fresh weights on each rank
            same_weights(world, model)
            require_same_model(world, model)
            if world.rank == 1:
                next(model.parameters()).data[0, 0] += 1e-7
            require_same_model(world, model)

    outcomes = try_ranks(2, rank)
    assert [type(error) for error in outcomes.errors.values()] == [MismatchError] * 2
    assert "the same model" in str(outcomes.first_error)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"batch_size": 65}, "batch_size"),
        ({"trust": "local"}, "trust"),
        ({"engine": "ddp"}, "engine"),
        ({"timeout": 9.0}, "timeout"),
        ({"noise_multiplier": None, "epsilon": 3.0}, "epsilon and noise_multiplier"),
    ],
)
def test_other_options_are_refused_on_all_ranks(
    store: RecordStore, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    one = options(store, tmp_path / "run")
    outcomes = train(3, lambda rank: replace(one, **changes) if rank == 2 else one)
    assert len(outcomes.errors) == 3
    for error in outcomes.errors.values():
        assert isinstance(error, MismatchError)
        assert f"the same {name} on all 3 ranks" in str(error)
        assert "rank 2" in str(error)
    assert not (tmp_path / "run").exists()


def test_places_may_differ_from_host_to_host(
    store: RecordStore, records: Path, tmp_path: Path
) -> None:
    copy = build_store(records, "employment", tmp_path / "copy")
    one = options(store, tmp_path / "run", trust="local")
    folder = whole(
        train(
            2,
            lambda rank: replace(one, store=copy.path, profile=tmp_path / "p") if rank else one,
        )
    )
    assert Ledger.open(Path(store.ledger_path)).charged(open_run(folder).id) == 20
    own = rank_ledger_path(Path(copy.ledger_path), 1)
    assert Ledger.open(own).charged(open_run(folder).id) == 20
    assert [path.name for path in tmp_path.glob("p*")] == ["p.rank-1"]


def test_other_records_are_refused_on_all_ranks(store: RecordStore, tmp_path: Path) -> None:
    other = build_store(
        write_synthetic(tmp_path / "other.parquet", 3000, seed=2), "employment", tmp_path / "other"
    )
    one = options(store, tmp_path / "run")
    outcomes = train(2, lambda rank: replace(one, store=other.path) if rank else one)
    assert [type(error) for error in outcomes.errors.values()] == [MismatchError] * 2
    assert "record store" in str(outcomes.first_error)
    assert not (tmp_path / "run").exists()


def test_no_digest_of_the_records_leaves_a_rank(store: RecordStore, tmp_path: Path) -> None:
    """Who knows all records but one could try guesses for that one against it."""
    seen: list[bytes] = []
    config = options(store, tmp_path / "run", trust="local", steps=2)
    whole(train(2, config, observe=lambda _, __, message: seen.append(message.tobytes())))
    traffic = b"".join(seen)
    assert open_run(tmp_path / "run").id.encode() in traffic  # facts do travel so
    digests = [store.id, hashlib.sha256(store.id.encode()).hexdigest()]
    for digest in digests:
        assert digest[:12].encode() not in traffic
        assert bytes.fromhex(digest)[:8] not in traffic


def test_what_rank_zero_refuses_ends_all(store: RecordStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    outcomes = train(2, options(store, tmp_path / "run"))
    assert isinstance(outcomes.errors[0], OutputError)
    assert isinstance(outcomes.errors[1], ReduceError)
    assert "rank 0: it could not make a run folder (OutputError)" in str(outcomes.errors[1])


def test_a_store_that_one_rank_lacks_ends_all(store: RecordStore, tmp_path: Path) -> None:
    one = options(store, tmp_path / "run")
    outcomes = train(2, lambda rank: replace(one, store=tmp_path / "gone") if rank else one)
    assert isinstance(outcomes.errors[1], DitherError)
    assert "rank 1: it could not open its records" in str(outcomes.errors[0])


@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_any_rank_stops_all_at_one_step(
    store: RecordStore, tmp_path: Path, asked: int
) -> None:
    config = options(store, tmp_path / "run", steps=4000, checkpoint_every=4000)
    outcomes = train(2, config, stop=lambda rank: lambda: rank == asked)
    assert [type(error) for error in outcomes.errors.values()] == [StoppedError] * 2
    assert len({error.got for error in outcomes.errors.values()}) == 1  # type: ignore[attr-defined]
    folder = tmp_path / "run"
    assert not (folder / "summary.json").exists()
    ledger = Ledger.open(Path(store.ledger_path))
    steps = steps_in(folder)
    assert ledger.charged(open_run(folder).id) == steps[-1]  # the lease's rest went back


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(
    store: RecordStore, tmp_path: Path, before: int, after: int
) -> None:
    config = options(store, tmp_path / "run", lease=4)
    outcomes = train(before, config, watcher=Seen(crash_at=12))
    assert isinstance(outcomes.errors[0], KeyError)
    seen = Seen()
    folder = whole(train(after, TrainConfig(resume=tmp_path / "run"), watcher=seen))
    steps = summary_of(folder)["steps"]
    assert steps["taken"] + steps["lost"] == steps["charged"] == 20
    assert 2 <= steps["lost"] <= 4  # those after the checkpoint, and the lease's rest
    assert seen.first == 10
    assert summary_of(folder)["ranks"] == after
    kept = steps_in(folder)
    assert kept == sorted(set(kept))
    assert load_file(folder / "model.safetensors").keys() >= {"0.weight"}


def launched(launcher: Any, restarts: int) -> Callable[[int], Place]:
    return lambda rank: Place(rank, 2, rank, 2, launcher, "", restarts)


@pytest.mark.parametrize(
    ("launcher", "restarts", "goes_on"),
    [
        ("torchrun", 0, True),  # its agent was killed, too, and starts anew
        ("torchrun", 1, True),
        ("mpi", 0, True),
        ("slurm", 1, True),
        ("dither", 1, True),
        ("dither", 0, False),  # a new command: as in one process, --resume says that it is meant
    ],
)
def test_the_same_command_goes_on_under_a_launcher(
    store: RecordStore, tmp_path: Path, launcher: str, restarts: int, goes_on: bool
) -> None:
    config = options(store, tmp_path / "run", lease=4)
    train(2, config, watcher=Seen(crash_at=12), place=launched(launcher, 0))
    again = replace(config, threads=2, timeout=11.0)  # how it runs may differ
    seen = Seen()
    outcomes = train(2, again, watcher=seen, place=launched(launcher, restarts))
    if not goes_on:
        assert isinstance(outcomes.errors[0], OutputError)
        return
    assert summary_of(whole(outcomes))["steps"]["taken"] == 20 - (20 - seen.last)
    assert seen.first == 10
    other = replace(config, batch_size=32)
    refused = train(2, other, place=launched(launcher, restarts))
    assert isinstance(refused.errors[0], OutputError)  # another run's folder is never taken


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_finished_run_is_not_taken_for_one_to_go_on_with(
    store: RecordStore, tmp_path: Path, restarts: int
) -> None:
    """A launcher that starts a refused command again must not end in an old model's success."""
    config = options(store, tmp_path / "run")
    whole(train(2, config, place=launched("torchrun", 0)))
    outcomes = train(2, config, place=launched("torchrun", restarts))
    assert isinstance(outcomes.errors[0], OutputError)


def test_a_run_on_another_ledger_is_not_the_same_command(
    store: RecordStore, tmp_path: Path
) -> None:
    config = replace(options(store, tmp_path / "run"), ledger=tmp_path / "first.sqlite")
    train(2, config, watcher=Seen(crash_at=12), place=launched("torchrun", 0))
    other = replace(config, ledger=tmp_path / "second.sqlite")
    refused = train(2, other, place=launched("torchrun", 0))
    assert isinstance(refused.errors[0], OutputError)
    whole(train(2, config, place=launched("torchrun", 0)))


def test_a_rank_that_crashes_ends_all(store: RecordStore, tmp_path: Path) -> None:
    outcomes = train(2, options(store, tmp_path / "run"), watcher=Seen(crash_at=7))
    assert isinstance(outcomes.errors[0], KeyError)
    assert isinstance(outcomes.errors[1], PeerError)
    assert "rank 0" in str(outcomes.errors[1]) or "KeyError" in str(outcomes.errors[1])


@pytest.mark.parametrize("trust", ["local", "distributed(1)"])
def test_trust_between_ranks_needs_ranks(store: RecordStore, tmp_path: Path, trust: str) -> None:
    with pytest.raises(ConfigError, match="--nproc 2"):
        run_training(options(store, tmp_path / "run", trust=trust))
    assert not (tmp_path / "run").exists()


def test_not_all_ranks_may_collude(store: RecordStore, tmp_path: Path) -> None:
    outcomes = train(2, options(store, tmp_path / "run", trust="distributed(2)"))
    assert {type(error) for error in outcomes.errors.values()} == {ConfigError}
    assert not (tmp_path / "run").exists()


def test_nproc_is_for_the_command_line(store: RecordStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --nproc out"):
        run_training(options(store, tmp_path / "run", nproc=2))


def test_plain_ranks_are_one_plain_process(store: RecordStore, tmp_path: Path) -> None:
    """At rate 1 there is no chance: sums over ranks are the sum over all records."""
    records = int(store.split().train.size)
    plain = options(
        store,
        tmp_path / "one",
        private=False,
        noise_multiplier=None,
        batch_size=records,
        steps=5,
        seed=3,
        lease=None,
    )
    alone = load_file(run_training(plain) / "model.safetensors")
    both = whole(train(2, replace(plain, out=tmp_path / "two")))
    for name, value in load_file(both / "model.safetensors").items():
        assert (value - alone[name]).abs().max() < 1e-4


def test_the_ranks_of_a_host_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()

    def rank(endpoint: Any) -> int | None:
        with World.over(endpoint) as world:
            return threads_of(world) if world.is_first else None

    def threads_of(world: World) -> int:
        torch.set_num_threads(6)
        share_cores(TrainConfig(), world)
        return torch.get_num_threads()

    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert run_ranks(3, rank)[0] == 2
        assert run_ranks(3, rank, hosts=(0, 1, 1))[0] == 6
        assert threads_of(World()) == 6
        monkeypatch.setenv("OMP_NUM_THREADS", "6")  # torchrun's, or the user's
        assert run_ranks(3, rank)[0] == 6
        share_cores(TrainConfig(threads=5), World())
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)
