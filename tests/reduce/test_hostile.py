"""What a hostile reader tried against private sums, and must not work again."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dither.errors import ConfigError, DitherWarning, PeerError, ReduceError
from dither.privacy.ledger import Ledger
from dither.reduce.all_reduce import all_reduce, close_all_reduce
from dither.reduce.endpoint import Endpoint
from dither.reduce.private_reduce import PrivateReduce, Promise
from dither.reduce.transports.mpi import Mpi
from dither.reduce.transports.threads import run_ranks, try_ranks
from dither.reduce.transports.torch_distributed import TorchDistributed
from dither.release.arrays import check_arrays

PROMISE: dict[str, Any] = {"clip": 1.0, "releases": 50, "delta": 1e-5, "noise_multiplier": 0.03}


def opened(endpoint: Endpoint, folder: Any, **options: Any) -> PrivateReduce:
    return PrivateReduce(endpoint, Promise(**PROMISE), ledger=folder, noise_pool=False, **options)


@pytest.fixture
def doors() -> Iterator[None]:
    yield
    close_all_reduce()


def test_results_are_never_read_again_as_contributions(tmp_path: Path) -> None:
    """Blocks that were summed would lie where later blocks are read: beyond their clipping."""

    def act(endpoint: Endpoint) -> None:
        memory = np.zeros(3 << 10)
        with opened(endpoint, tmp_path, run="run", lease=1) as reduce:
            with pytest.raises(ConfigError, match="share a part"):
                reduce(memory[: 2 << 10], memory[1 << 10 :])
            with pytest.raises(ConfigError, match="share a part"):
                reduce.start(memory[: 1 << 10].view(np.float64), memory.view(np.float32)[: 1 << 10])
            assert reduce.account.steps_charged == 0
            reduce(memory, memory)  # the same memory is fine: each block is read before

    run_ranks(1, act)


def test_a_call_waits_for_those_started_before(tmp_path: Path) -> None:
    """Else a rank whose worker is late sums its second vector with the others' first."""

    def act(endpoint: Endpoint) -> int:
        wrong = 0
        with opened(endpoint, tmp_path) as reduce:
            reduce(np.zeros(4))
            for _ in range(20):
                first, second = np.full(4, 0.4), np.full(4, -0.4)
                started = reduce.start(first, first)
                time.sleep(0.002 * endpoint.rank)
                reduce(second, second)
                started.result()
                wrong += not (first.mean() > 0.5 and second.mean() < -0.5)
        return wrong

    assert run_ranks(2, act, timeout=30.0) == [0, 0]


def test_a_closed_sum_starts_nothing(tmp_path: Path) -> None:
    def act(endpoint: Endpoint) -> None:
        reduce = opened(endpoint, tmp_path)
        reduce.start(np.zeros(2), np.zeros(2)).result()
        reduce.close()
        for call in (reduce, reduce.start):
            with pytest.raises(ReduceError, match="being closed"):
                call(np.zeros(2), np.zeros(2))

    run_ranks(1, act)


@pytest.mark.parametrize("values", [[1.0], None, np.float32(1.0)])
def test_what_is_no_array_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="numpy array"):
        check_arrays(values, None)


def test_a_warning_that_is_an_error_does_not_tell_the_other_ranks(tmp_path: Path) -> None:
    def act(endpoint: Endpoint) -> float:
        with opened(endpoint, tmp_path) as reduce:
            values = np.full(4, math.nan if endpoint.rank else 0.5)
            if endpoint.rank:
                with pytest.raises(DitherWarning, match="not finite"):
                    reduce(values, values)
            else:
                reduce(values, values)
            reduce(np.zeros(4))  # and the group goes on
            return float(values.mean())

    with warnings.catch_warnings():
        warnings.simplefilter("error", DitherWarning)
        found = run_ranks(2, act, timeout=10.0)
    assert found[0] == found[1] == pytest.approx(0.5, abs=0.2)


def test_any_error_of_one_account_is_told_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Ledger.create

    def fail(path: Path, **options: Any) -> Ledger:
        if path.name == "rank-1.sqlite":
            raise MemoryError
        return create(path, **options)

    monkeypatch.setattr(Ledger, "create", staticmethod(fail))

    def act(endpoint: Endpoint) -> Any:
        try:
            return opened(endpoint, tmp_path)
        except (MemoryError, ReduceError) as error:
            return error

    errors = run_ranks(3, act, timeout=10.0)
    assert type(errors[1]) is MemoryError
    assert all("rank 1: it could not open its account" in str(errors[rank]) for rank in (0, 2))


