"""The ways to sum that `dither bench allreduce` compares: two baselines and our protections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float

from dither.bench.allreduce_group import Contender, Group
from dither.bench.harness import Work
from dither.noise.codec import message_type
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.privacy.account import Account
from dither.privacy.events import Relation, Unit
from dither.privacy.ledger import Ledger
from dither.privacy.trust import LOCAL, Trust
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.endpoint import Endpoint
from dither.reduce.private_reduce import LINGER, PrivateReduce, Promise
from dither.reduce.protections.encrypted import Encryption
from dither.reduce.protections.private import BLOCK, Reduced
from dither.release.contribution import ContributionRelease, bound_lattice

Values: TypeAlias = Float[np.ndarray, " size"]
Make: TypeAlias = Callable[[Group, Values], Contender]

CLIP = 1.0
NOISE_MULTIPLIER = 8.0  # ε of about 1 for one sum
_DELTA = 1e-6
_RELEASES = 1 << 20
_MOST_CALLS = 32
_POOLED_CALLS = 2  # a pool holds two releases ahead
_SHORTEST_POOLED = 1 << 14  # shorter ones draw their noise in the call always


def mpich(group: Group, values: Values) -> Contender:
    """MPI's own float32 sum, through mpi4py, from one buffer into another."""
    out = np.empty_like(values)
    comm, total = group.comm, group.mpi.SUM
    return Contender(
        lambda: comm.Allreduce(values, out, op=total),
        lambda: out,
        detail=f"MPI_Allreduce of {_library(group)} through mpi4py {version('mpi4py')}",
    )


def gloo(group: Group, values: Values) -> Contender:
    """Gloo's float32 sum, in place; of zeros after the first call, lest they grow."""
    made = group.gloo
    tensor = torch.from_numpy(values)
    first = values.copy()

    def call() -> None:
        dist.all_reduce(tensor, group=made)

    def result() -> Values:
        kept = tensor.numpy().copy()
        tensor.zero_()
        first[:] = kept
        return first

    return Contender(
        call, result, detail=f"all_reduce of torch {torch.__version__} on loopback, in place"
    )


def _library(group: Group) -> str:
    lines: list[str] = group.mpi.Get_library_version().splitlines()
    return " ".join(lines[0].replace("Version:", "").split())


def clear_shm(group: Group, values: Values) -> Contender:
    """Our unprotected sum through shared memory, in place."""
    endpoint, work = group.shm, np.empty_like(values)
    return Contender(
        lambda: sum_over(endpoint, work),
        lambda: work,
        prepare=lambda: np.copyto(work, values),
        detail="float32, algorithm auto, in place",
        calls=_MOST_CALLS,
    )


def _encrypted(*, sustained: bool) -> Make:
    """Return the maker of HEAR's sum through shared memory, in place and without clipping."""

    def make(group: Group, values: Values) -> Contender:
        encryption = Encryption.agree(group.shm, largest=2.0 * CLIP)
        work = np.empty_like(values)

        def prepare() -> None:
            np.copyto(work, values)
            if not sustained:
                encryption.prepare(values.size)

        return Contender(
            lambda: encryption.reduce(group.shm, work),
            lambda: work,
            prepare=prepare,
            close=encryption.close,
            detail=f"32 bits, fused, in place, pads {'made in the call' if sustained else 'ready'}",
            calls=1,  # each call sums what the last one left
        )

    return make


