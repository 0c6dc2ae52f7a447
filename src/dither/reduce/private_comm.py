"""`PrivateComm`: an mpi4py communicator whose AllReduce is private."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeAlias, final

import numpy as np

from dither.errors import ConfigError
from dither.privacy.trust import parse_trust
from dither.reduce.private_reduce import PrivateReduce, Promise
from dither.reduce.protections.keys import Authentication
from dither.reduce.transports.mpi import Mpi, load_mpi

_Array: TypeAlias = np.ndarray


@final
class PrivateRequest:
    """An `Iallreduce` under way, with mpi4py's names."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def Wait(self) -> bool:  # noqa: N802 - mpi4py's name
        """Wait until the sum is in the receive buffer.

        Raises:
            ReduceError: There is no sum.
        """
        self._future.result()
        return True

    def Test(self) -> bool:  # noqa: N802 - mpi4py's name
        """Return whether the sum is there.

        Raises:
            ReduceError: There is no sum.
        """
        return self.Wait() if self._future.done() else False


@final
class PrivateComm:
    """A communicator for programs that sum floats and must not show what each rank holds.

    ``Allreduce`` and ``Iallreduce`` with SUM over float32 and float64 are private: guarantee and
    unit are those of `PrivateReduce`. Nothing else is offered: a call that is not covered would
    send records in clear. What is public goes through the communicator itself.

    Args:
        comm: mpi4py communicator of one group; all of its ranks make one together.
        clip: C, the L2 norm that a rank's contribution is scaled down to.
        releases: Largest number of calls.
        delta: δ.
        ledger: Folder of this rank's account, ``rank-R.sqlite``.
        noise_multiplier: z, noise over C; or
        epsilon: the budget of all calls together.
        trust: ``local``, ``distributed(t)`` or ``central``.
        algorithm: Name of an algorithm, or auto.
        authentication: For the masks of ``distributed(t)``.
        run: Name of the run in the ledger; name one of before to go on with its budget.
        timeout: Seconds that a call may wait for peers.

    Raises:
        ConfigError: Options out of range, or no mpi4py.
        MismatchError: Ranks differ in options; on all of them.
    """

    def __init__(
        self,
        comm: Any,
        *,
        clip: float,
        releases: int,
        delta: float,
        ledger: str | Path,
        noise_multiplier: float | None = None,
        epsilon: float | None = None,
        trust: str = "local",
        algorithm: str = "auto",
        authentication: Authentication | None = None,
        run: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        self._mpi = load_mpi()
        promise = Promise(
            clip=clip,
            releases=releases,
            delta=delta,
            noise_multiplier=noise_multiplier,
            epsilon=epsilon,
            trust=parse_trust(trust),
        )
        self._endpoint = Mpi(comm, timeout)
        try:
            self._reduce = PrivateReduce(
                self._endpoint,
                promise,
                ledger=ledger,
                run=run,
                algorithm=algorithm,
                authentication=authentication,
            )
        except BaseException:
            self._endpoint.close()
            raise

    @property
    def rank(self) -> int:
        """This rank."""
        return self._endpoint.rank

    @property
    def size(self) -> int:
        """R."""
        return self._endpoint.world_size

    @property
    def releases_left(self) -> int:
        """Calls that all ranks may still make."""
        return self._reduce.releases_left

    def Get_rank(self) -> int:  # noqa: N802 - mpi4py's name
        """Return this rank."""
        return self.rank

    def Get_size(self) -> int:  # noqa: N802 - mpi4py's name
        """Return R."""
        return self.size

    def epsilon(self) -> float:
        """Return ε charged so far by this run, from this rank's ledger."""
        return self._reduce.epsilon()

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: Any = None) -> None:  # noqa: N802
        """Write the private sum of all ranks' send buffers to the receive buffer.

        Args:
            sendbuf: numpy array, ``[array, type]``, or ``MPI.IN_PLACE``.
            recvbuf: numpy array or ``[array, type]``, of the same type and size.
            op: ``MPI.SUM``, also by default.

        Raises:
            ConfigError: Another operation, type or layout; nothing was sent.
            BudgetExhaustedError: No call is left; on all ranks alike.
            ReduceError: There is no sum.
        """
        values, out = self._buffers(sendbuf, recvbuf, op)
        self._reduce(values, out)

    def Iallreduce(self, sendbuf: Any, recvbuf: Any, op: Any = None) -> PrivateRequest:  # noqa: N802
        """Start an `Allreduce` that goes on beside the caller's work; calls run in their order."""
        values, out = self._buffers(sendbuf, recvbuf, op)
        return PrivateRequest(self._reduce.start(values, out))

    def Free(self) -> None:  # noqa: N802 - mpi4py's name
        """Close it, on all ranks together; the communicator itself stays the caller's."""
        self._reduce.close()
        self._endpoint.close()

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what is not covered, by name."""
        message = (
            f"PrivateComm has no {name}: only Allreduce and Iallreduce are private. Send what is "
            "public through the communicator itself"
        )
        raise AttributeError(message)

    def __enter__(self) -> PrivateComm:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free it."""
        self.Free()

    def _buffers(self, sendbuf: Any, recvbuf: Any, op: Any) -> tuple[_Array, _Array]:
        if op is not None and op != self._mpi.SUM:
            raise ConfigError(
                expected="the operation SUM",
                got="another one",
                fix="sum instead: maxima and the like show one rank's value and are never sent",
            )
        out = self._array(recvbuf)
        if sendbuf is self._mpi.IN_PLACE:
            return out, out
        values = self._array(sendbuf)
        if values.dtype != out.dtype:
            raise ConfigError(
                expected=f"a receive buffer of {values.dtype}, as the send buffer",
                got=str(out.dtype),
                fix="use one type for both",
            )
        return values, out

    def _array(self, buffer: Any) -> _Array:
        array, kind = buffer, None
        if isinstance(buffer, list | tuple) and len(buffer) == 2:
            array, kind = buffer
        flat = array.reshape(-1) if isinstance(array, np.ndarray) else None
        wanted = {"float32": self._mpi.FLOAT, "float64": self._mpi.DOUBLE}
        named = None if flat is None else wanted.get(flat.dtype.name)
        if flat is None or named is None or not array.flags.c_contiguous:
            stripes = "strided " if flat is not None and not array.flags.c_contiguous else ""
            raise ConfigError(
                expected="a contiguous numpy array of float32 or float64, or [array, MPI type]",
                got=f"{stripes}{type(array).__name__} of {getattr(array, 'dtype', 'no type')}",
                fix="convert it: what cannot be protected is refused, never sent in clear",
            )
        if kind is not None and kind != named:
            raise ConfigError(
                expected=f"the MPI type of {flat.dtype}",
                got=kind.Get_name() if isinstance(kind, self._mpi.Datatype) else repr(kind),
                fix="leave it out",
            )
        return flat
