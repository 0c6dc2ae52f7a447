"""The keystream is that of the standards, at every place; masks made of it cancel exactly."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from dither.errors import ConfigError
from dither.noise.key import Key
from dither.noise.rounded import rounded_gaussian
from dither.noise.simd import available, using
from dither.noise.stream import (
    SUPERBLOCK_WORDS,
    add_mask,
    chacha_blocks,
    fresh_words,
    subtract_mask,
    words_at,
)

CIPHERS = ["chacha12", "chacha20", "aes256"]
INTEGERS = [np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
MATERIAL = hashlib.sha256(b"test_stream").digest()
LAST = (1 << 58) - 1
FRESH, SEEK = 0, 2  # the uses of a key, kept apart in word 14 or bytes 8 to 11 of the counter

Words = np.ndarray[tuple[int], np.dtype[np.uint32]]
Integers = np.ndarray[tuple[int], np.dtype[Any]]


@pytest.fixture(params=CIPHERS)
def cipher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def agreed(cipher: str = "chacha20", name: str = "") -> Key:
    return Key.agreed(hashlib.sha256(MATERIAL + name.encode()).digest(), cipher=cipher)


# ---- the oracle: one block at a time, from the standards -----------------------------------------


def _quarter(x: list[int], a: int, b: int, c: int, d: int) -> None:
    for one, two, three, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[one] = (x[one] + x[two]) & 0xFFFFFFFF
        x[three] ^= x[one]
        x[three] = ((x[three] << turn) | (x[three] >> (32 - turn))) & 0xFFFFFFFF


def chacha(key: bytes, counter: bytes, rounds: int) -> list[int]:
    """RFC 8439 §2.3, ``counter`` being words 12 to 15."""
    state = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<12I", key + counter)]
    x = list(state)
    for _ in range(rounds // 2):
        for a in range(4):
            _quarter(x, a, a + 4, a + 8, a + 12)
        for a in range(4):
            _quarter(x, a, 4 + (a + 1) % 4, 8 + (a + 2) % 4, 12 + (a + 3) % 4)
    return [(one + two) & 0xFFFFFFFF for one, two in zip(x, state, strict=True)]


def oracle(material: bytes, cipher: str, use: int, stream: int, position: int) -> Words:
    """One superblock as documented: 64 AES blocks, or 16 of ChaCha, those word by word."""
    count = 64 if cipher == "aes256" else 16
    counters = [
        struct.pack("<QII", position * count + block, use, stream) for block in range(count)
    ]
    if cipher == "aes256":
        electronic = Cipher(algorithms.AES(material), modes.ECB()).encryptor()  # noqa: S305
        return np.frombuffer(electronic.update(b"".join(counters)), "<u4").astype(np.uint32)
    blocks = [chacha(material, counter, int(cipher[-2:])) for counter in counters]
    return np.array(blocks, np.uint32).T.reshape(-1)


def test_the_oracle_is_chacha20() -> None:
    """Against OpenSSL's, so that the oracle of the twelve-round variant is right too."""
    counter = bytes(range(50, 66))
    openssl = Cipher(algorithms.ChaCha20(MATERIAL, counter), None).encryptor().update(bytes(64))
    assert struct.pack("<16I", *chacha(MATERIAL, counter, 20)) == openssl


# ---- the stream ----------------------------------------------------------------------------------


@pytest.mark.parametrize("simd", available())
@pytest.mark.parametrize("stream", [0, 1, 2**32 - 1])
@pytest.mark.parametrize(
    "position", [0, 1, 2**26 - 1, 2**28 - 1, 2**28, 2**32 - 1, 2**40 + 7, LAST - 1]
)
def test_words_at_a_place_are_the_standards(
    cipher: str, simd: str, stream: int, position: int
) -> None:
    """Two superblocks, around the places where a counter of 32 bits would start again."""
    with using(simd):
        words = words_at(
            Key.agreed(MATERIAL, cipher=cipher), position, 2 * SUPERBLOCK_WORDS, stream=stream
        )
    expected = [oracle(MATERIAL, cipher, SEEK, stream, position + i) for i in range(2)]
    assert (words == np.concatenate(expected)).all()


def test_fresh_words_are_the_standards_from_the_start(cipher: str) -> None:
    key = Key.agreed(MATERIAL, cipher=cipher)
    expected = np.concatenate([oracle(MATERIAL, cipher, FRESH, 0, i) for i in range(6)])
    start = 0
    for words, superblocks in ((256, 1), (300, 2), (1, 1), (0, 0), (512, 2)):
        assert key.position == start
        assert (fresh_words(key, words) == expected[256 * start :][:words]).all()
        start += superblocks
    assert key.position == 6


