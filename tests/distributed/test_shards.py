"""Shards: fixed, disjoint, whole, moved by no other record; each sampled by its own randomness."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from dither.config import TrainConfig
from dither.data.build import build_store
from dither.data.store import RecordStore, StoreDataset
from dither.data.store.shard import by_key, by_row_number
from dither.data.synth import write_synthetic
from dither.errors import ConfigError
from dither.noise.entropy import InsecureSeed, OsEntropy, entropy_of_rank
from dither.sampling.loader import PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.setup import make_plan

RELATIONS = ["zero_out", "replace_one", "add_remove"]
KEYS = [f"2018HU{i:07d}-1".encode() for i in range(4000)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("records") / "persons.parquet", 3000, seed=3)


@pytest.fixture(scope="module")
def store(table: Path) -> RecordStore:
    return build_store(table, "employment", table.parent / "store")


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_are_disjoint_and_together_the_training_records(
    store: RecordStore, relation: str, world_size: int
) -> None:
    train = store.split(0.2, relation).train
    shards = [store.shard(train, rank, world_size, relation) for rank in range(world_size)]
    assert np.array_equal(np.sort(np.concatenate(shards)), train)
    assert all((np.diff(shard) > 0).all() for shard in shards)
    again = [store.shard(train, rank, world_size, relation) for rank in range(world_size)]
    assert all(map(np.array_equal, shards, again))


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6, 7, 1000, 1001])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_by_row_number_are_balanced(rows: int, world_size: int) -> None:
    numbers = 3 * np.arange(rows, dtype=np.int64)
    sizes = [by_row_number(numbers, rank, world_size).size for rank in range(world_size)]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1  # and 0 where there are fewer rows than ranks


def test_shards_by_key_are_of_even_size_up_to_chance() -> None:
    rows = np.arange(len(KEYS))
    sizes = [by_key(KEYS, rows, rank, 5).size for rank in range(5)]
    assert stats.chisquare(sizes).pvalue > 1e-4  # fixed keys, fixed salt: it cannot flicker
    assert len(set(sizes)) > 1


@pytest.mark.parametrize("missing", [0, 1, 2000, 3999])
def test_under_add_remove_one_record_less_moves_no_other(missing: int) -> None:
    fewer = KEYS[:missing] + KEYS[missing + 1 :]
    for rank in range(3):
        with_it = {KEYS[row] for row in by_key(KEYS, np.arange(4000), rank, 3)}
        without = {fewer[row] for row in by_key(fewer, np.arange(3999), rank, 3)}
        assert with_it - {KEYS[missing]} == without


def test_by_row_number_one_record_less_would_move_others() -> None:
    """Why add_remove may not use it: the reason must be true, or the rule is superstition."""
    fewer, places = KEYS[:-1], np.arange(4000)
    moved = 0
    for rank in range(4):
        with_it = {KEYS[row] for row in by_row_number(places, rank, 4)}
        without = {fewer[row] for row in by_row_number(places[:-1], rank, 4)}
        moved += len(without - with_it)
    assert moved == 3  # one at each border between ranks


def test_one_person_less_in_the_files_moves_nobody_between_ranks_or_out_of_the_test(
    store: RecordStore, table: Path, tmp_path: Path
) -> None:
    less = tmp_path / "less.parquet"
    everyone = pq.read_table(table)
    gone = 17
    pq.write_table(everyone.take([i for i in range(len(everyone)) if i != gone]), less)
    neighbour = build_store(less, "employment", tmp_path / "store")
    assert len(neighbour) == len(store) - 1

    def places(records: RecordStore) -> dict[bytes, int]:
        keys = list(records._keys())
        train = records.split(0.2, "add_remove").train
        return {
            keys[row]: rank
            for rank in range(4)
            for row in records.shard(train, rank, 4, "add_remove")
        }

    before, after = places(store), places(neighbour)
    assert len(before.keys() ^ after.keys()) <= 1
    assert all(after[key] == rank for key, rank in before.items() if key in after)


def test_what_is_held_out_does_not_decide_the_rank() -> None:
    """Another salt than the split's: else some ranks would hold nearly no training records."""
    from dither.data.store.split import by_key as split_by_key

    train = split_by_key(KEYS, 0.5).train
    sizes = [by_key(KEYS, train, rank, 2).size for rank in range(2)]
    assert stats.chisquare(sizes).pvalue > 1e-4


