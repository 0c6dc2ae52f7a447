"""Bytes of all tensors that live at a time, of whatever kind, measured at every operation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.distributed.tensor import DTensor
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their functions have no types.
StorageWeakRef: Any = reductions.StorageWeakRef


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations make while it is on, and what it is told of.

    Args:
        held: What is there before.
        parameters: Whose memory comes and goes.
        grain: Bytes of a result from which on all is counted again: smaller ones hardly matter.

    Attributes:
        peak: Most bytes at a time.
        whole: Most bytes of the given parameters at a time.
    """

    def __init__(
        self, held: Iterable[Tensor], parameters: Iterable[Tensor], grain: int = 1
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.whole = 0
        self._grain = grain
        self._seen: dict[int, Any] = {}
        self._parameters = [parameter.untyped_storage() for parameter in parameters]
        for tensor in held:
            self._note(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [self._note(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.whole = max(self.whole, sum(storage.size() for storage in self._parameters))
        if max(made, default=0) >= self._grain:
            self._seen = {key: ref for key, ref in self._seen.items() if not ref.expired()}
            self.peak = max(self.peak, sum(map(_size, self._seen.values())))
        return result

    def _note(self, tensor: Tensor) -> int:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.device.type != "cpu":
            return 0
        storage = local.untyped_storage()
        ref = StorageWeakRef(storage)
        known = self._seen.get(ref.cdata)
        if known is None or known.expired():
            self._seen[ref.cdata] = ref
        return int(storage.size())


def _size(ref: Any) -> int:
    storage = UntypedStorage._new_with_weak_ptr(ref.cdata)
    return 0 if storage is None else int(storage.size())
