"""Keys cannot be read, copied or used twice, whatever process or thread holds them."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from tests.noise.processes import (
    content,
    in_child,
    mappings,
    needs_pid_namespaces,
    new_pid_namespace,
    wiped_on_fork,
)

from dither.errors import ConfigError, NoiseError
from dither.noise.key import KEY_BYTES, Key
from dither.noise.pool import NoisePool
from dither.noise.simd import available
from dither.noise.stream import add_mask, fresh_words, subtract_mask, words_at

CIPHERS = ["chacha12", "chacha20", "aes256"]
SUPERBLOCK = 256
MATERIAL = hashlib.sha256(b"test_key").digest()

Words = np.ndarray[tuple[int], np.dtype[np.uint32]]


@pytest.fixture(params=CIPHERS)
def cipher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def drawn(key: Key, words: int = 4 * SUPERBLOCK) -> bytes:
    return fresh_words(key, words).tobytes()


def superblocks(words: bytes) -> list[bytes]:
    """The first 16 bytes of every superblock, which name it: two agree by chance in 2^128."""
    return [words[at : at + 16] for at in range(0, len(words), 4 * SUPERBLOCK)]


# ---- what a key is made of -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16, 31, 33, 64])
def test_material_has_32_bytes(size: int) -> None:
    with pytest.raises(ConfigError, match=f"32 bytes of key material, got {size}"):
        Key.agreed(bytes(size))


@pytest.mark.parametrize("name", ["", "rot13", "chacha8", "AES256"])
def test_unknown_ciphers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a cipher of chacha12, chacha20, aes256"):
        Key(name)
    with pytest.raises(ConfigError, match="a cipher of chacha12, chacha20, aes256"):
        Key.agreed(MATERIAL, cipher=name)


def test_a_key_says_its_cipher_and_whether_it_is_secret(cipher: str) -> None:
    assert Key(cipher).cipher == Key.agreed(MATERIAL, cipher=cipher).cipher == cipher
    assert Key(cipher).secret is True
    assert Key.agreed(MATERIAL, cipher=cipher).secret is True
    assert Key.agreed(MATERIAL, cipher=cipher, secret=False).secret is False


def test_the_default_has_full_strength() -> None:
    """And an agreed key's does not follow the processor: its other end may have another."""
    assert Key().cipher in {"chacha20", "aes256"}
    assert Key.agreed(MATERIAL).cipher == "chacha20"


def test_every_byte_of_the_material_counts(cipher: str) -> None:
    seen = {drawn(Key.agreed(MATERIAL, cipher=cipher), 16)}
    for place in range(KEY_BYTES):
        for bit in range(8):
            other = bytearray(MATERIAL)
            other[place] ^= 1 << bit
            seen.add(drawn(Key.agreed(bytes(other), cipher=cipher), 16))
    assert len(seen) == 1 + 8 * KEY_BYTES


def test_ciphers_and_keys_differ() -> None:
    seen = {drawn(Key.agreed(MATERIAL, cipher=name), 16) for name in CIPHERS}
    seen |= {drawn(Key(name), 16) for name in CIPHERS for _ in range(50)}
    assert len(seen) == len(CIPHERS) * 51


def test_an_agreed_key_is_the_same_at_both_ends(cipher: str) -> None:
    one, two = (Key.agreed(MATERIAL, cipher=cipher) for _ in range(2))
    assert drawn(one) == drawn(two)
    assert drawn(one) == drawn(two)


# ---- what leaves it ------------------------------------------------------------------------------


def texts(thing: object, depth: int = 4) -> Iterator[str]:
    """Everything that a curious caller can print of an object, and of what hangs on it."""
    yield from (repr(thing), str(thing), f"{thing}", repr(dir(thing)))
    if depth == 0 or isinstance(thing, str | bytes | int | float | type):
        return
    for name in dir(thing):
        if name in {"__class__", "__init_subclass__", "__subclasshook__", "__new__"}:
            continue
        try:
            value = getattr(thing, name)
            plain = not callable(value) or name == "__getstate__"
            found = value() if name == "__getstate__" else value
        except (NoiseError, TypeError, AttributeError):
            continue
        if plain:
            yield from texts(found, depth - 1)
    if hasattr(thing, "__dict__"):
        yield repr(vars(thing))


def shows(thing: object, material: bytes) -> bool:
    """Whether 8 bytes or more of the material are to be seen, as text, hex or numbers."""
    words = np.frombuffer(material, np.uint32).tolist()
    wanted = {str(word) for word in words} | {f"{word:x}" for word in words}
    wanted |= {material[at : at + 4].hex() for at in range(0, 32, 4)}
    wanted |= {repr(material[at : at + 4])[2:-1] for at in range(0, 32, 4)}
    return any(want in text.lower() for text in texts(thing) for want in wanted)


