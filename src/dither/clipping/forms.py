"""What is known of the per-example gradients of one parameter: enough for norms and sums.

A gradient need not be written out to be measured and summed. Every form gives squared norms that
are upper bounds, rounding included, and adds a weighted sum to a float64 total.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dither.clipping.arithmetic import (
    LARGEST_NORM,
    lengths,
    weighted_products,
    weighted_rows,
)
from dither.clipping.sums import Sum

Mask = Bool[Tensor, " rows"]


@runtime_checkable
class Form(Protocol):
    """Per-example gradients of one parameter."""

    @property
    def bytes(self) -> int:
        """Memory held."""
        ...

    def lengths(self, *, wide: bool = False) -> tuple[Float[Tensor, " rows"], ...]:
        """Return one or two vectors whose product bounds each example's norm from above.

        Args:
            wide: Whether squares below float32's range must count too; slower.
        """
        ...

    def masked(self, counted: Mask) -> Form:
        """Return the form with zeros in place of the examples that do not count."""
        ...

    def add_to(self, total: Sum, factors: Float64[Tensor, " rows"]) -> None:
        """Add the weighted sum over examples."""
        ...

    def dense(self) -> Float[Tensor, "rows size"]:
        """Return the gradients written out."""
        ...


@final
@dataclass(frozen=True)
class Dense:
    """Gradients written out, ``[rows, size]``.

    What is measured is what is summed, so an example's own rounding does not count.

    Attributes:
        gradient: ``[rows, size]``.
        turned: Shape of a matrix that is written as its transpose; None as the parameter is.
    """

    gradient: Float[Tensor, "rows size"]
    turned: tuple[int, int] | None = None

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.gradient.nbytes

    def lengths(self, *, wide: bool = False) -> tuple[Float[Tensor, " rows"], ...]:
        """Return norms."""
        return (lengths(self.gradient, wide=wide),)

    def masked(self, counted: Mask) -> Form:
        """Return zeros where nothing counts."""
        return Dense(torch.where(counted[:, None], self.gradient, 0.0), self.turned)

    def add_to(self, total: Sum, factors: Float64[Tensor, " rows"]) -> None:
        """Add the weighted sum."""
        for part in weighted_rows(
            self.gradient,
            factors,
            exact=total.exact,
            block=partial(total.add_block, self.turned),
            room=total.workspace.take,
        ):
            total.add(part if self.turned is None else part.view(self.turned).t())

    def dense(self) -> Float[Tensor, "rows size"]:
        """Return the gradients."""
        if self.turned is None:
            return self.gradient
        return self.gradient.view(-1, *self.turned).transpose(1, 2).flatten(1)


@final
@dataclass(frozen=True)
class Outer:
    """One product an example: g = l rᵀ, so ‖g‖ = ‖l‖·‖r‖ (Goodfellow 1510.01799).

    Attributes:
        left: ``[rows, m]``.
        right: ``[rows, n]``; the parameter is ``[m, n]``.
    """

    left: Float[Tensor, "rows m"]
    right: Float[Tensor, "rows n"]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.left.nbytes + self.right.nbytes

    def lengths(self, *, wide: bool = False) -> tuple[Float[Tensor, " rows"], ...]:
        """Return ‖l‖ and ‖r‖."""
        return lengths(self.left, wide=wide), lengths(self.right, wide=wide)

    def masked(self, counted: Mask) -> Form:
        """Return zeros in both factors: 0·NaN is NaN."""
        keep = counted[:, None]
        return Outer(torch.where(keep, self.left, 0.0), torch.where(keep, self.right, 0.0))

    def add_to(self, total: Sum, factors: Float64[Tensor, " rows"]) -> None:
        """Add Σ c_i·l_i r_iᵀ: the one weighted product of book-keeping (Bu et al. 2210.00038)."""
        for part in weighted_products(
            self.left,
            self.right,
            factors,
            exact=total.exact,
            block=partial(total.add_block, None),
            room=total.workspace.take,
        ):
            total.add(part)

    def dense(self) -> Float[Tensor, "rows size"]:
        """Return l rᵀ."""
        return (self.left[:, :, None] * self.right[:, None, :]).flatten(1)


@final
@dataclass(frozen=True)
class Ghost:
    """A product over time, g = Σ_t l_t r_tᵀ, measured without being written out.

    ‖g‖² = Σ_ts (l_t·l_s)(r_t·r_s) (Li et al. 2110.05679). Gram entries round by n·u each, and the
    products that are summed later by T·u, both relative to A = Σ_t ‖l_t‖‖r_t‖, which may be far
    above ‖g‖ where terms cancel (PRIVACY-REVIEW A4); both bounds are added to the norm.

    Attributes:
        left: ``[rows, time, m]``.
        right: ``[rows, time, n]``; the parameter is ``[m, n]``.
    """

    left: Float[Tensor, "rows time m"]
    right: Float[Tensor, "rows time n"]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.left.nbytes + self.right.nbytes

    def lengths(self, *, wide: bool = False) -> tuple[Float[Tensor, " rows"], ...]:
        """Return norms with their error bounds added."""
        factors = [x.double() if wide else x for x in (self.left, self.right)]
        left, right = (torch.bmm(x, x.transpose(1, 2)).double() for x in factors)
        squares = (left * right).sum((1, 2)).clamp(min=0.0)
        lengths = left.diagonal(dim1=1, dim2=2) * right.diagonal(dim1=1, dim2=2)
        mass = lengths.clamp(min=0.0).sqrt().sum(1)
        unit = torch.finfo(self.left.dtype).eps / 2.0
        terms = self.left.shape[2] + self.right.shape[2] + 4
        bound = (squares + 2.0 * terms * unit * mass.square()).sqrt()
        total = bound + 2.0 * (self.left.shape[1] + 2) * unit * mass
        safe = torch.maximum(left.abs().amax((1, 2)), right.abs().amax((1, 2))) <= LARGEST_NORM**2
        return (torch.where(safe, total, torch.inf),)

    def masked(self, counted: Mask) -> Form:
        """Return zeros in both factors."""
        keep = counted[:, None, None]
        return Ghost(torch.where(keep, self.left, 0.0), torch.where(keep, self.right, 0.0))

    def add_to(self, total: Sum, factors: Float64[Tensor, " rows"]) -> None:
        """Add Σ_i c_i·g_i, one example's product after the other: terms of two never mix."""
        product = self.left.new_empty(self.left.shape[2], self.right.shape[2])
        for left, right, factor in zip(self.left, self.right, factors, strict=True):
            total.add(torch.mm(left.t(), right, out=product).double().mul_(factor))

    def dense(self) -> Float[Tensor, "rows size"]:
        """Return the products over time."""
        return torch.bmm(self.left.transpose(1, 2), self.right).flatten(1)


