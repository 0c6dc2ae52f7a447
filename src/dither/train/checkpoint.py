"""Checkpoints without pickle: whole or not there, with digests, for any number of ranks.

One rank, or ranks that all hold a small model, write one safetensors file. Where a model is sharded
or large, every rank writes its part into one folder, and a manifest makes it a checkpoint. Either
form can be read on any number of ranks: each reads the parts of the tensors that it will hold.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dither.errors import CheckpointError, DitherError, OutputError
from dither.files import write_atomic
from dither.privacy.ledger_entries import Head
from dither.train.distributed import parts
from dither.train.distributed.parts import State
from dither.train.distributed.pieces import is_sharded, local_of, piece_of, whole
from dither.train.distributed.ranks import Ranks, on_all
from dither.train.distributed.reading import (
    FORMAT,
    KEY,
    MODEL,
    OPTIMIZER,
    Facts,
    content_digest,
    not_read,
    open_together,
    open_verified,
    optimizer_for,
    weights_for,
)

_NAMES = "step-*"
_KEPT = 3  # the newest may be damaged by a failing disk


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood.

    A checkpoint holds released state only: weights and optimizer moments made of noisy gradients.
    No sums before noise, no sampler state and no key is ever stored, so nothing can be repeated.

    Attributes:
        run: The run that made it; another run's is refused.
        step: Steps that made this model.
        spent: Releases made by then, those of lost lineages included.
        head: The last entry then of the ledger that this rank keeps; a ledger without it is
            refused on resume. None where the rank keeps none, or a new one.
        seconds: Training time by then.
        timing: The same by part.
        bound: Where gradients are clipped, with adaptive clipping: made of released values.
        precision: Which layers ran in low precision, and what probes released; see `Controller`.
        account: Name of that ledger (its header's id), for ranks above 0.
    """

    run: str
    step: int
    spent: int
    head: Head | None
    seconds: float
    timing: Mapping[str, float]
    bound: float | None = None
    account: str | None = None
    precision: Mapping[str, Any] | None = None


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: Optimizer,
    ranks: Ranks | None = None,
) -> None:
    """Write model, optimizer and position into a run's folder, atomically; drop older ones.

    Collective over ranks, where they are given. Of ``checkpoint`` rank 0's counts, and each
    rank's ``head`` and ``account``. A model that every rank holds whole is rank 0's in small
    ones, so that no other needs to see the folder.

    Args:
        folder: The run's checkpoints.
        checkpoint: The position.
        model: May be sharded by `fully_shard`.
        optimizer: Over the model's parameters.
        ranks: The group; None for one process.

    Raises:
        OutputError: The disk is full; no partial checkpoint stays. On all ranks.
        CheckpointError: A sharded model, and ranks that do not share the folder. On all ranks.
    """
    tensors, rest = _flatten(model, optimizer)
    facts = _facts(checkpoint, model, rest)
    name = f"step-{checkpoint.step:09d}"  # names sort by step
    if ranks is None or ranks.world_size == 1:
        _write_single(folder, name, facts, tensors)
        return
    facts["heads"] = _gather_heads(checkpoint, ranks)
    sharded = any(map(is_sharded, tensors.values()))
    owners = parts.share_out(tensors, ranks.world_size)
    if sharded or len(set(owners.values())) > 1:
        staged = _stage(folder, name, ranks, must=sharded)
        if staged is not None:
            _write_parts(folder / name, staged, facts, _Shared(tensors, owners), ranks)
            return

    def write() -> None:
        if ranks.rank == 0:
            _write_single(folder, name, facts, tensors)

    on_all(ranks, write, _not_written)