class _Chatty:
    """What a key must not be."""

    def __init__(self, material: bytes) -> None:
        self.words = np.frombuffer(material, np.uint32).tolist()


def test_no_attribute_shows_the_bytes(cipher: str) -> None:
    key = Key.agreed(MATERIAL, cipher=cipher)
    drawn(key)
    assert not shows(key, MATERIAL)
    assert not shows(key.native, MATERIAL)
    assert shows(_Chatty(MATERIAL), MATERIAL)
    assert repr(key) == f"<Key, {cipher}, secret>"
    assert "NOT SECRET" in repr(Key.agreed(MATERIAL, secret=False))
    assert not hasattr(key, "__dict__")


def test_no_buffer_gives_the_bytes(cipher: str) -> None:
    key = Key.agreed(MATERIAL, cipher=cipher)
    things: list[object] = [key, key.native]
    readers: list[object] = [bytes, memoryview, list]
    for thing in things:
        for read in readers:
            with pytest.raises(TypeError):
                read(thing)  # type: ignore[operator]


def test_keys_are_not_copied_or_pickled() -> None:
    tries: list[Callable[[object], object]] = [copy.copy, copy.deepcopy, ForkingPickler.dumps]
    tries += [partial(pickle.dumps, protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)]
    for attempt in tries:
        for key in (Key(), Key.agreed(MATERIAL)):
            with pytest.raises(NoiseError, match="stays in its process"):
                attempt(key)
            with pytest.raises(NoiseError, match="stays in its process"):
                copy.deepcopy({"nested": [key]})
            with pytest.raises(TypeError, match="pickle"):
                attempt(key.native)


# ---- where it lies -------------------------------------------------------------------------------


def test_the_page_is_locked_kept_out_of_dumps_and_wiped_on_fork(cipher: str) -> None:
    material = os.urandom(KEY_BYTES)
    key = Key.agreed(material, cipher=cipher)
    pages = [m for m in wiped_on_fork() if material in content(m)]
    assert len(pages) == 1
    lockable, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = lockable == resource.RLIM_INFINITY or lockable >= 1 << 20 or os.geteuid() == 0
    assert {"dd", "wf"} | ({"lo"} if unlimited else set()) <= pages[0].flags
    page = pages[0]
    assert in_child(lambda: content(page)) == bytes(page.size)  # the child reads zeros
    del key
    assert not [m for m in wiped_on_fork() if material in content(m)]


def test_dropped_keys_give_their_pages_back() -> None:
    def pages() -> int:
        return sum(m.size for m in wiped_on_fork()) // os.sysconf("SC_PAGESIZE")

    before = pages()
    keys = [Key() for _ in range(100)]
    assert pages() == before + 100
    del keys
    assert pages() == before


SCAN = """
import gc, sys, threading
import numpy as np
from dither.noise.codec import encode
from dither.noise.gaussian import fill_gaussian
from dither.noise.key import Key
from dither.noise.pool import NoisePool
from dither.noise.rounded import rounded_gaussian
from dither.noise.stream import add_mask, fresh_words, words_at
from dither.privacy.lattice import Lattice
cipher, manner, slow = sys.argv[1], sys.argv[2], sys.argv[3] == "slow"
key, kept = Key(cipher), None
if manner == "careless":
    kept = bytes(range(100, 132))
    key = Key.agreed(kept, cipher=cipher)
values, single = np.zeros(1000), np.zeros(1000, np.float32)
def pooled():
    if not slow:
        with NoisePool(1000.0, key) as pool:
            pool.take(np.empty(300_000, np.int32))
uses = [
    lambda: fresh_words(key, 1000),
    lambda: fresh_words(key, 1024),
    lambda: words_at(key, 5, 700, stream=3),
    lambda: add_mask(np.zeros(5000, np.int32), key),
    lambda: rounded_gaussian(2.0**20, 2000, key),
    lambda: encode(values, Lattice(-10, 2.0**35, 10, 3, 32, 1), key),
    lambda: fill_gaussian(values, key),
    lambda: fill_gaussian(single, key),
    pooled,
]
# Each on a stack of its own, which keeps what the next use would overwrite.
threading.stack_size(1 << 18)
end, done = threading.Lock(), threading.Barrier(len(uses) + 1)
end.acquire()
def run(use):
    use()
    done.wait()
    end.acquire()
    end.release()
for use in uses:
    threading.Thread(target=run, args=(use,)).start()
done.wait()
gc.collect()
print("used", flush=True)
sys.stdin.readline()
del key
gc.collect()
print("dropped", flush=True)
sys.stdin.readline()
end.release()
"""