def _shared(trust: Trust, *, sustained: bool, in_place: bool = False) -> Make:
    """Return the maker of a private sum through shared memory, as both doors make it."""

    def make(group: Group, values: Values) -> Contender:
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory())
            reduce = stack.enter_context(
                PrivateReduce(
                    group.mpi_endpoint, _promise(trust), ledger=folder, noise_pool=not sustained
                )
            )
            held = stack.pop_all()
        out, drawn = np.empty_like(values), sustained or values.size < _SHORTEST_POOLED
        source = out if in_place else values

        def prepare() -> None:
            if in_place:
                np.copyto(out, values)
            if not sustained:
                reduce.wait_until_ready()

        return Contender(
            lambda: reduce(source, out),
            lambda: out,
            error=_error(trust, group),
            clipped=True,
            prepare=prepare,
            close=held.close,
            detail=f"PrivateReduce{' in place' if in_place else ''}, trust {trust}, "
            f"{_noise(drawn)}",
            calls=_MOST_CALLS if drawn else _POOLED_CALLS,
        )

    return make


def _carried(carrier: Callable[[Group], Endpoint], *, sustained: bool) -> Make:
    """Return the maker of a private sum by a back end's own algorithm, where it has one."""

    def make(group: Group, values: Values) -> Contender:
        plan, size = _promise(LOCAL).plan(group.world_size), values.size
        lattice = bound_lattice(plan, size, group.world_size)
        prepare: Work = bool
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            noise: FreshNoise | NoisePool = FreshNoise(Key())
            if not sustained:
                noise = stack.enter_context(NoisePool(lattice.sigma, dimension=size))
                if group.mpi_endpoint.crowded:
                    noise.linger(LINGER)
                prepare = noise.wait_until_full
            ledger = Ledger.create(
                folder / "ledger.sqlite",
                store="bench",
                unit=Unit.RANK,
                relation=Relation.REPLACE_ONE,
                sensitive=False,
            )
            endpoint = carrier(group)
            own = endpoint.all_reduce(np.zeros(1, message_type(lattice)))
            transport = Reduced(endpoint, algorithm="backend" if own else "auto", block=BLOCK)
            release = ContributionRelease(
                Account(ledger, "bench", plan), transport, noise, dimension=size
            )
            held = stack.pop_all()
        out = np.empty_like(values)
        return Contender(
            lambda: release(values, out),
            lambda: out,
            error=_error(LOCAL, group),
            clipped=True,
            prepare=prepare,
            close=held.close,
            detail=f"trust local, {lattice.wire_bits} bits, algorithm {transport.algorithm}, "
            f"{_noise(sustained)}",
            calls=_MOST_CALLS if sustained else _POOLED_CALLS,
        )

    return make


def _promise(trust: Trust) -> Promise:
    return Promise(
        clip=CLIP,
        releases=_RELEASES,
        delta=_DELTA,
        noise_multiplier=NOISE_MULTIPLIER,
        trust=trust,
    )


def _error(trust: Trust, group: Group) -> float:
    return NOISE_MULTIPLIER * CLIP * trust.sum_multiple(group.world_size)


def _noise(sustained: bool) -> str:
    return "noise drawn in the call" if sustained else "noise ready"


_DISTRIBUTED = Trust("distributed", 0)  # of two ranks none may collude

CONTENDERS: Mapping[str, Make] = MappingProxyType(
    {
        "mpich": mpich,
        "gloo": gloo,
        "clear/shm": clear_shm,
        "private-local/shm": _shared(LOCAL, sustained=False),
        "private-local/shm/sustained": _shared(LOCAL, sustained=True),
        "private-local/shm/in-place": _shared(LOCAL, sustained=False, in_place=True),
        "private-local/shm/in-place/sustained": _shared(LOCAL, sustained=True, in_place=True),
        "private-local/mpi": _carried(lambda group: group.mpi_endpoint, sustained=False),
        "private-local/mpi/sustained": _carried(lambda group: group.mpi_endpoint, sustained=True),
        "private-local/gloo": _carried(lambda group: group.gloo_endpoint, sustained=False),
        "encrypted/shm": _encrypted(sustained=False),
        "encrypted/shm/sustained": _encrypted(sustained=True),
        "masked/shm": _shared(_DISTRIBUTED, sustained=False),
        "masked/shm/sustained": _shared(_DISTRIBUTED, sustained=True),
    }
)
