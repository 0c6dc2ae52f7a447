"""A process group that writes down all that leaves this rank through it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as _c10d


class Tap(dist.ProcessGroup):
    """Passes every collective on to another group, and keeps copies of what this rank gave.

    Any call that it does not know raises, so nothing passes unseen.
    """

    def __init__(self, inner: dist.ProcessGroup) -> None:
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]
        self.inner = inner
        self.seen: list[tuple[str, list[Tensor]]] = []

    def _note(self, name: str, tensors: Any) -> None:
        flat = [t for each in tensors for t in (each if isinstance(each, list) else [each])]
        self.seen.append((name, [tensor.detach().clone() for tensor in flat]))

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "tap"

    def getSize(self) -> int:  # noqa: N802
        return self.inner.size()

    def allreduce(  # type: ignore[override]
        self, tensors: Any, opts: Any = None
    ) -> Any:
        self._note("allreduce", tensors)
        return self.inner.allreduce(tensors, opts or dist.AllreduceOptions())

    def broadcast(  # type: ignore[override]
        self, tensors: Any, opts: Any = None
    ) -> Any:
        options = opts or dist.BroadcastOptions()
        if options.rootRank == self.rank():
            self._note("broadcast", tensors)
        return self.inner.broadcast(tensors, options)

    def allgather(self, outputs: Any, tensors: Any, opts: Any = None) -> Any:
        self._note("allgather", tensors)
        return self.inner.allgather(outputs, tensors, opts or _c10d.AllgatherOptions())

    def barrier(self, opts: Any = None) -> Any:
        return self.inner.barrier(opts or dist.BarrierOptions())
