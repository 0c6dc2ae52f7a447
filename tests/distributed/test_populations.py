"""Ranks that sample the same records are noticed at their first step, uncharged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from dither.clipping.loss import per_example
from dither.errors import SamplingError
from dither.noise.entropy import OsEntropy
from dither.privacy.events import Relation, Unit
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.trust import LOCAL
from dither.reduce.endpoint import Endpoint
from dither.reduce.transports.threads import try_ranks
from dither.sampling.loader import PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.sampling.shard import rank_rows
from dither.train.distributed.accounts import open_rank_account, open_rank_ledger
from dither.train.distributed.carrier import open_carrier
from dither.train.distributed.world import World
from dither.train.step import PrivateStep

RANKS, RECORDS = 2, 101


def plan_of(relation: Relation) -> Plan:
    return Plan(
        records=RECORDS,
        sampling_rate=0.1,
        steps=4,
        l2_clip=1.0,
        noise_multiplier=2.0,
        delta=1e-3,
        relation=relation,
        trust=LOCAL,
    )


def two_steps(endpoint: Endpoint, path: Path, plan: Plan, *, whole: bool) -> int:
    """Train a little; return what was charged. ``whole`` is the mistake: no part of one's own."""
    world = World.over(endpoint)
    records = TensorDataset(torch.zeros(RECORDS, 3), torch.zeros(RECORDS, dtype=torch.long))
    rows = range(RECORDS) if whole else rank_rows(RECORDS, world.rank, world.world_size)
    mine = Subset(records, rows)
    ledger = open_rank_ledger(
        world,
        path,
        plan.trust,
        store="mine",
        unit=Unit.RECORD,
        relation=plan.relation,
        sensitive=False,
    )
    account = open_rank_account(world, ledger, "run", plan, lease=1)
    model = torch.nn.Linear(3, 2)
    step = PrivateStep(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=per_example(torch.nn.CrossEntropyLoss()),
        account=account,
        entropy=OsEntropy(),
        transport=open_carrier(world, plan.trust, algorithm="ring"),
    )
    sampler = PoissonSampler(len(mine), plan.sampling_rate, OsEntropy())
    for batch in PoissonLoader(mine, sampler, 2):
        step(batch)
    step.close()
    return account.steps_charged


@pytest.mark.filterwarnings("ignore::dither.errors.DitherWarning")
def test_parts_of_their_own_train(tmp_path: Path) -> None:
    outcomes = try_ranks(
        RANKS,
        lambda endpoint: two_steps(
            endpoint, tmp_path / "l.sqlite", plan_of(Relation.ZERO_OUT), whole=False
        ),
        timeout=60.0,
    )
    assert outcomes.errors == {}
    assert outcomes.results == [2, 2]


@pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.REPLACE_ONE])
@pytest.mark.filterwarnings("ignore::dither.errors.DitherWarning")
def test_the_same_records_on_all_ranks_are_refused_uncharged(
    tmp_path: Path, relation: Relation
) -> None:
    path = tmp_path / "l.sqlite"
    outcomes = try_ranks(
        RANKS,
        lambda endpoint: two_steps(endpoint, path, plan_of(relation), whole=True),
        timeout=60.0,
    )
    assert outcomes.errors.keys() == {0, 1}
    for error in outcomes.errors.values():
        assert isinstance(error, SamplingError)
        assert "202 records in all" in str(error)
        assert "rank_rows(len(records), world.rank, world.world_size)" in str(error)
    assert Ledger.open(path).charged("run") == 0


@pytest.mark.filterwarnings("ignore::dither.errors.DitherWarning")
def test_under_add_remove_sizes_are_private_and_nobody_asks(tmp_path: Path) -> None:
    outcomes = try_ranks(
        RANKS,
        lambda endpoint: two_steps(
            endpoint, tmp_path / "l.sqlite", plan_of(Relation.ADD_REMOVE), whole=True
        ),
        timeout=60.0,
    )
    assert outcomes.errors == {}
