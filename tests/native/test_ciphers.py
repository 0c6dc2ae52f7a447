"""The bare ciphers against published vectors, on every subset of the processor's features."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dither import _native
from dither.noise import simd
from dither.noise.stream import chacha_blocks

FEATURES = _native.cpu_features()
SUBSETS = [
    list(names)
    for size in range(len(FEATURES) + 1)
    for names in itertools.combinations(FEATURES, size)
]
_CONSTANTS = b"expand 32-byte k"

# RFC 8439: key, first counter, nonce of 12 bytes, keystream. §2.3.2 and appendix A.1, 1 to 5.
RFC_BLOCKS = {
    "2.3.2": (
        bytes(range(32)),
        1,
        "000000090000004a00000000",
        (
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
            "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
        ),
    ),
    "A.1 1": (
        bytes(32),
        0,
        "00" * 12,
        (
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
            "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        ),
    ),
    "A.1 2": (
        bytes(32),
        1,
        "00" * 12,
        (
            "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
            "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
        ),
    ),
    "A.1 3": (
        bytes(31) + b"\x01",
        1,
        "00" * 12,
        (
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
            "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"
        ),
    ),
    "A.1 4": (
        b"\x00\xff" + bytes(30),
        2,
        "00" * 12,
        (
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
            "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"
        ),
    ),
    "A.1 5": (
        bytes(32),
        0,
        "00" * 11 + "02",
        (
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
            "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"
        ),
    ),
}
# RFC 8439 §2.4.2: the message and its encryption differ by the keystream.
SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)
SUNSCREEN_ENCRYPTED = bytes.fromhex(
    "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab8f593dabcd62b357"
    "1639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
    "5af90bbf74a35be6b40b8eedf2785e42874d"
)
# draft-strombergson-chacha-test-vectors-01, TC1 for 256 bits and 12 rounds: all zeros.
CHACHA12_ZEROS = (
    "9bf49a6a0755f953811fce125f2683d50429c3bb49e074147e0089a52eae155f"
    "0564f879d27ae3c02ce82834acfa8c793a629f2ca0de6919610be82f411326be"
)
# FIPS 197 appendix C.3, then SP 800-38A F.5.5: key, block in, block out.
NIST_BLOCKS = [
    (
        bytes(range(32)).hex(),
        "00112233445566778899aabbccddeeff",
        "8ea2b7ca516745bfeafc49904b496089",
    ),
    *(
        ("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", into, out)
        for into, out in [
            ("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", "0bdf7df1591716335e9a8b15c860c502"),
            ("f0f1f2f3f4f5f6f7f8f9fafbfcfdff00", "5a6e699d536119065433863c8f657b94"),
            ("f0f1f2f3f4f5f6f7f8f9fafbfcfdff01", "1bc12c9c01610d5d0d8bd6a3378eca62"),
            ("f0f1f2f3f4f5f6f7f8f9fafbfcfdff02", "2956e1c8693536b1bee99c73a31576b6"),
        ]
    ),
]


@pytest.fixture(params=SUBSETS, ids=lambda names: "+".join(names) or "none")
def kernels(request: pytest.FixtureRequest) -> Any:
    return _native.Kernels(request.param)


def state(key: bytes, counter: int, nonce: bytes) -> list[int]:
    """RFC 8439's, of 12 bytes of nonce; with 8, the counter has 64 bits."""
    place = counter.to_bytes(16 - len(nonce), "little")
    return list(np.frombuffer(_CONSTANTS + key + place + nonce, "<u4").tolist())


def keystream(kernels: Any, start: list[int], size: int, rounds: int = 20) -> bytes:
    """`size` bytes in the RFC's order, from the core's superblocks."""
    superblocks = -(-size // 1024)
    words = np.empty(superblocks * 256, np.uint32)
    _native.chacha(kernels, start, rounds, words)
    blocks = words.reshape(superblocks, 16, 16).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).tobytes()[:size]


def test_all_subsets_are_tried() -> None:
    assert len(SUBSETS) == 2 ** len(FEATURES)
    assert len({tuple(names) for names in SUBSETS}) == len(SUBSETS)


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(names) or "none")
def test_the_widest_allowed_code_is_chosen(names: Sequence[str]) -> None:
    chosen = _native.Kernels(list(names))
    widest = [name for name in ("avx512", "avx2", "neon") if name in names]
    assert chosen.name == (widest[0] if widest else "portable")
    single = "armv8aes" if platform.machine() in {"aarch64", "arm64"} else "aesni"
    aes = "vaes" if {"avx512", "vaes"} <= set(names) else single if "aes" in names else "portable"
    assert chosen.aes == aes


@pytest.mark.parametrize("vector", RFC_BLOCKS)
def test_blocks_of_rfc_8439(kernels: Any, vector: str) -> None:
    key, counter, nonce, expected = RFC_BLOCKS[vector]
    assert keystream(kernels, state(key, counter, bytes.fromhex(nonce)), 64).hex() == expected


