"""Ranks of a torch.distributed process group: gloo, and nccl by the same code."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable
from typing import Any, NoReturn, final

import numpy as np
import torch
import torch.distributed as dist

from dither.errors import ConfigError, PeerError
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.transports.hosts import host_identity, number_hosts
from dither.reduce.transports.refusal import check_whole

# Ours among a user's own messages over the same group. nccl knows no tags, and needs none: its
# messages arrive in the order in which they were sent.
_TAG = 0x64697468
# What gloo and nccl sum, in C arithmetic that wraps; unsigned integers go as signed ones of the
# same bits. Neither sums 16-bit integers.
_SUM_TYPES = {
    np.dtype(name): np.dtype(name.removeprefix("u"))
    for name in ("int32", "uint32", "int64", "uint64", "float32", "float64")
}

# Operations that will never be complete, and what they point to: they may still write there.
_unfinished: list[tuple[list[Any], list[torch.Tensor]]] = []


@final
class TorchDistributed(Endpoint):
    """One rank of an initialised process group.

    Messages go point to point as bytes, so every type travels. Where the group has no back end for
    the processor (nccl), they are copied to and from this rank's current device. All ranks of the
    group must make one at the same time. The group stays the caller's: `close` leaves it as it is.

    Args:
        group: Process group; the default one if None.
        timeout: Seconds that a call may wait for peers. nccl has a timeout of its own, the
            group's, at which it ends the process.

    Raises:
        ConfigError: torch.distributed is not initialised, or this process is not in the group.
        PeerError: A peer does not answer.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float = 300.0) -> None:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank(group) < 0:
            raise ConfigError(
                expected="an initialised process group with this process in it",
                got="none",
                fix="start with torchrun and call torch.distributed.init_process_group first",
            )
        self._group = group
        self._timeout = timeout
        self._broken: str | None = None
        self._rank = dist.get_rank(group)
        self._world_size = dist.get_world_size(group)
        self._device = _device(group)
        self._on_host = self._device.type == "cpu"
        self._hosts = self._find_hosts()

    @property
    def rank(self) -> int:
        """Rank in the group."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Size of the group."""
        return self._world_size

    @property
    def hosts(self) -> tuple[int, ...]:
        """As the ranks told each other."""
        return self._hosts

    @property
    def timeout(self) -> float:
        """Seconds that a call may wait for peers."""
        return self._timeout

    def send(self, to: int, message: Buffer) -> None:
        """Send, and wait until the message is on its way."""
        self._transfer(to, message, None, None)

    def receive(self, source: int, out: Buffer) -> None:
        """Receive."""
        self._transfer(None, None, source, out)

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        """Start both, then wait for both."""
        if to == source == self._rank:  # gloo and nccl refuse to
            check_whole(self._broken)
            np.copyto(out, message)
            return
        self._transfer(to, message, source, out)

    def all_reduce(self, buffer: Buffer) -> bool:
        """Sum by the group's own all_reduce: 32 and 64 bits only."""
        if buffer.dtype not in _SUM_TYPES:
            return False
        if buffer.size:
            tensor = torch.from_numpy(buffer.view(_SUM_TYPES[buffer.dtype]))
            staged = tensor.to(self._device)
            self._run(
                lambda: [dist.all_reduce(staged, group=self._group, async_op=True)],
                [staged],
                ["the other ranks"],
            )
            if staged is not tensor:
                tensor.copy_(staged)
        return True

    def close(self) -> None:
        """Refuse further use."""
        self._broken = self._broken or "a closed endpoint"

    def _transfer(
        self, to: int | None, message: Buffer | None, source: int | None, out: Buffer | None
    ) -> None:
        operations: list[dist.P2POp] = []
        peers: list[str] = []
        incoming = staged = None
        # Both sides know the size, so nothing need travel for nothing.
        if out is not None and out.size:
            incoming = _as_bytes(out)
            incoming.zero_()  # gloo takes a shorter message: the rest must not be memory of before
            staged = incoming if self._on_host else torch.zeros_like(incoming, device=self._device)
            operations.append(self._operation(dist.irecv, staged, source))
            peers.append(f"rank {source}")
        if message is not None and message.size:
            outgoing = _as_bytes(message).to(self._device)
            operations.append(self._operation(dist.isend, outgoing, to))
            peers.append(f"rank {to}")
        if operations:
            tensors = [operation.tensor for operation in operations]
            self._run(lambda: dist.batch_isend_irecv(operations), tensors, peers)
        if incoming is not None and staged is not None and staged is not incoming:
            incoming.copy_(staged)

    def _operation(self, kind: Callable[..., Any], tensor: torch.Tensor, peer: Any) -> dist.P2POp:
        return dist.P2POp(kind, tensor, group=self._group, tag=_TAG, group_peer=peer)

    def _run(
        self, start: Callable[[], list[Any]], tensors: list[torch.Tensor], peers: list[str]
    ) -> None:
        """Start operations and wait for them."""
        check_whole(self._broken)
        deadline = time.monotonic() + self._timeout
        works: list[Any] = []
        waiting = " and ".join(peers)
        try:
            works = start()
            # nccl makes one of several.
            names = peers if len(works) == len(peers) else [waiting] * len(works)
            for waiting, work in zip(names, works, strict=True):  # noqa: B007 - named in the error
                rest = max(deadline - time.monotonic(), 1e-3)
                work.wait(dt.timedelta(seconds=rest))
        except BaseException as error:
            # An interrupt too: what comes to lie in memory that gloo still reads would be sent.
            _unfinished.append((works, tensors))
            self._broken = type(error).__name__
            if isinstance(error, RuntimeError):
                self._fail(waiting, error)
            raise

    def _fail(self, peers: str, error: RuntimeError) -> NoReturn:
        self._broken = _reason(error)
        raise PeerError(
            expected=f"{peers} to answer rank {self._rank} within {self._timeout:g} s",
            got=self._broken,
            fix="look at that rank's own error; end all processes, then start anew",
        ) from error

    def _find_hosts(self) -> tuple[int, ...]:
        own = torch.tensor(list(host_identity()), dtype=torch.uint8, device=self._device)
        found = [torch.empty_like(own) for _ in range(self._world_size)]
        self._run(
            lambda: [dist.all_gather(found, own, group=self._group, async_op=True)],
            [own, *found],
            ["the other ranks"],
        )
        return number_hosts([bytes(identity.tolist()) for identity in found])


def _reason(error: RuntimeError) -> str:
    """Return gloo's message without where in its sources it arose and what it advises."""
    line = str(error).splitlines()[0]
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", line).partition(". This is typically")[0]


def _as_bytes(buffer: Buffer) -> torch.Tensor:
    # torch warns of arrays that it might write to and must not.
    return torch.from_numpy((buffer if buffer.flags.writeable else buffer.copy()).view(np.uint8))


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Return where a group's messages must lie."""
    backends = dist.get_backend_config(group)
    if "cpu:" in backends:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
