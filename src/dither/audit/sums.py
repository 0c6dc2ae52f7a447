"""Games against private sums: what the wire, the result and colluding ranks tell of one rank.

DPAR (Qi et al., SC'25) claims that a private AllReduce withstands whoever reads the network and all
other ranks together. Here that is played: fair coins choose the contribution of one rank, the
victim; the sum is made by the code that ships (plan, lattice, encoder, masks, and for few ranks the
transport and its algorithm, every message read on its way); and each observer answers with the
best test there is (`telling`). Every observer is given more than it would have: it knows all
contributions but the victim's, and colluders what they sent as well. Three inferences:

- ``mean``: the contribution is +C or −C along a direction: the worst case, 2C apart.
- ``membership``: a record of norm C is the contribution, or it is absent: C apart.
- ``statistical``: the contribution is the clipped mean of sixteen records of one population or of
  another. The answer is about the population; at most 2C apart.

With z·C noise a share and k shares in what is seen, the ceiling of a game with inputs D apart is
2Φ(D/2σ) − 1, σ² = k·share². Noise is Gaussian up to rounding on the wire, which only adds to it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from dither.audit.telling import Advantage, gaussian_ceiling, says_second, told
from dither.errors import ConfigError
from dither.noise.codec import decode
from dither.noise.key import KEY_BYTES, Key
from dither.noise.pool import FreshNoise
from dither.privacy.lattice import Lattice
from dither.privacy.plan import Plan
from dither.privacy.trust import Trust
from dither.reduce.protections.graph import mask_degree, neighbours
from dither.reduce.protections.masked import Masks
from dither.reduce.protections.private import Reduced
from dither.reduce.simulate import simulated_plan
from dither.reduce.transports.threads import Threads, run_ranks
from dither.release.contribution import bound_lattice
from dither.release.encoder import Encoder

INFERENCES = ("mean", "membership", "statistical")
RANKS = (2, 8, 64, 1024)
DIMENSION = 4
# False alarms: some 130 rows together below 1 in 700.
CONFIDENCE = 1.0 - 1e-5
THREADS = 8  # largest group that runs over its transport
_VICTIM = 0
_RECORDS = 16
_INSIDE = 1.0 - 2.0**-20  # rounding to float32 must not leave the ball

Message = Integer[np.ndarray, " size"]
Coins = Bool[np.ndarray, "inferences games"]


@dataclass(frozen=True)
class Row:
    """What one observer infers.

    Attributes:
        observer: ``wire``, ``one masked message``, ``result``, or ``coalition of c``.
        inference: ``mean``, ``membership`` or ``statistical``.
        trust: Under which ranks added noise.
        ranks: R.
        promised: Whether the trust protects against this observer at all.
        advantage: Of its answers.
        low: Lower end of the confidence interval.
        high: Upper end.
        ceiling: Of whoever sees this much noise.
        promise: Of whoever is bound by the charged event: 2Φ(1/z) − 1, whatever is inferred.
        within: Whether the advantage is not surely above the ceiling, nor, where there is a
            promise, above that.
        games: How many were played.
    """

    observer: str
    inference: str
    trust: str
    ranks: int
    promised: bool
    advantage: float
    low: float
    high: float
    ceiling: float
    promise: float
    within: bool
    games: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """All that can be seen of one sum, games side by side.

    Attributes:
        plan: What was promised.
        lattice: Of the messages.
        coins: Which input the victim had, by inference and game.
        victim: Its message as it left.
        total: The sum, mod 2^b.
        sent: By number of colluders: the sum of what they sent, without masks.
        known: By number of colluders: the sum of the contributions of all other honest ranks.
    """

    plan: Plan
    lattice: Lattice
    coins: Coins
    victim: Message
    total: Message
    sent: Mapping[int, Message]
    known: Mapping[int, Float[np.ndarray, " dimension"]]

    @property
    def share(self) -> float:
        """Standard deviation of one rank's noise, in units of the data."""
        return self.lattice.sigma * self.lattice.step

    def alone(self) -> Float[np.ndarray, "inferences games dimension"]:
        """Return the victim's message, read as values."""
        return self._values(self.victim)

    def without(self, colluders: int) -> Float[np.ndarray, "inferences games dimension"]:
        """Return what is left of the sum without colluders and all contributions that are known."""
        left = self._values(self.total - self.sent[colluders])
        return np.asarray(left - self.known[colluders])

    def _values(self, message: Message) -> np.ndarray:
        return decode(message, self.lattice).reshape(*self.coins.shape, DIMENSION)


