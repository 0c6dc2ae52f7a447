"""FSDP2: the unsharded step's bits, shards kept, FSDP's own reduction never run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.gloo import in_group
from tests.distributed.problems import (
    LOSS,
    Job,
    Quiet,
    alone,
    gloo_carrier,
    make_account,
    make_batch,
    make_model,
    same,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, Optimizer

from dither.clipping.styles import PerLayer
from dither.errors import ConfigError, ModelError
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.release.transport import Transport
from dither.train.distributed.sharded import ShardedStep

JOBS = {
    "flat": Job("sharded", bucket_size=40),
    "one bucket": Job("sharded"),
    "layers": Job("sharded", PerLayer(), bucket_size=1),
    "in parts": Job("sharded", bucket_size=60, microbatch_size=4),
    "an empty rank": Job("sharded", bucket_size=40, empty=(1,)),
}


def make_sharded(model: nn.Module, **options: Any) -> nn.Module:
    """Two layers in units of their own, the rest in the root's."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*model.children(), model)[-2:]:
        fully_shard(part, mesh=mesh, **options)
    return model


def make_step(
    job: Job, model: nn.Module, optimizer: Optimizer, folder: Path, rank: int
) -> ShardedStep:
    step = ShardedStep(
        model,
        optimizer,
        loss_fn=LOSS,
        account=make_account(folder, rank, insecure=job.quiet),
        entropy=InsecureSeed(1) if job.quiet else OsEntropy(),
        style=job.style,
        microbatch_size=job.microbatch_size,
        bucket_size=job.bucket_size,
        transport=gloo_carrier(),
    )
    if job.quiet:
        step._noise = Quiet()
    return step


class Watch:
    """Notes what passes through the collectives that FSDP may call."""

    def __init__(self) -> None:
        self.gathered: list[Tensor] = []
        self.reduced: list[str] = []

    def install(self) -> None:
        """Under the names that they have in this version of PyTorch and in earlier ones."""
        for name in ("all_gather_single", "all_gather_into_tensor"):
            if hasattr(dist, name):
                setattr(dist, name, self._gathering(getattr(dist, name)))
        for name in ("reduce_scatter_single", "reduce_scatter_tensor", "all_reduce"):
            if hasattr(dist, name):
                setattr(dist, name, self._refusing(name))

    def _gathering(self, whole: Callable[..., Any]) -> Callable[..., Any]:
        def gather(*args: Any, **kwargs: Any) -> Any:
            self.gathered.append((kwargs.get("input_tensor", args[-1])).detach().clone())
            return whole(*args, **kwargs)

        return gather

    def _refusing(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self.reduced.append(name)


def trained(rank: int, jobs: dict[str, Job], folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for name, job in jobs.items():
        model = make_sharded(make_model())
        optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
        step = make_step(job, model, optimizer, folder / name, rank)
        for number in range(job.steps):
            step(make_batch(job.data(rank, number)))
        step.close()
        shards = dict(model.named_parameters())
        assert all(isinstance(p, DTensor) and p.grad is None for p in shards.values())
        found[name] = {
            "model": {n: p.full_tensor().detach() for n, p in shards.items()},  # type: ignore[attr-defined]
            "local": sum(p.to_local().numel() for p in shards.values()),  # type: ignore[attr-defined]
            "state": sum(
                state["momentum_buffer"].to_local().numel() for state in optimizer.state.values()
            ),
            "spans": [(span.name, span.thread) for span in step.spans()],
        }
    return found


@pytest.fixture(scope="module", params=[2, 3])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp(f"sharded{request.param}")
    return in_group(request.param, trained, folder, JOBS, folder)


@pytest.mark.parametrize("name", JOBS)
def test_shards_make_the_steps_of_whole_models(
    found: list[dict[str, dict[str, Any]]], name: str
) -> None:
    wanted = alone(JOBS[name], len(found))
    dimension = sum(p.numel() for p in wanted.values())
    for rank in found:
        assert same(rank[name]["model"], wanted)
        assert rank[name]["state"] == rank[name]["local"] < dimension
    assert sum(rank[name]["local"] for rank in found) == dimension
    if name == "layers":
        sends = [thread for span, thread in found[0][name]["spans"] if span.startswith("send")]
        assert sends == ["send"] * len(wanted)


def watched(rank: int, folder: Path) -> tuple[list[int], list[bool], list[str]]:
    """What leaves through FSDP in steps with noise, one rank without examples."""
    job = Job("sharded", bucket_size=40, quiet=False, empty=(1,))
    model = make_sharded(make_model())
    optimizer = Adam(model.parameters(), lr=0.01)
    step = make_step(job, model, optimizer, folder / "watched", rank)
    watch = Watch()
    watch.install()
    sizes, own = [], []
    for number in range(job.steps):
        watch.gathered.clear()
        held = torch.cat([p.to_local().reshape(-1) for p in model.parameters()])  # type: ignore[attr-defined]
        step(make_batch(job.data(rank, number)))
        sizes.append(len(watch.gathered))
        values = set(held.tolist()) | {0.0}  # padding of uneven shards
        own.append(all(set(t.tolist()) <= values for t in watch.gathered))
    step.close()
    return sizes, own, watch.reduced


def test_fsdp_gathers_public_parameters_and_reduces_nothing(tmp_path: Path) -> None:
    first, second = in_group(2, watched, tmp_path, tmp_path)
    assert first[0] == second[0], "how often ranks gather tells of their batches"
    assert min(first[0]) > 0
    assert all(first[1])
    assert all(second[1])
    assert first[2] == second[2] == []


def refused(rank: int, folder: Path) -> list[str]:
    def told(
        kind: type[Exception], model: nn.Module, transport: Transport | None, trained: nn.Module
    ) -> str:
        with pytest.raises(kind) as caught:
            ShardedStep(
                model,
                SGD(trained.parameters(), lr=0.1),
                loss_fn=LOSS,
                account=make_account(folder / str(len(seen)), rank, insecure=False),
                entropy=OsEntropy(),
                transport=transport,
            )
        return str(caught.value)

    seen: list[str] = []
    carrier = gloo_carrier()
    plain = make_model()
    seen.append(told(ConfigError, plain, carrier, plain))
    sharded = make_sharded(make_model())
    seen.append(told(ConfigError, sharded, None, sharded))
    seen.append(told(ModelError, sharded, carrier, plain))
    narrow = make_sharded(make_model(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    seen.append(told(ModelError, narrow, carrier, narrow))
    assert all(isinstance(p, DTensor) for p in narrow.parameters()), "left gathered"
    return seen


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    for plain, transport, optimizer, narrow in in_group(2, refused, tmp_path, tmp_path):
        assert "fully_shard" in plain
        assert "over 1" in transport
        assert "optimizer over this model's parameters" in optimizer
        assert "bfloat16" in narrow
