"""A sum over a sample whose sensitivity to one unit is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dither.privacy.events import Relation
from dither.privacy.ticket import SampleTicket


@dataclass(frozen=True)
class BoundedSum:
    """Sum of per-example contributions, each of L2 norm at most C.

    Attributes:
        chunks: The sum in pieces, name → float32 or float64 tensor; every coordinate in exactly one
            chunk. A table of which few rows are not zero may be sparse (COO, one sparse dimension).
        dimension: d, number of coordinates in all chunks together.
        l2_clip: C.
        ticket: How the sample was drawn; spent by the release.
        slack: Share of C by which neighbouring sums may be farther apart as computed, by relation;
            a relation that is not named has none.
    """

    chunks: Iterable[Mapping[str, Tensor]]
    dimension: int
    l2_clip: float
    ticket: SampleTicket
    slack: Mapping[Relation, float] = field(default_factory=dict)

    def sensitivity(self, relation: Relation) -> float:
        """Return the L2 distance between neighbouring sums, in exact arithmetic.

        C when one contribution appears or vanishes, 2C when one is replaced by another.
        """
        return 2.0 * self.l2_clip if relation is Relation.REPLACE_ONE else self.l2_clip
