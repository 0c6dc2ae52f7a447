"""CUDA's streams and events without CUDA: tensors stay on the CPU, a race detector keeps clocks.

Operations run at once and in program order, so results are right whatever is forgotten; the
detector says whether real streams would have had to give the same. It keeps a vector clock for the
host and each stream (Fidge, Mattern): an operation comes after all that its stream, the host that
issued it, and the events waited for came after. Two accesses to one storage, one of them a write,
that no such chain orders are a race.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[str, int]


def _join(clock: Clock, other: Clock) -> None:
    for actor, tick in other.items():
        clock[actor] = max(clock.get(actor, 0), tick)


class Streams(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A device with the caller's stream and side streams. Enter it, then encode.

    Args:
        forget: Calls that do nothing, as if left out: "side waits", "main waits", "event sync",
            "stream sync".
    """

    def __init__(self, forget: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forget = forget
        self.clocks: dict[str, Clock] = {"host": {}, "main": {}}
        self.current = "main"
        self.pinned: dict[int, Tensor] = {}
        self.device: dict[int, Tensor] = {}
        self.races: list[str] = []
        self.blocking: list[str] = []
        self._accesses: dict[int, list[tuple[str, int, bool]]] = {}

    def issue(self, actor: str) -> None:
        """An operation of a stream (or the host) begins: after all that the host did."""
        clock = self.clocks[actor]
        _join(clock, self.clocks["host"])
        clock[actor] = clock.get(actor, 0) + 1

    def access(self, actor: str, tensor: Tensor, *, write: bool) -> None:
        """An operation that was issued reads or writes a tensor's storage."""
        place = tensor.untyped_storage().data_ptr()
        clock, past = self.clocks[actor], self._accesses.setdefault(place, [])
        for other, tick, wrote in past:
            if (write or wrote) and tick > clock.get(other, 0):
                self.races.append(f"{actor} meets {other} at {tuple(tensor.shape)}")
        past.append((actor, clock[actor], write))

    def touch(self, actor: str, tensor: Tensor) -> None:
        """Something outside PyTorch overwrites a tensor."""
        self.issue(actor)
        self.access(actor, tensor, write=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", None)
        out = func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.blocking.append(str(func))
        infos = [argument.alias_info for argument in func._schema.arguments]
        if any(info is not None and not info.is_write for info in infos):
            return out  # a view
        if func is torch.ops.aten.empty.memory_format and pinned:
            self.pinned[out.untyped_storage().data_ptr()] = out
            return out
        self._account(func, args, kwargs, out)
        return out

    def _account(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        written = [a for a, s in zip(args, func._schema.arguments, strict=False) if s.alias_info]
        ids = {id(tensor) for tensor in written}
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        read = [tensor for tensor in read if id(tensor) not in ids]
        fresh = [t for t in tree_leaves(out) if isinstance(t, Tensor) and id(t) not in ids]
        for (
            tensor
        ) in fresh:  # its memory may have been used on this stream before; kept, not reused
            self.device[tensor.untyped_storage().data_ptr()] = tensor
        touched = [tensor.untyped_storage().data_ptr() for tensor in (*read, *written, *fresh)]
        actor = "host" if all(place in self.pinned for place in touched) else self.current
        self.issue(actor)
        for tensor in read:
            self.access(actor, tensor, write=False)
        for tensor in (*written, *fresh):
            self.access(actor, tensor, write=True)
        crossing = actor != "host" and any(place in self.pinned for place in touched)
        if crossing and not (len(args) > 2 and args[2]):  # copy_(self, source, non_blocking)
            self.blocking.append(str(func))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put this device behind ``torch.cuda``."""
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(self, "side"))
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream(self, "main"))
        patch.setattr(torch.cuda, "stream", self._on)
        patch.setattr(torch.cuda, "Event", lambda: Event(self))

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before


class Stream:
    """One stream of the simulated device."""

    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name
        streams.clocks.setdefault(name, {})

    def wait_event(self, event: Event) -> None:
        if self.streams.forget != f"{self.name} waits":
            _join(self.streams.clocks[self.name], event.clock)

    def synchronize(self) -> None:
        if self.streams.forget != "stream sync":
            _join(self.streams.clocks["host"], self.streams.clocks[self.name])


class Event:
    """An event; before its first record, waiting for it is waiting for nothing."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.clock: Clock = {}

    def record(self, stream: Stream) -> None:
        self.clock = dict(self.streams.clocks[stream.name])

    def synchronize(self) -> None:
        if self.streams.forget != "event sync":
            _join(self.streams.clocks["host"], self.clock)