def _write_single(
    folder: Path, name: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    if any(piece_of(tensor) != whole(tuple(tensor.shape)) for tensor in tensors.values()):
        raise CheckpointError(
            expected="ranks=, the group that a sharded model is spread over",
            got="none",
            fix="save on all ranks together",
        )
    parts.sweep(folder)
    held = {key: local_of(value) for key, value in tensors.items()}
    plain = json.loads(json.dumps(facts))  # as it will be read: lists for tuples, keys as text
    sealed = {**plain, "digest": content_digest(plain, held)}
    content = save(held, metadata={KEY: json.dumps(sealed)})
    write_atomic(folder / f"{name}.safetensors", content)
    _prune(folder)


@dataclass(frozen=True)
class _Shared:
    """Tensors, and which rank writes each that all have whole."""

    tensors: Mapping[str, Tensor]
    owners: Mapping[str, int]


def _stage(folder: Path, name: str, ranks: Ranks, *, must: bool) -> Path | None:
    """Make a folder that all ranks can write to; None where they do not share one."""

    def make() -> str:
        return str(parts.stage(folder, name)) if ranks.rank == 0 else ""

    staged = Path(on_all(ranks, make, _not_written)[0])
    if all(text == b"1" for text in ranks.gather(b"1" if staged.is_dir() else b"0")):
        return staged
    if ranks.rank == 0:
        shutil.rmtree(staged, ignore_errors=True)
    if must:
        raise CheckpointError(
            expected="a run folder that all ranks share, for a sharded model",
            got="one that some ranks do not see",
            fix="choose an --out on a file system that all hosts mount",
        )
    return None


def _write_parts(
    path: Path,
    staged: Path,
    facts: Mapping[str, Any],
    shared: _Shared,
    ranks: Ranks,
) -> None:
    def write() -> dict[str, Any] | None:
        written = parts.write_part(staged, ranks.rank, shared.tensors, shared.owners)
        return None if written is None else written.to_json()

    try:
        written = on_all(ranks, write, _not_written)

        def finish() -> None:
            if ranks.rank == 0:
                parts.write_manifest(staged, facts, [about for about in written if about])
                parts.settle(staged, path)
                _prune(path.parent)

        on_all(ranks, finish, _not_written)
    finally:
        if ranks.rank == 0:  # once settled, it is not there any more
            shutil.rmtree(staged, ignore_errors=True)


def _prune(folder: Path) -> None:
    for old in sorted(folder.glob(_NAMES))[:-_KEPT]:
        parts.discard(old)


def _facts(checkpoint: Checkpoint, model: nn.Module, rest: Mapping[str, Any]) -> dict[str, Any]:
    head = checkpoint.head
    return {
        "format": FORMAT,
        "model": fingerprint(model),
        "optimizer": rest,
        "run": checkpoint.run,
        "step": checkpoint.step,
        "spent": checkpoint.spent,
        "head": None if head is None else [head.sequence, head.hash],
        "seconds": checkpoint.seconds,
        "timing": dict(checkpoint.timing),
        "bound": checkpoint.bound,
        "precision": None if checkpoint.precision is None else dict(checkpoint.precision),
    }


def _gather_heads(checkpoint: Checkpoint, ranks: Ranks) -> dict[str, list[Any]]:
    """Return the last entry of every rank's ledger, by the ledger's name."""
    head = checkpoint.head
    mine = None if head is None else [checkpoint.account, [head.sequence, head.hash]]
    found = (json.loads(text) for text in ranks.gather(json.dumps(mine).encode()))
    return {account: last for account, last in filter(None, found) if account is not None}


def _not_written(rank: int, kind: str) -> DitherError:
    return OutputError(
        expected="a checkpoint that all ranks have written",
        got=f"{kind} on rank {rank}",
        fix="see that rank's own message, mend it, then resume",
    )


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's weights alone, for use elsewhere (`safetensors.torch.load_file`).

    Where the model is sharded, all of its ranks call this together: each tensor in turn is put
    together on all, and the first rank, which keeps the whole in its memory, writes.

    Args:
        path: The file.
        model: May be sharded by `fully_shard`.

    Raises:
        OutputError: The disk is full; no partial file stays. On the rank that writes.
    """
    state = model.state_dict()
    meshes = [value.device_mesh for value in state.values() if isinstance(value, DTensor)]
    writes = not any(any(mesh.get_coordinate() or ()) for mesh in meshes)
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        together = value.full_tensor() if isinstance(value, DTensor) else value
        if writes:
            weights[name] = together.detach().cpu().contiguous()
    if writes:
        write_atomic(path, save(weights))


def load_checkpoint(
    path: Path | None,
    run: str,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    ranks: Ranks | None = None,
    account: str | None = None,
) -> Checkpoint:
    """Read a run's checkpoint into a model and an optimizer of the same make.

    Collective over ranks, where they are given, in whatever number: those that do not see the
    files get the tensors from rank 0.

    Args:
        path: The checkpoint, from `latest_checkpoint`; rank 0's counts.
        run: The run that goes on.
        model: May be sharded by `fully_shard`, however the one that was saved was.
        optimizer: Over the model's parameters.
        ranks: The group; None for one process.
        account: Name of the ledger that this rank keeps, if it keeps one.

    Returns:
        The position; its ``head`` is the entry that this rank's ledger must have.

    Raises:
        CheckpointError: Damaged, of another version, or of another model or run. Nothing is
            changed. On all ranks.
    """
    if ranks is None or ranks.world_size == 1:
        assert path is not None  # noqa: S101 - only ranks above 0 may leave it out
        facts, state = open_verified(path)
        ready = _prepare(_Target(path, run, model, optimizer), facts, state)
    else:
        path, facts, state = open_together(path, ranks)
        ready = _prepare_together(_Target(path, run, model, optimizer), facts, state, ranks)
    model.load_state_dict(ready[0])
    optimizer.load_state_dict(ready[1])
    head = _head_for(facts, 0 if ranks is None else ranks.rank, account)
    return Checkpoint(
        run=run,
        step=facts["step"],
        spent=facts["spent"],
        head=head,
        seconds=facts["seconds"],
        timing=facts["timing"],
        bound=facts["bound"],
        account=account,
        precision=facts["precision"],
    )


@dataclass(frozen=True)
class _Target:
    """What a checkpoint is read into, for which run, and where it lies."""

    path: Path
    run: str
    model: nn.Module
    optimizer: Optimizer


def _prepare(
    target: _Target, facts: Facts, state: State
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read everything, before anything is changed."""
    if facts["model"] != fingerprint(target.model):
        raise CheckpointError(
            expected="a checkpoint of this model",
            got=f"one of another model in {target.path}",
            fix="resume with the options the run was started with",
        )
    if facts["run"] != target.run:
        raise CheckpointError(
            expected=f"a checkpoint of run {target.run}",
            got=f"one of run {facts['run']} in {target.path}: its model is not covered by this "
            "promise",
            fix="delete this file to resume from the run's own",
        )
    weights = weights_for(target.model, state)
    return weights, optimizer_for(target.optimizer, state, facts["optimizer"])


def _prepare_together(
    target: _Target, facts: Facts, state: State, ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    ready: list[tuple[dict[str, Tensor], dict[str, Any]]] = []
    on_all(ranks, lambda: ready.append(_prepare(target, facts, state)), not_read)
    return ready[0]


def _head_for(facts: Facts, rank: int, account: str | None) -> Head | None:
    """Return the entry that a rank's ledger must have; a new ledger's is nowhere."""
    head = facts["head"] if rank == 0 else facts.get("heads", {}).get(account)
    return None if head is None else Head(*head)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder, of either form."""
    return max(folder.glob(_NAMES), default=None)


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the names, shapes and types of a model's state, and of its layers.

    `fully_shard` puts FSDP before the names of the layers that it shards: the same model.
    """
    shapes = [
        [name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()
    ]
    layers = re.sub(r"\bFSDP(?=\w+\()", "", repr(model))
    return hashlib.sha256(json.dumps([layers, shapes]).encode()).hexdigest()


def _flatten(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of model and optimizer by name, and the rest of the optimizer's state."""
    state = optimizer.state_dict()
    tensors = {f"{MODEL}{name}": value for name, value in model.state_dict().items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"scalars": scalars, "groups": state["param_groups"]}