@settings(deadline=None)
@given(
    st.sampled_from(CIPHERS), st.integers(0, 60), st.integers(0, 5000), st.sampled_from(available())
)
def test_any_piece_is_a_cut_of_the_whole(cipher: str, start: int, count: int, simd: str) -> None:
    key = agreed(cipher)
    with using("portable" if cipher != "aes256" else simd):
        whole = words_at(key, start, count + 256)
    with using(simd):
        assert (words_at(key, start + 1, count) == whole[256:][:count]).all()
    assert key.position == 0  # a place that is read is not used up


def test_streams_and_uses_never_meet(cipher: str) -> None:
    """Fresh words, masks and 40 streams of one key, 32 superblocks each: all are different."""
    key = agreed(cipher)
    pad = np.zeros(32 * 256, np.uint32)
    add_mask(pad, key)
    words = [pad, fresh_words(key, 32 * 256)]
    words += [words_at(key, 0, 32 * 256, stream=number) for number in [*range(39), 2**31]]
    named = {row.tobytes() for row in np.concatenate(words).reshape(-1, 256)[:, :4]}
    assert len(named) == 42 * 32


@pytest.mark.parametrize(
    ("position", "count", "stream"),
    [
        *((-1, 1, 0), (LAST + 1, 1, 0), (LAST, 257, 0), (0, 1, -1), (0, 1, 2**32), (2**64, 1, 0)),
        *((0, -1, 0), (5, -300, 0)),
    ],
)
def test_places_out_of_range_are_refused(
    cipher: str, position: int, count: int, stream: int
) -> None:
    """A counter that starts again would be another stream's, or the same one's start."""
    with pytest.raises(ConfigError, match="below position"):
        words_at(agreed(cipher), position, count, stream=stream)


def test_the_last_place_is_not_the_first(cipher: str) -> None:
    key = agreed(cipher)
    assert (words_at(key, LAST, 256) != words_at(key, 0, 256)).any()
    assert words_at(key, LAST + 1, 0).size == 0


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="a count of 0 or more"):
        fresh_words(agreed(), -1)
    with pytest.raises(ConfigError, match="a count of 0 or more"):
        chacha_blocks([0] * 16, -1)


@pytest.mark.parametrize("rounds", [0, 8, 19, 21, -20])
def test_other_numbers_of_rounds_are_refused(rounds: int) -> None:
    with pytest.raises(ConfigError, match="20 or 12 rounds"):
        chacha_blocks([0] * 16, 1, rounds=rounds)


@pytest.mark.parametrize("state", [[], [0] * 15, [0] * 17, [2**32] + [0] * 15, [-1] * 16])
def test_other_states_are_refused(state: list[int]) -> None:
    with pytest.raises(ConfigError, match="16 words of 32 bits"):
        chacha_blocks(state, 1)


@pytest.mark.parametrize("rounds", [12, 20])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_blocks_come_in_the_rfcs_order(rounds: int, count: int) -> None:
    start = 2**32 - 8  # the counter carries into word 13
    counters = [struct.pack("<QII", start + block, 7, 9) for block in range(count)]
    state = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", MATERIAL)]
    blocks = chacha_blocks([*state, start, 0, 7, 9], count, rounds=rounds)
    assert blocks.tolist() == [chacha(MATERIAL, counter, rounds) for counter in counters]


# ---- masks ---------------------------------------------------------------------------------------


def unaligned(values: Integers) -> Integers:
    """The same values at an odd address."""
    room = bytearray(values.nbytes + 1)
    moved: Integers = np.frombuffer(room, values.dtype, values.size, 1)
    moved[:] = values
    return moved


