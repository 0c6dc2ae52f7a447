"""Trust: who must not learn what, and how much noise each rank then adds.

R ranks, target noise zC on the sum (z the noise multiplier, C the clip bound):

==================  ==================  ======================  =============================
trust               each rank adds      the sum carries         protects against
==================  ==================  ======================  =============================
``central``         zC/√R               zC                      whoever sees the result only
``distributed(t)``  zC/√(R−t)           zC·√(R/(R−t))           the network, any t colluders
``local`` (DPAR)    zC                  zC·√R                   the network, all other ranks
==================  ==================  ======================  =============================

``distributed`` needs masks (a secure sum) that withstand t ranks; a release without is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dither.errors import ConfigError


@dataclass(frozen=True)
class Trust:
    """One named trust model.

    Attributes:
        name: ``central``, ``local`` or ``distributed``.
        colluders: t, the number of ranks that may collude; 0 unless ``distributed``.
    """

    name: str
    colluders: int = 0

    def __post_init__(self) -> None:
        if self.name not in {"central", "local", "distributed"}:
            raise ConfigError(
                expected="a trust of central, local or distributed(t)",
                got=repr(self.name),
                fix="name one of them",
            )
        if self.colluders < 0 or (self.colluders and self.name != "distributed"):
            raise ConfigError(
                expected="a number of colluders t >= 0, and only under distributed(t)",
                got=f"{self.name} with t = {self.colluders}",
                fix="write distributed(t), for instance distributed(1)",
            )

    def rank_share(self, world_size: int) -> float:
        """Return the noise one rank adds, as a multiple of zC."""
        self._check_world(world_size)
        if self.name == "local":
            return 1.0
        return 1.0 / math.sqrt(world_size - self.colluders)

    def sum_multiple(self, world_size: int) -> float:
        """Return the noise the sum over all ranks carries, as a multiple of zC."""
        return self.rank_share(world_size) * math.sqrt(world_size)

    def _check_world(self, world_size: int) -> None:
        if world_size <= self.colluders or world_size < 1:
            raise ConfigError(
                expected=f"a world size above the number of colluders ({self.colluders})",
                got=str(world_size),
                fix="start more ranks or lower t",
            )

    def __str__(self) -> str:
        return f"distributed({self.colluders})" if self.name == "distributed" else self.name


CENTRAL = Trust("central")
LOCAL = Trust("local")

_PATTERN = re.compile(r"(central|local)|distributed\((\d+)\)")


def parse_trust(text: str) -> Trust:
    """Read ``central``, ``local`` or ``distributed(t)``.

    Raises:
        ConfigError: Anything else.
    """
    match = _PATTERN.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(
            expected="a trust of central, local or distributed(t)",
            got=repr(text),
            fix="name one of them, for instance central or distributed(1)",
        )
    return Trust(match[1]) if match[1] else Trust("distributed", int(match[2]))
