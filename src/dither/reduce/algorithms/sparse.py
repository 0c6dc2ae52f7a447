"""Sparse: sums of gradients of which only a few rows are not zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped

from dither.errors import ConfigError
from dither.reduce.algorithms.common import SubGroup, cuts
from dither.reduce.endpoint import Endpoint

# How many ranks meet at once in a layer of the butterfly, where the number of ranks allows.
_LARGEST_DEGREE = 4


@dataclass(frozen=True)
class SparseRows:
    """Some rows of a matrix; all others are zero.

    Attributes:
        indices: Rows that are here, in rising order, each once.
        values: Their contents.

    Raises:
        ConfigError: Indices that fall, come twice or are negative; not one index a row.
    """

    indices: Int64[np.ndarray, " rows"]
    values: Shaped[np.ndarray, "rows width"]

    def __post_init__(self) -> None:
        flat, matrix = self.indices, self.values
        if (
            flat.dtype != np.int64
            or flat.ndim != 1
            or matrix.ndim != 2
            or len(flat) != len(matrix)
            or np.any(np.diff(flat) <= 0)
            or np.any(flat[:1] < 0)
        ):
            raise ConfigError(
                expected="as many rising int64 indices from 0 on as rows of a matrix",
                got=f"{flat.dtype} indices of shape {flat.shape}, values of shape {matrix.shape}",
                fix="sum rows of equal index first, and sort by index",
            )

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, as rows with indices."""
        return self.indices.nbytes + self.values.nbytes

    def dense(self, height: int) -> Shaped[np.ndarray, "height width"]:
        """Return the whole matrix."""
        matrix = np.zeros((height, self.values.shape[1]), self.values.dtype)
        matrix[self.indices] = self.values
        return matrix


def check_sparse(protection: str) -> None:
    """Refuse to send rows with indices under a protection.

    Which rows are not zero tells which tokens, words or categories a batch held; noise or masks on
    the values do not hide it.

    Raises:
        ConfigError: Any protection but "clear".
    """
    if protection != "clear":
        raise ConfigError(
            expected="dense messages under a protection",
            got=f"sparse rows under {protection}: their indices would tell tokens",
            fix='send the whole matrix, or use protection="clear" where nothing must be hidden',
        )


def sum_rows(endpoint: Endpoint, rows: SparseRows, height: int) -> SparseRows:
    """Sum matrices of few non-zero rows over all ranks, integers modulo 2^bits.

    The nested butterfly of heterogeneous degrees of Zhao and Canny (1312.3020). R is a product of
    degrees; layer by layer, as many ranks as its degree share the rows that they have in common by
    range of index, and add up what falls to each; then the sums go back through the same ranks. So
    indices that many ranks have, as under a power law, merge early. A message that would be larger
    than its whole range goes as that range, without indices.

    - Steps: 2·Σ(d - 1) over the degrees d, each of two or three messages (number of rows, indices,
      values).
    - Sent by each rank: never more than 2(R - 1)/R of the dense bytes and 8 bytes a step. Rows
      that no other rank has: 1 - 1/d of what a rank holds in each layer on the way there, and
      d - 1 times what it holds on the way back.
    - Seen by each rank: which rows others hold, and parts of their values and sums. Hence never
      together with a protection: `check_sparse`.
    - Floats: the same bits on all ranks, for each row is added up by one of them.

    Args:
        endpoint: This rank's end.
        rows: This rank's non-zero rows; the same width and type on all ranks.
        height: Rows of the whole matrix, the same on all ranks.

    Returns:
        The rows of the sum that are not zero, the same on all ranks.

    Raises:
        ConfigError: An index beyond ``height``.
        PeerError: A peer is dead or does not answer in time.
    """
    if rows.indices.size and rows.indices[-1] >= height:
        raise ConfigError(
            expected=f"indices below the height {height}",
            got=str(int(rows.indices[-1])),
            fix="pass the number of rows of the whole matrix",
        )
    low, high = 0, height
    layers: list[tuple[SubGroup, list[int]]] = []
    stride = 1
    for degree in degrees(endpoint.world_size):
        digit = endpoint.rank // stride % degree
        first = endpoint.rank - digit * stride
        group = SubGroup(endpoint, range(first, first + degree * stride, stride))
        borders = [low + border for border in cuts(high - low, degree)]
        rows = _scatter(group, rows, borders)
        layers.append((group, borders))
        low, high = borders[digit : digit + 2]
        stride *= degree
    rows = _without_zeros(rows)
    for group, borders in reversed(layers):
        rows = _gather(group, rows, borders)
    return rows