def test_the_keystream_of_rfc_8439(kernels: Any) -> None:
    nonce = bytes.fromhex("000000000000004a00000000")
    stream = keystream(kernels, state(bytes(range(32)), 1, nonce), len(SUNSCREEN))
    encrypted = bytes(a ^ b for a, b in zip(stream, SUNSCREEN, strict=True))
    assert encrypted == SUNSCREEN_ENCRYPTED


def test_twelve_rounds_of_the_published_vector(kernels: Any) -> None:
    assert keystream(kernels, state(bytes(32), 0, bytes(8)), 64, 12).hex() == CHACHA12_ZEROS


@pytest.mark.parametrize("counter", [0, 1, 2**32 - 40, 2**32 - 17, 2**32 - 1, 2**63, 2**64 - 33])
def test_chacha20_is_the_cryptography_packages(kernels: Any, counter: int) -> None:
    """64 blocks, of which some counters cross 2³², one even 2⁶⁴ (where it starts again)."""
    random = np.random.default_rng(counter % 2**32)
    key, nonce = random.bytes(32), random.bytes(8)
    ours = keystream(kernels, state(key, counter, nonce), 64 * 64)
    for block in range(64):
        # One block a call: the package refuses to carry into the upper half of the counter.
        place = ((counter + block) % 2**64).to_bytes(8, "little") + nonce
        theirs = Cipher(algorithms.ChaCha20(key, place), None).encryptor().update(bytes(64))
        assert ours[64 * block : 64 * (block + 1)] == theirs, f"block {block}"


def chacha_plainly(start: list[int], rounds: int) -> list[int]:
    """RFC 8439 §2.3 on Python's integers."""
    x = list(start)

    def add_rotate(a: int, b: int, c: int, by: int) -> None:
        x[a] = (x[a] + x[b]) % 2**32
        mixed = x[c] ^ x[a]
        x[c] = (mixed << by | mixed >> (32 - by)) % 2**32

    def quarter(a: int, b: int, c: int, d: int) -> None:
        add_rotate(a, b, d, 16)
        add_rotate(c, d, b, 12)
        add_rotate(a, b, d, 8)
        add_rotate(c, d, b, 7)

    for _ in range(rounds // 2):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return [(after + before) % 2**32 for after, before in zip(x, start, strict=True)]


@pytest.mark.parametrize("rounds", [12, 20])
def test_rounds_are_those_of_plain_integers(kernels: Any, rounds: int) -> None:
    random = np.random.default_rng(rounds)
    start = state(random.bytes(32), 2**32 - 3, random.bytes(8))
    words = np.frombuffer(keystream(kernels, start, 64 * 33, rounds), "<u4").reshape(33, 16)
    for block, row in enumerate(words):
        counter = 2**32 - 3 + block
        start[12:14] = [counter % 2**32, counter >> 32]
        assert row.tolist() == chacha_plainly(start, rounds), f"block {block}"


@pytest.mark.parametrize("name", simd.available())
@pytest.mark.parametrize("rounds", [12, 20])
def test_the_python_door_has_the_rfcs_order(name: str, rounds: int) -> None:
    start = state(bytes(range(32)), 5, bytes(12))
    with simd.using(name):
        blocks = chacha_blocks(start, 19, rounds=rounds)
    assert blocks.shape == (19, 16)
    for block, row in enumerate(blocks):
        start[12] = 5 + block
        assert row.tolist() == chacha_plainly(start, rounds)


def aes_stream(kernels: Any, key: bytes, counter: bytes, superblocks: int) -> bytes:
    words = np.empty(superblocks * 256, np.uint32)
    _native.aes256(kernels, key, counter, words)
    return words.tobytes()


@pytest.mark.parametrize("vector", NIST_BLOCKS, ids=["FIPS 197", "1", "2", "3", "4"])
def test_blocks_of_the_nist(kernels: Any, vector: tuple[str, str, str]) -> None:
    key, block, expected = map(bytes.fromhex, vector)
    assert aes_stream(kernels, key, block, 1)[:16] == expected


@pytest.mark.parametrize("counter", [0, 2**32 - 70, 2**64 - 70])
def test_aes256_is_the_cryptography_packages(kernels: Any, counter: int) -> None:
    """128 blocks, whose counter is the first 64 bits, little-endian, the rest left alone."""
    random = np.random.default_rng(counter % 2**32)
    key, rest = random.bytes(32), random.bytes(8)
    places = [((counter + i) % 2**64).to_bytes(8, "little") + rest for i in range(128)]
    # ECB of the counter blocks is what a counter mode is made of.
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
    assert aes_stream(kernels, key, places[0], 2) == encryptor.update(b"".join(places))
