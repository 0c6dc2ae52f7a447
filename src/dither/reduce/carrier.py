"""Which transport carries noisy messages between these ranks, and behind which masks."""

from __future__ import annotations

from contextlib import ExitStack

from dither.privacy.trust import Trust
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.keys import Authentication
from dither.reduce.protections.masked import Masks
from dither.reduce.protections.private import BLOCK, Reduced, SharedMemoryReduced
from dither.reduce.transports.shared_memory import SharedMemory
from dither.release.transport import Transport


def carry(
    endpoint: Endpoint,
    trust: Trust,
    held: ExitStack,
    *,
    algorithm: str = "auto",
    authentication: Authentication | None = None,
    timeout: float | None = None,
) -> Transport:
    """Return a transport over these ranks, as trust asks for; all of them call this together.

    Args:
        endpoint: This rank's end.
        trust: Under ``distributed(t)`` masks against t colluders are agreed on.
        held: Leaves the shared memory, where that is what carries them.
        algorithm: Name; auto and backend go through shared memory where all ranks are on one host.
        authentication: For masks: `Identity` or `ClusterSecret`.
        timeout: Seconds that shared memory may wait; the endpoint's by default.

    Raises:
        ConfigError: No such algorithm, or too few ranks for these masks.
        ReduceError: Ranks cannot agree on masks, or share no memory.
    """
    masks = None
    if trust.name == "distributed":
        masks = Masks.agree(endpoint, colluders=trust.colluders, authentication=authentication)
    if algorithm in {"auto", "backend"} and shares_memory(endpoint):
        if isinstance(endpoint, SharedMemory):
            return SharedMemoryReduced(endpoint, masks=masks)
        memory = held.enter_context(SharedMemory.over(endpoint, timeout=timeout))
        return SharedMemoryReduced(memory, masks=masks)
    return Reduced(endpoint, algorithm=algorithm, masks=masks, block=BLOCK)


def shares_memory(endpoint: Endpoint) -> bool:
    """Return whether this host's memory serves all ranks: the same on all of them."""
    if isinstance(endpoint, SharedMemory):
        return True
    return endpoint.kind != "threads" and endpoint.world_size > 1 and not any(endpoint.hosts)