@pytest.mark.parametrize("simd", available())
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("size", [0, 1, 5, 511, 512, 513, 4096, 4097, 20_011])
def test_a_mask_is_the_next_words_of_the_stream(kind: type, size: int, simd: str) -> None:
    values: Integers = np.random.default_rng(size).integers(0, 2**63, size).astype(kind)
    key, twin = agreed(), agreed()
    width = values.itemsize
    words = fresh_words(twin, -(-size * width // 4))
    pad: Integers = words.view(np.dtype(f"u{width}"))[:size].view(kind)
    masked = unaligned(values)
    with using(simd):
        add_mask(masked, key)
    assert (masked == values + pad).all()  # numpy's integers wrap
    assert key.position == twin.position == -(-size * width // 1024)


@settings(deadline=None)
@given(st.data(), st.sampled_from(INTEGERS), st.sampled_from(CIPHERS))
def test_what_is_added_is_taken_away(data: st.DataObject, kind: type, cipher: str) -> None:
    """Whatever the values, cut and order of calls: mod 2^16, 2^32 and 2^64."""
    values = data.draw(arrays(kind, st.integers(0, 600)))
    cut = data.draw(st.integers(0, values.size))
    key, twin = agreed(cipher), agreed(cipher)
    masked = values.copy()
    first, second = data.draw(st.permutations([add_mask, subtract_mask]))
    for call, holder in ((first, key), (second, twin)):
        call(masked[:cut], holder)
        call(masked[cut:], holder)
    assert (masked == values).all()
    assert key.position == twin.position


def test_subtracting_first_is_as_good() -> None:
    values = np.arange(-500, 500, dtype=np.int16)
    masked = values.copy()
    subtract_mask(masked, agreed())
    assert (masked != values).mean() > 0.9
    add_mask(masked, agreed())
    assert (masked == values).all()


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_rings_masks_cancel_in_the_sum(cipher: str, kind: type, ranks: int) -> None:
    """Each neighbouring pair shares a key; one end adds what the other subtracts."""
    generator = np.random.default_rng(ranks)
    values: Integers = generator.integers(-(2**14) // ranks, 2**14 // ranks, (ranks, 3000)).astype(
        kind
    )
    ends = [[agreed(cipher, str(edge)) for edge in range(ranks)] for _ in range(2)]
    for _ in range(2):  # two releases with the same keys
        messages = values.copy()
        for rank in range(ranks):
            add_mask(messages[rank], ends[0][rank])
            subtract_mask(messages[rank], ends[1][(rank + 1) % ranks])
        assert (messages != values).any(axis=1).all()
        assert (messages.sum(axis=0, dtype=kind) == values.sum(axis=0, dtype=kind)).all()


@pytest.mark.parametrize("kind", INTEGERS)
def test_a_masked_message_says_nothing(kind: type) -> None:
    """Each byte of masked zeros is uniform; χ² a byte place, false alarm at most 8·1e-8."""
    message: Integers = np.zeros(200_000, kind)
    add_mask(message, Key())
    places = message.view(np.uint8).reshape(message.size, -1)
    for place in range(places.shape[1]):
        counts = np.bincount(places[:, place], minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-8


def test_pads_never_repeat(cipher: str) -> None:
    """Masks, words and noise of one key, in turn: no superblock serves twice."""
    key, twin = agreed(cipher), agreed(cipher)
    pads = []
    for size in (1, 256, 257, 5000, 3):
        for kind in (np.uint32, np.uint16, np.uint64):
            before = key.position
            pad = np.zeros(size, kind)
            add_mask(pad, key)
            used = -(-pad.nbytes // 1024)
            assert key.position == before + used
            pads.append((before, pad.tobytes()))
        rounded_gaussian(100.0, size, key)
        fresh_words(key, size)
    whole = fresh_words(twin, 256 * key.position).tobytes()
    for start, pad_bytes in pads:
        assert whole[1024 * start :].startswith(pad_bytes)
    spans = [(start, start + -(-len(pad) // 1024)) for start, pad in pads]
    assert all(one[1] <= two[0] for one, two in pairwise(spans))


def test_tensors_are_masked_in_place() -> None:
    values = torch.arange(5000, dtype=torch.int32)
    place = values.data_ptr()
    add_mask(values, agreed())
    assert values.data_ptr() == place
    assert (values != torch.arange(5000)).any()
    subtract_mask(values, agreed())
    assert torch.equal(values, torch.arange(5000, dtype=torch.int32))


def _read_only() -> Integers:
    values = np.zeros(8, np.int32)
    values.flags.writeable = False
    return values


REFUSED: dict[str, Callable[[], Any]] = {
    **{kind: lambda kind=kind: np.zeros(8, kind) for kind in ("f2", "f4", "f8", "c8", "c16")},  # type: ignore[misc]
    **{kind: lambda kind=kind: np.zeros(8, kind) for kind in ("i1", "u1", "?", ">i4")},  # type: ignore[misc]
    "strided": lambda: np.zeros(16, np.int32)[::2],
    "reversed": lambda: np.zeros(8, np.int32)[::-1],
    "matrix": lambda: np.zeros((4, 4), np.int32),
    "scalar": lambda: np.zeros((), np.int32),
    "read-only": _read_only,
    "float tensor": lambda: torch.zeros(8),
    "half tensor": lambda: torch.zeros(8, dtype=torch.bfloat16),
    "strided tensor": lambda: torch.zeros(16, dtype=torch.int32)[::2],
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("call", [add_mask, subtract_mask])
def test_what_cannot_be_masked_in_place_is_refused(
    name: str, call: Callable[[Any, Key], None]
) -> None:
    """Above all a strided array: masking a copy of it would send the values as they are."""
    key = agreed()
    values = REFUSED[name]()
    with pytest.raises(ConfigError, match="a contiguous one-dimensional int32 or int16"):
        call(values, key)
    assert not np.asarray(values if name != "half tensor" else values.float()).any()
    assert key.position == 0
