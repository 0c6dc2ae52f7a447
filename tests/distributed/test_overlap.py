"""Buckets leave while the products of the next are computed, in both engines."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.gloo import in_group
from tests.distributed.problems import (
    Job,
    gloo_carrier,
    make_account,
    make_batch,
    make_model,
    make_step,
)
from torch.optim import SGD

from dither.clipping.emission import Emission
from dither.clipping.styles import PerLayer, Style
from dither.reduce.protections.private import Reduced
from dither.release.ahead import hidden


def watched(rank: int, engine: str, style: Style | None, folder: Path) -> dict[str, Any]:
    """Make steps in which the last product waits until a message has left."""
    model = make_model()
    last = next(name for name, _ in model.named_parameters())
    left = threading.Event()
    threads: set[str] = set()
    whole, total = Reduced.all_reduce, Emission.total
    in_time: list[bool] = []

    def all_reduce(self: Reduced, message: Any) -> Any:
        threads.add(threading.current_thread().name)
        found = whole(self, message)
        left.set()
        return found

    def slow(self: Emission, name: str) -> Any:
        if name == last and waiting:
            in_time.append(left.wait(30.0))
        return total(self, name)

    Reduced.all_reduce = all_reduce  # type: ignore[method-assign]
    Emission.total = slow  # type: ignore[method-assign]
    job, waiting = Job(engine, style, bucket_size=30), False
    step = make_step(
        job,
        model,
        SGD(model.parameters(), lr=0.1),
        make_account(folder / "ledgers", rank, insecure=True),
        carrier=gloo_carrier(),
    )
    for number in range(3):
        left.clear()
        waiting = number > 0  # DDP cuts its buckets after the first step
        metrics = step(make_batch(job.data(rank, number)))
    step.close()
    return {
        "in time": in_time,
        "threads": threads,
        "spans": step.spans(),
        "seconds": dict(metrics.seconds),
        "last": last,
    }


@pytest.mark.parametrize(
    ("engine", "style"), [("reduce", None), ("ddp", None), ("ddp", PerLayer())], ids=str
)
def test_the_first_bucket_leaves_before_the_last_product_ends(
    engine: str, style: Style | None, tmp_path: Path
) -> None:
    for found in in_group(2, watched, tmp_path, engine, style, tmp_path):
        assert set(found["in time"]) == {True}
        assert found["threads"] == {"dither-send"}
        spans = {span.name: span for span in found["spans"]}
        products = [span for span in found["spans"] if span.name.startswith("product")]
        sends = [span for span in found["spans"] if span.thread == "send"]
        assert style is not None or products[-1].name == f"product {found['last']}"
        assert len(products) == len(list(make_model().parameters()))
        assert [span.name for span in sends] == [f"send {index}" for index in range(len(sends))]
        assert len(sends) > 2
        assert spans["send 0"].start < products[-1].end
        # Group-wise clipping takes one pass: buckets leave while gradients are still computed.
        assert (spans["send 0"].end < spans["forward"].end) is (style is not None)
        assert all(one.end <= other.start for one, other in itertools.pairwise(sends))
        assert all(span.thread == "step" for span in (*products, spans["wait"], spans["forward"]))
        seconds = found["seconds"]
        assert set(seconds) <= {"clip", "release", "hidden", "optimizer"}
        whole = spans["optimizer"].end - spans["forward"].start
        told = seconds["clip"] + seconds["release"] + seconds["optimizer"]
        assert told == pytest.approx(whole, abs=0.2 * whole + 2e-3)
        assert seconds.get("hidden", 0.0) == pytest.approx(hidden(found["spans"]))


def test_one_rank_sends_at_once_and_needs_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    model = make_model()
    account = make_account(tmp_path, 0, insecure=True)
    step = make_step(Job("reduce"), model, SGD(model.parameters(), lr=0.1), account, carrier=None)
    metrics = step(make_batch(Job("reduce").data(0, 0)))
    assert threading.active_count() == before
    names = [span.name for span in step.spans()]
    assert names.count("send 0") == 1
    assert "send 1" not in names
    assert "hidden" not in metrics.seconds
    step.close()