def degrees(ranks: int) -> list[int]:
    """Return factors of a number of ranks: fours first, then primes in rising order."""
    found = []
    while ranks % _LARGEST_DEGREE == 0:
        found.append(_LARGEST_DEGREE)
        ranks //= _LARGEST_DEGREE
    factor = 2
    while ranks > 1:
        if ranks % factor == 0:
            found.append(factor)
            ranks //= factor
        else:
            factor += 1
    return found


def _scatter(group: SubGroup, rows: SparseRows, borders: list[int]) -> SparseRows:
    """Give each member its range, and return the sum of this rank's."""
    parts = [_between(rows, *borders[i : i + 2]) for i in range(group.world_size)]
    total = parts[group.rank]
    low, high = borders[group.rank : group.rank + 2]
    for step in range(1, group.world_size):
        to, source = (group.rank + step) % len(parts), (group.rank - step) % len(parts)
        came = _exchange(group, to, (parts[to], borders[to : to + 2]), source, (low, high))
        total = _add(total, came)
    return total


def _gather(group: SubGroup, rows: SparseRows, borders: list[int]) -> SparseRows:
    """Collect the sums of all members' ranges."""
    parts = [rows] * group.world_size
    own = borders[group.rank : group.rank + 2]
    for step in range(1, group.world_size):
        to, source = (group.rank + step) % len(parts), (group.rank - step) % len(parts)
        low, high = borders[source : source + 2]
        parts[source] = _exchange(group, to, (rows, own), source, (low, high))
    return _join(parts)


def _exchange(
    group: SubGroup,
    to: int,
    outgoing: tuple[SparseRows, list[int]],
    source: int,
    incoming: tuple[int, int],
) -> SparseRows:
    """Swap rows of known ranges with members, each as rows or as the whole range."""
    rows, (first, last) = outgoing
    width, kind = rows.values.shape[1], rows.values.dtype
    dense = (last - first) * width * kind.itemsize <= rows.nbytes
    header, count = np.array([-1 if dense else len(rows.indices)]), np.zeros(1, np.int64)
    group.exchange(to, header, source, count)
    low, high = incoming
    number = int(count[0])
    indices = np.empty(max(number, 0), np.int64)
    group.exchange(to, rows.indices[:0] if dense else rows.indices, source, indices)
    values = np.empty((high - low if number < 0 else number, width), kind)
    content = SparseRows(rows.indices - first, rows.values).dense(last - first) if dense else None
    message = rows.values if content is None else content
    group.exchange(to, np.ascontiguousarray(message).ravel(), source, values.ravel())
    if number < 0:
        return _without_zeros(SparseRows(np.arange(low, high), values))
    return SparseRows(indices, values)


def _between(rows: SparseRows, low: int, high: int) -> SparseRows:
    start, stop = np.searchsorted(rows.indices, (low, high))
    return SparseRows(rows.indices[start:stop], rows.values[start:stop])


def _add(one: SparseRows, other: SparseRows) -> SparseRows:
    indices = np.union1d(one.indices, other.indices)
    values = np.zeros((len(indices), one.values.shape[1]), one.values.dtype)
    values[np.searchsorted(indices, one.indices)] = one.values
    values[np.searchsorted(indices, other.indices)] += other.values
    return SparseRows(indices, values)


def _join(parts: list[SparseRows]) -> SparseRows:
    return SparseRows(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def _without_zeros(rows: SparseRows) -> SparseRows:
    kept = np.any(rows.values != 0, axis=1)
    return rows if kept.all() else SparseRows(rows.indices[kept], rows.values[kept])
