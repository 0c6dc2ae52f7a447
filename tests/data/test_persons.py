"""Bounding a person's rows, against brute force, and stores whose unit is the person."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.data import (
    Categorical,
    KeyColumn,
    Numeric,
    OneOf,
    RecordStore,
    Schema,
    StoreDataset,
    Task,
    build_with_counts,
)
from dither.data.persons import bounded
from dither.data.store.dataset import IGNORED
from dither.data.store.manifest import read_manifest
from dither.errors import ConfigError, DataError

K = 3
VISITS = Schema(
    name="visits",
    key=(KeyColumn("WHO"), KeyColumn("NUMBER", "integer")),
    features=(Numeric("AGE", 0, 100), Categorical("WARD", ("A", "B", "C"))),
    context=(Categorical("BACK", ("0", "1")),),
    source="a form",
    person=KeyColumn("WHO"),
    rows_per_person=K,
)
RETURN = Task("return", VISITS, (), OneOf("BACK", ("1",)))

Rows = list[tuple[str, str]]
"""Whose, and key."""


def salted(key: str) -> bytes:
    """The oracle's own copy of the public order of rows."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=b"dither rows of a person v1")
    return digest.digest()[::-1]  # the number is little-endian


def oracle(rows: Rows, most: int) -> Rows:
    """The rows of the smallest hashes of each person, one by one."""
    kept = []
    for person in dict.fromkeys(who for who, _ in rows):
        mine = [row for row in rows if row[0] == person]
        chosen = sorted(mine, key=lambda row: salted(row[1]))[:most]
        kept += [row for row in mine if row in chosen]
    return kept


def batches(rows: Rows, size: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield pa.record_batch(
            {
                "person": pa.array([who for who, _ in part], pa.string()),
                "key": pa.array([key for _, key in part], pa.string()),
                "v": pa.array(range(start, start + len(part)), pa.int64()),
            }
        )


def kept(rows: Rows, most: int, size: int) -> list[pa.RecordBatch]:
    return list(bounded(batches(rows, size), most))


def pairs(found: list[pa.RecordBatch]) -> Rows:
    return [
        pair
        for batch in found
        for pair in zip(
            batch.column("person").to_pylist(), batch.column("key").to_pylist(), strict=True
        )
    ]


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    names = draw(st.permutations([f"p{i}" for i in range(len(sizes))]))
    return [
        (name, f"{name}-{row}")
        for name, size in zip(names, sizes, strict=True)
        for row in range(size)
    ]


@settings(max_examples=200, deadline=None)
@given(rows=tables(), most=st.integers(1, 6), size=st.integers(1, 20))
def test_bounding_is_brute_force_whatever_the_batches(rows: Rows, most: int, size: int) -> None:
    found = kept(rows, most, size)
    assert pairs(found) == oracle(rows, most)
    where = [set(batch.column("person").to_pylist()) for batch in found]
    assert sum(map(len, where)) == len(set().union(*where))  # nobody in two batches


@settings(max_examples=100, deadline=None)
@given(rows=tables(), most=st.integers(1, 6), gone=st.integers(0, 7))
def test_one_person_less_changes_nobody_else(rows: Rows, most: int, gone: int) -> None:
    everybody = list(dict.fromkeys(who for who, _ in rows))
    person = everybody[gone % len(everybody)]
    without = [row for row in rows if row[0] != person]
    rest = [row for row in pairs(kept(rows, most, 7)) if row[0] != person]
    assert rest == (pairs(kept(without, most, 7)) if without else [])


def test_a_person_with_very_many_rows_is_held_in_bounded_memory() -> None:
    rows = [("p", f"p-{i}") for i in range(20_000)]
    sizes = []

    def source() -> Iterator[pa.RecordBatch]:
        for batch in batches(rows, 500):
            sizes.append(batch.num_rows)
            yield batch

    found = list(bounded(source(), 4))
    assert pairs(found) == oracle(rows, 4)
    assert max(sizes) == 500


@pytest.mark.parametrize("size", [1, 2, 10])
def test_a_key_that_a_person_has_twice_is_refused(size: int) -> None:
    rows = [("p", f"p-{i}") for i in range(4)] + [("p", "p-3"), ("q", "q-1")]
    with pytest.raises(DataError, match="each key once"):
        kept(rows, 2, size)


def write(path: Path, rows: list[tuple[str, int, int, str, int]]) -> Path:
    text = "WHO,NUMBER,AGE,WARD,BACK\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def visits(people: int = 40) -> list[tuple[str, int, int, str, int]]:
    draw = np.random.default_rng(8)
    return [
        (f"w{who:03d}", number, int(draw.integers(0, 100)), "ABC"[draw.integers(3)], number % 2)
        for who in range(people)
        for number in range(1, 2 + int(draw.geometric(0.25)))
    ]


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, int, int, str, int]]:
    return visits()


