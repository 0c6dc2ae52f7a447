"""The float64 total of one parameter's clipped gradients, over all chunks of a batch."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


@final
class Sum:
    """A total that stays sparse as long as only rows of a table are added.

    Args:
        like: The parameter.
        exact: Whether products over examples must be float64 too.
    """

    def __init__(self, like: Tensor, *, exact: bool) -> None:
        self.exact = exact
        self._like = like
        self._dense: Tensor | None = None
        self._places: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, part: Float[Tensor, ...]) -> None:
        """Add a part with as many numbers as the parameter; it is free to change afterwards."""
        shaped = part.view(self._like.shape)
        if self._dense is None:
            self._dense = shaped.to(torch.float64, copy=True)
        else:
            self._dense.add_(shaped)

    def add_rows(
        self, places: Int64[Tensor, " entries"], values: Float64[Tensor, "entries width"]
    ) -> None:
        """Add values to rows of the table."""
        self._places.append(places)
        self._values.append(values)

    def result(self) -> Float64[Tensor, ...]:
        """Return the total, a coalesced sparse tensor where only rows were added."""
        if not self._places:
            if self._dense is None:
                self.add(torch.zeros_like(self._like))
            assert self._dense is not None  # noqa: S101 - added above
            return self._dense
        places, values = torch.cat(self._places), torch.cat(self._values)
        if self._dense is not None:
            return self._dense.index_add_(0, places, values)
        shape = tuple(self._like.shape)
        sparse = torch.sparse_coo_tensor(places[None], values, shape, check_invariants=False)
        return sparse.coalesce()
