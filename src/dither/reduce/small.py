"""Small messages of bytes that ranks exchange beside sums: public records, keys, verdicts."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import UInt8

from dither.errors import MismatchError, PeerError, ReduceError
from dither.reduce.endpoint import Endpoint

# A record: magic, kind of call, flags, body. 41 bytes: odd, so never the size of a message of
# integers or floats. It may never change, or two versions could not tell each other apart.
_RECORD = struct.Struct(">7scB32s")
_MAGIC = b"dither1"
_AGREE, _GATHER, _BROADCAST, _CONSENT, _LARGEST, _ANYONE = b"A", b"G", b"B", b"C", b"L", b"?"
_DIFFER, _STRANGE, _REFUSE = 1, 2, 4
_SHOWN = 4

Value = TypeVar("Value")

# Takes two bodies; returns the body and the flags of both together. Idempotent and commutative.
Combine: TypeAlias = Callable[[bytes, bytes], tuple[bytes, int]]


def _spread(
    endpoint: Endpoint, kind: bytes, flags: int, body: bytes, combine: Combine
) -> tuple[int, bytes]:
    """Combine the bodies of all ranks, in ⌈log₂ R⌉ records each way (dissemination).

    Args:
        endpoint: This rank's end.
        kind: One byte, the kind of call.
        flags: This rank's flags; those of all ranks are united.
        body: 32 bytes.
        combine: What becomes of two bodies.

    Returns:
        Flags and body of all ranks together, the same on all.

    Raises:
        MismatchError: On all ranks: they are in calls of different kinds.
    """
    size, rank = endpoint.world_size, endpoint.rank
    theirs, distance = np.empty(_RECORD.size, np.uint8), 1
    while distance < size:
        record = _RECORD.pack(_MAGIC, kind, flags, body)
        mine = np.frombuffer(record, np.uint8)
        endpoint.exchange((rank + distance) % size, mine, (rank - distance) % size, theirs)
        magic, other, more, other_body = _RECORD.unpack(theirs.tobytes())
        if magic != _MAGIC or other != kind:
            flags |= _STRANGE
        else:
            body, flag = combine(body, other_body)
            flags |= flag
        flags |= more if magic == _MAGIC else 0
        distance *= 2
    if flags & _STRANGE:
        raise MismatchError(
            expected=f"all {size} ranks in the same call",
            got="ranks that agree, gather or broadcast while others do something else",
            fix="make the same calls, in the same order, on all ranks",
        )
    return flags, body


def _same(mine: bytes, theirs: bytes) -> tuple[bytes, int]:
    return mine, 0 if mine == theirs else _DIFFER


def _larger(mine: bytes, theirs: bytes) -> tuple[bytes, int]:
    return max(mine, theirs), 0


def same_on_all(endpoint: Endpoint, digest: bytes) -> bool:
    """Return, on all ranks alike, whether all came with the same 32 bytes.

    Raises:
        MismatchError: On all ranks: they are in calls of different kinds.
        PeerError: A rank is dead, or does not come in time.
    """
    return not _spread(endpoint, _AGREE, 0, digest, _same)[0]


def gather(endpoint: Endpoint, payload: bytes) -> list[bytes]:
    """Return every rank's payload, in rank order, on all ranks (Bruck's algorithm).

    Args:
        endpoint: This rank's end.
        payload: This rank's bytes; sizes may differ. All are padded to the largest.

    Raises:
        MismatchError: On all ranks: they are in calls of different kinds.
        PeerError: A rank is dead, or does not come in time.
    """
    size, rank = endpoint.world_size, endpoint.rank
    length = len(payload).to_bytes(32, "big")
    largest = int.from_bytes(_spread(endpoint, _GATHER, 0, length, _larger)[1], "big")
    width = 8 + largest
    blocks = np.zeros((size, width), np.uint8)
    blocks[0, : 8 + len(payload)] = np.frombuffer(
        len(payload).to_bytes(8, "big") + payload, np.uint8
    )
    have = 1
    while have < size:
        count = min(have, size - have)
        # One byte more where needed: an odd size is no message of integers or floats.
        out, theirs = (np.zeros(count * width | 1, np.uint8) for _ in range(2))
        out[: count * width] = blocks[:count].reshape(-1)
        endpoint.exchange((rank - have) % size, out, (rank + have) % size, theirs)
        blocks[have : have + count] = theirs[: count * width].reshape(count, width)
        have += count
    # Block j is that of rank + j.
    texts = (blocks[(other - rank) % size].tobytes() for other in range(size))
    return [text[8 : 8 + int.from_bytes(text[:8], "big")] for text in texts]


def broadcast(endpoint: Endpoint, payload: bytes, root: int = 0) -> bytes:
    """Return the payload of one rank on all ranks (binomial tree).

    Args:
        endpoint: This rank's end.
        payload: The bytes, on the root; ignored elsewhere.
        root: Whose payload; the same on all ranks.

    Raises:
        MismatchError: On all ranks: they named different roots, or are in calls of different kinds.
        PeerError: A rank is dead, or does not come in time.
    """
    size, rank = endpoint.world_size, endpoint.rank
    if not 0 <= root < size:
        raise MismatchError(
            expected=f"a root below the world size, {size}", got=str(root), fix="name a rank"
        )

    def combine(mine: bytes, theirs: bytes) -> tuple[bytes, int]:
        return max(mine, theirs), 0 if mine[:8] == theirs[:8] else _DIFFER

    length = len(payload) if rank == root else 0
    body = struct.pack(">QQ16x", root, length)
    flags, body = _spread(endpoint, _BROADCAST, 0, body, combine)
    if flags & _DIFFER:
        raise MismatchError(
            expected="one root on all ranks", got="different ones", fix="name the same rank"
        )
    _, length = struct.unpack(">QQ16x", body)
    message = np.zeros(length | 1, np.uint8)
    if rank == root:
        message[:length] = np.frombuffer(payload, np.uint8)
    _tree(endpoint, message, root)
    return message[:length].tobytes()


def _tree(endpoint: Endpoint, message: UInt8[np.ndarray, " size"], root: int) -> None:
    size = endpoint.world_size
    place = (endpoint.rank - root) % size
    reach = 1
    while reach < size and not place & reach:
        reach *= 2
    if place:
        endpoint.receive((root + place - reach) % size, message)
    while reach > 1:
        reach //= 2
        if place + reach < size:
            endpoint.send((root + place + reach) % size, message)


def consent(endpoint: Endpoint, problem: str | None) -> None:
    """Refuse on all ranks if one must: for what only one rank can know (its budget, its memory).

    Collective, ⌈log₂ R⌉ small messages. Without it a rank that refuses alone leaves the others to
    wait until their time is over (PRIVACY-REVIEW A6). The problem is shown to all ranks: it must be
    public.

    Args:
        endpoint: This rank's end.
        problem: Why this rank cannot go on; None where it can.

    Raises:
        ReduceError: On all ranks alike, naming the ranks that cannot and why.
    """
    flags, _ = _spread(endpoint, _CONSENT, _REFUSE if problem is not None else 0, bytes(32), _same)
    if not flags & _REFUSE:
        return
    problems = [text.decode() for text in gather(endpoint, (problem or "").encode())]
    found = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text]
    more = f"; {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ReduceError(
        expected=f"all {endpoint.world_size} ranks ready to go on",
        got="; ".join(found[:_SHOWN]) + more,
        fix="mend those ranks, then start again on all",
    )


def on_all(endpoint: Endpoint, act: Callable[[], Value], what: str) -> Value:
    """Act on all ranks; where one fails, all raise: nobody waits for it. Collective.

    Args:
        endpoint: This rank's end.
        act: What only this rank can know to fail; not collective itself.
        what: What is done, in public words: others are told "it could not {what}".

    Raises:
        ReduceError: On the ranks that could; the others raise their own error.
    """
    try:
        result = act()
    except PeerError:
        raise  # nobody is there to tell
    except Exception as error:
        with contextlib.suppress(ReduceError):  # this rank's own error says more
            consent(endpoint, f"it could not {what} ({type(error).__name__})")
        raise
    consent(endpoint, None)
    return result


def largest(endpoint: Endpoint, body: bytes) -> bytes:
    """Return the largest of all ranks' 32 bytes, on all ranks. Collective, ⌈log₂ R⌉ messages.

    Raises:
        MismatchError: On all ranks: they are in calls of different kinds.
        PeerError: A rank is dead, or does not come in time.
    """
    return _spread(endpoint, _LARGEST, 0, body, _larger)[1]


def anyone(endpoint: Endpoint, holds: bool) -> bool:
    """Return, on all ranks alike, whether something holds on any. Collective.

    Raises:
        MismatchError: On all ranks: they are in calls of different kinds.
        PeerError: A rank is dead, or does not come in time.
    """
    return bool(_spread(endpoint, _ANYONE, 0, bytes([holds]) + bytes(31), _larger)[1][0])


def pack(values: dict[str, str]) -> bytes:
    """Return names and values as one payload, the same for the same content."""
    return json.dumps(values, sort_keys=True).encode()


def unpack(payload: bytes) -> dict[str, str]:
    """Return what was packed."""
    values: dict[str, str] = json.loads(payload)
    return values


def show_ranks(ranks: Sequence[int]) -> str:
    """Return ``ranks 0-3 and 7``."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    texts = ["-".join(str(end) for end in run) for run in runs]
    shown = " and ".join(texts) if len(texts) <= _SHOWN else ", ".join(texts[:_SHOWN]) + ", ..."
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
