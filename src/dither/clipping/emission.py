"""The totals of a batch, computed one after the other while they leave."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dither.clipping.forms import Form
from dither.clipping.sums import Sum
from dither.errors import ReleaseError
from dither.release.ahead import Spans


@dataclass(frozen=True)
class Weighted:
    """A parameter's per-example gradients and what each is multiplied by: its sum is yet to come.

    Attributes:
        form: The gradients.
        factors: One an example; zero where it does not count.
        finite: Which examples have a gradient that is finite; None for all.
        before: The same of examples before, to be added first.
    """

    form: Form
    factors: Float64[Tensor, " rows"]
    finite: Bool[Tensor, " rows"] | None
    before: Weighted | None = None

    def add_to(self, total: Sum) -> None:
        """Add the weighted sum over examples."""
        if self.before is not None:
            self.before.add_to(total)
        whole = self.form if self.finite is None else self.form.masked(self.finite)
        whole.add_to(total, self.factors)


def buckets(sizes: Mapping[str, int], most: int | None) -> tuple[tuple[str, ...], ...]:
    """Return which parameters leave together, in which order: of sizes alone, so it is public.

    The last parameters leave first, as their gradients are there first in a backward pass. A
    parameter is never cut, so one that is longer than ``most`` leaves alone.

    Args:
        sizes: Coordinates of each parameter.
        most: Coordinates that leave together; None for all at once, in the order of ``sizes``.
    """
    if most is None:
        return (tuple(sizes),)
    found: list[tuple[str, ...]] = []
    names: list[str] = []
    held = 0
    for name, size in reversed(list(sizes.items())):
        if names and held + size > most:
            found.append(tuple(names))
            names, held = [], 0
        names.append(name)
        held += size
    return (*found, tuple(names))


@final
class Emission:
    """The totals of one batch in buckets, each computed when it is asked for.

    All that examples share, norms and factors, is known before the first; what is left is one
    weighted product for each parameter. Sensitivity is that of all buckets together: they are the
    coordinates of one sum, cut at places that sizes alone decide, and `release_sum` charges for
    the whole before it asks for the first. A parameter that no gradient reached is zeros, as is
    all of an empty batch, so that ranks come with the same buckets whatever they sampled.

    It is readable until the engine's next batch overwrites its memory.

    Args:
        sums: By parameter, the totals of all chunks of examples but the last.
        weighted: The last chunk's gradients; they are let go as their sums are made.
        order: Parameters of each bucket.
        spans: Where to note when products were computed.
        once: Forget each bucket when the next is asked for: it can be read once.
    """

    def __init__(
        self,
        sums: Mapping[str, Sum],
        weighted: dict[str, Weighted],
        order: Sequence[tuple[str, ...]],
        spans: Spans | None = None,
        *,
        once: bool = False,
    ) -> None:
        self._sums: Mapping[str, Sum] | None = sums
        self._weighted = weighted
        self._order = order
        self._spans = spans
        self._once = once
        self._found: dict[str, Tensor] = {}

    @classmethod
    def of_nothing(cls) -> Emission:
        """Return one before the first batch."""
        return cls({}, {}, ())

    def withdraw(self) -> None:
        """Say that the memory is used anew: what it holds then is another sample's."""
        self._sums = None
        self._weighted.clear()
        self._found.clear()

    def __len__(self) -> int:
        """Return the number of buckets."""
        return len(self._order)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        """Compute one bucket after the other."""
        for names in self._order:
            yield {name: self.total(name) for name in names}
            if self._once:
                self._let_go(names)

    def _let_go(self, names: Sequence[str]) -> None:
        sums = self._require_sums()
        for name in names:
            self._found.pop(name)
            sums[name].free()
        self._sums = {name: total for name, total in sums.items() if name not in names}

    def _require_sums(self) -> Mapping[str, Sum]:
        if self._sums is None:
            raise ReleaseError(
                expected="a sum released before its engine sums the next batch",
                got="one whose memory holds another batch by now",
                fix="release each sum at once, or use clipped_sum, which shares no memory",
            )
        return self._sums

    def total(self, name: str) -> Float[Tensor, ...]:
        """Return the total of a parameter, computing what is missing of it.

        Raises:
            ReleaseError: The next batch is under way, or it can be read once and was.
        """
        sums = self._require_sums()
        if name not in sums:
            raise ReleaseError(
                expected="each part of this sum to be read once",
                got=f"'{name}' again, whose memory was let go",
                fix="keep what was released",
            )
        if name not in self._found:
            start = time.perf_counter()
            self._found[name] = _total(sums[name], self._weighted.pop(name, None))
            if self._spans is not None:
                self._spans.add(f"product {name}", start)
        return self._found[name]


def queued(weighted: Mapping[str, Weighted], before: Mapping[str, Weighted]) -> dict[str, Weighted]:
    """Return a chunk's gradients to be added after those of chunks before."""
    return {name: replace(one, before=before.get(name)) for name, one in weighted.items()}


def add_up(weighted: dict[str, Weighted], sums: Mapping[str, Sum]) -> None:
    """Add the weighted sums of a chunk of examples, and let go of its gradients."""
    for name in list(weighted):
        _add(sums[name], weighted.pop(name))


def _total(total: Sum, weighted: Weighted | None) -> Tensor:
    if weighted is not None:
        _add(total, weighted)
    with torch.no_grad():
        return total.result()


def _add(total: Sum, weighted: Weighted) -> None:
    with torch.no_grad(), torch.autocast(total.device.type, enabled=False):
        weighted.add_to(total)
