"""`all_reduce`: a private stand-in for `torch.distributed.all_reduce`."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias, final
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from dither.errors import ConfigError
from dither.privacy.trust import parse_trust
from dither.reduce.endpoint import Endpoint
from dither.reduce.private_reduce import PrivateReduce, Promise
from dither.reduce.protections.keys import Authentication
from dither.reduce.transports.torch_distributed import TorchDistributed

_Options: TypeAlias = tuple[Any, ...]


@final
class _Kept:
    """What is open for one group, whose calls all go by one order.

    Attributes:
        lock: Of this group alone: to open a sum takes all ranks, which may be threads of one
            process.
        reduces: By options.
        last: Whose calls may be under way.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reduces: dict[_Options, PrivateReduce] = {}
        self.last: PrivateReduce | None = None


_open: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()
_lock = threading.Lock()


@final
class Work:
    """An `all_reduce` under way."""

    def __init__(self, tensor: Tensor, flat: Tensor, future: Future[Any]) -> None:
        self._tensor = tensor
        self._flat = flat
        self._future = future

    def wait(self) -> Tensor:
        """Wait for the sum and return the tensor that holds it.

        Raises:
            ReduceError: There is no sum; what the tensor holds is of no use.
        """
        self._future.result()
        _put_back(self._tensor, self._flat)
        return self._tensor

    def is_completed(self) -> bool:
        """Return whether `wait` would return at once."""
        return self._future.done()


def all_reduce(
    tensor: Tensor,
    *,
    clip: float,
    releases: int,
    delta: float,
    ledger: str | Path,
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    trust: str = "local",
    group: dist.ProcessGroup | Endpoint | None = None,
    algorithm: str = "auto",
    authentication: Authentication | None = None,
    run: str | None = None,
    async_op: bool = False,
) -> Tensor | Work:
    """Replace a tensor by the private sum of all ranks' tensors, as torch's own does by the sum.

    The unit of privacy is the rank's contribution: the whole tensor of one call, scaled down to
    norm ``clip``. The first call with these options opens the rank's account and, where all ranks
    are on one host, shared memory; the next ones go on with them, until `close_all_reduce`.

    Guarantee: see `PrivateReduce`.

    Args:
        tensor: float32 or float64, of any shape and device, the same shape on all ranks.
        clip: C.
        releases: Largest number of calls with these options.
        delta: δ.
        ledger: Folder of this rank's account, ``rank-R.sqlite``.
        noise_multiplier: z, noise over C; or
        epsilon: the budget of all calls together.
        trust: ``local``, ``distributed(t)`` or ``central``.
        group: Process group, the default one if None, or any `Endpoint`.
        algorithm: Name of an algorithm, or auto.
        authentication: For the masks of ``distributed(t)``.
        run: Name of the run in the ledger; name one of before to go on with its budget.
        async_op: Return a `Work` at once; the tensor is the sum's after ``wait()``.

    Returns:
        The tensor, or a `Work`.

    Raises:
        ConfigError: Another type of tensor, or options out of range; nothing was sent.
        MismatchError: Ranks differ in options, lengths or types; on all of them.
        BudgetExhaustedError: No call is left; on all ranks alike.
        ReduceError: There is no sum; what the tensor holds is of no use.
    """
    if not isinstance(tensor, Tensor):
        raise ConfigError(
            expected="a tensor",
            got=type(tensor).__name__,
            fix="make it one with torch.as_tensor; the sum is written into it",
        )
    if tensor.dtype not in {torch.float32, torch.float64} or tensor.layout != torch.strided:
        raise ConfigError(
            expected="a dense tensor of float32 or float64",
            got=f"{'' if tensor.layout == torch.strided else f'{tensor.layout} of '}{tensor.dtype}",
            fix="convert it with .float() or .to_dense(): what cannot be protected is never sent",
        )
    promise = Promise(
        clip=clip,
        releases=releases,
        delta=delta,
        noise_multiplier=noise_multiplier,
        epsilon=epsilon,
        trust=parse_trust(trust),
    )
    reduce = _find(group, promise, ledger, (run, algorithm, authentication))
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    if async_op:
        return Work(tensor, flat, reduce.start(flat.numpy(), flat.numpy()))
    reduce(flat.numpy(), flat.numpy())
    _put_back(tensor, flat)
    return tensor


def close_all_reduce() -> None:
    """Close what `all_reduce` keeps open: pools, shared memory, accounts."""
    with _lock:
        for kept in list(_open.values()):
            for reduce in kept.reduces.values():
                reduce.close()
        _open.clear()


def _find(
    group: dist.ProcessGroup | Endpoint | None,
    promise: Promise,
    ledger: str | Path,
    options: _Options,
) -> PrivateReduce:
    """Return what the first call with these options opened; open it where this is the first."""
    owner = group if group is not None else _default_group()
    run, algorithm, authentication = options
    with _lock:
        kept = _open.setdefault(owner, _Kept())
    with kept.lock:
        key = promise, str(ledger), run, algorithm, authentication
        reduce = kept.reduces.get(key)
        if kept.last is not None and kept.last is not reduce:
            kept.last.settle()  # messages of two sums over one group would mix
        if reduce is None:
            endpoint = owner if isinstance(owner, Endpoint) else TorchDistributed(owner)
            reduce = kept.reduces[key] = PrivateReduce(
                endpoint,
                promise,
                ledger=ledger,
                run=run,
                algorithm=algorithm,
                authentication=authentication,
            )
        kept.last = reduce
        return reduce


def _default_group() -> Any:
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            expected="an initialised process group, or group=",
            got="none",
            fix="start with torchrun and call torch.distributed.init_process_group first",
        )
    return dist.group.WORLD


def _put_back(tensor: Tensor, flat: Tensor) -> None:
    if tensor.data_ptr() != flat.data_ptr():
        with torch.no_grad():
            tensor.copy_(flat.view(tensor.shape))
