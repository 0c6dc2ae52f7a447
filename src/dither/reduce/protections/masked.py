"""Masks: pads between pairs of ranks that hide each message and cancel in the sum.

Rank r sends c_r = x_r + Σ_{j > r} P_rj − Σ_{j < r} P_jr mod 2^b, over its neighbours j in the mask
graph; P_ij is the next piece of the keystream of the key that ranks i and j share. Each pad is
added once and taken away once, so Σ c_r = Σ x_r mod 2^b.

What t colluding ranks and the whole network see. They take away the pads of their own edges; the
graph is (t+1)-connected, so the honest ranks and the edges among them are one piece. With uniform
pads on the edges of a connected graph, the honest messages are uniform among all with their sum:
(c_h) for honest h, less the known pads, has the law of uniform numbers mod 2^b conditioned on
Σ c_h = Σ x_h, whatever the x_h are apart from that sum (the pads on the edges of a spanning tree
alone reach every vector of that sum, each in as many ways; Bonawitz et al., CCS 2017, lemma 6.1,
for complete graphs). So they learn Σ x_h over the honest ranks, which carries the noise of R − t
shares, and nothing else.
The pads are a stream cipher's under keys from X25519, not uniform numbers, so this holds against
computationally bounded observers.

What masks do not do: they do not authenticate messages (a colluder or the network may change a
sum, not read it), they do not cancel if a rank fails (the round is lost and stays charged), and
without identity keys they do not withstand ranks that lie in the key agreement (`keys`).
"""

from __future__ import annotations

from typing import NoReturn, final

from dither.errors import NoiseError
from dither.noise.arrays import core_array
from dither.noise.core import Buffer
from dither.noise.key import Key
from dither.noise.stream import add_mask, subtract_mask
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.graph import check_degree, mask_degree, neighbours
from dither.reduce.protections.keys import Authentication, agree_keys

_TYPES = ("int16", "int32")


@final
class Masks:
    """One rank's side of the masks of a group.

    All ranks make the same calls, of the same sizes and types, in the same order: pads follow the
    calls, and a rank that left one out would no longer cancel. Nothing in a masked sum shows that
    by itself; the seal of `agreement.Call`, masked with the message, does. After any error, or
    where a round may not have ended well on all ranks, call `spoil` and agree anew: new keys, so
    that no pad is ever used for two messages. A failed round stays charged, and the next one needs
    a fresh batch.

    Attributes:
        colluders: t.
        degree: k, the number of neighbours of each rank.
        authentication: How the ranks showed who they are (`keys`).
        session: Public name of the key agreement, 32 bytes.
    """

    def __init__(
        self,
        keys: dict[int, Key],
        rank: int,
        *,
        colluders: int,
        authentication: str,
        session: bytes,
    ) -> None:
        self._keys: tuple[Key, ...] | None = tuple(keys[peer] for peer in sorted(keys))
        self._signs = tuple(1 if peer > rank else -1 for peer in sorted(keys))
        self._calls = 0
        self._reason = ""
        self.colluders = colluders
        self.degree = len(keys)
        self.authentication = authentication
        self.session = session

    @classmethod
    def agree(
        cls,
        endpoint: Endpoint,
        *,
        colluders: int,
        authentication: Authentication | None = None,
        degree: int | None = None,
    ) -> Masks:
        """Agree on fresh keys with the neighbours. Collective: all ranks call it.

        Args:
            endpoint: This rank's end of the group whose messages are to be masked.
            colluders: t ≤ R − 1, as in trust ``distributed(t)``.
            authentication: `Identity` or `ClusterSecret`; without, ranks must follow the protocol.
            degree: Neighbours of each rank, where more than needed are wanted.

        Raises:
            ConfigError: This graph does not withstand t colluders, or none can.
            MismatchError: On all ranks: they came with other settings.
            ReduceError: On all ranks: a rank did not prove who it is.
            PeerError: A rank is dead, or does not come in time.
        """
        size, rank = endpoint.world_size, endpoint.rank
        chosen = mask_degree(size, colluders) if degree is None else degree
        check_degree(size, colluders, chosen)
        agreed = agree_keys(
            endpoint,
            neighbours(rank, size, chosen),
            purpose="masks",
            settings={"colluders": colluders, "degree": chosen},
            authentication=authentication,
        )
        return cls(
            dict(agreed.pairs),
            rank,
            colluders=colluders,
            authentication=agreed.authentication,
            session=agreed.session,
        )

    @property
    def keys(self) -> tuple[Key, ...]:
        """Key of each neighbour in rising order, for code that masks while it encodes.

        Such code uses each key once a message, by the `signs`, in whole messages, as `apply` does.

        Raises:
            NoiseError: The masks are spent.
        """
        return self._open()

    @property
    def signs(self) -> tuple[int, ...]:
        """1 where the neighbour's pad is added, −1 where it is taken away."""
        return self._signs

    @property
    def calls(self) -> int:
        """How many messages `apply` masked."""
        return self._calls

    @property
    def spent(self) -> bool:
        """Whether these masks can no longer be used."""
        return self._keys is None

    def apply(self, message: Buffer) -> None:
        """Mask a message in place, mod 2¹⁶ or 2³². The sum over all ranks stays what it was.

        Args:
            message: int16 or int32, shape ``[size]``; the seal of the call belongs to it.

        Raises:
            ConfigError: Another array. The masks stay usable.
            NoiseError: The masks are spent, or this is a forked child.
        """
        keys = self._open()
        array = core_array(message, _TYPES)
        try:
            for key, sign in zip(keys, self._signs, strict=True):
                (add_mask if sign > 0 else subtract_mask)(array, key)
        except BaseException as error:
            # Part of the pads is used: neither may the message leave, nor they be used again.
            array[:] = 0
            self.spoil(f"an earlier {type(error).__name__}")
            raise
        self._calls += 1

    def spoil(self, reason: str = "a failed round") -> None:
        """Drop the keys, for good: the next message needs new ones. Harmless when repeated."""
        if self._keys is not None:
            self._keys, self._reason = None, reason

    def _open(self) -> tuple[Key, ...]:
        if self._keys is None:
            raise NoiseError(
                expected="masks whose every pad is unused",
                got=f"masks that are spent after {self._reason}",
                fix="agree on new masks on all ranks, and send a fresh batch",
            )
        return self._keys

    def __repr__(self) -> str:
        state = "spent" if self.spent else f"{self._calls} messages"
        return f"<Masks, t = {self.colluders}, {self.degree} neighbours, {state}>"

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: two holders would use the same pads."""
        raise NoiseError(
            expected="masks that stay in their process",
            got="an attempt to copy or pickle them",
            fix="agree on masks where they are needed",
        )