@final
@dataclass(frozen=True)
class Rows:
    """Gradients that touch few rows of a table: entry e adds ``values[e]`` to one row.

    Attributes:
        examples: Example of each entry, ascending.
        places: Row of the table.
        values: ``[entries, width]``; an example has at most one entry a row.
        count: Number of examples.
        height: Number of rows of the table.
    """

    examples: Int64[Tensor, " entries"]
    places: Int64[Tensor, " entries"]
    values: Float[Tensor, "entries width"]
    count: int
    height: int

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.values.nbytes + self.examples.nbytes + self.places.nbytes

    def lengths(self, *, wide: bool = False) -> tuple[Float[Tensor, " rows"], ...]:
        """Return norms."""
        squares = torch.zeros(self.count, dtype=torch.float64, device=self.values.device)
        entries = lengths(self.values, wide=wide).double().square()
        return (squares.index_add_(0, self.examples, entries).sqrt(),)

    def masked(self, counted: Mask) -> Form:
        """Return zeros where nothing counts."""
        keep = counted[self.examples][:, None]
        values = torch.where(keep, self.values, 0.0)
        return Rows(self.examples, self.places, values, self.count, self.height)

    def add_to(self, total: Sum, factors: Float64[Tensor, " rows"]) -> None:
        """Add weighted entries; all in float64."""
        total.add_rows(self.places, self.values.double() * factors[self.examples][:, None])

    def dense(self) -> Float[Tensor, "rows size"]:
        """Return whole tables, one an example."""
        width = self.values.shape[1]
        flat = self.values.new_zeros(self.count * self.height, width)
        flat[self.examples * self.height + self.places] = self.values
        return flat.view(self.count, self.height * width)