def elsewhere(pid: int, secrets: set[bytes], page: int = 0) -> bool:
    """Whether one of the secrets stands in a writable mapping other than the one at ``page``."""
    for mapping in mappings(pid):
        if mapping.writable and mapping.start != page:
            memory = content(mapping, pid)
            if any(secret in memory for secret in secrets):
                return True
    return False


def scan(cipher: str, manner: str, simd: str) -> tuple[bool, bool]:
    """Whether key bytes stand outside their page after use, and anywhere once it is dropped."""
    slow = "slow" if (cipher, simd) == ("aes256", "portable") else "fast"
    with subprocess.Popen(
        [sys.executable, "-c", SCAN, cipher, manner, slow],
        env={**os.environ, "DITHER_SIMD": simd},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "used\n"
            pages = wiped_on_fork(child.pid)
            assert len(pages) == 1
            secret = content(pages[0], child.pid)
            if not secret:
                pytest.skip("this system lets nobody read a child's memory")
            chunks = {secret[at : at + 8] for at in range(0, 272, 8)} - {bytes(8)}
            assert len(chunks) == (34 - 4 if cipher == "aes256" else 4)
            used = elsewhere(child.pid, chunks, pages[0].start)
            print(file=child.stdin, flush=True)
            assert child.stdout.readline() == "dropped\n"
            assert not wiped_on_fork(child.pid)
            return used, elsewhere(child.pid, chunks)
        finally:
            child.kill()


@pytest.mark.parametrize("simd", available())
def test_the_bytes_stand_on_their_page_and_nowhere_else(cipher: str, simd: str) -> None:
    """All of a process's memory, read from outside, after every use a key has; then dropped.

    Eighths of the key or of a round key; one in 2^38 runs finds one by chance.
    """
    assert scan(cipher, "careful", simd) == (False, False)


def test_bytes_that_a_caller_keeps_are_found() -> None:
    """The search of the test above does find."""
    assert scan("chacha20", "careless", available()[-1]) == (True, True)


# ---- fork ----------------------------------------------------------------------------------------


def test_a_child_of_fork_has_numbers_of_its_own(cipher: str) -> None:
    key = Key(cipher)
    seen = drawn(key)
    theirs = [in_child(lambda: drawn(key)) for _ in range(3)]
    seen += drawn(key)
    named = superblocks(seen + b"".join(theirs))
    assert len(named) == 5 * 4
    assert len(set(named)) == len(named)


def test_a_child_starts_at_position_zero_and_the_parent_goes_on(cipher: str) -> None:
    key = Key(cipher)
    drawn(key)

    def work() -> bytes:
        positions = [key.position]
        drawn(key, 3 * SUPERBLOCK)
        return bytes([*positions, key.position])

    assert in_child(work) == bytes([0, 3])
    assert key.position == 4


def refusals(key: Key) -> bytes:
    """Try every use of a key; one byte for each that was refused as it must be."""
    values = np.arange(10, dtype=np.int32)
    tries: list[Callable[[], object]] = [
        lambda: fresh_words(key, 1),
        lambda: words_at(key, 0, 1),
        lambda: add_mask(values, key),
        lambda: subtract_mask(values, key),
        lambda: fresh_words(key, 0),
    ]
    done = b""
    for attempt in tries:
        with pytest.raises(NoiseError, match="after fork"):
            attempt()
        done += b"r"
    assert (values == np.arange(10)).all()
    return done


def test_an_agreed_key_is_refused_in_a_child_and_the_parent_goes_on(cipher: str) -> None:
    key, twin = (Key.agreed(MATERIAL, cipher=cipher) for _ in range(2))
    drawn(key), drawn(twin)
    assert in_child(lambda: refusals(key)) == b"rrrrr"
    assert in_child(lambda: in_child(lambda: refusals(key))) == b"rrrrr"
    assert key.position == twin.position
    assert drawn(key) == drawn(twin)


def test_a_fork_of_a_fork_has_numbers_of_its_own(cipher: str) -> None:
    """Both where the middle process used the key before, and where it did not."""
    key = Key(cipher)

    def middle(used: bool) -> bytes:
        mine = drawn(key) if used else b""
        return mine + in_child(lambda: drawn(key)) + drawn(key)

    named = superblocks(drawn(key) + in_child(lambda: middle(True)) + drawn(key))
    named += superblocks(in_child(lambda: middle(False)) + drawn(key))
    assert len(named) == (1 + 3 + 1 + 2 + 1) * 4
    assert len(set(named)) == len(named)


def test_forks_beside_threads_that_draw(cipher: str) -> None:
    """12 children, forked while 3 threads draw from the key; nobody sees a number twice."""
    key = Key(cipher)
    stop = threading.Event()

    def draw_on(_: int) -> bytes:
        mine = b""
        while not stop.is_set() or not mine:
            mine += drawn(key)
        return mine

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(draw_on, index) for index in range(3)]
        try:
            theirs = [in_child(lambda: drawn(key)) for _ in range(12)]
        finally:
            stop.set()
        named = superblocks(b"".join(theirs) + b"".join(run.result(60) for run in running))
    assert len(named) >= 12 * 4 + 3 * 4
    assert len(set(named)) == len(named)


