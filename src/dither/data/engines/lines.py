"""Whether a CSV file may be cut at any line end, so that several readers can share it.

A cluster's readers cut files at line ends. That is wrong where a quoted field holds one, and a line
of blanks only would pass for an empty one. One pass over the bytes tells, at about a gigabyte a
second; it also finds bytes that are not UTF-8, which Java would replace without a word.
"""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np

from dither.data.engines.reading import broken_text

_BLOCK = 1 << 22
_LINE_FEED, _RETURN, _QUOTE, _BLANK = 10, 13, 34, 32


def splittable(path: Path, origin: str) -> bool:
    """Whether every line end of a CSV file ends a row.

    Args:
        path: The file.
        origin: Its name in errors.

    Raises:
        DataError: The file is not text in UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    quotes, after_end, clean = 0, False, True
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            _decode(decoder, block, origin)
            if clean:
                clean, quotes, after_end = _scan(block, quotes, after_end=after_end)
    _decode(decoder, b"", origin, final=True)
    return clean


def _decode(
    decoder: codecs.IncrementalDecoder, block: bytes, origin: str, *, final: bool = False
) -> None:
    if block.isascii() and not final and decoder.getstate()[0] == b"":
        return
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise broken_text(origin) from error


def _scan(block: bytes, quotes: int, *, after_end: bool) -> tuple[bool, int, bool]:
    """Look at one block.

    Args:
        block: Bytes.
        quotes: Quotes before it, modulo 2.
        after_end: Whether a line ended right before it.

    Returns:
        Whether no row spans lines and no line begins with a blank; quotes so far, modulo 2; whether
        a line ends with the block.
    """
    codes = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(codes == _LINE_FEED)
    if b"\r" in block:
        ends = np.union1d(ends, np.flatnonzero(codes == _RETURN))
    begins = ends + 1
    first = codes[begins[begins < len(codes)]]
    if after_end:
        first = np.append(first, codes[0])
    blank = (first <= _BLANK) & (first != _LINE_FEED) & (first != _RETURN)
    inside = False
    if b'"' in block:
        marks = np.flatnonzero(codes == _QUOTE)
        inside = bool(((np.searchsorted(marks, ends) + quotes) % 2).any())
        quotes = (quotes + len(marks)) % 2
    elif quotes and len(ends):
        inside = True
    return not (inside or blank.any()), quotes, bool(len(ends) and ends[-1] == len(codes) - 1)
