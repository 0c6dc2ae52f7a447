"""Checkpoints of many ranks: whole or not there, and read by any other number of ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dither.errors import CheckpointError, DitherError, OutputError, PeerError
from dither.privacy.ledger_entries import Head
from dither.reduce.endpoint import Endpoint
from dither.reduce.transports.threads import try_ranks
from dither.reduce.transports.torch_distributed import TorchDistributed
from dither.train import checkpoint as checkpoints
from dither.train.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from dither.train.distributed import parts, reading
from dither.train.distributed.pieces import Piece, local_of, piece_of, spread_like, whole
from dither.train.distributed.ranks import EndpointRanks, Ranks

RUN = "run-a"
Pair = tuple[nn.Module, torch.optim.Optimizer]
SHAPES = ((7, 12), (12, 12), (12, 3))  # no length divides by 2 or 3 everywhere


def a_pair(seed: int, steps: int = 2, kind: str = "adam") -> Pair:
    """A model that has made some steps, the same for one seed."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in SHAPES:
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.GroupNorm(1, 3))
    optimizer = an_optimizer(model, kind)
    for step in range(steps):
        take_step(model, optimizer, step)
    return model, optimizer


def an_optimizer(model: nn.Module, kind: str = "adam") -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(model.parameters(), lr=0.01)
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for index, (_, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(100 * number + index)
        full = torch.randn(parameter.shape, generator=generator)
        piece = piece_of(parameter)
        local = full[piece.within(whole(tuple(parameter.shape)))].clone()
        parameter.grad = spread_like(local, parameter)
    optimizer.step()
    optimizer.zero_grad()


def position(step: int = 5, rank: int = 0) -> Checkpoint:
    return Checkpoint(
        run=RUN, step=step, spent=step + 1, head=Head(3 + rank, f"hash of {rank}"), seconds=1.5,
        timing={"clip": 0.5}, bound=0.25, account=f"account {rank}",
    )  # fmt: skip


def content(pair: Pair) -> dict[str, Tensor]:
    """All tensors of a model and its optimizer, as wholes."""
    tensors, _ = checkpoints._flatten(*pair)
    return {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def on_ranks(
    world_size: int, work: Callable[[EndpointRanks], Any], timeout: float = 20.0
) -> list[Any]:
    """What every rank returned or raised."""

    def job(endpoint: Endpoint) -> Any:
        try:
            return work(EndpointRanks(endpoint))
        except DitherError as error:
            return error

    outcomes = try_ranks(world_size, job, timeout=timeout)
    assert outcomes.errors == {}
    return outcomes.results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoints"
    made.mkdir()
    return made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank writes a file of its own, however small the model."""
    monkeypatch.setattr(parts, "PART_BYTES", 64)


def save_on(world_size: int, folder: Path, pair: Pair, step: int = 5) -> list[Any]:
    def work(ranks: EndpointRanks) -> None:
        save_checkpoint(folder, position(step, ranks.rank), *pair, ranks)

    return on_ranks(world_size, work)


def load_on(world_size: int, path: Path | None, kind: str = "adam", **changes: Any) -> list[Any]:
    """What every rank reads: position and tensors."""

    def work(ranks: EndpointRanks) -> Any:
        pair = a_pair(9, 0, kind)
        mine = path if ranks.rank == 0 else None
        options = {"account": f"account {ranks.rank}", **changes}
        found = load_checkpoint(mine, RUN, *pair, ranks=ranks, **options)
        return found, content(pair)

    return on_ranks(world_size, work)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.usefixtures("small_parts")
def test_what_some_ranks_wrote_any_number_reads(
    folder: Path, writers: int, readers: int, kind: str
) -> None:
    pair = a_pair(1, kind=kind)
    assert save_on(writers, folder, pair) == [None] * writers
    path = latest_checkpoint(folder)
    assert path is not None
    assert path.is_dir() == (writers > 1)
    for rank, (found, tensors) in enumerate(load_on(readers, path, kind)):
        assert same(tensors, content(pair))
        assert (found.run, found.step, found.spent, found.bound) == (RUN, 5, 6, 0.25)
        assert (found.seconds, found.timing) == (1.5, {"clip": 0.5})
        # A rank above 0 is only held to its ledger if it was among the writers.
        there = rank == 0 or rank < writers
        assert found.head == (Head(3 + rank, f"hash of {rank}") if there else None)


@pytest.mark.usefixtures("small_parts")
def test_every_rank_writes_its_part_and_nothing_twice(folder: Path) -> None:
    pair = a_pair(1)
    save_on(3, folder, pair)
    path = folder / "step-000000005"
    assert sorted(f.name for f in path.iterdir()) == [
        "manifest.json", *(f"rank-{rank}.safetensors" for rank in range(3))
    ]  # fmt: skip
    sizes, names = [], []
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as part:
            held = [part.get_tensor(name) for name in part.keys()]  # noqa: SIM118
            names += list(part.keys())
            sizes.append(sum(t.numel() * t.element_size() for t in held))
    assert sorted(names) == sorted(content(pair))
    assert max(sizes) < 2 * min(sizes)


def test_a_small_model_is_one_file_of_rank_zero(folder: Path) -> None:
    save_on(3, folder, a_pair(1))
    assert [f.name for f in folder.iterdir()] == ["step-000000005.safetensors"]


def test_the_old_form_is_read_by_many_and_by_one(folder: Path) -> None:
    """A file without what is new in it, as earlier versions wrote it."""
    pair = a_pair(1)
    save_checkpoint(folder, position(), *pair)
    path = latest_checkpoint(folder)
    assert path is not None
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["dither"])
    assert "heads" not in facts
    for rank, (found, tensors) in enumerate(load_on(3, path)):
        assert same(tensors, content(pair))
        assert found.head == (Head(3, "hash of 0") if rank == 0 else None)


def blind_rank_one() -> bool:
    return threading.current_thread().name == "rank 1"


@pytest.mark.usefixtures("small_parts")
def test_ranks_that_see_another_file_system_get_the_tensors_from_rank_zero(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = a_pair(1)
    save_on(2, folder, pair)
    path = latest_checkpoint(folder)
    find = reading._same
    blind = lambda *found: None if blind_rank_one() else find(*found)  # noqa: E731
    monkeypatch.setattr(reading, "_same", blind)
    assert all(same(tensors, content(pair)) for _, tensors in load_on(3, path))


@pytest.mark.usefixtures("small_parts")
def test_where_ranks_share_no_folder_rank_zero_writes_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dir = Path.is_dir

    def blind(path: Path) -> bool:
        return is_dir(path) and not blind_rank_one()

    pair = a_pair(1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_dir", blind)
        assert save_on(3, folder, pair) == [None] * 3
    assert [f.name for f in folder.iterdir()] == ["step-000000005.safetensors"]
    assert all(same(tensors, content(pair)) for _, tensors in load_on(2, latest_checkpoint(folder)))


@pytest.mark.usefixtures("small_parts")
def test_the_newest_three_are_kept_of_both_forms(folder: Path) -> None:
    pair = a_pair(1)
    for step in (1, 2, 3):
        save_on(1 + step % 2, folder, pair, step)
    save_on(2, folder, pair, 4)
    save_on(1, folder, pair, 5)
    assert sorted(f.name for f in folder.iterdir()) == [
        "step-000000003", "step-000000004", "step-000000005.safetensors"
    ]  # fmt: skip
    assert latest_checkpoint(folder) == folder / "step-000000005.safetensors"


@pytest.mark.usefixtures("small_parts")
def test_a_step_saved_again_replaces_what_was_there(folder: Path) -> None:
    save_on(2, folder, a_pair(1))
    second = a_pair(2)
    save_on(3, folder, second)
    assert [f.name for f in folder.iterdir()] == ["step-000000005"]
    assert same(load_on(2, latest_checkpoint(folder))[0][1], content(second))


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-3] ^= 1
    path.write_bytes(held)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
@pytest.mark.parametrize(
    "name", ["rank-0.safetensors", "rank-1.safetensors", "rank-2.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.usefixtures("small_parts")
def test_damage_anywhere_is_refused_on_all_ranks_and_changes_nothing(
    folder: Path, name: str, harm: Callable[[Path], None], readers: int
) -> None:
    save_on(3, folder, a_pair(1))
    path = folder / "step-000000005"
    harm(path / name)

    def work(ranks: EndpointRanks) -> tuple[str, bool]:
        pair = a_pair(9, 0)
        before = {name: tensor.clone() for name, tensor in content(pair).items()}
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path, RUN, *pair, ranks=ranks)
        return caught.value.fix, same(content(pair), before)

    found = on_ranks(readers, work)
    assert all(untouched for _, untouched in found)
    assert sum("delete this folder" in fix for fix, _ in found) >= 1


def test_a_checkpoint_of_another_run_or_model_is_refused_on_all_ranks(folder: Path) -> None:
    save_on(2, folder, a_pair(1))
    path = latest_checkpoint(folder)

    def other_model(ranks: EndpointRanks) -> None:
        model = nn.Linear(3, 3)
        load_checkpoint(path, RUN, model, an_optimizer(model), ranks=ranks)

    def other_run(ranks: EndpointRanks) -> None:
        load_checkpoint(path, "run-b", *a_pair(9, 0), ranks=ranks)

    for work in (other_model, other_run):
        errors = on_ranks(2, work)
        assert [type(error) for error in errors] == [CheckpointError] * 2


@pytest.mark.parametrize("sick", [0, 1])
@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_on_one_rank_leaves_the_old_checkpoint_and_nothing_half(
    folder: Path, sick: int
) -> None:
    """The size limit of files is a process's, so each rank is one."""
    old = a_pair(1)
    save_on(3, folder, old, 4)
    assert in_processes(2, _save_on_a_full_disk, folder, sick) == ["OutputError"] * 2
    assert [f.name for f in folder.iterdir()] == ["step-000000004"]
    assert same(load_on(2, latest_checkpoint(folder))[0][1], content(old))


def _save_on_a_full_disk(ranks: Ranks, folder: Path, sick: int) -> str:
    parts.PART_BYTES = 64
    if ranks.rank == sick:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
    try:
        save_checkpoint(folder, position(5, ranks.rank), *a_pair(1), ranks)
    except OutputError as error:
        return type(error).__name__
    return "saved"


@pytest.mark.parametrize(
    ("victim", "moment"),
    [(0, "part"), (1, "part"), (1, "told"), (0, "manifest"), (0, "rename"), (0, "prune")],
)
def test_a_rank_that_dies_while_it_saves_leaves_a_whole_checkpoint(
    folder: Path, victim: int, moment: str
) -> None:
    pair = a_pair(1)
    for step in (1, 2, 3):
        save_checkpoint(folder, position(step), *pair)
    results = in_processes(2, _die_while_saving, folder, victim, moment)
    assert results[victim] == "killed"
    assert results[1 - victim] == "PeerError"
    path = latest_checkpoint(folder)
    assert path is not None
    saved = moment == "prune"
    assert path.name == ("step-000000009" if saved else "step-000000003.safetensors")
    assert same(load_on(2, path)[0][1], content(a_pair(2) if saved else pair))
    save_checkpoint(folder, position(10), *pair)  # and what was left over goes
    assert all(not f.name.startswith(".") for f in folder.iterdir())
    assert len(list(folder.iterdir())) == 3


def _die_while_saving(ranks: Ranks, folder: Path, victim: int, moment: str) -> str:
    parts.PART_BYTES = 64
    if ranks.rank == victim:
        where: dict[str, tuple[Any, str]] = {
            "part": (parts, "write_part"),
            "told": (parts.Written, "to_json"),
            "manifest": (parts, "write_manifest"),
            "rename": (parts, "settle"),
            "prune": (checkpoints, "_prune"),
        }
        setattr(*where[moment], _die)
    try:
        save_checkpoint(folder, position(9, ranks.rank), *a_pair(2), ranks)
    except PeerError as error:
        return type(error).__name__
    return "saved"


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Sharded models, on real processes over gloo.


def in_processes(world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What every process returned; "killed" for one that died."""
    context = multiprocessing.get_context("spawn")
    meeting = str(Path(arguments[0]).parent / f"meeting-{os.urandom(4).hex()}")
    pipes, processes = [], []
    for rank in range(world_size):
        receive, send = context.Pipe(duplex=False)
        member = partial(_member, rank, world_size, meeting, send)
        process = context.Process(target=member, args=(work, *arguments))
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    results = []
    for pipe, process in zip(pipes, processes, strict=True):
        try:
            results.append(pipe.recv() if pipe.poll(90) else "late")
        except EOFError:
            results.append("killed")
        process.join(10)
        process.kill()
        process.join()
    return results


def _member(rank: int, size: int, meeting: str, pipe: Any, *job: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    work, *arguments = job
    try:
        pipe.send(work(EndpointRanks(TorchDistributed(timeout=10.0)), *arguments))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise
    finally:
        pipe.close()
        os._exit(0)  # gloo waits for dead peers


def a_sharded_pair(seed: int, steps: int, size: int) -> Pair:
    """`a_pair`, each layer sharded over the ranks."""
    model, _ = a_pair(seed, 0)
    mesh = init_device_mesh("cpu", (size,))
    for layer in model.children():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = an_optimizer(model)
    for step in range(steps):
        take_step(model, optimizer, step)
    return model, optimizer


def _save_sharded(ranks: Ranks, folder: Path) -> str:
    pair = a_sharded_pair(1, 2, ranks.world_size)
    with pytest.raises(CheckpointError, match="the group that a sharded model"):
        save_checkpoint(folder, position(), *pair)
    save_checkpoint(folder, position(5, ranks.rank), *pair, ranks)
    held = sum(local_of(t).numel() for t in checkpoints._flatten(*pair)[0].values())
    return str(held)


def _load_sharded(ranks: Ranks, folder: Path, old: Path) -> str:
    pair = a_sharded_pair(9, 0, ranks.world_size)
    load_checkpoint(latest_checkpoint(old), RUN, *pair, ranks=ranks)  # one file of whole tensors
    assert same(content(pair), content(a_pair(1, 2)))
    pair = a_sharded_pair(9, 0, ranks.world_size)
    path = latest_checkpoint(folder) if ranks.rank == 0 else None
    found = load_checkpoint(path, RUN, *pair, ranks=ranks, account="account 1")
    tensors = content(pair)
    assert found.head is not None
    assert same(tensors, content(a_pair(1, 2)))
    take_step(*pair, 2)  # the optimizer is in working order
    assert same(content(pair), content(a_pair(1, 3)))
    return "same"


@pytest.mark.parametrize(
    ("writers", "readers"),
    [
        (2, 3),
        pytest.param(3, 2, marks=pytest.mark.full),
        pytest.param(2, 2, marks=pytest.mark.full),
    ],
)
def test_a_sharded_model_is_saved_in_shards_and_read_on_another_number_of_ranks(
    folder: Path, writers: int, readers: int
) -> None:
    held = list(map(int, in_processes(writers, _save_sharded, folder)))
    total = sum(tensor.numel() for tensor in content(a_pair(1)).values())
    assert max(held) < total  # no rank had all of it
    path = folder / "step-000000005"
    stored = json.loads((path / "manifest.json").read_text())["tensors"]
    assert max(len(about["pieces"]) for about in stored.values()) == writers
    old = folder.parent / "old"
    old.mkdir()
    save_checkpoint(old, position(), *a_pair(1, 2))
    assert in_processes(readers, _load_sharded, folder, old) == ["same"] * readers
    # And on one process, that shards nothing.
    pair = a_pair(9, 0)
    load_checkpoint(path, RUN, *pair)
    assert same(content(pair), content(a_pair(1, 2)))


def test_pieces_overlap_as_blocks_do() -> None:
    one, other = Piece((2, 0), (3, 4)), Piece((4, 1), (5, 2))
    both = one.overlap(other)
    assert both == Piece((4, 1), (1, 2))
    assert both.within(one) == (slice(2, 3), slice(1, 3))
    assert one.overlap(Piece((5, 0), (1, 4))).elements == 0
    assert whole(()).overlap(whole(())).elements == 1
