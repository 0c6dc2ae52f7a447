"""Reading a checkpoint of either form, alone or by many ranks, into whatever layout a model has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from dither.errors import CheckpointError, DitherError
from dither.train.distributed.parts import Held, Parts, State, damaged, read_manifest
from dither.train.distributed.pieces import piece_of, spread_like, whole
from dither.train.distributed.ranks import Ranks, on_all

FORMAT = "2"
KEY = "dither"
MODEL, OPTIMIZER = "model.", "optimizer."

Facts: TypeAlias = dict[str, Any]


def open_checkpoint(path: Path) -> tuple[Facts, State]:
    """Open a checkpoint of either form. The files of a folder are not verified yet.

    Raises:
        CheckpointError: Damaged, or of another version.
    """
    return _open_folder(path) if path.is_dir() else _open_file(path)


def open_verified(path: Path) -> tuple[Facts, State]:
    """Open a checkpoint and compare all of it with its digests.

    Raises:
        CheckpointError: Damaged, or of another version.
    """
    facts, state = open_checkpoint(path)
    if isinstance(state, Parts):
        state.verify(0, 1)
    return facts, state


def open_together(path: Path | None, ranks: Ranks) -> tuple[Path, Facts, State]:
    """Open rank 0's checkpoint on all ranks; each verifies its share of the files.

    Ranks that do not see the very same one get the tensors from rank 0.

    Raises:
        CheckpointError: Damaged, or of another version; on all ranks.
    """
    mine: tuple[Facts, State] | None = None

    def first() -> None:
        nonlocal mine
        if ranks.rank == 0:
            assert path is not None  # noqa: S101 - only other ranks may leave it out
            mine = open_checkpoint(path)

    on_all(ranks, first, not_read)
    told = json.loads(ranks.broadcast(json.dumps([str(path), mine and mine[0]]).encode()))
    where, facts = Path(told[0]), told[1]
    if mine is None:
        mine = _same(where, facts)
    everywhere = all(text == b"1" for text in ranks.gather(b"0" if mine is None else b"1"))

    def verify() -> None:
        if mine is not None and isinstance(mine[1], Parts) and (everywhere or ranks.rank == 0):
            mine[1].verify(*((ranks.rank, ranks.world_size) if everywhere else (0, 1)))

    on_all(ranks, verify, not_read)
    if everywhere and mine is not None:
        return where, facts, mine[1]
    tensors = _whole(mine[1]) if ranks.rank == 0 and mine is not None else {}
    return where, facts, Held(load(ranks.broadcast(save(tensors))))


def weights_for(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Return a model's saved weights, each laid out as the model's own."""
    return {
        name: spread_like(state.read(MODEL + name, piece_of(like)), like)
        for name, like in model.state_dict().items()
    }


def optimizer_for(optimizer: Optimizer, state: State, rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's saved state; what has a parameter's shape is laid out as that is."""
    found: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in rest["scalars"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key in state.names():
        if not key.startswith(OPTIMIZER):
            continue
        _, index, name = key.split(".", 2)
        like, shape = parameters[int(index)], state.shape(key)
        alike = shape == tuple(like.shape)
        tensor = state.read(key, piece_of(like) if alike else whole(shape))
        found.setdefault(int(index), {})[name] = spread_like(tensor, like) if alike else tensor
    return {"state": found, "param_groups": rest["groups"]}


def not_read(rank: int, kind: str) -> DitherError:
    """Return the error of the ranks that could read a checkpoint which another could not."""
    return CheckpointError(
        expected="a checkpoint that all ranks can read",
        got=f"{kind} on rank {rank}",
        fix="see that rank's own message, mend it, then resume on all",
    )


def content_digest(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a checkpoint's facts and of names and bytes of its tensors."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _open_folder(path: Path) -> tuple[Facts, State]:
    manifest = read_manifest(path)
    _check_format(path, manifest)
    return manifest, Parts(path, manifest)


def _open_file(path: Path) -> tuple[Facts, State]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = facts.pop("digest")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, str(error)) from error
    _check_format(path, facts)
    if digest != content_digest(facts, tensors):
        raise damaged(path, "a digest that does not match")
    return facts, Held(tensors)


def _check_format(path: Path, facts: Facts) -> None:
    found = facts.get("format")
    if found != FORMAT:
        raise damaged(path, f"format {found!r} where this version reads {FORMAT!r}")


def _same(path: Path, facts: Facts) -> tuple[Facts, State] | None:
    """Open what lies at a path, if it is the checkpoint of these facts."""
    try:
        found = open_checkpoint(path)
    except CheckpointError:
        return None
    return found if found[0] == facts else None


def _whole(state: State) -> dict[str, Tensor]:
    return {name: state.read(name, whole(state.shape(name))) for name in state.names()}