@final
@dataclass(frozen=True)
class Bags:
    """Gradients that add one vector an example to rows of a table, each with its own weight.

    Attributes:
        examples: Example of each entry.
        places: Row of the table, ascending; an example has at most one entry a row.
        weights: Weight of each entry.
        values: ``[rows, width]``, the vectors.
        height: Number of rows of the table.
    """

    examples: Int64[Tensor, " entries"]
    places: Int64[Tensor, " entries"]
    weights: Float64[Tensor, " entries"]
    values: Float[Tensor, "rows width"]
    height: int

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.values.nbytes + 24 * self.places.numel()

    def lengths(self, *, wide: bool = False) -> tuple[Float[Tensor, " rows"], ...]:
        """Return ‖v‖ and the norm of the weights."""
        squares = torch.zeros(self.values.shape[0], dtype=torch.float64, device=self.values.device)
        squares.index_add_(0, self.examples, self.weights.square())
        return lengths(self.values, wide=wide).double(), squares.sqrt()

    def masked(self, counted: Mask) -> Form:
        """Return zeros where nothing counts."""
        values = torch.where(counted[:, None], self.values, 0.0)
        weights = torch.where(counted[self.examples], self.weights, 0.0)
        return Bags(self.examples, self.places, weights, values, self.height)

    def add_to(self, total: Sum, factors: Float64[Tensor, " rows"]) -> None:
        """Add the product of a sparse matrix of weights and the vectors; all in float64."""
        rows, counts = torch.unique_consecutive(self.places, return_counts=True)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        weights = self.weights * factors[self.examples]
        shape = (rows.shape[0], self.values.shape[0])
        vectors = self.values.double()
        room = total.rows_room((rows.shape[0], vectors.shape[1]), vectors)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            chosen = torch.sparse_csr_tensor(
                starts, self.examples, weights, shape, check_invariants=False
            )
            total.add_rows(rows, torch.addmm(room, chosen, vectors, beta=0.0, out=room))

    def dense(self) -> Float[Tensor, "rows size"]:
        """Return whole tables, one an example."""
        entries = self.values[self.examples] * self.weights[:, None].to(self.values.dtype)
        count = self.values.shape[0]
        order = torch.argsort(self.examples, stable=True)
        places = self.places[order]
        return Rows(self.examples[order], places, entries[order], count, self.height).dense()


# Beyond this size of one example's gradient, writing it out costs more than measuring it twice.
_WRITTEN_OUT = 1 << 23


def over_time(
    left: Float[Tensor, "rows time m"],
    right: Float[Tensor, "rows time n"],
    room: Callable[[tuple[int, ...], Tensor], Tensor] | None = None,
) -> Form:
    """Return the cheapest form of g = Σ_t l_t r_tᵀ.

    Without a time axis one product; else written out, which costs T·m·n and makes the later sum
    cheap, unless the gradient is huge and time short, when Gram matrices cost T²·(m + n) and spare
    its memory. The choice depends on shapes alone.

    Args:
        left: ``[rows, time, m]``.
        right: ``[rows, time, n]``.
        room: Gives memory for what is written out; fresh memory by default.
    """
    time, m, n = left.shape[1], left.shape[2], right.shape[2]
    if time == 1:
        return Outer(left[:, 0], right[:, 0])
    if 4 * m * n <= _WRITTEN_OUT or time * (m + n) > m * n:
        rows = left.shape[0]
        product = None if room is None else room((rows, m * n), left)
        if m <= n:
            out = None if product is None else product.view(rows, m, n)
            return Dense(torch.bmm(left.transpose(1, 2), right, out=out).view(rows, m * n))
        # Libraries multiply faster into long rows.
        out = None if product is None else product.view(rows, n, m)
        return Dense(torch.bmm(right.transpose(1, 2), left, out=out).view(rows, m * n), (n, m))
    return Ghost(left, right)


def combined(forms: list[Form]) -> Form:
    """Return the sum of several uses of one parameter: norms of parts do not add up."""
    if len(forms) == 1:
        return forms[0]
    total = forms[0].dense()
    for form in forms[1:]:
        total = total + form.dense()
    return Dense(total)
