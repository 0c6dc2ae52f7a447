"""`--engine ddp`: one process's bits, the right noise, nothing else on the wire, named errors."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from tests.distributed.gloo import in_group
from tests.distributed.problems import (
    LOSS,
    PLAN,
    Job,
    alone,
    flat_sum,
    gloo_carrier,
    make_account,
    make_batch,
    make_data,
    make_model,
    make_step,
    same,
    train,
)
from tests.distributed.tap import Tap
from torch import Tensor, nn
from torch.optim import SGD

from dither.clipping.styles import Automatic, PerLayer
from dither.errors import ConfigError, DitherError, SamplingError
from dither.noise.codec import message_type
from dither.noise.entropy import OsEntropy
from dither.reduce.protections.private import Reduced
from dither.train.distributed.ddp import DdpStep

JOBS = {
    "flat": Job("ddp", bucket_size=40),
    "one bucket": Job("ddp"),
    "layers": Job("ddp", PerLayer(), bucket_size=1),
    "layers, an empty rank": Job("ddp", PerLayer(), bucket_size=40, microbatch_size=4, empty=(1,)),
    "automatic, in parts": Job("ddp", Automatic(), bucket_size=60, microbatch_size=4),
    "an empty rank": Job("ddp", bucket_size=40, empty=(1,)),
    "no examples": Job("ddp", bucket_size=40, empty=(0, 1, 2)),
    "reduce": Job("reduce", bucket_size=40),
    "reduce, layers, in parts": Job("reduce", PerLayer(), bucket_size=1, microbatch_size=4),
    "reduce, an empty rank": Job("reduce", bucket_size=100, empty=(0,)),
}


def several(rank: int, jobs: dict[str, Job], folder: Path) -> dict[str, dict[str, Any]]:
    """All of them in one group: starting it takes longer than a job."""
    return {name: train(rank, job, folder / name) for name, job in jobs.items()}


@pytest.fixture(scope="module", params=[2, 3])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    return in_group(request.param, several, folder, JOBS, folder)


@pytest.mark.parametrize("name", JOBS)
def test_ranks_without_noise_are_one_process_that_encodes_their_shards(
    trained: list[dict[str, dict[str, Any]]], name: str
) -> None:
    job, found = JOBS[name], [rank[name] for rank in trained]
    wanted = alone(job, len(found))
    for rank, each in enumerate(found):
        assert same(each["model"], wanted), rank
        assert not any(each["gradients"])
        assert each["sizes"] == [job.data(rank, n)[0].shape[0] for n in range(job.steps)]
        assert each["charged"] >= job.steps
    if name != "no examples":
        start = dict(make_model().named_parameters())
        moved = {key for key, p in wanted.items() if not torch.equal(p, start[key])}
        assert {"first.weight", "last.bias"} <= moved
        assert not {"unused.weight", "unused.bias"} & moved


def test_ranks_are_within_half_a_step_each_of_the_whole_sum() -> None:
    job = Job("ddp")
    data = [make_data(rank, 0) for rank in range(3)]
    whole = (torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
    model = make_model()
    wanted = flat_sum(model, job, whole)
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()
    after = torch.cat([p.reshape(-1) for p in alone(Job("ddp", steps=1), 3).values()]).double()
    found = (start - after) / 0.5 * PLAN.expected_batch_size
    lattice = PLAN.bind(PLAN.l2_clip, wanted.numel(), 3)
    rounded = 3 * (lattice.step + lattice.wire_step) / 2
    stored = 2.0**-23 * start.abs() / 0.5 * PLAN.expected_batch_size  # float32 parameters
    slack = PLAN.numeric_slack * PLAN.l2_clip
    assert bool(((found - wanted).abs() <= rounded + slack + stored).all())
    assert float((found - wanted).abs().max()) > 0.0


def tapped(rank: int, job: Job, folder: Path) -> list[tuple[str, list[Tensor]]]:
    """Make steps; return all that left through the process group, and what the carrier took."""
    model = make_model()
    tap = Tap(dist.new_group())
    carrier = gloo_carrier()
    whole, seen = Reduced.all_reduce, []

    def all_reduce(self: Reduced, message: np.ndarray) -> np.ndarray:
        seen.append(torch.from_numpy(message.copy()))
        return whole(self, message)

    Reduced.all_reduce = all_reduce  # type: ignore[method-assign]
    account = make_account(folder / "tapped", rank, insecure=False)
    optimizer = SGD(model.parameters(), lr=0.5)
    step = make_step(job, model, optimizer, account, carrier=carrier, group=tap)
    for number in range(job.steps):
        step(make_batch(job.data(rank, number)))
    step.close()
    return [*tap.seen, ("carrier", seen)]


def test_only_noisy_integers_and_public_facts_leave_a_rank(tmp_path: Path) -> None:
    job = Job("ddp", bucket_size=100, steps=4, empty=(1,), quiet=False)
    found = in_group(2, tapped, tmp_path, job, tmp_path)
    initial = torch.cat([p.detach().reshape(-1) for p in make_model().parameters()])
    dimension = initial.numel()
    wire = message_type(PLAN.bind(PLAN.l2_clip, dimension, 2))
    shapes = []
    for seen in found:
        group, (_, messages) = seen[:-1], seen[-1]
        floats = [t for _, ts in group for t in ts if t.is_floating_point()]
        # At most the public initial weights are floats, and rank 0 alone tells them.
        assert all(torch.equal(t.reshape(-1), initial) for t in floats)
        assert all(t.numel() < 40 for _, ts in group for t in ts if not t.is_floating_point())
        assert [name for name, _ in group if name == "allreduce"] == []
        assert all(message.numpy().dtype == wire for message in messages)
        assert sum(message.numel() for message in messages) == 4 * dimension
        shapes.append([message.numel() for message in messages])
    assert shapes[0] == shapes[1], "the cuts tell of a rank's batch"
    # Whether examples touched a parameter is not to be seen: each message has noise everywhere.
    for _, messages in (seen[-1] for seen in found):
        assert all(float(message.double().std()) > 4.0 for message in messages if len(message) > 8)


def noises(rank: int, engine: str, folder: Path) -> list[Tensor]:
    """Make steps on no examples: what moves the model is noise alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 120), nn.Linear(120, 60))
    step = make_step(
        Job(engine, quiet=False, bucket_size=5000),
        model,
        SGD(model.parameters(), lr=PLAN.expected_batch_size),
        make_account(folder / engine, rank, insecure=False),
        carrier=gloo_carrier(),
    )
    found = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        nothing = torch.zeros(0, 100), torch.zeros(0, dtype=torch.int64)
        step(make_batch(nothing))
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double())
    step.close()
    return found


