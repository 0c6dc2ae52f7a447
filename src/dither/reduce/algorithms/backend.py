"""The back end's own algorithm: MPI's, gloo's, the native shared-memory sum."""

from __future__ import annotations

from dither.errors import ConfigError
from dither.reduce.endpoint import Buffer, Endpoint


def backend(endpoint: Endpoint, buffer: Buffer) -> None:
    """Sum by what the transport has itself.

    - Steps, bytes: the back end's own choice. Shared memory: every rank reads all messages.
    - Seen by each rank: take it to be every message, whole, for the back end may send them so.
    - Floats: the same bits on all ranks where the back end says so; integers always.

    Raises:
        ConfigError: The back end has none that sums this type modulo 2^bits.
    """
    if endpoint.world_size > 1 and not endpoint.all_reduce(buffer):
        raise ConfigError(
            expected=f"a back end that sums {buffer.dtype}",
            got=f"{endpoint.kind}, which does not",
            fix='choose another algorithm, such as "auto", which passes over the back end then',
        )
