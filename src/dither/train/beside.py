"""What an audit adds to the sums of a step, and what it sees of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Beside(Protocol):
    """Joins sums before their release, and is shown what was released of them.

    What joins must not depend on any record: then it moves neighbouring sums alike, and neither
    their distance nor the event changes (`dither.audit.canaries` has the argument). What is seen
    was released, noise and all.
    """

    def join(self, chunks: Iterable[Mapping[str, Tensor]]) -> Iterable[Mapping[str, Tensor]]:
        """Return the pieces of a sum with what joins them: same names and shapes.

        The sum's bound and ticket are the step's, and are not handed out.
        """

    def released(self, tensors: Mapping[str, Tensor], scale: float) -> None:
        """See a released sum.

        Args:
            tensors: By parameter: the noisy sum times the scale. Only good until this returns.
            scale: Public.
        """
