"""Sharded models gather one unit at a time, as often whatever was sampled, or are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.distributed.gloo import in_group
from tests.distributed.problems import (
    CLASSES,
    FEATURES,
    LOSS,
    Quiet,
    gloo_carrier,
    make_account,
    make_batch,
    make_data,
    same,
)
from tests.distributed.storages import Storages
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from dither.clipping.lockstep_engine import CHECK, LockstepEngine, most_rows
from dither.errors import CheckpointError, ConfigError, ModelError
from dither.noise.entropy import InsecureSeed
from dither.reduce.transports.torch_distributed import TorchDistributed
from dither.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from dither.train.distributed.ranks import EndpointRanks
from dither.train.distributed.sharded import ShardedStep
from dither.train.step import PrivateStep

WIDTH = 192
UNIT = WIDTH * WIDTH * 4  # bytes of a layer


def deep(layers: int) -> nn.Sequential:
    torch.manual_seed(1)
    inner = [part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), *inner, nn.Linear(WIDTH, CLASSES))


def sharded(model: nn.Module, *units: nn.Module, **options: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh, **options)
    return model


def linears(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, nn.Linear)]


def step_of(model: nn.Module, folder: Path, rank: int, **options: Any) -> ShardedStep:
    """A step whose noise is zero."""
    step = ShardedStep(
        model,
        SGD(model.parameters(), lr=0.5),
        loss_fn=LOSS,
        account=make_account(folder, rank, insecure=True),
        entropy=InsecureSeed(1),
        transport=gloo_carrier() if dist.get_world_size() > 1 else None,
        **{"bucket_size": 1, **options},
    )
    step._noise = Quiet()
    return step


def inner(step: ShardedStep) -> LockstepEngine:
    engine = step._clip.engine
    assert isinstance(engine, LockstepEngine)
    return engine


def measured(rank: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Most bytes of gathered parameters, and of all tensors, in a step; in units."""
    found: dict[str, tuple[float, float]] = {}
    for name, layers, keep in (("short", 6, False), ("long", 18, False), ("kept", 6, True)):
        model = deep(layers)
        sharded(model, *linears(model), reshard_after_forward=not keep)
        step = step_of(model, folder / name, rank)
        gathered = list(inner(step)._inventory.parameters.values())
        for number in range(4):
            data = make_data(rank, number, 3)
            if number < 2:
                step(make_batch(data))
                continue
            # The third makes a step's passes alone, the fourth those of a check besides.
            with Storages([*model.parameters(), *data], gathered, UNIT // 4) as seen:
                step(make_batch(data))
            before = found.get(name, (0.0, 0.0))
            now = seen.whole / UNIT, seen.peak / UNIT
            found[name] = max(before[0], now[0]), max(before[1], now[1])
        step.close()
    return found


def test_one_unit_at_a_time_is_whole(tmp_path: Path) -> None:
    for found in in_group(2, measured, tmp_path, tmp_path):
        assert found["short"][0] < 2.5
        assert found["long"][0] < 2.5, "of 18 layers"
        assert found["kept"][0] > 6, "the measure sees whole models"
        # Twelve layers more cost their shards and these shards' gradients: not gathered ones, not
        # whole sums.
        assert found["long"][1] - found["short"][1] < 1.15 * 12 * 2 / 2


class Counted:
    """Counts what FSDP gathers."""

    def __init__(self) -> None:
        self.count = 0
        self._names = [
            n for n in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, n)
        ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        whole = {name: getattr(dist, name) for name in self._names}
        for name, function in whole.items():
            setattr(dist, name, self._counting(function))
        yield
        for name, function in whole.items():
            setattr(dist, name, function)

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def gather(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return gather


ROWS = {"none": 0, "one": 1, "few": 3, "many": 30, "far too many": 200}


def counted(rank: int, folder: Path) -> dict[str, tuple[int, int]]:
    """Gathers and passes of steps 3 to 7, whose batches are very different."""
    model = deep(2)
    step = step_of(sharded(model, *linears(model)), folder, rank, microbatch_size=10)
    found = {}
    names = list(ROWS) if rank == 0 else list(reversed(ROWS))
    for number in range(2):
        step(make_batch(make_data(rank, number, 5 * rank)))
    for number, name in enumerate(names, start=3):
        count, before = Counted(), inner(step)._lockstep.passes
        with count():
            step(make_batch(make_data(rank, number, ROWS[name])))
        checks = CHECK if number == 4 else 0
        found[name] = count.count, inner(step)._lockstep.passes - before - checks
    step.close()
    assert inner(step).chunks == -(-most_rows(20.0, 6.0) // 10)
    assert {passes for _, passes in found.values()} == {inner(step).chunks}
    return found


def test_gathers_tell_nothing_of_batches(tmp_path: Path) -> None:
    first, second = in_group(2, counted, tmp_path, tmp_path)
    assert [first[n][0] for n in ROWS] == [second[n][0] for n in reversed(ROWS)]
    steady = {first[name][0] for name in ROWS} - {first["one"][0]}  # the fourth step checks
    assert len(steady) == 1
    assert first["one"][0] > steady.pop() > 0


class Tied(nn.Module):
    """A table that is the last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(CLASSES, FEATURES)
        self.middle = nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        places = (x[:, 0] > 0).long()
        found: Tensor = self.head(torch.tanh(self.middle(x)) + self.table(places))
        return found


class Recomputed(nn.Module):
    """Checkpointed activations, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, WIDTH)
        self.block = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.block, self.first(x), use_reentrant=False)
        found: Tensor = self.last(hidden)
        return found


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def stepped(rank: int, folder: Path) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    found = {}
    for kind in (Tied, Recomputed):
        plain, model = made(kind), made(kind)
        children = list(model.children())
        units = [children] if kind is Tied else children
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for unit in units:
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
        step = step_of(model, folder / f"{kind.__name__}", rank, bucket_size=40)
        carrier = gloo_carrier()
        whole = PrivateStep(
            plain,
            SGD(plain.parameters(), lr=0.5),
            loss_fn=LOSS,
            account=make_account(folder / f"{kind.__name__} whole", rank, insecure=True),
            entropy=InsecureSeed(1),
            transport=carrier,
            bucket_size=40,
        )
        whole._noise = Quiet()
        for number in range(3):
            step(make_batch(make_data(rank, number)))
            whole(make_batch(make_data(rank, number)))
        step.close()
        whole.close()
        shards = dict(model.named_parameters())
        full = {n: p.full_tensor().detach() for n, p in shards.items() if isinstance(p, DTensor)}
        found[kind.__name__] = full, {n: p.detach() for n, p in plain.named_parameters()}
    return found


def test_tied_and_recomputed_layers_are_trained_as_whole_ones(tmp_path: Path) -> None:
    for rank in in_group(2, stepped, tmp_path, tmp_path):
        for found, wanted in rank.values():
            assert same(found, wanted)


class Skipping(nn.Module):
    """Leaves a layer out where the data say so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if float(x.detach().abs().max()) < 50.0:
            hidden = self.second(hidden)
        found: Tensor = self.last(hidden)
        return found


class Averaging(Skipping):
    """Looks across the batch."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x))
        found: Tensor = self.last(hidden - hidden.mean(0))
        return found


class Ruleless(Skipping):
    """Takes its weight through a function without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x))
        found: Tensor = self.last(torch.nn.functional.bilinear(hidden, x, self._weight()))
        return found

    def _weight(self) -> Tensor:
        return self.third

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Parameter(0.1 * torch.randn(FEATURES, FEATURES, FEATURES))


class Squared(Skipping):
    """Makes its weight of a parameter's square, whose derivative reads the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x))
        found: Tensor = nn.functional.linear(hidden, self.last.weight.square())
        return found


def refused(rank: int, folder: Path) -> list[str]:
    told: list[str] = []

    def refuse(kind: type[Exception], model: nn.Module, data: Any, **options: Any) -> None:
        def act() -> None:
            step = step_of(model, folder / str(len(told)), rank, **options)
            for one in data:
                step(make_batch(one))

        with pytest.raises(kind) as caught:
            act()
        told.append(str(caught.value))

    usual = [make_data(rank, 0), make_data(rank, 1)]
    far = make_data(rank, 2)
    for kind in (Averaging, Ruleless, Squared):
        model = made(kind)
        refuse(ModelError, sharded(model), usual)
    model = made(Skipping)
    parts = list(model.children())
    # All ranks' data are far away in the third step, so that all of them refuse, none waits.
    refuse(ModelError, sharded(model, *parts), [*usual, (far[0] + 100.0, far[1])])
    tied = made(Tied)
    refuse(
        ModelError, sharded(tied, tied.get_submodule("table"), tied.get_submodule("head")), usual
    )
    model = deep(1)
    refuse(ConfigError, sharded(model), usual, memory_limit=1 << 20)
    model = deep(1)
    step = step_of(sharded(model), folder / "frozen", rank)
    next(iter(model.parameters())).requires_grad_(False)
    with pytest.raises(ModelError) as caught:
        step(make_batch(usual[0]))
    told.append(str(caught.value))
    return told


def test_what_cannot_be_clipped_a_unit_at_a_time_is_refused(tmp_path: Path) -> None:
    for told in in_group(2, refused, tmp_path, tmp_path):
        mixing, ruleless, squared, skipping, tied, limit, frozen = told
        assert "every example by itself" in mixing
        assert "bilinear has no rule of its own" in ruleless
        assert "derivative reads them" in squared
        assert "another course at 'last'" in skipping
        assert "shared" in tied or "tied" in tied
        assert "microbatch_size" in limit
        assert "requires_grad" in frozen


def ranks() -> EndpointRanks:
    return EndpointRanks(TorchDistributed(dist.new_group(), timeout=30.0))


def saved(rank: int, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = deep(2)
    step = step_of(sharded(model, *linears(model)), folder / "one", rank)
    step(make_batch(make_data(rank, 0)))
    place = Checkpoint("run", 1, 1, None, 0.0, {})
    save_checkpoint(folder, place, model, step.optimizer, ranks())
    save_weights(folder / "model.safetensors", model)
    after = {n: p.full_tensor().detach() for n, p in model.named_parameters()}  # type: ignore[attr-defined]
    again = deep(2)
    torch.nn.init.zeros_(next(iter(again.parameters())))
    other = step_of(sharded(again, *linears(again)), folder / "two", rank)
    load_checkpoint(folder / "step-000000001", "run", again, other.optimizer, ranks=ranks())
    for one in (step, other):
        one(make_batch(make_data(rank, 1)))
        one.close()
    both = [
        {n: p.full_tensor().detach() for n, p in m.named_parameters()}  # type: ignore[attr-defined]
        for m in (model, again)
    ]
    assert same(*both), "a resumed step is the same"
    return after, both[0]


def test_checkpoints_and_whole_weights_of_shards(tmp_path: Path) -> None:
    found = in_group(2, saved, tmp_path, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert same(weights, found[0][0])
    assert not same(weights, found[0][1])
    plain = deep(2)
    plain.load_state_dict(weights)  # of the model before it was sharded


def unwritable(rank: int, folder: Path) -> str:
    model = deep(1)
    sharded(model)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(
            folder, Checkpoint("run", 1, 1, None, 0.0, {}), model, SGD(model.parameters(), 0.1)
        )
    return str(caught.value)


def test_shards_are_not_saved_by_one_rank_alone(tmp_path: Path) -> None:
    assert all("ranks=" in said for said in in_group(2, unwritable, tmp_path, tmp_path))
