"""Pads of encrypted sums, made ahead."""

from __future__ import annotations

import threading
from collections import deque
from typing import final

import numpy as np

from dither.errors import DitherError
from dither.noise.key import Key
from dither.noise.stream import add_mask, subtract_mask

# Elements whose pads are made at a time: whole superblocks, so pads follow the element's number.
CHUNK = 1 << 18


class Chunk:
    """Pads of `CHUNK` elements.

    Attributes:
        difference: F(k_r) − F(k_{r+1}), to encrypt.
        group: F(k_0), to decrypt.
    """

    __slots__ = ("difference", "group")

    def __init__(self) -> None:
        self.difference = np.zeros(CHUNK, np.int32)
        self.group = np.zeros(CHUNK, np.int32)

    def wipe(self) -> None:
        """Overwrite them."""
        self.difference.fill(0)
        self.group.fill(0)


@final
class Pads:
    """Pads in the order of elements, made ahead by a thread or when they are needed.

    Args:
        own: Key of F(k_r); None on rank 0, whose own key is that of the group.
        following: Key of F(k_{r+1}); None on the last rank.
        group: Key of F(k_0).
    """

    def __init__(self, own: Key | None, following: Key | None, group: Key) -> None:
        self._own, self._following, self._group = own, following, group
        # Chunks from number `_first` on; those before are used up and wait to be made anew.
        self._chunks: deque[Chunk] = deque()
        self._used: list[Chunk] = []
        self._first = 0
        self._made = 0
        self._ahead = 0
        self._front = 0
        self._state = threading.Condition()
        self._making = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def made(self) -> int:
        """Elements whose pads were made."""
        return self._made * CHUNK

    def at(self, element: int) -> Chunk:
        """Return the chunk of an element, which is made if it is not ready."""
        number = element // CHUNK
        while number >= self._made:
            self._make_next(number)
        with self._state:
            return self._chunks[number - self._first]

    def prepare(self, element: int) -> None:
        """Make all pads before an element."""
        while self._made * CHUNK < element:
            self._make_next(self._made)

    def passed(self, encrypted: int, decrypted: int) -> None:
        """Say how many elements were encrypted and decrypted so far."""
        with self._state:
            while self._chunks and (self._first + 1) * CHUNK <= min(encrypted, decrypted):
                self._used.append(self._chunks.popleft())
                self._first += 1
            self._front = encrypted
            self._state.notify_all()

    def run(self, ahead: int) -> None:
        """Start a thread that keeps so many elements ready."""
        with self._state:
            self._ahead = ahead
            self._state.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._fill, name="dither pads", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread and wipe all pads. The keys are dropped."""
        with self._state:
            self._ahead = -1
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._making:
            for chunk in (*self._chunks, *self._used):
                chunk.wipe()
            self._chunks.clear()
            self._used.clear()

    def _fill(self) -> None:
        while True:
            with self._state:
                while self._ahead >= 0 and self._made * CHUNK >= self._front + self._ahead:
                    self._state.wait()
                if self._ahead < 0:
                    return
            try:
                self._make_next(self._made)
            except DitherError:  # the caller will meet it when it makes pads in place
                return

    def _make_next(self, number: int) -> None:
        """Make one more chunk, unless this one was made meanwhile. In order, one at a time."""
        with self._making:
            if self._made > number:
                return
            with self._state:
                chunk = self._used.pop() if self._used else Chunk()
            chunk.wipe()
            add_mask(chunk.group, self._group)
            if self._own is None:
                chunk.difference[:] = chunk.group
            else:
                add_mask(chunk.difference, self._own)
            if self._following is not None:
                subtract_mask(chunk.difference, self._following)
            with self._state:
                self._chunks.append(chunk)
                self._made += 1
