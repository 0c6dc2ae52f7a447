"""Where the examples are in a tensor that a model makes on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from dither.clipping.unsupported import AmbiguousError, UnsupportedError


class Place(Enum):
    """Which axis counts the examples."""

    FIRST = "first"  # [rows, ...]
    SECOND = "second"  # [time, rows, ...], as recurrent layers and attention have it by default
    FOLDED = "folded"  # [rows * parts, ...], examples outermost
    ALONE = "alone"  # one example: all of the tensor is its own


@dataclass(frozen=True)
class Layout:
    """How to bring the examples of a tensor to its front.

    Attributes:
        place: Where they are.
        rows: Number of examples.
    """

    place: Place
    rows: int

    def by_example(self, tensor: Tensor) -> Tensor:
        """Return the tensor with shape ``[rows, ...]``; a view where its layout allows that."""
        if self.place is Place.SECOND:
            return tensor.movedim(1, 0)
        if self.place is Place.FOLDED:
            return tensor.reshape(self.rows, -1, *tensor.shape[1:])
        if self.place is Place.ALONE:
            return tensor.unsqueeze(0)
        return tensor


def find_layout(leading: Sequence[int], rows: int) -> Layout:
    """Return where the examples are among a tensor's leading axes.

    Sizes alone decide. A wrong guess cannot pass: `check` compares with each example alone.

    Args:
        leading: Sizes of the axes that may count examples.
        rows: Number of examples in the chunk.

    Raises:
        AmbiguousError: It may be two of them; another number of rows tells them apart.
        UnsupportedError: No axis has it.
    """
    if rows == 1:
        return Layout(Place.ALONE, 1)
    found = [axis for axis, size in enumerate(leading[:2]) if size == rows]
    folds = bool(leading) and leading[0] > 0 and leading[0] % rows == 0
    if len(found) == 2 or (found == [1] and folds):
        raise AmbiguousError(rows)
    if found:
        return Layout(Place.FIRST if found[0] == 0 else Place.SECOND, rows)
    if folds:
        return Layout(Place.FOLDED, rows)
    raise UnsupportedError(f"no axis of {tuple(leading)} counts the {rows} examples")
