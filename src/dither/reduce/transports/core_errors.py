"""What the core's shared memory refuses, in our words."""

from __future__ import annotations

from dither.errors import DitherError, MismatchError, PeerError, ReduceError
from dither.noise.core import core_error

_PEER_ERRORS = {
    "peer_dead": ("to take part", "the end of its process", "see how that process ended"),
    "peer_left": ("to take part", "that it had left", "make the same calls on all ranks"),
    "peer_late": ("to answer", "no answer in time", "see what it does, or allow a longer timeout"),
    "peer_failed": ("to take part", "an error of its own", "see that rank's error"),
}


def core_refusal(error: Exception) -> DitherError:
    """Return our error for one of the core's, ``kind: rank: text``."""
    parts = str(error).split(": ", 2)
    if len(parts) < 3:
        return core_error(parts[0], parts[-1])  # of noise
    kind, rank, text = parts
    if kind in _PEER_ERRORS:
        expected, got, fix = _PEER_ERRORS[kind]
        return PeerError(
            expected=f"rank {rank} {expected}", got=got, fix=f"{fix}, then make a new group"
        )
    if kind == "mismatch":
        return MismatchError(
            expected="the same call on all ranks",
            got=f"another operation, type, size or lattice on rank {rank}",
            fix="pass tensors of one length and type and one plan on all ranks",
        )
    if kind in _REDUCE_ERRORS:
        return ReduceError(expected="a group in good order", got=text, fix=_REDUCE_ERRORS[kind])
    return core_error(kind, text)


_REDUCE_ERRORS = {
    "broken": "make a new group",
    "busy": "use a group in one thread at a time",
    "closed": "make a new group",
    "forked": "join a group in each process, after the fork",
    "unsupported": "use Linux, or the mpi or torch_distributed transport",
}
