"""What carries a training run's noisy sums between its ranks."""

from __future__ import annotations

import datetime as dt
from contextlib import ExitStack

import torch.distributed as dist

from dither.errors import ConfigError
from dither.privacy.trust import Trust
from dither.reduce.carrier import carry, shares_memory
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.keys import Authentication
from dither.reduce.transports.mpi import Mpi
from dither.reduce.transports.shared_memory import SharedMemory
from dither.reduce.transports.torch_distributed import TorchDistributed
from dither.release.transport import Solo, Transport
from dither.train.distributed.secret import cluster_secret
from dither.train.distributed.world import World

__all__ = ["clear_endpoint", "cluster_secret", "open_carrier", "own_endpoint"]


def open_carrier(
    world: World,
    trust: Trust,
    *,
    algorithm: str = "auto",
    authentication: Authentication | None = None,
) -> Transport:
    """Return what carries sums between the ranks, for as long as the world lasts. Collective.

    On one host that is shared memory, else a group of its own over the world's transport, so that
    a thread may send sums while the main thread computes: nothing else uses it. A message waits
    for ``world.timeout`` seconds, then a `PeerError` names who is missing.

    Args:
        world: All ranks.
        trust: Of the plan; ``distributed(t)`` agrees on masks.
        algorithm: Name, or auto.
        authentication: For masks.

    Raises:
        ConfigError: No such algorithm, or too few ranks for these masks.
        PeerError: A rank is dead or late.
    """
    if world.endpoint is None:
        return Solo()
    held = world.keep(ExitStack())
    local = algorithm in {"auto", "backend"} and shares_memory(world.endpoint)
    return carry(
        world.endpoint if local else own_endpoint(world),
        trust,
        held,
        algorithm=algorithm,
        authentication=authentication,
        timeout=world.timeout,
    )


def clear_endpoint(world: World, algorithm: str = "auto") -> Endpoint:
    """Return an end of the ranks for sums in clear: shared memory on one host. Collective.

    What goes over it must be public, or charged as not private.

    Raises:
        PeerError: A rank is dead or late.
    """
    known = world.endpoint
    if known is not None and algorithm in {"auto", "backend"} and shares_memory(known):
        return world.keep(SharedMemory.over(known, timeout=world.timeout))
    return own_endpoint(world)


def own_endpoint(world: World) -> Endpoint:
    """Return another end of the same ranks, with the world's timeout, for a use of its own.

    Collective.

    Raises:
        PeerError: A rank is dead or late.
    """
    if isinstance(world.endpoint, Mpi):
        return world.keep(Mpi(timeout=world.timeout))
    if isinstance(world.endpoint, TorchDistributed):
        # After this long gloo's own thread gives up too, so that no process outlives its group.
        group = dist.new_group(backend="gloo", timeout=dt.timedelta(seconds=world.timeout))
        return world.keep(TorchDistributed(group, timeout=world.timeout))
    if world.endpoint is None:
        raise ConfigError(
            expected="several ranks", got="one", fix="start with --nproc, torchrun or mpiexec"
        )
    return world.endpoint  # threads: one process, one queue for each pair of ranks
