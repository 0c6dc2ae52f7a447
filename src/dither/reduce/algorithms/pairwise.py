"""Every rank's whole message goes to every other rank, in an order that a schedule gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dither.reduce.endpoint import Buffer, Endpoint

# Elements of a float piece: all ranks' pieces are held at once, to be added in the order of ranks.
_FLOAT_PIECE = 1 << 16


def sum_everything(endpoint: Endpoint, buffer: Buffer, turns: Iterable[tuple[int, int]]) -> None:
    """Sum in place by sending the whole of ``buffer`` to each rank.

    Integers are added as they come, for their sum does not depend on the order. Floats are added
    in the order of ranks, so that all ranks have the same bits; they travel in pieces, so that the
    R - 1 messages to hold stay small.

    Args:
        endpoint: This rank's end.
        buffer: What to sum.
        turns: For each turn the rank to send to and the rank to receive from; each other rank
            once.
    """
    turns = list(turns)
    if np.issubdtype(buffer.dtype, np.integer):
        _add_as_they_come(endpoint, buffer, turns)
        return
    messages = np.empty((endpoint.world_size, min(buffer.size, _FLOAT_PIECE)), buffer.dtype)
    for piece in _pieces(buffer):
        _add_in_order(endpoint, piece, turns, messages[:, : piece.size])


def _add_as_they_come(endpoint: Endpoint, buffer: Buffer, turns: list[tuple[int, int]]) -> None:
    total = buffer.copy()
    message = np.empty_like(buffer)
    for to, source in turns:
        endpoint.exchange(to, buffer, source, message)
        total += message
    buffer[:] = total


def _add_in_order(
    endpoint: Endpoint, piece: Buffer, turns: list[tuple[int, int]], messages: np.ndarray
) -> None:
    messages[endpoint.rank] = piece
    for to, source in turns:
        endpoint.exchange(to, piece, source, messages[source])
    piece[:] = messages[0]
    for message in messages[1:]:
        piece += message


def _pieces(buffer: Buffer) -> Iterator[Buffer]:
    for start in range(0, buffer.size, _FLOAT_PIECE):
        yield buffer[start : start + _FLOAT_PIECE]
