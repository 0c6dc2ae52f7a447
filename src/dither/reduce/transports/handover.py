"""Hands one open file to all ranks of a host, over a Unix socket that is gone right after."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dither.errors import ConfigError, MismatchError, PeerError
from dither.reduce.endpoint import Endpoint

# What a rank says of itself: protocol, size of the group, rank.
_HELLO = struct.Struct("=8sII")
_PROTOCOL = b"dthshm01"
_ACCEPTED, _REFUSED = b"\1", b"\0"
_CREDENTIALS = struct.Struct("=iII")  # process, user, group
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05


def offer(path: Path, file: int, world_size: int, timeout: float) -> None:
    """Wait for all other ranks at a path and give each the file; nobody gets it before all came.

    Args:
        path: Where the socket appears, for as long as this runs.
        file: Open file.
        world_size: R; this is rank 0.
        timeout: Seconds to wait for all.

    Raises:
        MismatchError: A rank came twice, or with another version or size of the group.
        PeerError: A rank did not come in time, or went again.
    """
    deadline = time.monotonic() + timeout
    callers: dict[int, socket.socket] = {}
    with _listening(path, world_size) as door:
        try:
            while len(callers) < world_size - 1:
                _admit(door, callers, world_size, deadline)
            for rank, caller in callers.items():
                _give(caller, file, rank)
        finally:
            for caller in callers.values():
                caller.close()


def fetch(path: Path, rank: int, world_size: int, timeout: float) -> int:
    """Return the file that rank 0 offers at a path; the caller closes it.

    Raises:
        MismatchError: Rank 0 refused us.
        PeerError: Rank 0 was not there in time, or went.
    """
    deadline = time.monotonic() + timeout
    with _called(path, deadline) as door:
        door.settimeout(_left(deadline, 0))
        try:
            door.sendall(_HELLO.pack(_PROTOCOL, world_size, rank))
            answer, files, _, _ = socket.recv_fds(door, 1, 1)
        except TimeoutError:
            raise _late(0) from None
        except OSError:
            raise _gone(0) from None
    if answer == _ACCEPTED and len(files) == 1:
        return files[0]
    if answer == _REFUSED:
        raise _mismatch(f"rank {rank} of {world_size}, which rank 0 refused")
    raise _gone(0)


@contextmanager
def agreed_path(endpoint: Endpoint) -> Iterator[Path]:
    """Make a private folder at rank 0 and tell all ranks a path in it, over another transport.

    Raises:
        PeerError: A rank died or is late.
    """
    told = np.zeros(1024, np.uint8)
    if endpoint.rank == 0:
        with tempfile.TemporaryDirectory(prefix="dither-") as folder:
            name = os.fsencode(Path(folder) / "ranks")
            told[: len(name)] = np.frombuffer(name, np.uint8)
            for rank in range(1, endpoint.world_size):
                endpoint.send(rank, told)
            yield Path(folder) / "ranks"
    else:
        endpoint.receive(0, told)
        yield Path(os.fsdecode(told.tobytes().rstrip(b"\0")))


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield another name of a path, short enough for a socket's address."""
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            expected="a path in a folder that exists",
            got=f"{path} ({error.strerror})",
            fix="make the folder first, on a disk that all ranks of this host see",
        ) from None
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@contextmanager
def _listening(path: Path, backlog: int) -> Iterator[socket.socket]:
    with _short(path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.bind(name)
        except OSError as error:
            if not _is_left_over(name):
                raise ConfigError(
                    expected="a path that nobody uses yet",
                    got=f"{path} ({error.strerror})",
                    fix="give each group a path of its own, in a folder that can be written",
                ) from None
            Path(name).unlink()
            door.bind(name)
        try:
            door.listen(backlog)
            yield door
        finally:
            Path(name).unlink(missing_ok=True)


def _is_left_over(name: str) -> bool:
    """Whether a socket's file outlived its process."""
    if not Path(name).is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _admit(
    door: socket.socket, callers: dict[int, socket.socket], world_size: int, deadline: float
) -> None:
    missing = next(rank for rank in range(1, world_size) if rank not in callers)
    door.settimeout(_left(deadline, missing))
    try:
        caller, _ = door.accept()
    except TimeoutError:
        raise _late(missing) from None
    hello = _hello(caller, deadline)
    if hello is None:  # of another user, or gone again: none of ours
        caller.close()
        return
    protocol, ranks, rank = hello
    if protocol == _PROTOCOL and ranks == world_size and 0 < rank < ranks and rank not in callers:
        callers[rank] = caller
        return
    with caller:
        caller.sendall(_REFUSED)
    raise _mismatch(f"rank {rank} of {ranks} beside rank 0 of {world_size}")


def _hello(caller: socket.socket, deadline: float) -> tuple[bytes, int, int] | None:
    raw = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(raw)[1] not in {os.geteuid(), 0}:
        return None
    caller.settimeout(max(min(deadline - time.monotonic(), 5.0), 0.01))
    try:
        said = caller.recv(_HELLO.size, socket.MSG_WAITALL)
    except OSError:
        return None
    if len(said) < _HELLO.size:
        return None
    protocol, ranks, rank = _HELLO.unpack(said)
    return protocol, ranks, rank


def _give(caller: socket.socket, file: int, rank: int) -> None:
    try:
        socket.send_fds(caller, [_ACCEPTED], [file])
    except OSError:
        raise _gone(rank) from None


@contextmanager
def _called(path: Path, deadline: float) -> Iterator[socket.socket]:
    """Connect to a path as soon as somebody listens there."""
    pause = _FIRST_PAUSE
    with _short(path) as name:
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.settimeout(_left(deadline, 0))
                try:
                    door.connect(name)
                except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                    pass
                except TimeoutError:
                    raise _late(0) from None
                else:
                    yield door
                    return
            time.sleep(min(pause, _left(deadline, 0)))
            pause = min(2 * pause, _LONGEST_PAUSE)


def _left(deadline: float, rank: int) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _late(rank)
    return left


def _late(rank: int) -> PeerError:
    return PeerError(
        expected=f"rank {rank} to join the group",
        got="no sign of it in time",
        fix="start all ranks with the same path and world size, or allow a longer timeout",
    )


def _gone(rank: int) -> PeerError:
    return PeerError(
        expected=f"rank {rank} to join the group",
        got="a connection that it closed",
        fix="see that rank's own error",
    )


def _mismatch(got: str) -> MismatchError:
    return MismatchError(
        expected="each rank once, all with the same version of dither and size of the group",
        got=got,
        fix="start every rank with a number of its own and the same world size",
    )
