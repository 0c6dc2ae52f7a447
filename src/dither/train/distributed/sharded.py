"""Private steps of models whose parameters FSDP2 (`fully_shard`) spreads over ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Unpack, final

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from dither.clipping.gradients import Inventory
from dither.errors import ConfigError, ModelError
from dither.release.ahead import Line
from dither.release.bounded_sum import BoundedSum
from dither.release.release import Opened, open_release
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch
from dither.train.applying import check_optimizer, clear_gradients, gradient_dtype
from dither.train.base_step import BaseStep, Released, StepOptions
from dither.train.distributed.units import Units


@final
class ShardedStep(BaseStep):
    """Makes private steps of a `fully_shard`ed model; as `PrivateStep` does.

    A rank holds its shards of parameters and optimizer state, and of the rest what FSDP gathers for
    the unit that just computes, forward or backward. Gathers are messages, so there are as many on
    each rank in each step, whatever its batch (`LockstepEngine`): they tell nothing of records.
    Norms follow from activations and output gradients; then each bucket's clipped sum is computed
    in full, released over ranks, cut to this rank's shard and let go. FSDP's own reduction of
    gradients never runs: no parameter ever gets a gradient that was not released.

    Memory: the shards, with their gradients; of whole parameters the root's unit and about two
    others, as FSDP gathers the next ahead; two buckets of sums, each at least one parameter; the
    inputs and output gradients of all layers for the local batch, until their sums have left.

    Args:
        model: Its parameters are `DTensor`s, at least one; all ranks begin with the same values.
        optimizer: Over them, made after `fully_shard`. Its state is sharded like them.
        options: As for `PrivateStep`, but for ``precision`` and ``memory_limit``. Each step has as
            many passes of ``microbatch_size`` as hardly any batch needs, by default one, the same
            on all ranks; the noise pool is for all parameters, in the host's memory; the transport
            is over the ranks of the model's mesh.

    Raises:
        ConfigError: Nothing is sharded, the transport has other ranks, or an option that is not for
            sharded models.
        ModelError: Another optimizer, or parameters that FSDP computes in a narrower type.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, **options: Unpack[StepOptions]
    ) -> None:
        check_optimizer(model, optimizer)
        _check_options(options)
        self._units = Units(model)
        _check_ranks(model, options.get("transport"))
        self._shards = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._dtype = gradient_dtype(model)
        super().__init__(model, optimizer, **options)

    def _inventory(self) -> Inventory:
        inventory = self._units.inventory()
        _check_types(inventory, self._shards)
        return inventory

    def _release(self, batch: PoissonBatch, start: float) -> Released:
        self._check_trained()
        self._units.reshard()  # what a user's own forward pass left whole
        clipped = self._clip(batch)
        self._spans.add("forward", start)
        clipped_at = time.perf_counter()
        gradients, saturated = self._send_all(clipped.bounded)
        return Released(clipped.diagnostics, saturated, clipped_at, gradients)

    def _send_all(self, bounded: BoundedSum) -> tuple[dict[str, Tensor], int]:
        """Release a sum; return this rank's shards of it."""
        opened = open_release(
            bounded,
            self.account,
            self._transport,
            self._noise,
            scale=self._clip.scale,
            dtype=self._dtype,
        )
        found: dict[str, Tensor] = {}
        try:
            with Line[dict[str, Tensor]](self._sender, self._spans) as line:
                before: Future[dict[str, Tensor]] | None = None
                for chunk in bounded.chunks:
                    opened.admit(chunk)
                    sent = line.send(partial(self._send, opened, chunk))
                    if before is not None:
                        before.result()  # no more sums at a time than one and the next
                    before = sent
                    del chunk
                opened.finish()
                for shards in line.results():
                    found.update(shards)
        except BaseException as error:
            opened.abandon(error)
            raise
        return found, opened.saturated

    def _send(self, opened: Opened, chunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's part of a chunk's noisy mean."""
        noisy = opened.send(chunk)
        return {name: _cut(tensor, self._shards[name]) for name, tensor in noisy.items()}

    def _check_trained(self) -> None:
        """Refuse parameters that were frozen, or let go, since the step was made."""
        trained = {n for n, p in self.model.named_parameters() if p.requires_grad}
        if trained != self._shards.keys():
            raise ModelError(
                expected="the trainable parameters that the model had when its step was made",
                got=f"others: {', '.join(sorted(trained ^ self._shards.keys())[:3])}",
                fix="make the step anew after changing requires_grad, on all ranks",
            )

    def _apply(self, gradients: Mapping[str, Tensor]) -> None:
        clear_gradients(self.optimizer)
        for name, parameter in self._shards.items():
            parameter.grad = gradients[name]
        self.optimizer.step()
        clear_gradients(self.optimizer)


def _cut(whole: Tensor, like: Tensor) -> Tensor:
    """Return a rank's shard of a released tensor, in memory of its own and of the parameter's type.

    All ranks hold the same whole, so nothing travels.
    """
    narrow = whole.to(like.dtype)
    if not isinstance(like, DTensor):
        return narrow.clone()
    cut = distribute_tensor(narrow, like.device_mesh, like.placements, src_data_rank=None)
    local = cut.to_local().clone()
    return DTensor.from_local(
        local,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _check_ranks(model: nn.Module, transport: Transport | None) -> None:
    """Refuse a mesh and a transport that do not agree on R."""
    meshes = {p.device_mesh for p in model.parameters() if isinstance(p, DTensor)}
    sizes = {mesh.size() for mesh in meshes}
    carried = 1 if transport is None else transport.world_size
    if sizes - {carried}:
        raise ConfigError(
            expected=f"a transport over the {max(sizes)} ranks of the model's mesh",
            got=f"one over {carried}",
            fix="open the carrier over the same ranks as the mesh",
        )


def _check_types(inventory: Inventory, shards: Mapping[str, Tensor]) -> None:
    """Refuse a mixed-precision policy: gathered parameters would be others than the trained."""
    whole = inventory.parameters
    narrow = [n for n, shard in shards.items() if whole[n].dtype != shard.dtype]
    if narrow:
        raise ModelError(
            expected="parameters that FSDP gathers in their own type",
            got=f"{whole[narrow[0]].dtype} for '{narrow[0]}', which is {shards[narrow[0]].dtype}",
            fix="leave out param_dtype of MixedPrecisionPolicy; use torch.autocast in the model",
        )


def _check_options(options: StepOptions) -> None:
    """Refuse what would let a rank's memory, or what it drew, decide how often all gather."""
    if options.get("memory_limit") is not None:
        raise ConfigError(
            expected="microbatch_size for a sharded model, a public number",
            got="memory_limit, from which each rank would find a number of its own",
            fix="leave memory_limit out",
        )
    if options.get("precision") is not None:
        raise ConfigError(
            expected="full precision for a sharded model",
            got="a precision controller, whose layers are not whole on any rank",
            fix="leave precision out, or train with PrivateStep or DdpStep",
        )
