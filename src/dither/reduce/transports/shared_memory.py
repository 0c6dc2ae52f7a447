"""Processes of one host through shared memory: the native transport, and the fused release.

The memory has no name: rank 0 makes it and hands it to the others over a socket that exists only
meanwhile, so that nothing is left behind however a process ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Integer

from dither import _native
from dither.errors import ConfigError
from dither.noise.arrays import core_array
from dither.noise.codec import Grid, check_scale, core_grid, message_type
from dither.noise.key import Key, native_key
from dither.noise.pool import FreshNoise, NoisePool
from dither.noise.simd import kernels
from dither.privacy.lattice import Lattice
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.transports.core_errors import core_refusal
from dither.reduce.transports.handover import agreed_path, fetch, offer

MOST_RANKS = 256
_FLOATS = ("float64", "float32")
_FLOAT_TYPES = {np.dtype(name) for name in _FLOATS}


@final
class SharedMemory(Endpoint):
    """A rank of a group of processes on one host. Make one with `join` or `over`.

    Waiting spins for some microseconds where each rank can have a core, then sleeps. A rank that
    dies, leaves or is late ends every wait of all ranks with a `PeerError` that names it; from then
    on the group refuses all use. One thread at a time; a forked child is refused.

    What other ranks see of this process: messages and sums as they are given, and of `release`
    noisy (and masked) integers only.
    """

    def __init__(self, native: Any, rank: int, timeout: float) -> None:
        self._native = native
        self._rank = rank
        self._world_size = int(native.ranks)
        self._timeout = timeout
        self._grid: tuple[Grid, Any] | None = None

    @classmethod
    def join(
        cls, path: str | os.PathLike[str], rank: int, world_size: int, timeout: float = 60.0
    ) -> SharedMemory:
        """Join a group whose ranks meet at a path.

        Args:
            path: A name of the group's own that does not exist yet, in a folder that all ranks see
                and nobody else can write to. Rank 0 makes a socket there while ranks join.
            rank: This rank, 0 ≤ rank < world_size.
            world_size: R, at most 256.
            timeout: Seconds to wait for the others, now and in every later call.

        Raises:
            ConfigError: A rank, size, path or timeout out of range.
            ReduceError: This system has no such memory.
            MismatchError: Ranks that do not make a group.
            PeerError: A rank did not come in time, or went.
        """
        _check_place(rank, world_size, timeout)
        file = _shared_file(Path(path), rank, world_size, timeout)
        try:
            native = _native.Shm(file, rank, timeout)
        except _native.StatusError as error:
            raise core_refusal(error) from None
        finally:
            os.close(file)
        return cls(native, rank, timeout)

    @classmethod
    def over(cls, endpoint: Endpoint, *, timeout: float | None = None) -> SharedMemory:
        """Join a group with the same ranks as one on another transport; all of them call this.

        Args:
            endpoint: Ranks of one host.
            timeout: Seconds, that of the other transport by default.

        Raises:
            ConfigError: The ranks are on several hosts.
            PeerError: A rank died or is late.
        """
        if len(set(endpoint.hosts)) > 1:
            raise ConfigError(
                expected="ranks of one host",
                got=f"{len(set(endpoint.hosts))} hosts",
                fix="use the hierarchical algorithm: shared memory inside each host",
            )
        limit = endpoint.timeout if timeout is None else timeout
        with agreed_path(endpoint) as path:
            return cls.join(path, rank=endpoint.rank, world_size=endpoint.world_size, timeout=limit)

    @property
    def rank(self) -> int:
        """This rank."""
        return self._rank

    @property
    def world_size(self) -> int:
        """R."""
        return self._world_size

    @property
    def hosts(self) -> tuple[int, ...]:
        """All on one host."""
        return (0,) * self._world_size

    @property
    def timeout(self) -> float:
        """Seconds that a call may wait for peers."""
        return self._timeout

    def send(self, to: int, message: Buffer) -> None:
        """Send a message; see `Endpoint.send`."""
        try:
            self._native.send(self._peer(to), _flat(message))
        except _native.StatusError as error:
            raise core_refusal(error) from None

    def receive(self, source: int, out: Buffer) -> None:
        """Receive a message; see `Endpoint.receive`."""
        try:
            self._native.receive(self._peer(source), _flat(out, written=True))
        except _native.StatusError as error:
            raise core_refusal(error) from None

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        """Send and receive at once; see `Endpoint.exchange`."""
        sent, got = _flat(message), _flat(out, written=True)
        if np.may_share_memory(sent, got):
            raise _overlap()
        try:
            self._native.exchange(self._peer(to), sent, self._peer(source), got)
        except _native.StatusError as error:
            raise core_refusal(error) from None

    def all_reduce(self, buffer: Buffer) -> bool:
        """Sum over ranks in place, block by block; floats in the order of ranks, alike on all."""
        try:
            self._native.sum(kernels(), _flat(buffer, written=True))
        except _native.StatusError as error:
            raise core_refusal(error) from None
        return True

    def release(
        self,
        values: Float[np.ndarray, " size"],
        out: Float[np.ndarray, " size"],
        *,
        grid: Grid,
        noise: FreshNoise | NoisePool,
        factor: float = 1.0,
        scale: float = 1.0,
        masks: Sequence[tuple[Key, bool]] = (),
    ) -> int:
        """Sum values over ranks with noise of each rank, in one pass over blocks that caches hold.

        The same bits as encoding with this noise, masking, summing integers and decoding. Values
        reach the shared memory as noisy integers only; with masks, as noisy and masked ones.

        Args:
            values: This rank's, float32 or float64, finite.
            out: float32 or float64, of the same size; may be ``values`` itself. Zeros after an
                error.
            grid: The lattices, the same on all ranks.
            noise: Where this rank's noise comes from.
            factor: In [0, 1]; values are multiplied by it: `clip_factor`. Each rank has its own.
            scale: Public factor of the sum, the same on all ranks, as `check_scale` takes it.
            masks: Agreed keys whose next pads are added (False) to the message or subtracted
                (True), each over the whole message, as `add_mask` does.

        Returns:
            Coordinates clamped before noise. Depends on records: for the operator only.

        Raises:
            ReleaseError: A value is not finite. The group is broken.
            PeerError: A rank died, left, is late or failed.
            MismatchError: Ranks came with different sizes, lattices or scales.
            NoiseError: The noise or a mask cannot be had.
        """
        data, result = _arrays(values, out)
        pool, key, sigma = noise.native(grid)
        pads = [(native_key(mask), bool(subtract)) for mask, subtract in masks]
        numbers, times = self._core_grid(grid), check_scale(scale)
        try:
            return self._native.release(  # type: ignore[no-any-return]
                kernels(), pool, key, sigma, numbers, factor, times, data, result, pads
            )
        except _native.StatusError as error:
            raise core_refusal(error) from None

    def contributions(
        self,
        *,
        grid: Grid,
        noise: FreshNoise | NoisePool,
        clip: float,
        masks: Sequence[tuple[Key, bool]] = (),
    ) -> Callable[[np.ndarray, np.ndarray], tuple[int, bool]]:
        """Return `release` of contributions that the core clips, for many calls alike.

        The factor is that of `clip_factor`. A contribution that is not finite counts as zeros.
        What is called takes values and where their sum goes, and returns how many coordinates were
        clamped and whether all values were finite; the operator alone may know either. It raises as
        `release` does, and ConfigError where the two arrays share a part of their memory.

        Args:
            grid: As for `release`.
            noise: Likewise.
            clip: C, the L2 norm that a contribution is scaled down to.
            masks: As for `release`.
        """
        pool, key, sigma = noise.native(grid)
        pads = [(native_key(mask), bool(subtract)) for mask, subtract in masks]
        native = _native.Contribution(
            self._native, kernels(), pool, key, sigma, self._core_grid(grid), clip, pads
        )

        def contribute(values: np.ndarray, out: np.ndarray) -> tuple[int, bool]:
            try:
                return native(values, out)
            except (TypeError, ValueError):
                _arrays(values, out)  # says what is wrong with them, if that is it
                raise
            except _native.StatusError as error:
                _arrays(values, out)
                raise core_refusal(error) from None

        return contribute

    def encrypted(
        self,
        values: Float[np.ndarray, " size"],
        out: Float[np.ndarray, " size"],
        *,
        grid: Grid,
        pad: Integer[np.ndarray, " size"],
        total: Integer[np.ndarray, " size"],
        factor: float = 1.0,
        scale: float = 1.0,
    ) -> int:
        """Sum values over ranks exactly, hidden on the way by pads: the rival, not a release.

        Args:
            values: This rank's, float32 or float64, finite.
            out: As for `release`.
            grid: The lattices; σ is not used.
            pad: Integers of the grid's wire, added to this rank's message; the caller wipes them.
            total: The sum of all ranks' pads, subtracted from the sum; likewise.
            factor: As for `release`.
            scale: As for `release`.

        Returns:
            Coordinates clamped.

        Raises:
            ReleaseError: A value is not finite. The group is broken.
            PeerError: A rank died, left, is late or failed.
            MismatchError: Ranks came with different sizes, lattices or scales.
        """
        data, result = _arrays(values, out)
        wire = np.dtype(message_type(grid)).name
        own, all_of_them = (core_array(a, (wire,), written=False) for a in (pad, total))
        if own.size != data.size or all_of_them.size != data.size:
            raise _sizes(data.size, own.size, all_of_them.size)
        numbers, times = self._core_grid(grid), check_scale(scale)
        try:
            return self._native.encrypted(  # type: ignore[no-any-return]
                kernels(), numbers, factor, times, own, all_of_them, data, result
            )
        except _native.StatusError as error:
            raise core_refusal(error) from None

    def close(self) -> None:
        """Leave the group; what was sent before stays readable to the others."""
        self._native.close()

    def _core_grid(self, grid: Grid) -> Any:
        if self._grid is None or self._grid[0] is not grid:
            made = core_grid(grid)
            if not isinstance(grid, Lattice):  # one that may change
                return made
            self._grid = grid, made
        return self._grid[1]

    def _peer(self, rank: int) -> int:
        if 0 <= rank < self._world_size:
            return int(rank)
        raise ConfigError(
            expected=f"a rank from 0 to {self._world_size - 1}",
            got=repr(rank),
            fix="count ranks from 0",
        )


def _check_place(rank: int, world_size: int, timeout: float) -> None:
    if not (1 <= world_size <= MOST_RANKS and 0 <= rank < world_size and 0 < timeout <= 1e6):
        raise ConfigError(
            expected=f"a rank below a world size of 1 to {MOST_RANKS} and a timeout above 0",
            got=f"rank {rank} of {world_size}, {timeout} seconds",
            fix="count ranks from 0, and use mpi or torch_distributed for larger groups",
        )


def _shared_file(path: Path, rank: int, world_size: int, timeout: float) -> int:
    """Return an open file with the group's memory."""
    if rank > 0:
        return fetch(path, rank, world_size, timeout)
    try:
        file = int(_native.shm_create(world_size))
    except _native.StatusError as error:
        raise core_refusal(error) from None
    if world_size > 1:
        try:
            offer(path, file, world_size, timeout)
        except BaseException:
            os.close(file)
            raise
    return file


