"""Where randomness comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.noise.processes import in_child

from dither.errors import NoiseError
from dither.noise.entropy import Entropy, InsecureSeed, OsEntropy
from dither.noise.stream import fresh_words


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
    theirs = in_child(lambda: source.draw(32).tobytes())
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


def first_words(source: Entropy) -> bytes:
    return fresh_words(source.key(), 4).tobytes()


def test_keys_are_as_secret_as_their_source_and_never_the_same() -> None:
    assert OsEntropy().key().secret is True
    assert InsecureSeed(1).key().secret is False
    sources = [OsEntropy(), InsecureSeed(1), InsecureSeed(2), InsecureSeed(1).stream("noise")]
    seen = {first_words(source) for source in sources for _ in range(50)}
    assert len(seen) == 200


def test_a_seeds_keys_are_reproduced() -> None:
    """By an agreed key: the same cipher, whatever the processor."""
    one, two = InsecureSeed(7, "noise"), InsecureSeed(7).stream("noise")
    assert [first_words(one) for _ in range(5)] == [first_words(two) for _ in range(5)]
    assert one.key().cipher == "chacha20"


def test_a_forked_child_may_use_the_systems_keys_and_no_seeds() -> None:
    system, seeded = OsEntropy().key(), InsecureSeed(3).key()

    def child() -> bytes:
        with pytest.raises(NoiseError, match="after fork"):
            fresh_words(seeded, 4)
        return fresh_words(system, 4).tobytes()

    assert in_child(child) != fresh_words(system, 4).tobytes()
