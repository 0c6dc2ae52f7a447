"""The record store: gather against a naive oracle, checksums, equality, splits."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from dither.data import ACS, Categorical, RecordStore, StoreDataset, build_with_counts
from dither.data.store.split import by_key, by_row_number
from dither.errors import ConfigError, DataError


def naive_features(row: pd.Series) -> list[float]:
    """One record's features, by hand."""
    features: list[float] = []
    for column in ACS.features:
        text = row["STATE" if column.name == "ST" else column.name]
        if isinstance(column, Categorical):
            features += [float(text != "" and int(text) == int(code)) for code in column.codes]
        else:
            features.append(float(text) / 99)
    return features


@pytest.fixture(scope="module")
def table(synthetic: Path) -> pd.DataFrame:
    """The records that the store holds, in its order, as text."""
    persons = pd.read_csv(synthetic, dtype=str, keep_default_na=False)
    force = persons[persons.ESR.isin(["1", "2", "3"])]
    return force.sort_values(["SERIALNO", "SPORDER"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def sharded(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    """The same records in shards of 100."""
    out = tmp_path_factory.mktemp("sharded") / "store"
    return build_with_counts(synthetic, "unemployment", out, shard_rows=100).store


def test_gather_equals_the_naive_encoding(store: RecordStore, table: pd.DataFrame) -> None:
    assert len(store) == len(table)
    rows = np.random.default_rng(0).choice(len(store), 300)
    features, labels = store.gather(rows)
    expected = [naive_features(table.iloc[row]) for row in rows]
    assert features.dtype == torch.float32
    assert features.shape == (300, store.feature_dim) == (300, 135)
    torch.testing.assert_close(features, torch.tensor(expected))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [int(table.ESR[row] == "3") for row in rows]
    assert store.labels(rows).tolist() == labels.tolist()


def test_feature_names_follow_the_columns(store: RecordStore) -> None:
    assert len(store.feature_names) == 135
    assert store.feature_names[50:54] == ("ST=56", "AGEP", "SEX=1", "SEX=2")


def test_gather_works_across_shards_in_any_order_and_for_no_rows(
    store: RecordStore, sharded: RecordStore
) -> None:
    assert len(sharded.manifest.shards) == -(-len(store) // 100) > 3
    drawn = np.random.default_rng(1).choice(len(store), 500)
    last = len(store) - 1
    orders = (drawn, np.sort(drawn), -np.sort(-drawn), np.array([7, 105, 199, last, last]))
    for rows in (*orders, np.arange(100, 200), np.array([last]), np.array([0, 250])):
        for ours, theirs in zip(sharded.gather(rows), store.gather(rows), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(sharded.labels(rows), store.labels(rows))
    for one in (store, sharded):
        features, labels = one.gather(np.empty(0, dtype=np.int64))
        assert features.shape == (0, 135)
        assert labels.shape == (0,)


def test_shard_size_does_not_change_the_content_hash(
    store: RecordStore, sharded: RecordStore
) -> None:
    assert store.id == sharded.id
    assert store == sharded
    assert {store, sharded} == {store}


@pytest.mark.parametrize("row", [-1, 10**9])
def test_row_out_of_range_is_refused(store: RecordStore, row: int) -> None:
    with pytest.raises(ConfigError, match="numbers of rows in"):
        store.gather(np.array([0, row]))


def test_gather_of_4096_rows_takes_milliseconds(store: RecordStore) -> None:
    rows = np.random.default_rng(0).choice(len(store), 4096)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        store.gather(rows)
        times.append(time.perf_counter() - start)
    assert min(times) < 5e-3  # 3 ms on an idle machine


def test_dataset_gathers_whole_batches(store: RecordStore) -> None:
    train = store.split().train
    dataset = StoreDataset(store, train)
    assert len(dataset) == len(train)
    features, labels = dataset.__getitems__([3, 1, 2])
    assert torch.equal(features, store.gather(train[[3, 1, 2]])[0])
    assert torch.equal(labels, store.labels(train[[3, 1, 2]]))
    one, label = dataset[3]
    assert torch.equal(one, features[0])
    assert label == labels[0]
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        dataset, batch_size=64, collate_fn=lambda batch: batch
    )
    assert sum(len(batch[1]) for batch in loader) == len(train)


@pytest.mark.parametrize("relation", ["zero_out", "replace_one", "add_remove"])
def test_split_is_a_partition_of_the_expected_size(store: RecordStore, relation: str) -> None:
    split = store.split(0.3, relation)
    both = np.concatenate([split.train, split.test])
    assert np.array_equal(np.sort(both), np.arange(len(store)))
    # Six standard deviations of a binomial.
    assert abs(len(split.test) - 0.3 * len(store)) < 6 * np.sqrt(0.21 * len(store))
    again = store.split(0.3, relation)
    assert np.array_equal(split.test, again.test)


def test_split_of_nothing_for_the_test(store: RecordStore) -> None:
    assert len(store.split(0.0).test) == 0


def test_only_the_key_decides_under_add_remove() -> None:
    keys = [f"2018HU{i:07d}-1".encode() for i in range(4000)]
    whole, less = by_key(keys, 0.2), by_key(keys[1:], 0.2)
    assert {keys[i] for i in whole.test} - {keys[0]} == {keys[1:][i] for i in less.test}
    by_number = by_row_number(4000, 0.2), by_row_number(3999, 0.2)
    moved = {keys[i] for i in by_number[0].test} ^ {keys[1:][i] for i in by_number[1].test}
    assert len(moved) > 500, "by row number, one record less moves many others"


def test_split_refuses_bad_options(store: RecordStore) -> None:
    with pytest.raises(ConfigError, match="test fraction"):
        store.split(1.0)
    with pytest.raises(ConfigError, match="relation"):
        store.split(0.2, "swap")


@pytest.fixture
def copy(store: RecordStore, tmp_path: Path) -> Path:
    """A copy of the store to damage."""
    return Path(shutil.copytree(store.path, tmp_path / "copy"))


def test_manifest_names_what_is_promised_and_no_exact_counts(store: RecordStore) -> None:
    value = json.loads((store.path / "manifest.json").read_text())
    assert value["unit"] == "record"
    assert value["relation"] == "zero_out"
    assert value["sensitive"] is False
    assert value["records"] == len(store)
    names = {constant["name"] for constant in value["public_inputs"]}
    assert {"n", "bounds of AGEP", "vocabulary of SCHL", "imputation", "class weights"} <= names
    assert value["sources"][0]["name"] == "persons.csv"
    positives = int(store.labels(np.arange(len(store))).sum())
    assert positives not in [v for v in value.values() if isinstance(v, int)]
    assert "positives" not in json.dumps(value)
    assert store.ledger_path == store.path / "ledger.sqlite"


def test_altered_shard_is_named(copy: Path) -> None:
    shard = copy / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00000\.arrow.*checksum"):
        RecordStore.open(copy)


def test_missing_shard_is_named(copy: Path) -> None:
    (copy / "shard-00000.arrow").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.arrow.*no such file"):
        RecordStore.open(copy)


def test_truncated_shard_is_refused_even_unverified(copy: Path) -> None:
    shard = copy / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00000\.arrow.*truncated"):
        RecordStore.open(copy, verify=False)


@pytest.mark.parametrize(("old", "new"), [('"sensitive": false', '"sensitive": true'), ("{", "")])
def test_altered_manifest_is_refused(copy: Path, old: str, new: str) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match="altered"):
        RecordStore.open(copy)


def test_manifest_of_another_format_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(DataError, match="version 2"):
        RecordStore.open(copy)


def test_folder_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data build"):
        RecordStore.open(tmp_path)
