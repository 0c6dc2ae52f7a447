"""How long and how large a value of a table may be."""

from __future__ import annotations

from collections.abc import Iterable

LARGEST = 3.4028234663852886e38
"""Numbers are stored as float32, which ends here."""

DIGITS = 9
"""Of a whole number at most; a longer row of digits is a text."""


def are_numbers(codes: Iterable[str]) -> bool:
    """Whether all codes are whole numbers, which then compare as such."""
    return all(code.isascii() and code.isdigit() and len(code) <= DIGITS for code in codes)
