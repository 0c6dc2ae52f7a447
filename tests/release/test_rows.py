"""Sparse tables are released as the dense ones they stand for, noise on every row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.release.conftest import RUN, bounded
from torch import Tensor

from dither.errors import ReleaseError
from dither.noise.codec import Encoded, Grid
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.privacy.account import Account
from dither.privacy.lattice import Lattice
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.release.chunk import BLOCK, SHORT, ChunkEncoder, pieces
from dither.release.release import release_sum
from dither.release.rows import dense, is_rows, row_blocks

LATTICE = Lattice(-14, 2.0**12, 2**23, 5, 32, 1)


def agreed() -> Key:
    return Key.agreed(bytes([3]) * 32, secret=False)


def table(shape: tuple[int, ...], rows: list[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """A sparse sum with these rows, which rise."""
    generator = torch.Generator().manual_seed(len(rows))
    values = torch.randn(len(rows), *shape[1:], dtype=torch.float64, generator=generator).to(dtype)
    return sparse(torch.tensor([rows], dtype=torch.int64), values, shape)


def sparse(
    indices: Tensor, values: Tensor, shape: tuple[int, ...], *, coalesced: bool = True
) -> Tensor:
    made: Tensor = torch.sparse_coo_tensor(
        indices, values, shape, is_coalesced=coalesced, check_invariants=False
    )
    return made


def long_tables() -> dict[str, Tensor]:
    """Tables longer than a block: cuts in rows and between them, wide rows, few, none and all."""
    rows = -(-2 * BLOCK // 64)
    return {
        "64 wide": table((rows + 5, 64), [0, 1, 7, 2047, 2048, rows - 1, rows + 4]),
        "odd width": table((rows, 77), list(range(0, rows, 3))),
        "rows beyond a block": table((3, BLOCK + 13), [0, 2]),
        "every row": table((rows, 65), list(range(rows))),
        "no row": table((rows, 65), []),
        "one column": table((2 * BLOCK + 1,), [0, BLOCK - 1, BLOCK, 2 * BLOCK]),
        "three dimensions": table((rows, 5, 16), [3, 1700, rows - 1]),
        "float32": table((rows, 66), [1, 2, rows - 2], torch.float32),
        "bfloat16": table((rows, 66), [1, 2, rows - 2], torch.bfloat16),
        "beyond the clamp": 1e3 * table((rows, 64), list(range(0, rows, 700))),
        "not coalesced": sparse(
            torch.arange(2000)[None] % 1000,
            100 * torch.randn(2000, 65, dtype=torch.float64),
            (rows, 65),
            coalesced=False,
        ),
    }


@pytest.mark.parametrize("name", list(long_tables()))
def test_the_message_is_the_dense_tables(name: str) -> None:
    """Bit for bit, with one key; a long and a short neighbour keep their numbers too."""
    rows = long_tables()[name]
    around = {"before": torch.ones(5).double(), "after": torch.ones(SHORT).double()}
    found = []
    for middle in (rows, dense(rows)):
        chunk = {"before": around["before"], "table": middle, "after": around["after"]}
        encoder = ChunkEncoder(LATTICE, FreshNoise(agreed()))
        found.append(encoder.encode(chunk))
        tensors, saturated = ChunkEncoder(LATTICE, FreshNoise(agreed())).alone(chunk)
        decoded = encoder.decode(found[0].message, chunk)
        assert saturated == found[0].saturated
        assert all(torch.equal(tensors[key], decoded[key]) for key in chunk)
        assert tensors["table"].shape == rows.shape
        assert not tensors["table"].is_sparse
    one, two = found
    assert one.message.dtype == two.message.dtype
    assert np.array_equal(one.message, two.message)
    assert one.saturated == two.saturated
    assert (one.saturated > 64) == (name == "beyond the clamp")
    other = ChunkEncoder(LATTICE, FreshNoise(Key())).encode({"table": rows})
    assert not np.array_equal(other.message, one.message[5 : 5 + rows.numel()])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_blocks_are_the_dense_table_in_order(data: st.DataObject) -> None:
    """Any width, rows and block size."""
    count = data.draw(st.integers(1, 40))
    width = data.draw(st.integers(1, 30))
    taken = data.draw(st.sets(st.integers(0, count - 1)))
    rows = table((count, width), sorted(taken))
    block = data.draw(st.integers(1, 300))
    blocks = [part.copy() for part in row_blocks(rows, block)]
    assert all(part.size == block for part in blocks[:-1])
    assert np.array_equal(np.concatenate(blocks), rows.to_dense().numpy().reshape(-1))


def test_a_table_without_rows_or_columns_has_no_coordinates() -> None:
    for shape in ((0, 5), (5, 0)):
        assert list(row_blocks(table(shape, []), 7)) == []


def test_the_dense_table_is_never_in_memory() -> None:
    """All blocks lie in one buffer, not much longer than a block."""
    rows = table((40_000, 65), [3, 39_999])
    places = {part.__array_interface__["data"][0] for part in row_blocks(rows, BLOCK)}
    assert len(places) > 1  # cuts fall inside rows
    assert max(places) - min(places) < 65 * 8
    (piece,) = pieces([rows])
    assert piece is rows


def test_which_layouts_pass_as_rows() -> None:
    """Others, and tables too short to be worth it, are made dense."""
    both = torch.eye(3, dtype=torch.float64).to_sparse()
    assert is_rows(table((3, 4), [1]))
    assert not is_rows(both)
    assert not is_rows(both.to_dense())
    (piece,) = pieces([both])
    assert torch.equal(piece, both.to_dense().reshape(-1))
    (short,) = pieces([table((3, 4), [1])])
    assert short.layout == torch.strided


# ---- every row, always --------------------------------------------------------------------------


@final
@dataclass
class Sizes:
    """Noise that notes how many coordinates it was given, and how many were not zero."""

    source: FreshNoise
    given: int = 0
    filled: int = 0

    def encode(
        self, values: np.ndarray, grid: Grid, *, out: np.ndarray | None = None, factor: float = 1.0
    ) -> Encoded:
        self.given += values.size
        self.filled += int(np.count_nonzero(values))
        return self.source.encode(values, grid, out=out, factor=factor)


@pytest.mark.parametrize("pooled", [False, True], ids=["fresh", "pool"])
def test_rows_without_entries_get_the_same_noise(
    account: Account, plan: Plan, *, pooled: bool
) -> None:
    """χ² of the rows with entries and of those without, each against σ; false alarm 2e-7.

    Missing noise on one row in 20 of either kind would move its energy by 13 deviations.
    """
    count, width = 12_000, 64
    taken = list(range(0, count, 5))
    rows = table((count, width), taken)
    lattice = plan.bind(plan.l2_clip, rows.numel())
    with NoisePool(lattice.sigma, dimension=rows.numel()) as pool:
        source = pool if pooled else None
        released = release_sum(bounded(plan, {"w": rows}), account, noise=source).tensors["w"]
    noise = (released - rows.to_dense()).numpy() / (lattice.sigma * lattice.step)
    wire = (lattice.wire_step / (lattice.sigma * lattice.step)) ** 2 / 12
    absent = np.ones(count, bool)
    absent[taken] = False
    for kind in (absent, ~absent):
        energy = float((noise[kind] ** 2).sum())
        low, high = stats.chi2.isf([1 - 5e-8, 5e-8], noise[kind].size)
        assert low < energy / (1 + wire) < high
        assert not low < energy * (1 - 1 / 20) < high
    assert (noise[absent] != 0).any(axis=1).all()


def test_every_coordinate_passes_the_noise() -> None:
    rows = table((4000, 65), [5, 3999])
    noise = Sizes(FreshNoise(agreed()))
    encoded = ChunkEncoder(LATTICE, noise).encode({"w": rows})
    assert noise.given == encoded.message.size == rows.numel() == 260_000
    assert noise.filled == 2 * 65


def test_what_is_charged_does_not_ask_which_rows_have_entries(ledger: Ledger, plan: Plan) -> None:
    """σ and γ follow from the declared dimension, that of the dense table; one event each."""
    account = Account(ledger, RUN, plan, lease=1)
    for taken in ([], [0], list(range(2000))):
        rows = table((2000, 65), taken)
        part = bounded(plan, {"w": rows})
        assert part.dimension == 130_000
        assert release_sum(part, account).tensors["w"].shape == (2000, 65)
    assert ledger.events(RUN) == [(plan.event, 1)] * 3
    with pytest.raises(ReleaseError, match="a sum of 65 coordinates"):
        release_sum(bounded(plan, {"w": table((2000, 65), [0])}, dimension=65), account)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1000, 1999])
@pytest.mark.parametrize("shape", [(2000, 65), (20, 6)], ids=["long", "short"])
def test_a_table_that_is_not_finite_never_leaves(
    account: Account, bad: float, place: int, shape: tuple[int, int]
) -> None:
    rows = table(shape, [place * shape[0] // 2000])
    rows.values()[0, -1] = bad
    with pytest.raises(ReleaseError, match="a finite clipped sum"):
        release_sum(bounded(account.plan, {"w": rows}), account)
    assert account.ledger.charged(RUN) == 1


@pytest.mark.parametrize("indices", [[5, 5], [5, 4], [-1, 4], [4, 2000], [2000, 2001]], ids=str)
def test_a_sum_that_lies_about_its_rows_is_refused(account: Account, indices: list[int]) -> None:
    """A row twice would be lost without a word; one beyond the end would be written elsewhere."""
    values = torch.ones(2, 65, dtype=torch.float64)
    rows = sparse(torch.tensor([indices]), values, (2000, 65))
    with pytest.raises(ReleaseError, match="rows in rising order"):
        release_sum(bounded(account.plan, {"w": rows}), account)
