"""Encrypted sums in HEAR's manner: the baseline that private sums are measured against.

After Chrapek et al., HEAR: Homomorphically Encrypted Allreduce, SC'23.
Rank r sends c_r = x_r + F(k_r, i) − F(k_{r+1}, i) mod 2³² for element i, F being a keystream and
k_R absent; the sum telescopes to Σ x_r + F(k_0, i), and every rank takes F(k_0, i) away at the end.
k_r (r ≥ 1) is known to ranks r − 1 and r only, k_0 to all ranks. Float32 travels as fixed-point
int32 on a public step.

What each party sees: the network uniform numbers, the sum included, as far as the cipher holds. A
rank the sum. Ranks r − 1 and r + 1 together, x_r; beside k_0 that everybody has, rank 1 alone x_0
and rank R − 2 alone that of the last rank. There is *no* differential privacy: the sum is exact,
and counts as `NonPrivate`.

Where HEAR's published code falls short we do not follow it: keys come of an authenticated agreement
and never travel in clear, element i counts on over blocks and calls so that no pad repeats, and
what cannot be encrypted is refused, not sent as it is.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import NoReturn, final

import numpy as np
from jaxtyping import Float32, Int32

from dither.errors import ConfigError, MismatchError, NoiseError, ReduceError
from dither.noise.arrays import core_array
from dither.noise.core import Buffer
from dither.privacy.lattice import Lattice
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.keys import AgreedKeys, Authentication, agree_keys
from dither.reduce.protections.pads import CHUNK, Chunk, Pads
from dither.reduce.transports.shared_memory import SharedMemory

Words = Int32[np.ndarray, " size"]

# Elements worked on at a time: values, pads, message and scratch stay in the cache.
_PIECE = 1 << 15
# Elements that travel at a time: encrypted, summed and decrypted while they are in the cache.
_BLOCK = 1 << 18
_TYPES = ("float32", "int32")
_LARGEST_WORD = 2**31 - 1


def fixed_point_exponent(largest: float, world_size: int) -> int:
    """Return e, so that x·2^e as an integer leaves room for the sum of R such in 32 bits.

    Args:
        largest: Largest magnitude of any rank's value, public.
        world_size: R.

    Raises:
        ConfigError: Not a finite number above 0, or beyond float32's range.
    """
    if not (math.isfinite(largest) and 1e-25 <= largest <= 1e30):
        raise ConfigError(
            expected="a largest magnitude between 1e-25 and 1e30",
            got=repr(largest),
            fix="declare a public bound, such as the clip bound",
        )
    return math.floor(math.log2(_word_limit(world_size) / largest))


def _word_limit(world_size: int) -> int:
    return _LARGEST_WORD // world_size


@final
class Encryption:
    """One rank's side of encrypted sums. All ranks make the same calls in the same order.

    Messages are decrypted in the order in which they were encrypted; several may be under way.
    After any error it is spent: agree anew. Use as a context manager, or `close` it.

    Attributes:
        largest: Declared bound on values.
        step: Fixed-point step; a sum is wrong by at most R·step/2, before its rounding to float32.
        authentication: How the ranks showed who they are.
    """

    def __init__(self, keys: AgreedKeys, rank: int, world_size: int, largest: float) -> None:
        exponent = fixed_point_exponent(largest, world_size)
        self.largest = largest
        self.step = math.ldexp(1.0, -exponent)
        self.authentication = keys.authentication
        self._scale = np.float32(math.ldexp(1.0, exponent))
        self._unscale = np.float32(self.step)
        self._limit = min(_word_limit(world_size), math.floor(math.ldexp(largest, exponent) + 0.5))
        self._grid = Lattice(
            step_exponent=-exponent,
            sigma=1.0,  # not used: nothing here is noise
            clamp=self._limit,
            wire_shift=0,
            wire_bits=32,
            world_size=world_size,
        )
        if keys.group is None:
            raise ConfigError(
                expected="a key of all ranks", got="none", fix="agree by Encryption.agree"
            )
        own = keys.pairs[rank - 1] if rank else None
        self._pads: Pads | None = Pads(own, keys.pairs.get(rank + 1), keys.group)
        self._reason = ""
        self._process = os.getpid()
        self._encrypted = self._decrypted = 0
        self._under_way: deque[tuple[int, str]] = deque()
        self._scratch = np.empty(_PIECE, np.float32)
        self._words = np.empty(_PIECE, np.int32)

    @classmethod
    def agree(
        cls, endpoint: Endpoint, *, largest: float, authentication: Authentication | None = None
    ) -> Encryption:
        """Agree on fresh keys. Collective: all ranks call it.

        Args:
            endpoint: This rank's end.
            largest: Public bound on the magnitude of any rank's float32 value.
            authentication: `Identity` or `ClusterSecret`.

        Raises:
            ConfigError: The bound is out of range.
            MismatchError: On all ranks: bounds differ.
            ReduceError: On all ranks: a rank did not prove who it is.
            PeerError: A rank is dead, or does not come in time.
        """
        size, rank = endpoint.world_size, endpoint.rank
        fixed_point_exponent(largest, size)
        keys = agree_keys(
            endpoint,
            [peer for peer in (rank - 1, rank + 1) if 0 <= peer < size],
            purpose="encryption",
            settings={"largest": largest},
            authentication=authentication,
            group=True,
        )
        return cls(keys, rank, size, largest)

    @property
    def ready(self) -> int:
        """Elements that can be encrypted before pads must be made in place."""
        return max(self._open().made - self._encrypted, 0)

    def prepare(self, count: int) -> None:
        """Make the pads of the next elements now, 8 bytes each.

        Raises:
            NoiseError: It is spent, or this is a forked child.
        """
        self._open().prepare(self._encrypted + count)

    def start(self, count: int) -> None:
        """Keep the pads of so many elements ready, by a thread of its own, until `close`."""
        self._open().run(count)

    def reduce(self, endpoint: Endpoint, values: Buffer, algorithm: str = "auto") -> None:
        """Sum float32 or int32 over all ranks, in place, a block at a time.

        Float32 over shared memory goes through the C core in one pass. There a value beyond the
        bound is clamped on the way, and then refused on the rank that has it.

        Raises:
            ConfigError: Another type: it is refused, never sent in clear.
            ReduceError: A value is beyond the declared bound, or there is no sum. It is then spent.
        """
        array = core_array(values, _TYPES)
        whole = array.dtype == np.float32 and algorithm in {"auto", "backend"}
        try:
            if whole and isinstance(endpoint, SharedMemory):
                self._fused(endpoint, array)
            else:
                self._in_blocks(endpoint, array, algorithm)
        except BaseException as error:
            self.spoil(f"an earlier {type(error).__name__}")
            raise

    def _in_blocks(self, endpoint: Endpoint, array: np.ndarray, algorithm: str) -> None:
        message = np.empty(min(array.size, _BLOCK), np.int32)
        for start in range(0, max(array.size, 1), _BLOCK):
            part = array[start : start + _BLOCK]
            words = message[: part.size]
            self.encrypt(part, words)
            sum_over(endpoint, words, algorithm)
            self.decrypt(words, part)

    def _fused(self, endpoint: SharedMemory, array: np.ndarray) -> None:
        """Encrypt, sum and decrypt in one pass, by the C core."""
        pads, saturated = self._open(), 0
        if self._under_way:
            raise MismatchError(
                expected="no other message under way",
                got=str(len(self._under_way)),
                fix="decrypt sums in the order in which they were encrypted",
            )
        for start, stop, chunk, place in self._pieces(pads, self._encrypted, array.size, CHUNK):
            part, end = array[start:stop], place + stop - start
            own, group = chunk.difference[place:end], chunk.group[place:end]
            saturated += endpoint.encrypted(part, part, grid=self._grid, pad=own, total=group)
        self._encrypted += array.size
        self._decrypted = self._encrypted
        pads.passed(self._encrypted, self._decrypted)
        if saturated:
            array.fill(0)
            raise self._too_large()

    def encrypt(self, values: Buffer, message: Buffer) -> None:
        """Write the message of these values, to be summed mod 2³² over all ranks.

        Args:
            values: float32 or int32, shape ``[size]``; integers are summed mod 2³².
            message: int32, shape ``[size]``, sharing no memory with the values.

        Raises:
            ConfigError: Other arrays; nothing is written.
            ReduceError: A value is NaN or beyond the declared bound. It is then spent.
            NoiseError: It is spent, or this is a forked child.
        """
        pads = self._open()
        source = core_array(values, _TYPES, written=False)
        words = core_array(message, ("int32",))
        _same_size(source, words)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # such values are refused below
                for start, stop, chunk, place in self._pieces(pads, self._encrypted, source.size):
                    self._to_words(source[start:stop], words[start:stop])
                    words[start:stop] += chunk.difference[place : place + stop - start]
        except BaseException as error:
            words[:] = 0
            self.spoil(f"an earlier {type(error).__name__}")
            raise
        self._encrypted += source.size
        self._under_way.append((source.size, source.dtype.name))
        pads.passed(self._encrypted, self._decrypted)

    def decrypt(self, total: Buffer, values: Buffer) -> None:
        """Write the sum of all ranks' values: what `encrypt` took, in the same order.

        Args:
            total: int32, shape ``[size]``: the sum of all ranks' messages mod 2³².
            values: Of the type that was encrypted, shape ``[size]``; may not be ``total``.

        Raises:
            MismatchError: No message of this size and type is under way. It is then spent.
            NoiseError: It is spent.
        """
        pads = self._open()
        words = core_array(total, ("int32",), written=False)
        out = core_array(values, _TYPES)
        _same_size(out, words)
        wanted = self._under_way.popleft() if self._under_way else (0, "nothing")
        if wanted != (out.size, out.dtype.name):
            self.spoil("a decryption out of order")
            raise MismatchError(
                expected=f"the sum of {wanted[0]} {wanted[1]}",
                got=f"{out.size} {out.dtype}",
                fix="decrypt sums in the order in which they were encrypted",
            )
        for start, stop, chunk, place in self._pieces(pads, self._decrypted, out.size):
            group = chunk.group[place : place + stop - start]
            if out.dtype == np.int32:
                np.subtract(words[start:stop], group, out=out[start:stop])
                continue
            piece = self._words[: stop - start]
            np.subtract(words[start:stop], group, out=piece)
            np.copyto(out[start:stop], piece, casting="same_kind")
            out[start:stop] *= self._unscale
        self._decrypted += out.size
        pads.passed(self._encrypted, self._decrypted)

    def spoil(self, reason: str = "a failed round") -> None:
        """Wipe all pads and drop the keys, for good. Harmless when repeated."""
        pads, self._pads = self._pads, None
        if pads is not None:
            self._reason = reason
            if self._process == os.getpid():  # a forked child has no thread to stop
                pads.close()

    def close(self) -> None:
        """Stop the thread and wipe what is left. Closing twice is harmless."""
        self.spoil("closing")

    def _to_words(self, values: np.ndarray, words: Words) -> None:
        if values.dtype == np.int32:
            np.copyto(words, values)
            return
        scaled: Float32[np.ndarray, " size"] = self._scratch[: values.size]
        np.multiply(values, self._scale, out=scaled)
        np.rint(scaled, out=scaled)
        if not (float(scaled.max()) <= self._limit and float(scaled.min()) >= -self._limit):
            raise self._too_large()
        np.copyto(words, scaled, casting="unsafe")

    def _too_large(self) -> ReduceError:
        return ReduceError(
            expected=f"finite values of magnitude at most {self.largest:g}",
            got="larger ones, or NaN",
            fix="clip them, or declare a larger bound; then agree anew",
        )

    def _pieces(
        self, pads: Pads, element: int, size: int, most: int = _PIECE
    ) -> Iterator[tuple[int, int, Chunk, int]]:
        """Yield start, stop, chunk and place within it, for pieces inside one chunk."""
        start = 0
        while start < size:
            place = (element + start) % CHUNK
            stop = min(start + most, start + CHUNK - place, size)
            yield start, stop, pads.at(element + start), place
            start = stop

    def _open(self) -> Pads:
        if self._process != os.getpid():
            raise NoiseError(
                expected="an encryption of this process",
                got="one from before a fork: parent and child would use the same pads",
                fix="agree anew after the fork, or start processes by spawn",
            )
        if self._pads is None:
            raise NoiseError(
                expected="an encryption whose pads are unused",
                got=f"one that is spent after {self._reason}",
                fix="agree anew on all ranks",
            )
        return self._pads

    def __enter__(self) -> Encryption:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: two holders would use the same pads."""
        raise NoiseError(
            expected="pads that stay in their process",
            got="an attempt to copy or pickle them",
            fix="agree where they are needed",
        )


def _same_size(values: np.ndarray, words: np.ndarray) -> None:
    if values.size != words.size or np.may_share_memory(values, words):
        raise ConfigError(
            expected="values and a message of one size, in memory of their own",
            got=f"{values.size} values and a message of {words.size}",
            fix="make the message with numpy.empty(values.size, numpy.int32)",
        )
