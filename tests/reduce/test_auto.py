"""The table of fast algorithms: what it chooses, and which files it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dither.errors import ConfigError
from dither.reduce.algorithms import auto
from dither.reduce.algorithms.auto import (
    NAMES,
    Table,
    TableRow,
    current_table,
    default_table,
    layout_of,
    read_table,
    table_path,
    write_table,
)
from dither.reduce.algorithms.registry import ALGORITHMS, sum_over
from dither.reduce.endpoint import Buffer
from dither.reduce.transports.threads import Threads, run_ranks

NEW = (
    TableRow("threads", "one_host", 2, 0, "naive", "naive"),
    TableRow("threads", "one_host", 2, 100, "ring", "ring"),
    TableRow("threads", "one_host", 2, 1000, "backend", "binomial"),
    TableRow("threads", "one_host", 8, 0, "round_robin", "round_robin"),
)


def table() -> Table:
    return default_table().updated(NEW, {"host": "a test"})


def test_tables_know_all_algorithms() -> None:
    assert set(NAMES) == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("world_size", "size", "algorithm"),
    [
        (2, 0, "naive"),
        (2, 99, "naive"),
        (2, 100, "ring"),
        (2, 999, "ring"),
        (2, 1 << 40, "backend"),
        (7, 0, "naive"),
        (8, 500, "round_robin"),
        (4096, 500, "round_robin"),
    ],
)
def test_the_nearest_smaller_row_is_chosen(world_size: int, size: int, algorithm: str) -> None:
    assert table().find("threads", "one_host", world_size, size).algorithm == algorithm


@given(
    transport=st.sampled_from(["threads", "shared_memory", "mpi", "torch_distributed", "new"]),
    layout=st.sampled_from(["one_host", "one_rank_a_host", "mixed"]),
    world_size=st.integers(1, 10_000),
    size=st.integers(0, 1 << 40),
)
def test_the_shipped_table_has_an_answer_to_everything(
    transport: str, layout: auto.Layout, world_size: int, size: int
) -> None:
    row = default_table().find(transport, layout, world_size, size)
    assert row.algorithm in ALGORITHMS
    assert row.fallback in ALGORITHMS


def test_layouts() -> None:
    assert layout_of((0, 0)) == "one_host"
    assert layout_of((0,)) == "one_host"
    assert layout_of((0, 1, 2)) == "one_rank_a_host"
    assert layout_of((0, 1, 1)) == "mixed"


def test_hosts_with_several_ranks_are_summed_by_hierarchy() -> None:
    assert default_table().find("new", "mixed", 8, 1 << 20).algorithm == "hierarchical"


@final
class WithBackend:
    """Sums by a back end that refuses 16 bits."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def all_reduce(self, buffer: Buffer) -> bool:
        self.asked.append(str(buffer.dtype))
        if buffer.dtype == np.int16:
            return False
        buffer *= 2
        return True


@pytest.mark.parametrize(("kind", "total"), [("int16", 1), ("int32", None)])
def test_where_the_back_end_has_none_the_fallback_is_used(
    kind: str, total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = WithBackend()
    monkeypatch.setattr(Threads, "all_reduce", lambda self, buffer: back.all_reduce(buffer))

    def add(endpoint: Threads) -> int:
        buffer = np.full(2000, endpoint.rank, kind)
        sum_over(endpoint, buffer, "auto", table())
        return int(buffer[0])

    assert run_ranks(2, add) == ([total] * 2 if total is not None else [0, 2])
    assert back.asked == [kind] * 2


def test_a_written_table_is_read_and_used(tmp_path: Path) -> None:
    assert current_table() == default_table()
    assert table_path() == tmp_path / "home" / "allreduce.json"
    written = write_table(table())
    assert written == table_path()
    assert read_table(written).digest == table().digest
    assert current_table().measured["host"] == "a test"
    assert current_table().find("threads", "one_host", 2, 0).algorithm == "naive"


def test_a_digest_tells_choices_and_nothing_else() -> None:
    one = table()
    shuffled = Table(tuple(reversed(one.rows)), {"host": "another"})
    assert shuffled.digest == one.digest
    changed = Table((replace(one.rows[0], from_bytes=0, fallback="naive"), *one.rows[1:]))
    assert changed.digest != one.digest


def test_new_rows_replace_their_group_only() -> None:
    again = table().updated([replace(NEW[0], algorithm="binomial")], {})
    assert again.find("threads", "one_host", 2, 5000).algorithm == "binomial"
    assert again.find("threads", "one_host", 8, 0).algorithm == "round_robin"
    assert again.measured == {**default_table().measured, "host": "a test"}


def content() -> dict[str, object]:
    return json.loads(write_table(table()).read_text())  # type: ignore[no-any-return]


def damaged(key: str, value: object) -> str:
    return json.dumps({**content(), key: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda: "",
        lambda: "[]",
        lambda: "null",
        lambda: json.dumps(content())[:-20],
        lambda: json.dumps({"rows": []}),
        lambda: damaged("format", "another"),
        lambda: damaged("version", 2),
        lambda: damaged("rows", []),
        lambda: damaged("rows", [{"transport": "mpi"}]),
        lambda: damaged("rows", [*content()["rows"], content()["rows"][0]]),  # type: ignore[index,misc]
        lambda: damaged("rows", content()["rows"][1:]),  # type: ignore[index]
        lambda: damaged("measured", []),
    ],
    ids=[
        *("empty", "list", "null", "cut", "foreign", "format", "version", "no-rows", "part-row"),
        *("row-twice", "row-missing", "measured"),
    ],
)
def test_damaged_and_foreign_files_are_refused(make: object, tmp_path: Path) -> None:
    text = make()  # type: ignore[operator]
    table_path().parent.mkdir(parents=True, exist_ok=True)
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="dither bench allreduce --tune"):
        read_table(path)


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "rign"},
        {"fallback": "backend"},
        {"layout": "flat"},
        {"world_size": -1},
        {"from_bytes": True},
        {"from_bytes": 1.5},
    ],
)
def test_bad_rows_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    whole = content()
    rows = whole["rows"]
    assert isinstance(rows, list)
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**whole, "rows": [*rows, {**rows[0], **change}]}))
    with pytest.raises(ConfigError, match="whole dither allreduce table"):
        read_table(path)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json"):
        read_table(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no text"):
        read_table(tmp_path / "binary")
