"""A rank whose probe refuses its sample: the others learn of it, and wait for no message."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.distributed.gloo import in_group
from torch import nn

from dither.clipping.loss import per_example
from dither.errors import PeerError, SamplingError
from dither.noise.entropy import OsEntropy
from dither.precision.loss import QuantizedLoss
from dither.precision.probe import Probe, ProbeOptions
from dither.precision.recipe import parse_recipe
from dither.privacy.account import Account
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.privacy.trust import LOCAL
from dither.reduce.endpoint import Endpoint
from dither.reduce.transports.threads import try_ranks
from dither.reduce.transports.torch_distributed import TorchDistributed
from dither.sampling.loader import PoissonBatch
from dither.train.distributed.accounts import open_rank_account, open_rank_ledger
from dither.train.distributed.carrier import open_carrier
from dither.train.distributed.place import Place
from dither.train.distributed.world import World

CLIP, RANKS, ROWS = 0.01, 2, 12
LIMIT = 50.0  # seconds that a rank would wait for a message
SOON = 20.0
PLAN = Plan(
    records=100,
    sampling_rate=0.25,
    steps=4,
    l2_clip=CLIP,
    noise_multiplier=4.0,
    delta=1e-3,
    trust=LOCAL,
)


def sample(*, units: bool) -> PoissonBatch:
    """Twelve rows: of as many records, or of half as many, which a probe refuses."""
    ticket = SampleTicket(PLAN.sampler, PLAN.sampling_rate, secret=True)
    data = [torch.randn(ROWS, 3), torch.zeros(ROWS, dtype=torch.int64)]
    return PoissonBatch(data, ROWS if units else ROWS // 2, ticket)


def probe_of(account: Account, draw: Callable[[], PoissonBatch]) -> Probe:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    loss = QuantizedLoss(per_example(nn.CrossEntropyLoss()), model, parse_recipe("int8"))
    return Probe(model, loss, account, draw, OsEntropy(), options=ProbeOptions(clip=CLIP))


def test_a_refusal_breaks_off_the_sum_at_once(tmp_path: Path) -> None:
    """The rank that refuses goes on living: no end of a process tells the other."""
    told = threading.Event()

    def work(endpoint: Endpoint) -> tuple[str, float, int]:
        ledger = Ledger.create(tmp_path / f"{endpoint.rank}.sqlite", store="x")
        account = Account(ledger, "run/probe", PLAN)
        carrier = open_carrier(World.over(endpoint), PLAN.trust, algorithm="ring")
        probe = probe_of(account, lambda: sample(units=endpoint.rank == 0))
        start = time.perf_counter()
        try:
            probe.release(carrier)
        except (PeerError, SamplingError) as error:
            seconds = time.perf_counter() - start
            if endpoint.rank == 0:
                told.set()
            assert told.wait(2 * LIMIT)
            return type(error).__name__, seconds, account.steps_charged
        raise AssertionError(endpoint.rank)

    outcomes = try_ranks(RANKS, work, timeout=LIMIT)
    assert not outcomes.errors
    (waited, seconds, _), (refused, _, charged) = outcomes.results
    assert (waited, refused, charged) == ("PeerError", "SamplingError", 0)
    assert seconds < SOON


def refusing(rank: int, folder: Path) -> None:
    """Probe on this rank with a run's own accounts and carrier; the second rank refuses."""
    world = World(Place(rank, RANKS), TorchDistributed(dist.new_group(), timeout=LIMIT))
    ledger = open_rank_ledger(
        world,
        folder / "ledger.sqlite",
        PLAN.trust,
        store="x",
        unit=PLAN.unit,
        relation=PLAN.relation,
        sensitive=True,
    )
    account = open_rank_account(world, ledger, "run/probe", PLAN)
    carrier = open_carrier(world, PLAN.trust)
    probe = probe_of(account, lambda: sample(units=rank == 0))
    start = time.perf_counter()
    try:
        probe.release(carrier)
    except BaseException as error:
        told = [type(error).__name__, time.perf_counter() - start, account.steps_charged]
        (folder / f"told-{rank}").write_text(json.dumps(told))
        raise


@pytest.mark.full
def test_a_process_that_refuses_and_ends_leaves_nobody_waiting(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="PeerError"):
        in_group(RANKS, refusing, tmp_path / "ranks", tmp_path)
    found = [json.loads((tmp_path / f"told-{rank}").read_text()) for rank in range(RANKS)]
    assert [name for name, _, _ in found] == ["PeerError", "SamplingError"]
    assert found[0][1] < SOON
    assert found[1][2] == 0
