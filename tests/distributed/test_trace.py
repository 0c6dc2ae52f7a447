"""Traces: the form that Chrome reads, bounded, whole, and what they say about overlap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dither.data.synth import write_synthetic
from dither.errors import DataError, OutputError
from dither.train.trace import Event, Trace, overlap, profile_path, read_trace


@dataclass(frozen=True)
class Piece:
    """A span."""

    name: str
    start: float
    end: float
    thread: str = "step"


def pieces(*, first_send: float) -> list[Piece]:
    """Two products and two messages; the second message ends after all products."""
    return [
        Piece("product head.weight", 1.0, 2.0),
        Piece("product body.weight", 2.0, 4.0),
        Piece("send 0", first_send, first_send + 0.5, "send"),
        Piece("send 1", 4.5, 5.0, "send"),
    ]


def events(*spans: Piece, step: int = 1, rank: int = 0) -> list[Event]:
    return [Event(s.name, s.start, s.end, s.thread, step, rank) for s in spans]


def test_a_trace_has_the_form_that_viewers_read(tmp_path: Path) -> None:
    trace, before = Trace(rank=3), time.time()
    base = time.perf_counter()
    spans = [Piece(p.name, base + p.start, base + p.end, p.thread) for p in pieces(first_send=2.5)]
    trace.add(7, spans)
    trace.write(tmp_path / "trace.json")
    value = json.loads((tmp_path / "trace.json").read_bytes())
    named = [e for e in value["traceEvents"] if e["ph"] == "M"]
    complete = [e for e in value["traceEvents"] if e["ph"] == "X"]
    assert {e["name"] for e in named} == {"process_name", "thread_name"}
    assert all(isinstance(e[key], int) for e in value["traceEvents"] for key in ("pid", "tid"))
    threads = {e["args"]["name"]: e["tid"] for e in named if e["name"] == "thread_name"}
    assert set(threads) == {"step", "send"}
    assert len(set(threads.values())) == 2
    for event, span in zip(complete, spans, strict=True):
        assert (event["pid"], event["tid"]) == (3, threads[span.thread])
        assert event["dur"] == pytest.approx((span.end - span.start) * 1e6, abs=1.0)
        # Microseconds of the wall clock, so that hosts' traces lie beside each other.
        assert event["ts"] / 1e6 == pytest.approx(before + span.start - base, abs=0.5)
        assert event["cat"] == span.name.split()[0]
        assert event["args"] == {"step": 7}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    trace = Trace(rank=1)
    trace.add(1, pieces(first_send=2.5))
    trace.add(2, pieces(first_send=6.0))
    trace.write(tmp_path / "trace.json")
    found = read_trace(tmp_path / "trace.json")
    assert [event.start for event in found] == sorted(event.start for event in found)
    first = [event for event in found if event.step == 1]
    assert [e.name for e in first] == [
        "product head.weight", "product body.weight", "send 0", "send 1"
    ]  # fmt: skip
    assert {e.thread for e in first if e.kind == "send"} == {"send"}
    assert {e.rank for e in found} == {1}
    assert first[1].end - first[1].start == pytest.approx(2.0, abs=1e-5)


def test_a_long_run_keeps_its_first_steps_only(tmp_path: Path) -> None:
    trace = Trace(steps=3)
    for step in range(1, 50):
        trace.add(step, pieces(first_send=2.5))
    assert trace.full
    trace.write(tmp_path / "trace.json")
    assert {event.step for event in read_trace(tmp_path / "trace.json")} == {1, 2, 3}


def test_ranks_write_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert profile_path(path, 0) == path
    assert profile_path(path, 2) == tmp_path / "trace.rank-2.json"
    assert len({profile_path(path, rank) for rank in range(5)}) == 5


def test_a_place_that_cannot_be_written_and_a_file_that_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        Trace().write(tmp_path / "nowhere" / "trace.json")
    for content in (b"{", b"[]", b'{"traceEvents": [{"ph": "X"}]}', b'{"traceEvents": 3}'):
        (tmp_path / "other.json").write_bytes(content)
        with pytest.raises(DataError, match="a trace of dither train"):
            read_trace(tmp_path / "other.json")
    with pytest.raises(DataError):
        read_trace(tmp_path / "absent.json")


def test_overlap_counts_what_lies_within_products() -> None:
    found = overlap(events(*pieces(first_send=3.75)))
    assert (found.steps, found.early) == (1, 1)
    assert found.sending == pytest.approx(1.0)
    assert found.hidden == pytest.approx(0.25)  # until the last product ends at 4
    assert found.share == pytest.approx(0.25)


def test_messages_after_the_last_product_are_not_early() -> None:
    found = overlap(events(*pieces(first_send=4.0)))
    assert (found.steps, found.early, found.hidden) == (1, 0, 0.0)


def test_steps_and_ranks_are_judged_by_themselves() -> None:
    late = pieces(first_send=4.0)
    shifted = [Piece(p.name, p.start + 2.0, p.end + 2.0, p.thread) for p in late]
    both = [*events(*late), *events(*shifted, step=2), *events(*shifted, rank=1)]
    # Another step's product, or another rank's, goes on while these messages leave.
    assert (overlap(both).steps, overlap(both).early, overlap(both).hidden) == (3, 0, 0.0)
    assert overlap(events(*late[:2])).steps == 0
    assert overlap([]).share == 0.0


def trained(
    tmp_path: Path, *extra: str, hidden: tuple[str, ...] = ("1024", "1024")
) -> dict[int, tuple[Event, ...]]:
    """The traces of two ranks that trained from the command line, one thread each."""
    records = write_synthetic(tmp_path / "persons.parquet", 3000, seed=1)
    path = tmp_path / "trace.json"
    options = (
        *("--data", str(records), "--task", "employment", "--noise-multiplier", "8"),
        *("--delta", "1e-5", "--steps", "4", "--batch-size", "256", "--threads", "1"),
        *("--hidden", *hidden, "--nproc", "2", "--profile", str(path)),
        *("--out", str(tmp_path / "run"), *extra),
    )
    done = subprocess.run(
        [sys.executable, "-m", "dither", "train", *options],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return {rank: read_trace(profile_path(path, rank)) for rank in (0, 1)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["reduce", "ddp"])
def test_the_first_bucket_leaves_before_the_last_product_ends(engine: str, tmp_path: Path) -> None:
    """On both ranks, at every step, as `dither train --profile` writes it."""
    # DDP learns in its first step which gradients come together: there it has one bucket.
    first = 2 if engine == "ddp" else 1
    wide = ("1024", "1024", "1024", "1024")
    for rank, traced in trained(tmp_path, "--engine", engine, hidden=wide).items():
        assert {event.rank for event in traced} == {rank}
        assert {event.step for event in traced} == {1, 2, 3, 4}
        found = tuple(event for event in traced if event.step >= first)
        assert len([e for e in found if e.kind == "send" and e.step == first]) > 1
        products = {e.name for e in found if e.kind == "product" and e.step == first}
        assert len(products) >= 10  # five layers, weights and biases
        judged = overlap(found)
        assert (judged.steps, judged.early) == (5 - first, 5 - first)
        assert judged.hidden > 0.0


def test_a_model_of_one_bucket_has_nothing_to_overlap(tmp_path: Path) -> None:
    """So the test above can fail: what is sent after the last product is seen as late."""
    for found in trained(tmp_path, hidden=("8",)).values():
        judged = overlap(found)
        assert (judged.steps, judged.early) == (4, 0)
        assert judged.hidden == 0.0