def hypotheses(inference: str, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the two inputs, of which the best test is made.

    Args:
        inference: One of `INFERENCES`.
        clip: C.
    """
    second = np.full(DIMENSION, clip / math.sqrt(DIMENSION) * _INSIDE)
    return (np.zeros(DIMENSION) if inference == "membership" else -second), second


def contributions(
    coins: Coins, clip: float, generator: np.random.Generator
) -> Float[np.ndarray, "inferences games dimension"]:
    """Return the victim's contributions, as the coins say; each has norm C at most."""
    found = np.empty((*coins.shape, DIMENSION), np.float32)
    for place, inference in enumerate(INFERENCES):
        first, second = hypotheses(inference, clip)
        chosen = np.where(coins[place][:, None], second, first)
        if inference == "statistical":
            spread = clip / math.sqrt(_RECORDS * DIMENSION)
            chosen = chosen / 2.0 + generator.normal(0.0, spread, chosen.shape)
            norms = np.linalg.norm(chosen, axis=1, keepdims=True)
            chosen *= np.minimum(1.0, _INSIDE * clip / norms)
        found[place] = chosen
    return found


def play(
    trust: Trust,
    ranks: int,
    *,
    games: int,
    generator: np.random.Generator,
    noise: float = 1.0,
) -> Seen:
    """Make one sum of as many independent games as asked for, and keep what can be seen of it.

    Up to `THREADS` ranks are threads that sum by the transport, every message read on its way;
    more are simulated one after the other: the same messages, added up as integers.

    Args:
        trust: Says each rank's noise, and whether there are masks.
        ranks: R.
        games: Of each inference.
        generator: Draws coins and contributions; noise and masks have keys of their own.
        noise: Share of the planned noise that is really added: below 1 a defect put in on purpose.

    Raises:
        ConfigError: Fewer than 2 ranks or no games.
    """
    if ranks < 2 or games < 1:
        raise ConfigError(
            expected="at least 2 ranks and one game",
            got=f"{ranks} ranks, {games} games",
            fix="choose for instance 8 ranks and 4096 games",
        )
    plan = simulated_plan(trust, ranks)
    planned = bound_lattice(plan, DIMENSION, ranks)
    coins = generator.random((len(INFERENCES), games)) < 0.5
    others = generator.standard_normal((ranks, DIMENSION))
    others *= _INSIDE * plan.l2_clip / np.linalg.norm(others, axis=1, keepdims=True)
    victim = contributions(coins, plan.l2_clip, generator)

    def encoded(rank: int) -> Message:
        """Return a rank's message before masks; its noise is of a fresh key."""
        values = victim if rank == _VICTIM else np.broadcast_to(others[rank], victim.shape)
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        lattice = planned if noise == 1.0 else _weaker(planned, noise)
        return Encoder(lattice, FreshNoise(Key())).encode(flat).message

    counted = _coalitions(trust, ranks)
    summed = _over_threads if ranks <= THREADS else _simulated
    message, total, sent = summed(encoded, trust, ranks, counted)
    known = {c: others[c + 1 :].sum(axis=0) for c in counted}
    return Seen(plan, planned, coins, message, total, sent, known)


def _weaker(lattice: Lattice, noise: float) -> Lattice:
    return Lattice(**{**asdict(lattice), "sigma": lattice.sigma * noise})


def _coalitions(trust: Trust, ranks: int) -> tuple[int, ...]:
    """Return how many collude: nobody, one, as many as the trust withstands, half, all others."""
    return tuple(sorted({0, 1, max(trust.colluders, 0), ranks // 2, ranks - 1}))


Summed = tuple[Message, Message, dict[int, Message]]


def _over_threads(
    encoded: Callable[[int], Message],
    trust: Trust,
    ranks: int,
    counted: Sequence[int],
) -> Summed:
    """Sum over the transport, by the algorithm that shows each message whole to every other."""
    messages = [encoded(rank) for rank in range(ranks)]
    size, kind = messages[0].size, messages[0].dtype
    wire: dict[int, np.ndarray] = {}

    def observe(sender: int, _: int, content: np.ndarray) -> None:
        if content.dtype == kind and content.size >= size:
            wire.setdefault(sender, content[:size].copy())

    def work(endpoint: Threads) -> Message:
        masks = None
        if trust.name == "distributed":
            masks = Masks.agree(endpoint, colluders=trust.colluders)
        transport = Reduced(endpoint, algorithm="naive", masks=masks)
        return transport.all_reduce(messages[endpoint.rank].copy())

    totals = run_ranks(ranks, work, observe=observe)
    kept = {c: _added(messages[1 : c + 1], size, kind) for c in counted}
    return wire[_VICTIM], totals[_VICTIM], kept


def _simulated(
    encoded: Callable[[int], Message],
    trust: Trust,
    ranks: int,
    counted: Sequence[int],
) -> Summed:
    """Sum rank by rank: one message at a time is in memory."""
    masks = _all_masks(trust, ranks) if trust.name == "distributed" else None
    left = encoded(_VICTIM)
    colluding = np.zeros_like(left)
    kept = {0: colluding.copy()}
    if masks is not None:
        masks(_VICTIM).apply(left)
    total = left.copy()
    for rank in range(1, ranks):
        message = encoded(rank)
        colluding += message
        if rank in counted:
            kept[rank] = colluding.copy()
        if masks is not None:
            masks(rank).apply(message)
        total += message
    return left, total, kept


def _added(messages: Sequence[Message], size: int, kind: np.dtype[Any]) -> Message:
    total = np.zeros(size, kind)
    for message in messages:
        total += message
    return total


def _all_masks(trust: Trust, ranks: int) -> Callable[[int], Masks]:
    """Return what makes each rank's masks: a key for every edge of the graph that ships."""
    degree = mask_degree(ranks, trust.colluders)
    edges: dict[tuple[int, int], bytes] = {}

    def masks(rank: int) -> Masks:
        keys = {}
        for peer in neighbours(rank, ranks, degree):
            edge = (min(rank, peer), max(rank, peer))
            keys[peer] = Key.agreed(edges.setdefault(edge, secrets.token_bytes(KEY_BYTES)))
        return Masks(
            keys, rank, colluders=trust.colluders, authentication="simulated", session=bytes(32)
        )

    return masks


def judge(seen: Seen, trust: Trust, ranks: int, *, confidence: float = CONFIDENCE) -> list[Row]:
    """Let every observer answer every game.

    Args:
        seen: The sum.
        trust: Of it.
        ranks: R.
        confidence: Of each interval.
    """
    return [
        _row(seen, trust, ranks, view, place, confidence=confidence)
        for view in _views(seen, trust, ranks)
        for place in range(len(INFERENCES))
    ]


@dataclass(frozen=True)
class _View:
    """What one observer has, and how many ranks' noise is in it."""

    observer: str
    promised: bool
    values: Float[np.ndarray, "inferences games dimension"]
    shares: float


def _views(seen: Seen, trust: Trust, ranks: int) -> list[_View]:
    masked, local = trust.name == "distributed", trust.name == "local"
    if masked:
        # All messages together tell their sum; each alone tells nothing, computationally.
        views = [
            _View("wire", True, seen.without(0), ranks),
            _View("one masked message", True, seen.alone(), math.inf),
        ]
    else:
        views = [_View("wire", local, seen.alone(), 1)]
    views.append(_View("result", True, seen.without(0), ranks))
    for colluders in sorted(set(seen.sent) - {0}):
        # Without masks colluders who read the wire have the message itself.
        values = seen.without(colluders) if masked else seen.alone()
        promised = local or (masked and colluders <= trust.colluders)
        shares = ranks - colluders if masked else 1
        views.append(_View(f"coalition of {colluders}", promised, values, shares))
    return views


def _row(
    seen: Seen, trust: Trust, ranks: int, view: _View, place: int, *, confidence: float
) -> Row:
    inference = INFERENCES[place]
    first, second = hypotheses(inference, seen.plan.l2_clip)
    answers = says_second(view.values[place], first, second)
    found: Advantage = told(answers, seen.coins[place], confidence)
    distance = float(np.linalg.norm(second - first))
    ceiling = gaussian_ceiling(distance / (seen.share * math.sqrt(view.shares)))
    promise = gaussian_ceiling(2.0 / seen.plan.noise_multiplier)
    kept = found.within(promise) or not view.promised
    return Row(
        observer=view.observer,
        inference=inference,
        trust=str(trust),
        ranks=ranks,
        promised=view.promised,
        advantage=found.value,
        low=found.low,
        high=found.high,
        ceiling=ceiling,
        promise=promise,
        within=found.within(ceiling) and kept,
        games=found.games,
    )
