"""Three defects of published code for encrypted sums, put into the encrypted baseline on purpose.

HEAR's code (SC'23) seeds its keys from a generator that nobody seeded, repeats its pads in every
block, and passes types that it cannot encrypt through in clear. The baseline here
(`reduce.protections.encrypted`) does none of that, and has no option to. So this file goes around
it: it hands it key material that is known, or the same twice, and catches its refusal. The same
games are then played against the baseline as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dither.audit.telling import Advantage, told
from dither.errors import ConfigError
from dither.noise.key import KEY_BYTES, Key
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.protections.encrypted import Encryption
from dither.reduce.protections.keys import AgreedKeys
from dither.reduce.transports.threads import Threads, run_ranks

CONFIDENCE = 1.0 - 1e-6
_RANKS = 3
_VICTIM = 1  # the middle one: two pads
_LARGEST = 1.0


@dataclass(frozen=True)
class Defect:
    """How one rank's values are read from encrypted messages.

    Attributes:
        defect: Name.
        safeguard: Whether the baseline's safeguard against it was on.
        advantage: In telling the sign of each value.
        low: Lower end of the confidence interval.
        high: Upper end.
        games: Values.
        reproduced: Whether the advantage is surely above 0.
    """

    defect: str
    safeguard: bool
    advantage: float
    low: float
    high: float
    games: int
    reproduced: bool

    @classmethod
    def of(cls, defect: str, safeguard: bool, found: Advantage) -> Defect:
        """Name an advantage."""
        above = not found.within(0.0)
        return cls(defect, safeguard, found.value, found.low, found.high, found.games, above)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def attack_encrypted(games: int, generator: np.random.Generator) -> tuple[Defect, ...]:
    """Play every defect, with its safeguard off and on.

    Args:
        games: Values of each.
        generator: Throws coins; keys are not its business.
    """
    found = []
    for name, game in _GAMES.items():
        for safeguard in (False, True):
            coins = generator.random(games) < 0.5
            answers = game(coins, safeguard, generator)
            found.append(Defect.of(name, safeguard, told(answers, coins, CONFIDENCE)))
    return tuple(found)


Answers = Bool[np.ndarray, " games"]


def _clear_fallback(coins: Answers, safeguard: bool, generator: np.random.Generator) -> Answers:
    """Float64 cannot be encrypted. The defect sends it as it is; the safeguard refuses."""
    values = _signed(coins).astype(np.float64)
    seen: list[np.ndarray] = []

    def observe(sender: int, _: int, content: np.ndarray) -> None:
        if sender == _VICTIM and content.dtype == np.float64 and content.size == values.size:
            seen.append(content.copy())

    def work(endpoint: Threads) -> None:
        own = values if endpoint.rank == _VICTIM else np.zeros_like(values)
        with Encryption.agree(endpoint, largest=_LARGEST) as encryption:
            try:
                encryption.reduce(endpoint, own)
            except ConfigError:
                if not safeguard:  # the defect
                    sum_over(endpoint, own.copy(), "naive")

    run_ranks(_RANKS, work, observe=observe)
    return _positive(seen[0], generator) if seen else generator.random(coins.size) < 0.5


def _repeated_pads(coins: Answers, safeguard: bool, generator: np.random.Generator) -> Answers:
    """Two blocks, the first of known zeros. With one pad for both, their difference is clear."""
    if safeguard:
        encryption = _agreed()
        first, second = (
            _sent(encryption, block) for block in (0.0 * _signed(coins), _signed(coins))
        )
    else:
        material = _fresh_material()
        first, second = (
            _sent(_encryption(material), block) for block in (0.0 * _signed(coins), _signed(coins))
        )
    return _positive(second - first, generator)


def _unseeded_keys(coins: Answers, safeguard: bool, generator: np.random.Generator) -> Answers:
    """Who runs the same generator has the keys, makes the pads and takes them away."""
    guessed = _unseeded_material()
    encryption = _agreed() if safeguard else _encryption(_unseeded_material())
    message = _sent(encryption, _signed(coins))
    pads = _sent(_encryption(guessed), 0.0 * _signed(coins))
    return _positive(message - pads, generator)


_GAMES: dict[str, Callable[[Answers, bool, np.random.Generator], Answers]] = {
    "clear fallback": _clear_fallback,
    "repeated pads": _repeated_pads,
    "unseeded keys": _unseeded_keys,
}


def _signed(coins: Answers) -> Float[np.ndarray, " games"]:
    return np.where(coins, 0.5, -0.5).astype(np.float32) * np.float32(_LARGEST)


def _positive(values: np.ndarray, generator: np.random.Generator) -> Answers:
    ties = generator.random(values.size) < 0.5
    return np.where(values == 0, ties, values > 0)


def _sent(encryption: Encryption, values: np.ndarray) -> np.ndarray:
    message = np.empty(values.size, np.int32)
    encryption.encrypt(values, message)
    return message


def _agreed() -> Encryption:
    """Return the victim's side of keys that ranks agreed on, as ships."""
    sides = run_ranks(_RANKS, lambda endpoint: Encryption.agree(endpoint, largest=_LARGEST))
    return sides[_VICTIM]


def _encryption(material: tuple[bytes, ...]) -> Encryption:
    """Return the victim's side for given key material: what no code of the product does."""
    own, following, group = (Key.agreed(part) for part in material)
    pairs = {_VICTIM - 1: own, _VICTIM + 1: following}
    return Encryption(AgreedKeys(pairs, group, bytes(32), "none"), _VICTIM, _RANKS, _LARGEST)


def _fresh_material() -> tuple[bytes, ...]:
    return tuple(random.SystemRandom().randbytes(KEY_BYTES) for _ in range(_RANKS))


def _unseeded_material() -> tuple[bytes, ...]:
    """As C's rand() without srand(): the same on every start of every program."""
    generator = random.Random(1)  # noqa: S311 - the defect
    return tuple(generator.randbytes(KEY_BYTES) for _ in range(_RANKS))