@pytest.mark.parametrize("engine", ["ddp", "reduce"])
def test_the_sum_carries_the_plans_noise(engine: str, tmp_path: Path) -> None:
    """Variance and shape; 2/3 and 3/2 of σ are refused. False alarm: 1e-6 a step."""
    first, second = in_group(2, noises, tmp_path, engine, tmp_path)
    dimension = first[0].numel()
    low, high = (stats.chi2.ppf(p, dimension) for p in (5e-7, 1 - 5e-7))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        found = float(one.square().sum()) / (PLAN.noise_multiplier * PLAN.l2_clip) ** 2

        def accepted(sigma: float, found: float = found) -> bool:
            # The charged noise covers slack and rounding too: up to one percent more.
            return bool(low <= found / sigma**2 and found / (1.01 * sigma) ** 2 <= high)

        assert accepted(1.0)
        assert not accepted(2 / 3)
        assert not accepted(3 / 2)
        assert stats.kstest((one / one.std()).numpy(), "norm").pvalue > 1e-6
    correlation = float((first[0] * first[1]).mean() / first[0].std() / first[1].std())
    assert abs(correlation) < 5.5 / math.sqrt(dimension)


def left_alone(rank: int, folder: Path) -> str:
    """Rank 1 makes no third step."""
    job = Job("ddp", bucket_size=40)
    model = make_model()
    account = make_account(folder / "left", rank, insecure=True)
    carrier = gloo_carrier()
    step = make_step(job, model, SGD(model.parameters(), lr=0.1), account, carrier=carrier)
    step(make_batch(job.data(rank, 0)))
    step(make_batch(job.data(rank, 1)))  # DDP has cut its buckets: what follows is the carrier's
    if rank == 1:
        carrier.abandon("Exception")
        step.close()
        time.sleep(8.0)
        return "gone"
    before = [p.detach().clone() for p in model.parameters()]
    carrier.endpoint._timeout = 2.0  # type: ignore[attr-defined]
    with pytest.raises(DitherError) as caught:
        step(make_batch(job.data(rank, 2)))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_peer_that_went_away_is_a_named_error(tmp_path: Path) -> None:
    found = in_group(2, left_alone, tmp_path, tmp_path)
    assert found[1] == "gone"
    assert found[0].startswith("PeerError")
    assert "2 s" in found[0] or "rank 1" in found[0]


def misused(rank: int, folder: Path) -> list[str]:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    account = make_account(folder / "misused", rank, insecure=False)
    told = []
    with pytest.raises(ConfigError, match="ranks") as caught:
        DdpStep(model, optimizer, loss_fn=LOSS, account=account, entropy=OsEntropy())
    told.append(str(caught.value))
    step = make_step(Job("ddp", quiet=False), model, optimizer, account, carrier=gloo_carrier())
    with pytest.raises(SamplingError) as other:
        step(make_data(rank, 0))
    told.append(str(other.value))
    with pytest.raises(DitherError) as third:
        step._wrapped().pop().backward()  # type: ignore[union-attr]
    told.append(str(third.value))
    step.close()
    return told


def test_misuse_is_told(tmp_path: Path) -> None:
    found = in_group(2, misused, tmp_path, tmp_path)
    for transport, batch, outside in found:
        assert "over 1" in transport
        assert "a batch of the loader" in batch
        assert "outside of any step" in outside


def test_without_a_group_the_other_engine_is_named(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match="--engine reduce"):
        DdpStep(
            model,
            SGD(model.parameters(), lr=0.1),
            loss_fn=LOSS,
            account=make_account(tmp_path, 0, insecure=False),
            entropy=OsEntropy(),
        )
