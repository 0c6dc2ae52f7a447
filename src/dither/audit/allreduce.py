"""All attacks on sums over ranks, together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dither.audit import sums
from dither.audit.encrypted_attacks import Defect, attack_encrypted
from dither.audit.noise_attacks import (
    WIDE,
    Parity,
    Reuse,
    attack_parity,
    attack_pool,
    float32_box_muller,
    lattice_sampler,
)
from dither.reduce.simulate import trusts


@dataclass(frozen=True)
class Attacks:
    """What attacks on sums found.

    Attributes:
        rows: Games against private sums.
        reuse: Of noise: the pool as it is, and one with a defect.
        parity: Of noise: the lattice sampler, and a naive one.
        defects: Of encrypted sums, with safeguards off and on.
    """

    rows: tuple[sums.Row, ...]
    reuse: tuple[Reuse, ...]
    parity: tuple[Parity, ...]
    defects: tuple[Defect, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """What breaks a promise of dither; empty where nothing was found."""
        found = [
            f"{row.observer} learns the {row.inference} of one of {row.ranks} ranks under "
            f"{row.trust}: advantage {row.low:.3f} or more, ceiling {row.ceiling:.3f}"
            for row in self.rows
            if not row.within
        ]
        found += ["noise of the pool repeats" for one in self.reuse[:1] if one.found]
        found += ["low bits of the noise tell its input" for one in self.parity[:1] if one.leaks]
        found += [
            f"encrypted sums have the defect: {one.defect}"
            for one in self.defects
            if one.safeguard and one.reproduced
        ]
        return tuple(found)

    @property
    def blind(self) -> tuple[str, ...]:
        """Which attacks missed a defect that was put in: then their silence says nothing."""
        missed = [one.case for one in self.reuse[1:] if not one.found]
        missed += [one.case for one in self.parity[1:] if not one.leaks]
        missed += [one.defect for one in self.defects if not one.safeguard and not one.reproduced]
        return tuple(missed)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "confidence": sums.CONFIDENCE,
            "reuse": [one.to_json() for one in self.reuse],
            "parity": [one.to_json() for one in self.parity],
            "defects": [one.to_json() for one in self.defects],
            "findings": list(self.findings),
            "blind": list(self.blind),
        }


def attack_allreduce(
    ranks: Sequence[int],
    games: int,
    *,
    generator: np.random.Generator,
    tell: Callable[[str], object] = lambda _: None,
) -> Attacks:
    """Play all games and run all attacks.

    Args:
        ranks: Numbers of ranks.
        games: Of each inference.
        generator: Throws coins, draws contributions.
        tell: Is told what is being done.

    Raises:
        ConfigError: Fewer than 2 ranks or no games.
    """
    rows: list[sums.Row] = []
    for size in ranks:
        for trust in trusts(size):
            tell(f"{size} ranks, {trust}")
            seen = sums.play(trust, size, games=games, generator=generator)
            rows += sums.judge(seen, trust, size)
    tell("noise pool")
    reuse = attack_pool(generator)
    tell("lattice")
    naive = float32_box_muller(WIDE, generator)
    parity = (
        attack_parity("dither's lattice", lattice_sampler(WIDE), generator=generator),
        attack_parity("float32 Box-Muller, rounded", naive, generator=generator),
    )
    tell("encrypted baseline")
    return Attacks(tuple(rows), reuse, parity, attack_encrypted(games, generator))