def test_no_such_shard(store: RecordStore) -> None:
    rows = np.arange(10)
    for rank, size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match="a rank in"):
            store.shard(rows, rank, size)
    with pytest.raises(ConfigError, match="a relation out of"):
        store.shard(rows, 0, 2, "swap")


def test_a_shard_with_no_records_gives_empty_batches(store: RecordStore) -> None:
    train = np.arange(1)  # the second of two ranks has none of it
    empty = next(r for r in range(2) if store.shard(train, r, 2).size == 0)
    dataset = StoreDataset(store, store.shard(train, empty, 2))
    batches = list(PoissonLoader(dataset, PoissonSampler(len(dataset), 0.3), 5))
    assert [batch.size for batch in batches] == [0] * 5
    assert batches[0].data[0].shape == (0, store.feature_dim)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_union_of_all_ranks_samples_is_a_poisson_sample(
    store: RecordStore, relation: str
) -> None:
    """Every training record enters with the plan's rate, independently, whichever rank has it."""
    train, rate, draws = store.split(0.2, relation).train, 0.05, 600
    shards = [store.shard(train, rank, 3, relation) for rank in range(3)]
    samplers = [
        PoissonSampler(shard.size, rate, entropy_of_rank(7, rank).stream("sampling"))
        for rank, shard in enumerate(shards)
    ]
    entered = np.zeros(len(store), np.int64)
    sizes = []
    for _ in range(draws):
        rows = np.concatenate(
            [shard[s.draw().rows] for s, shard in zip(samplers, shards, strict=True)]
        )
        assert np.unique(rows).size == rows.size
        entered[rows] += 1
        sizes.append(rows.size)
    assert entered.sum() == entered[train].sum()  # nobody of the test
    # Seeded, so that it cannot flicker. Counts per record are binomial, sizes too: their variance
    # is what independence makes it, not R-fold as with ranks that repeat each other's draws.
    spread = ((entered[train] - draws * rate) ** 2).sum() / (draws * rate * (1 - rate))
    assert 1e-3 < stats.chi2.cdf(spread, train.size) < 1 - 1e-3
    ratio = np.var(sizes) / (train.size * rate * (1 - rate))
    assert 2 / 3 < ratio < 3 / 2


def test_ranks_with_one_seed_draw_apart_and_rank_zero_as_before() -> None:
    first, second = entropy_of_rank(7, 0), entropy_of_rank(7, 1)
    for name in ("sampling", "noise", "dropout"):
        mine = first.stream(name).draw(64).tobytes()
        assert mine == InsecureSeed(7).stream(name).draw(64).tobytes()
        assert mine != second.stream(name).draw(64).tobytes()
    assert not second.secret
    assert entropy_of_rank(8, 0).draw(64).tobytes() != second.draw(64).tobytes()


def test_a_ranks_sampler_is_fresh_after_a_resume() -> None:
    """Two starts of one rank, in processes of their own, draw different rows of one shard."""
    code = (
        "from dither.noise.entropy import entropy_of_rank;"
        "from dither.sampling.poisson import PoissonSampler;"
        "print(PoissonSampler(10000, 0.1, entropy_of_rank(None, 1)).draw().rows.tolist())"
    )
    starts = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert starts[0] != starts[1]
    assert isinstance(entropy_of_rank(None, 1), OsEntropy)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_promise_does_not_depend_on_the_number_of_ranks(
    store: RecordStore, relation: str
) -> None:
    """q and n are those of all training records; a rank's sampler runs at the very rate charged."""
    options: dict[str, Any] = {
        "store": store.path,
        "out": Path("x"),
        "relation": relation,
        "batch_size": 100,
        "steps": 10,
        "noise_multiplier": 1.0,
        "delta": 1e-6,
        "declared_records": 2500 if relation == "add_remove" else None,
    }
    config = TrainConfig(**options)
    train = store.split(0.2, relation).train
    plan = make_plan(config, int(train.size))
    for world_size in (1, 2, 5):
        for rank in range(world_size):
            shard = store.shard(train, rank, world_size, relation)
            PoissonSampler(shard.size, plan.sampling_rate).draw().ticket.spend(plan)
