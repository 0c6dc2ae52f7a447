"""Many rows: a store that opens without reading, splits in bounded memory, and streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dither.data import RecordStore, build_with_counts
from dither.data.store.manifest import Manifest, read_manifest, write_manifest
from dither.data.store.split import by_row_number
from dither.data.store.stream import StoreStream
from dither.errors import ConfigError, DataError

SHARDS, ROWS = 96, 1 << 20  # 100,663,296 rows
_SPLITMIX = 0x9E3779B97F4A7C15


@pytest.fixture(scope="module")
def sharded(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    out = tmp_path_factory.mktemp("sharded") / "store"
    return build_with_counts(synthetic, "unemployment", out, shard_rows=300).store


HUGE = """
import dataclasses, json, sys, time
from pathlib import Path
import numpy as np, psutil, pyarrow as pa
from dither.data import RecordStore
from dither.data.store.manifest import Shard, read_manifest, write_manifest
from dither.data.store.writer import arrow_schema
small, out, shards, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
out.mkdir()
manifest = read_manifest(small)
few = RecordStore.open(small)
n = len(few)
batch = pa.ipc.open_file(pa.memory_map(str(small / "shard-00000.arrow"))).get_batch(0)
times = -(-rows // n)
whole = pa.concat_batches([batch] * times).slice(0, rows)
whole = pa.concat_batches([whole, whole.slice(0, 0)])
with (out / "one").open("wb") as stream, pa.ipc.new_file(stream, arrow_schema(manifest.task)) as w:
    w.write_batch(whole)
del whole, batch
names = [f"shard-{i:05d}.arrow" for i in range(shards)]
for name in names:
    (out / name).hardlink_to(out / "one")
    shard = Shard
made = tuple(Shard(name, rows, "0" * 64) for name in names)
changes = dict(records=shards * rows, shard_rows=rows, shards=made)
write_manifest(dataclasses.replace(manifest, **changes), out)
process = psutil.Process()
before, read = process.memory_info().rss, process.io_counters().read_chars
start = time.perf_counter()
store = RecordStore.open(out, verify=False)
opened = time.perf_counter() - start
grown = process.memory_info().rss - before
chars = process.io_counters().read_chars - read
numbers = np.array([0, rows - 1, rows, 57 * rows + 12345, shards * rows - 1])
features, labels = store.gather(numbers)
expected, wanted = few.gather(numbers % rows % n)
assert (features == expected).all() and (labels == wanted).all()
print(json.dumps([len(store), opened, grown, chars]))
"""


def test_a_hundred_million_rows_open_without_being_read(synthetic: Path, tmp_path: Path) -> None:
    small = build_with_counts(synthetic, "unemployment", tmp_path / "small").store
    import dither

    assert dither.__file__ is not None
    environment = os.environ | {"PYTHONPATH": str(Path(dither.__file__).parents[1])}
    command = [sys.executable, "-c", HUGE, str(small.path), str(tmp_path / "huge")]
    done = subprocess.run(
        [*command, str(SHARDS), str(ROWS)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    rows, seconds, grown, chars = json.loads(done.stdout)
    assert rows > 100_000_000
    size = (tmp_path / "huge" / "one").stat().st_size * SHARDS
    assert size > 3.5e9
    assert grown < 20e6, "bytes that opening brought into memory"
    assert chars < 20e6, "bytes that opening asked of the system"
    assert seconds < 10.0  # 0.1 s on an idle machine


def splitmix(row: int) -> int:
    """The hash of a row number, with Python's own integers."""
    mask = (1 << 64) - 1
    x = (row + 1) * _SPLITMIX & mask
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    return x ^ (x >> 31)


def test_a_split_across_many_blocks_is_the_hash_of_each_row_number() -> None:
    rows = 3_000_000
    split = by_row_number(rows, 0.2)
    assert len(split.train) + len(split.test) == rows
    test = set(split.test.tolist())
    edges = [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) - 1, 2 << 20, rows - 1]
    for row in [*edges, *range(500_000, 500_200)]:
        assert (row in test) == (splitmix(row) < int(0.2 * 2**64))


SPLIT = """
import sys
from dither.data.store.split import by_row_number
from dither.memory import resident
before = resident().peak
split = by_row_number(30_000_000, 0.2)
print(resident().peak - before)
"""


