"""How parts of the engine say that they cannot serve; never seen by users."""

from __future__ import annotations


class UnsupportedError(Exception):
    """A use of a parameter that book-keeping cannot split by example: the reason, in words."""


class AmbiguousError(Exception):
    """Two axes are as long as the chunk has rows: run it again with another number of rows.

    Args:
        rows: The number that did not tell.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(f"two axes have {rows} entries")
        self.rows = rows
