"""Where randomness comes from."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dither.noise.entropy import Entropy, InsecureSeed, OsEntropy


def test_secret_flags_are_the_truth() -> None:
    assert OsEntropy().secret is True
    assert OsEntropy().stream("noise").secret is True
    assert InsecureSeed(1).secret is False
    assert InsecureSeed(1).stream("noise").secret is False


def test_os_entropy_never_repeats() -> None:
    source = OsEntropy()
    seen = {source.draw(16).tobytes() for _ in range(5000)}
    seen |= {OsEntropy().stream("x").draw(16).tobytes() for _ in range(5000)}
    assert len(seen) == 10_000
    assert len({source.seed() for _ in range(1000)}) == 1000


def test_fork_gives_other_bytes() -> None:
    source = OsEntropy()
    source.draw(8)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
        child = os.fork()
    if child == 0:
        os.write(write, source.draw(32).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        theirs = pipe.read()
    assert len(theirs) == 32
    assert theirs != source.draw(32).tobytes()


@pytest.mark.parametrize("source", [OsEntropy(), InsecureSeed(3)], ids=["os", "seed"])
def test_bytes_are_uniform(source: Entropy) -> None:
    """Each of 256 byte values within 5.8 standard deviations: false alarm 256·7e-9 < 2e-6."""
    size = 1 << 18
    counts = np.bincount(source.draw(size), minlength=256)
    assert np.abs(counts - size / 256).max() < 5.9 * np.sqrt(size / 256)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1000])
def test_size_and_type(size: int) -> None:
    for source in (OsEntropy(), InsecureSeed(0)):
        drawn = source.draw(size)
        assert drawn.shape == (size,)
        assert drawn.dtype == np.uint8
        drawn[:] = 0  # the caller owns it


@given(st.integers(0, 2**80), st.text(max_size=8))
def test_a_seed_reproduces_and_moves_on(seed: int, name: str) -> None:
    first, second = InsecureSeed(seed).stream(name), InsecureSeed(seed).stream(name)
    one, two = first.draw(64), first.draw(64)
    assert (one == second.draw(64)).all()
    assert (two == second.draw(64)).all()
    assert (one != two).any()


def test_streams_and_seeds_are_independent() -> None:
    sources = [InsecureSeed(seed).stream(name) for seed in (0, 1) for name in ("noise", "sampling")]
    sources.append(InsecureSeed(0))
    drawn = [source.draw(4096) for source in sources]
    for index, left in enumerate(drawn):
        for right in drawn[index + 1 :]:
            # Equal bytes by chance: 16 ± 4; 60 has probability below 1e-14 each.
            assert np.count_nonzero(left == right) < 60


def test_a_library_seed_has_63_bits() -> None:
    seeds = np.array([OsEntropy().seed() for _ in range(300)])
    assert seeds.min() >= 0
    assert seeds.max() >= 2**61  # all 300 below has probability 4^-300
    assert max(seeds) < 2**63