def test_a_split_needs_little_more_than_its_row_numbers() -> None:
    import dither

    assert dither.__file__ is not None
    environment = os.environ | {"PYTHONPATH": str(Path(dither.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SPLIT], capture_output=True, text=True, check=True, env=environment
    )
    assert int(done.stdout) < 1.6 * 30_000_000 * 8


def streamed(stream: StoreStream) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = zip(*stream, strict=True)
    return torch.cat(features), torch.cat(labels)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_together_stream_every_row_once_and_in_order(
    sharded: RecordStore, world_size: int
) -> None:
    parts = [
        StoreStream(sharded.path, batch_size=64, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    expected, wanted = sharded.gather(np.arange(len(sharded)))
    found = [streamed(part) for part in parts]
    assert [len(labels) for _, labels in found] == [part.records for part in parts]
    assert torch.equal(torch.cat([features for features, _ in found]), expected)
    assert torch.equal(torch.cat([labels for _, labels in found]), wanted)


@pytest.mark.parametrize("location", ["path", "uri"])
def test_a_stream_comes_from_a_path_or_an_address(sharded: RecordStore, location: str) -> None:
    where = sharded.path if location == "path" else sharded.path.absolute().as_uri()
    features, labels = streamed(StoreStream(where, batch_size=4096))
    assert torch.equal(features, sharded.gather(np.arange(len(sharded)))[0])
    assert len(labels) == len(sharded)


def test_workers_of_a_loader_share_the_rows(sharded: RecordStore) -> None:
    stream = StoreStream(sharded.path, batch_size=50)
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        stream, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    rows = torch.cat([features for features, _ in loader])
    expected = sharded.gather(np.arange(len(sharded)))[0]
    assert len(rows) == len(expected)
    assert torch.allclose(rows.double().sum(0), expected.double().sum(0))
    assert torch.equal(rows[:, 51].sort().values, expected[:, 51].sort().values)


def test_shuffled_rows_stay_in_their_shard_and_are_all_there(sharded: RecordStore) -> None:
    stream = StoreStream(sharded.path, batch_size=300, shuffle=True)
    expected = sharded.gather(np.arange(len(sharded)))[0]
    first, second = (streamed(stream)[0] for _ in range(2))
    assert not torch.equal(first, second), "each pass has an order of its own"
    for start in range(0, len(sharded), 300):
        ours, theirs = first[start : start + 300], expected[start : start + 300]
        assert torch.allclose(ours.double().sum(0), theirs.double().sum(0))


def test_a_shard_is_fetched_before_it_is_asked_for_and_no_further(
    sharded: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    shards = len(sharded.manifest.shards)
    assert shards >= 6
    fetched: list[str] = []
    third = threading.Event()
    original = StoreStream._bytes

    def watched(self: StoreStream, name: str) -> object:
        fetched.append(name)
        if len(fetched) > 3:
            third.set()
        return original(self, name)

    stream = StoreStream(sharded.path, batch_size=300, prefetch=2)
    monkeypatch.setattr(StoreStream, "_bytes", watched)
    batches = iter(stream)
    next(batches)
    assert third.wait(60), "shards are fetched while the first is used"
    assert len(fetched) <= 1 + 2 + 1, "used, waiting, and in the fetcher's hand"
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() < 20
    assert not [t for t in threading.enumerate() if t.name == "dither-prefetch"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_shard_ends_the_stream(sharded: RecordStore, tmp_path: Path, damage: str) -> None:
    import shutil

    copy = Path(shutil.copytree(sharded.path, tmp_path / "copy"))
    shard = copy / sharded.manifest.shards[2].file
    data = bytearray(shard.read_bytes())
    if damage == "gone":
        shard.unlink()
    else:
        data[len(data) // 2] ^= 1
        shard.write_bytes(data if damage == "flipped" else data[:-40])
    batches = iter(StoreStream(copy, batch_size=300))
    assert sum(len(next(batches)[1]) for _ in range(2)) == 600, "what came before was whole"
    with pytest.raises(DataError, match=r"shard-00002\.arrow"):
        next(batches)


def test_a_stream_of_nothing_and_bad_numbers_are_refused(
    sharded: RecordStore, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"manifest\.json"):
        StoreStream(tmp_path, batch_size=1)
    with pytest.raises(ConfigError, match="URI that"):
        StoreStream("gopher://there/store", batch_size=1)
    for size, ahead, rank in ((0, 1, 0), (8, 0, 0), (8, 1, 2)):
        with pytest.raises(ConfigError, match="at least 1"):
            StoreStream(sharded.path, batch_size=size, prefetch=ahead, rank=rank, world_size=2)


def test_an_altered_manifest_is_refused(sharded: RecordStore, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(sharded.path, tmp_path / "copy"))
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"sensitive": false', '"sensitive": true', 1))
    with pytest.raises(DataError, match="altered"):
        StoreStream(copy, batch_size=1)


def test_a_manifest_survives_its_file(sharded: RecordStore, tmp_path: Path) -> None:
    manifest: Manifest = read_manifest(sharded.path)
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