@pytest.fixture(scope="module")
def store(
    rows: list[tuple[str, int, int, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> RecordStore:
    folder = tmp_path_factory.mktemp("persons")
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    return build_with_counts(
        write(folder / "visits.csv", shuffled), RETURN, folder / "store", shard_rows=16
    ).store


def test_a_store_holds_the_bounded_rows_of_each_person(
    store: RecordStore, rows: list[tuple[str, int, int, str, int]]
) -> None:
    wanted = oracle([(row[0], f"{row[0]}-{row[1]}") for row in sorted(rows)], K)
    by_key = {f"{row[0]}-{row[1]}": row for row in rows}
    assert store.units == len({row[0] for row in rows}) == store.manifest.units
    assert len(store) == len(wanted) < len(rows)
    first, count = store.spans(np.arange(store.units))
    assert count.max() == K
    assert count.min() >= 1
    assert np.array_equal(first, np.cumsum(count) - count)
    ages = store.gather(np.arange(len(store)))[0][:, 0]
    assert ages.tolist() == pytest.approx([by_key[key][2] / 100 for _, key in wanted], abs=1e-6)


def test_items_are_persons_padded_with_rows_that_do_not_count(store: RecordStore) -> None:
    dataset = StoreDataset(store, np.array([3, 0, 5], dtype=np.int64))
    assert dataset.unit == "person"
    features, labels = dataset.gather_batch(np.array([1, 2, 1], dtype=np.int64))
    assert features.shape == (3, K, store.feature_dim)
    for place, person in enumerate((0, 5, 0)):
        (start,), (count,) = store.spans(np.array([person]))
        mine = np.arange(start, start + count)
        x, y = store.gather(mine)
        assert torch.equal(features[place, :count], x)
        assert torch.equal(labels[place, :count], y)
        assert not features[place, count:].any()
        assert (labels[place, count:] == IGNORED).all()
    assert dataset.gather_batch(np.array([], dtype=np.int64))[0].shape == (0, K, store.feature_dim)


@pytest.mark.parametrize("relation", ["zero_out", "add_remove"])
def test_splits_and_shards_keep_a_person_whole(store: RecordStore, relation: str) -> None:
    split = store.split(0.3, relation)
    assert sorted([*split.train, *split.test]) == list(range(store.units))
    parts = [store.shard(split.train, rank, 3, relation) for rank in range(3)]
    assert sorted(np.concatenate(parts)) == sorted(split.train)
    train, test = (set(store.rows_of(part).tolist()) for part in (split.train, split.test))
    assert not train & test
    assert train | test == set(range(len(store)))


def test_under_add_remove_a_person_less_moves_nobody(
    rows: list[tuple[str, int, int, str, int]], store: RecordStore, tmp_path: Path
) -> None:
    gone = "w017"
    rest = [row for row in rows if row[0] != gone]
    other = build_with_counts(write(tmp_path / "rest.csv", rest), RETURN, tmp_path / "store").store
    names = list(dict.fromkeys(row[0] for row in sorted(rows)))

    def held_out(found: RecordStore, who: list[str]) -> set[str]:
        return {who[unit] for unit in found.split(0.3, "add_remove").test}

    without = [name for name in names if name != gone]
    assert held_out(store, names) - {gone} == held_out(other, without)

    def of_rank(found: RecordStore, who: list[str]) -> set[str]:
        return {who[unit] for unit in found.shard(np.arange(found.units), 1, 3, "add_remove")}

    assert of_rank(store, names) - {gone} == of_rank(other, without)


NUMBERED = Task(
    "return", replace(VISITS, key=(KeyColumn("NUMBER", "integer"),)), (), OneOf("BACK", ("1",))
)
"""Where the person is no part of the key."""


def test_whose_rows_are_whose_is_part_of_the_content(tmp_path: Path) -> None:
    rows = [("a", 1, 50, "A", 0), ("a", 2, 51, "B", 1), ("b", 3, 52, "C", 0)]
    moved = [("a", 1, 50, "A", 0), ("b", 2, 51, "B", 1), ("b", 3, 52, "C", 0)]
    one = build_with_counts(write(tmp_path / "1.csv", rows), NUMBERED, tmp_path / "one").store
    two = build_with_counts(write(tmp_path / "2.csv", moved), NUMBERED, tmp_path / "two").store
    assert one.id != two.id
    assert [one.units, two.units] == [2, 2]


def test_rows_may_be_numbered_within_their_person(tmp_path: Path) -> None:
    rows = [("a", 1, 50, "A", 0), ("b", 1, 51, "B", 1), ("b", 2, 52, "C", 0), ("c", 2, 5, "C", 0)]
    path = write(tmp_path / "visits.csv", rows)
    built = [
        build_with_counts(path, NUMBERED, tmp_path / engine, engine=engine).store
        for engine in ("duckdb", "rows")
    ]
    assert built[0].id == built[1].id
    assert [built[0].units, len(built[0])] == [3, 4]
    write(path, [*rows, rows[1]])
    with pytest.raises(DataError, match="each key once"):
        build_with_counts(path, NUMBERED, tmp_path / "twice")


@pytest.mark.parametrize("harm", ["cut", "alter", "remove"])
def test_a_damaged_index_is_refused(store: RecordStore, tmp_path: Path, harm: str) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(store.path, copy)
    index = copy / "persons.bin"
    raw = index.read_bytes()
    if harm == "remove":
        index.unlink()
    else:
        index.write_bytes(raw[:-8] if harm == "cut" else bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(DataError, match=r"persons\.bin"):
        RecordStore.open(copy)


def test_the_manifest_says_persons_and_their_bound(store: RecordStore) -> None:
    manifest = read_manifest(store.path)
    assert manifest == store.manifest
    said = {constant.name: constant.value for constant in manifest.public_inputs}
    assert said["n"] == str(store.units)
    assert said["rows of a person"] == f"at most {K}"
    assert manifest.unit == "person"
    assert manifest.sensitive


def test_a_person_needs_a_bound_and_a_bound_a_person() -> None:
    def table(**changes: object) -> Schema:
        return Schema("t", VISITS.key, VISITS.features, VISITS.context, "a form", **changes)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="person column"):
        table(rows_per_person=2)
    with pytest.raises(ConfigError, match="at least 1 row"):
        table(person=KeyColumn("WHO"), rows_per_person=0)
    with pytest.raises(ConfigError, match="one kind"):
        table(person=KeyColumn("NUMBER"), rows_per_person=2)
    with pytest.raises(ConfigError, match="unit record or person"):
        table(unit="household")
    assert table(person=KeyColumn("WHO")).unit == "person"


def test_a_blank_person_is_a_row_without_a_key(tmp_path: Path) -> None:
    path = write(
        tmp_path / "v.csv", [("", 1, 50, "A", 0), ("a", 2, 51, "B", 1), ("b", 3, 5, "C", 0)]
    )
    with pytest.raises(DataError, match="complete key"):
        build_with_counts(path, RETURN, tmp_path / "store")
    built = build_with_counts(path, RETURN, tmp_path / "store", on_invalid="drop")
    assert [len(built.store), built.counts.keyless] == [2, 1]


def test_numbers_beyond_the_bounds_are_clipped_and_logarithms_scaled(tmp_path: Path) -> None:
    table = Schema(
        name="amounts",
        key=(KeyColumn("WHO"),),
        features=(
            Numeric("AGE", 10, 60, clip=True, scale="log"),
            Categorical("WARD", ("A",), other="any other ward"),
        ),
        context=VISITS.context,
        source="a form",
    )
    task = Task("return", table, (), OneOf("BACK", ("1",)))
    rows = [("a", 1, 99, "A", 0), ("b", 2, 1, "B", 1), ("c", 3, 35, "", 0)]
    path = write(tmp_path / "v.csv", rows)
    with pytest.raises(DataError, match="WARD"):  # a blank is missing, not another ward
        build_with_counts(path, task, tmp_path / "store")
    path = write(tmp_path / "v.csv", [*rows[:2], ("c", 3, 35, "Z", 0)])
    store = build_with_counts(path, task, tmp_path / "store").store
    x = store.gather(np.arange(3))[0]
    assert x[:, 0].tolist() == pytest.approx([1.0, 0.0, np.log1p(25) / np.log1p(50)], abs=1e-6)
    assert x[:, 1].tolist() == [1.0, 0.0, 0.0]
