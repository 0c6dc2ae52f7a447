"""One model on all ranks: the same at the beginning, and still the same later."""

from __future__ import annotations

import hashlib

import torch
from safetensors.torch import load, save
from torch import nn

from dither.train.distributed.world import World


def same_weights(world: World, model: nn.Module) -> None:
    """Give all ranks rank 0's initial weights, which are public. Collective."""
    if world.world_size > 1:
        own = save(_state(model)) if world.is_first else b""
        model.load_state_dict(load(world.broadcast(own)))


def require_same_model(world: World, model: nn.Module) -> None:
    """Make sure that all ranks have one model: they make the same steps of the same sums.

    Collective. Processors of different makes may round an optimizer's steps differently; then each
    rank would train a model of its own.

    Raises:
        MismatchError: The models differ; on all ranks.
    """
    if world.world_size > 1:
        digest = hashlib.sha256()
        for value in _state(model).values():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        world.require_same({"model": digest.hexdigest()[:16]})


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