def same_id(use: Callable[[], bytes]) -> bytes:
    """Run in a child whose process id is that of the process that made the keys."""

    def child() -> bytes:
        assert os.getpid() == 1
        return use()

    new_pid_namespace()
    return in_child(child)


def first_of_its_namespace(work: Callable[[], bytes]) -> bytes:
    needs_pid_namespaces()

    def outer() -> bytes:
        new_pid_namespace()
        return in_child(work)

    return in_child(outer)


def test_a_child_with_its_parents_process_id_is_a_child_all_the_same(cipher: str) -> None:
    """Process 1 of one namespace forks process 1 of another: ids alone would not tell."""

    def parent() -> bytes:
        assert os.getpid() == 1
        key, agreed = Key(cipher), Key.agreed(MATERIAL, cipher=cipher)
        mine = drawn(key) + drawn(agreed)
        return mine + same_id(lambda: drawn(key) + refusals(agreed)) + drawn(key)

    words = first_of_its_namespace(parent)
    assert words.count(b"rrrrr") == 1
    named = superblocks(words.replace(b"rrrrr", b""))
    # A key page of zeros would be a key that everybody knows.
    named += superblocks(drawn(Key.agreed(bytes(KEY_BYTES), cipher=cipher)))
    assert len(named) == 5 * 4
    assert len(set(named)) == len(named)


def test_a_pool_whose_process_id_is_its_parents_hands_out_no_zeros() -> None:
    """The ring is wiped by the fork; without its owner's mark it would pass for ready noise."""

    def parent() -> bytes:
        pool = NoisePool(2.0**20)
        while pool.stats().ready < pool.stats().capacity:
            pass
        mine = take(pool)
        return mine + same_id(lambda: take(pool)) + take(pool)

    def take(pool: NoisePool) -> bytes:
        draws = np.empty(1000, np.int32)
        pool.take(draws)
        return draws.tobytes()

    draws = np.frombuffer(first_of_its_namespace(parent), np.int32).reshape(3, 1000)
    assert np.count_nonzero(draws) > 2900  # zero has probability 4e-7 each
    pairs = {row.tobytes() for row in draws.reshape(-1, 4)}
    assert len(pairs) == 750


# ---- threads -------------------------------------------------------------------------------------


def draw_pieces(key: Key, sizes: list[int]) -> list[Words]:
    return [fresh_words(key, size) for size in sizes]


def test_four_threads_never_share_a_word(cipher: str) -> None:
    """Every call gets consecutive superblocks of the key's stream, and each goes to one call."""
    key, twin = (Key.agreed(MATERIAL, cipher=cipher) for _ in range(2))
    generator = np.random.default_rng(4)
    plans = [generator.integers(1, 3000, 300).tolist() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(draw_pieces, key, sizes) for sizes in plans]
        pieces = [piece for job in jobs for piece in job.result(60)]
    needed = [-(-piece.size // SUPERBLOCK) for piece in pieces]
    assert key.position == sum(needed)
    whole = fresh_words(twin, key.position * SUPERBLOCK)
    where = {name: at for at, name in enumerate(superblocks(whole.tobytes()))}
    taken = []
    for piece, count in zip(pieces, needed, strict=True):
        start = where[piece[:4].tobytes()] if piece.size >= 4 else find(whole, piece)
        assert (whole[start * SUPERBLOCK :][: piece.size] == piece).all()
        taken += list(range(start, start + count))
    assert sorted(taken) == list(range(key.position))


def find(whole: Words, piece: Words) -> int:
    """The superblock that a piece of fewer than 4 words starts with (a rare size)."""
    starts = whole.reshape(-1, SUPERBLOCK)[:, : piece.size]
    return int(np.flatnonzero((starts == piece).all(axis=1))[0])


def test_threads_that_drop_and_make_keys() -> None:
    """Keys come and go in four threads at once; no two of them are alike."""

    def churn(_: int) -> list[bytes]:
        return [drawn(Key(), 4) for _ in range(300)]

    with ThreadPoolExecutor(4) as pool:
        seen = [words for mine in pool.map(churn, range(4)) for words in mine]
    assert len(set(seen)) == 1200


def test_only_linux_pages_are_promised() -> None:
    """The tests above skip themselves elsewhere: here they must not."""
    if sys.platform == "linux":
        assert Path("/proc/self/smaps").is_file()