@pytest.mark.parametrize("first", [0, 1])
def test_no_numbers_on_one_rank_and_some_on_the_others(first: int, tmp_path: Path) -> None:
    """Lengths that are both known: no message must not pass for one, nor one call for another."""

    def act(endpoint: Endpoint) -> None:
        with opened(endpoint, tmp_path, algorithm="ring") as reduce:
            reduce(np.zeros(0))
            reduce(np.zeros(8))
            reduce(np.zeros(0 if endpoint.rank == first else 8))

    errors = try_ranks(2, act, timeout=10.0).errors
    assert sorted(errors) == [0, 1]
    assert all(isinstance(error, ReduceError) for error in errors.values())


@pytest.mark.usefixtures("doors")
def test_ranks_that_are_threads_open_a_door_together(tmp_path: Path) -> None:
    def act(endpoint: Endpoint) -> torch.Tensor:
        options = {**PROMISE, "ledger": tmp_path, "group": endpoint}
        first = torch.full((4,), 0.4)
        started = all_reduce(first, async_op=True, **options)
        second = all_reduce(torch.full((4,), -0.4), algorithm="ring", **options)  # another sum
        assert not isinstance(started, torch.Tensor)
        assert not isinstance(second, torch.Tensor) or second.mean() < -0.5
        return started.wait()

    found = run_ranks(3, act, timeout=10.0)
    assert all(torch.equal(found[0], other) for other in found)
    assert found[0].mean() > 0.9


@pytest.mark.usefixtures("doors")
@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("kind", ["to_sparse_csr", "to_sparse", "int", "half"])
def test_a_door_takes_dense_floats_only(kind: str, tmp_path: Path) -> None:
    tensor = getattr(torch.zeros(3, 3), kind)()

    def act(endpoint: Endpoint) -> None:
        with pytest.raises(ConfigError, match="dense tensor"):
            all_reduce(tensor, ledger=tmp_path, group=endpoint, **PROMISE)

    run_ranks(1, act)


class Library:
    """As much of mpi4py as waiting takes."""

    BYTE = None
    Exception = ZeroDivisionError

    def __init__(self, arrived: int | None) -> None:
        self._arrived = arrived
        self.Request = self.Status = self

    def __call__(self) -> Library:
        return self

    def Testall(self, *_: Any) -> bool:  # noqa: N802 - mpi4py's name
        if self._arrived is None:
            raise KeyboardInterrupt
        return True

    def Get_count(self, _: Any) -> int:  # noqa: N802 - mpi4py's name
        assert self._arrived is not None
        return self._arrived


def mpi(arrived: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[Mpi, list[Any]]:
    kept: list[Any] = []
    module = "dither.reduce.transports.mpi"
    monkeypatch.setattr(f"{module}._unfinished", kept)
    monkeypatch.setattr(f"{module}.atexit.register", lambda *_: None)
    endpoint = object.__new__(Mpi)
    endpoint._mpi, endpoint._timeout, endpoint._broken = Library(arrived), 1.0, None
    endpoint._rank = 0
    return endpoint, kept


def test_memory_that_mpi_still_reads_outlives_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what comes to lie there would be sent, in clear."""
    endpoint, kept = mpi(None, monkeypatch)
    message = np.ones(3)
    with pytest.raises(KeyboardInterrupt):
        endpoint._run(lambda: ["request"], [message], "rank 1")
    assert kept[0][0] == ["request"]
    assert kept[0][1][0] is message
    with pytest.raises(ReduceError, match="KeyboardInterrupt"):
        endpoint._run(list, [message], "rank 1")


def test_a_message_of_mpi_that_is_too_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else memory of before would be summed, and the sum sent on."""
    message = np.ones(3)
    endpoint, _ = mpi(message.nbytes, monkeypatch)
    endpoint._run(lambda: ["request"], [message], "rank 1", message)
    endpoint, _ = mpi(message.nbytes - 8, monkeypatch)
    with pytest.raises(PeerError, match="16 bytes where 24"):
        endpoint._run(lambda: ["request"], [message], "rank 1", message)


def test_memory_that_gloo_still_reads_outlives_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr("dither.reduce.transports.torch_distributed._unfinished", kept)

    class Interrupted:
        def wait(self, _: Any) -> None:
            raise KeyboardInterrupt

    endpoint = object.__new__(TorchDistributed)
    endpoint._timeout, endpoint._broken = 1.0, None
    tensor = torch.zeros(3)
    with pytest.raises(KeyboardInterrupt):
        endpoint._run(lambda: [Interrupted()], [tensor], ["rank 1"])
    assert kept[0][1][0] is tensor
    with pytest.raises(ReduceError, match="KeyboardInterrupt"):
        endpoint._run(list, [tensor], ["rank 1"])
