"""Ranks agree on what they are about to do before the first message of it leaves any of them.

Type and size of a message, plan, trust, protection, algorithm and version must be the same on all
ranks, or the sum means nothing and some wait for ever. What is noticed, when, and how:

=====================================================  ===========================================
what differs                                           noticed
=====================================================  ===========================================
terms that no rank has used before, at the same call   before anything is charged or sent: all
                                                       ranks raise the same `MismatchError`
new terms on some ranks, known ones on others          at the first message: a record of agreement
                                                       has an odd size that no message of integers
                                                       or floats has, so the transport refuses it
                                                       (`ReduceError` on all); where the others are
                                                       in a back end's own collective, when the time
                                                       limit is over. What they sent by then was
                                                       protected and charged
known terms of two sizes or types                      the same way, at the first message
known terms of one size and type, but another plan,    by the seal: the sum is thrown away and all
order of calls, or state of masks                      ranks raise the same `MismatchError`. Only
                                                       where the caller seals (`Call.seal`)
=====================================================  ===========================================

gloo does not tell what size came: there known terms of two sizes are noticed only behind masks, by
the seal; else the sum is wrong, though every message in it was protected and charged.

So known terms cost no message: a look into a table and one hash a call.
`Agreement(every_call=True)` agrees before each call instead, in ⌈log₂ R⌉ small messages, and then
all of the above is noticed before anything is charged or sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Integer

from dither import __version__
from dither.errors import MismatchError
from dither.reduce.endpoint import Endpoint
from dither.reduce.small import broadcast, consent, gather, same_on_all, show_ranks

__all__ = [
    "Agreement",
    "Call",
    "Terms",
    "broadcast",
    "consent",
    "difference",
    "gather",
    "require_same",
    "seal_size",
]

_SEAL_BYTES = 16
_LARGEST_TABLE = 4096
_SHOWN = 4

_FIXES = {
    "version": "install one version of dither on all ranks",
    "operation": "make the same calls, in the same order, on all ranks",
    "length": "pass as many numbers on every rank: take the sum over the same tensors everywhere",
    "dtype": "convert to one dtype on all ranks",
    "protection": "name one protection on all ranks",
    "trust": "name one trust on all ranks",
    "plan": "make the plan from the same options on all ranks",
    "algorithm": "name one algorithm on all ranks, or leave it out",
    "table": "copy one table of measured algorithms to all hosts, or name an algorithm",
    "calls": "make the same calls, in the same order, on all ranks",
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What ranks must have in common for one call. All of it is public.

    Attributes:
        length: How many numbers a rank contributes.
        dtype: Their type.
        operation: What is done with them.
        protection: Name of the protection.
        trust: Trust, as text.
        plan: Digest of the plan.
        algorithm: Name of the algorithm.
        table: Digest of the table that ``auto`` chooses by.
        wire_bits: Bits of a number on the wire; 0 where it travels as it is.
        others: Whatever else must be the same, as (name, value).
        version: dither's version.
    """

    length: int
    dtype: str
    operation: str = "sum"
    protection: str = "clear"
    trust: str = ""
    plan: str = ""
    algorithm: str = "auto"
    table: str = ""
    wire_bits: int = 0
    others: tuple[tuple[str, str], ...] = ()
    version: str = __version__

    @cached_property
    def record(self) -> dict[str, str | int]:
        """Everything by name, ``others`` among them."""
        fields = asdict(self)
        return {**dict(fields.pop("others")), **fields}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the record."""
        return hashlib.sha256(_canonical(self.record)).digest()


class Call(NamedTuple):
    """One call that ranks agreed on.

    Attributes:
        number: Calls so far in this group, from 1.
        tag: Hash of the terms of all calls so far, this one included.
        world_size: R.
    """

    number: int
    tag: bytes
    world_size: int

    def seal(self, words: Integer[np.ndarray, " seal"]) -> None:
        """Write the seal: `seal_size` more integers of a message, masked and summed with it.

        Every rank adds the same words, so their sum is R times these words mod 2^bits, unless a
        rank was at another call, had other terms, or its masks did not cancel. This finds
        accidents, not attacks. An accident stays unnoticed with probability at most 2⁻³² for
        R ≤ 8192: where a ranks agree, R − a others do too on something else, and 2^j divides
        R − a, then j bits of each word see nothing.
        """
        words[:] = np.frombuffer(self.tag, words.dtype)

    def check(self, words: Integer[np.ndarray, " seal"]) -> None:
        """Compare the sum of all ranks' seals with what it must be.

        Raises:
            MismatchError: On all ranks alike. The sum that came with it must not be used.
        """
        kind = np.dtype(f"u{words.itemsize}")
        wanted = np.frombuffer(self.tag, kind) * kind.type(
            self.world_size % (1 << 8 * kind.itemsize)
        )
        if not np.array_equal(words.view(kind), wanted):
            raise MismatchError(
                expected=f"all {self.world_size} ranks at one call, with one plan and set of masks",
                got="a sum whose seal says otherwise",
                fix=_FIXES["calls"] + ", then agree on new masks and draw a fresh batch",
            )


def seal_size(dtype: np.dtype[Any]) -> int:
    """Return how many integers of a type `Call.seal` takes."""
    return _SEAL_BYTES // dtype.itemsize


@final
class Agreement:
    """What the ranks of one group have agreed on so far. One per endpoint, used in turn.

    Args:
        endpoint: This rank's end.
        every_call: Agree anew before each call, not only on first use. The same on all ranks.
    """

    def __init__(self, endpoint: Endpoint, *, every_call: bool = False) -> None:
        self._endpoint = endpoint
        self._every_call = every_call
        self._agreed: dict[Terms, bytes] = {}
        self._calls = 0
        self._history = hashlib.blake2b(digest_size=_SEAL_BYTES)

    @property
    def calls(self) -> int:
        """How many calls were agreed on."""
        return self._calls

    def agree(self, terms: Terms) -> Call:
        """Make sure that all ranks come with these terms; call it before charging or sending.

        Collective where the terms are new: all ranks return, or all raise the same. After a
        mismatch nothing has changed, so the ranks may come again with better terms.

        Raises:
            MismatchError: Says which ranks have what.
            PeerError: A rank is dead, or does not come in time.
        """
        digest = self._agreed.get(terms)
        if digest is None or self._every_call:
            digest = self._compare(terms)
        self._calls += 1
        self._history.update(digest)
        return Call(self._calls, self._history.digest(), self._endpoint.world_size)

    def _compare(self, terms: Terms) -> bytes:
        digest = terms.digest
        state = hashlib.sha256(digest + self._history.digest()).digest()
        if not same_on_all(self._endpoint, state):
            calls = f"{self._calls} so far, history {self._history.hexdigest()[:8]}"
            texts = gather(self._endpoint, _canonical({**terms.record, "calls": calls}))
            raise difference([json.loads(text) for text in texts])
        if len(self._agreed) >= _LARGEST_TABLE:  # at the same call on all ranks
            self._agreed.clear()
        self._agreed[terms] = digest
        return digest


def difference(records: Sequence[Mapping[str, object]]) -> MismatchError:
    """Return the error that names which rank differs in what.

    Args:
        records: What each rank came with, by name, in rank order.
    """
    names = sorted({name for record in records for name in record}, key=_place)
    found = [name for name in names if len({repr(record.get(name)) for record in records}) > 1]
    if not found:  # a rank's memory changed between the digest and the text
        return MismatchError(
            expected="the same terms on all ranks",
            got="terms that changed while ranks compared them",
            fix="do not share an Agreement between threads",
        )
    return MismatchError(
        expected=f"the same {' and '.join(found)} on all {len(records)} ranks",
        got="; ".join(_groups(name, records) for name in found),
        fix=_FIXES.get(found[0], f"give one {found[0]} on all ranks"),
    )


def require_same(records: Sequence[Mapping[str, object]]) -> None:
    """Refuse records of ranks that differ.

    Raises:
        MismatchError: Names which rank differs in what.
    """
    if any(record != records[0] for record in records):
        raise difference(records)


def _place(name: str) -> tuple[int, str]:
    order = list(_FIXES)
    return (order.index(name) if name in order else len(order), name)


def _groups(name: str, records: Sequence[Mapping[str, object]]) -> str:
    holders: dict[str, list[int]] = {}
    for rank, record in enumerate(records):
        holders.setdefault(str(record.get(name, "none")) or "none", []).append(rank)
    shown = [f"{value} on {show_ranks(ranks)}" for value, ranks in list(holders.items())[:_SHOWN]]
    if len(holders) > _SHOWN:
        shown.append(f"{len(holders) - _SHOWN} more")
    return f"{name} " + ", ".join(shown)


def _canonical(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
