"""Checkpoints without pickle: one safetensors file, whole or not there, with a digest inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from dither.errors import CheckpointError
from dither.files import write_atomic
from dither.privacy.ledger_entries import Head

_FORMAT = "1"
_KEY = "dither"
_NAMES = "step-*.safetensors"
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
        head: The ledger's last entry then; a ledger without it is refused on resume.
        seconds: Training time by then.
        timing: The same by part.
        bound: Where gradients are clipped, with adaptive clipping: made of released values.
    """

    run: str
    step: int
    spent: int
    head: Head | None
    seconds: float
    timing: Mapping[str, float]
    bound: float | None = None


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer
) -> None:
    """Write model, optimizer and position into a run's folder, atomically; drop older files.

    Raises:
        OutputError: The disk is full; no partial file stays.
    """
    tensors, rest = _flatten_optimizer(optimizer)
    tensors |= {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    head = checkpoint.head
    facts = {
        "format": _FORMAT,
        "model": fingerprint(model),
        "optimizer": rest,
        "run": checkpoint.run,
        "step": checkpoint.step,
        "spent": checkpoint.spent,
        "head": None if head is None else [head.sequence, head.hash],
        "seconds": checkpoint.seconds,
        "timing": dict(checkpoint.timing),
        "bound": checkpoint.bound,
        "digest": _digest(tensors),
    }
    path = folder / f"step-{checkpoint.step:09d}.safetensors"  # names sort by step
    write_atomic(path, save(tensors, metadata={_KEY: json.dumps(facts)}))
    for old in sorted(folder.glob(_NAMES))[:-_KEPT]:
        old.unlink()


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's weights alone, for use elsewhere (`safetensors.torch.load_file`)."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomic(path, save(weights))


def load_checkpoint(path: Path, run: str, model: nn.Module, optimizer: Optimizer) -> Checkpoint:
    """Read a run's checkpoint into a model and an optimizer of the same make.

    Raises:
        CheckpointError: Damaged, of another version, or of another model. Nothing is changed.
    """
    facts, tensors = _read(path)
    if facts["model"] != fingerprint(model):
        raise CheckpointError(
            expected="a checkpoint of this model",
            got=f"one of another model in {path}",
            fix="resume with the options the run was started with",
        )
    if facts["run"] != run:
        raise CheckpointError(
            expected=f"a checkpoint of run {run}",
            got=f"one of run {facts['run']} in {path}: its model is not covered by this promise",
            fix="delete this file to resume from the run's own",
        )
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    model.load_state_dict(weights)
    optimizer.load_state_dict(_unflatten_optimizer(tensors, facts["optimizer"]))
    head = facts["head"]
    return Checkpoint(
        run=run,
        step=facts["step"],
        spent=facts["spent"],
        head=None if head is None else Head(*head),
        seconds=facts["seconds"],
        timing=facts["timing"],
        bound=facts.get("bound"),  # runs from before adaptive clipping have none
    )


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder."""
    return max(folder.glob(_NAMES), default=None)


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the names, shapes and types of a model's state, and of its layers."""
    shapes = [
        [name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()
    ]
    return hashlib.sha256(json.dumps([repr(model), shapes]).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if facts.get("format") != _FORMAT or facts.get("digest") != _digest(tensors):
        raise _damaged(path, "a digest or format that does not match")
    return facts, tensors


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        expected=f"a whole checkpoint in {path}",
        got=reason,
        fix="delete this file to resume from the one before; the steps since stay charged",
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flatten_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value.contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"scalars": scalars, "groups": state["param_groups"]}


def _unflatten_optimizer(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in rest["scalars"].items()}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}