def _flat(buffer: Buffer, *, written: bool = False) -> np.ndarray:
    if (
        isinstance(buffer, np.ndarray)
        and buffer.ndim == 1
        and buffer.flags.c_contiguous
        and (buffer.dtype.kind in "iu" or buffer.dtype in _FLOAT_TYPES)
        and buffer.dtype.isnative
        and (buffer.flags.writeable or not written)
    ):
        return buffer
    raise ConfigError(
        expected="a contiguous flat numpy array of integers, float32 or float64"
        + (" that can be written" if written else ""),
        got=f"{getattr(buffer, 'dtype', type(buffer).__name__)} of shape "
        f"{getattr(buffer, 'shape', '?')}",
        fix="pass a contiguous array's reshape(-1)",
    )


def _arrays(values: object, out: object) -> tuple[np.ndarray, np.ndarray]:
    data = core_array(values, _FLOATS, written=False)
    result = core_array(out, _FLOATS)
    if data.size != result.size:
        raise _sizes(data.size, result.size)
    same = data.dtype == result.dtype and data.ctypes.data == result.ctypes.data
    if not same and np.may_share_memory(data, result):
        raise _overlap()
    return data, result


def _sizes(*sizes: int) -> ConfigError:
    return ConfigError(
        expected="arrays of one size",
        got=", ".join(str(size) for size in sizes),
        fix="give as many results as values",
    )


def _overlap() -> ConfigError:
    return ConfigError(
        expected="arrays that are the same or apart",
        got="arrays that share some memory",
        fix="give the result memory of its own",
    )
