"""The plan as ``libdither_mpi.so`` reads it: lines of a key and values, with every lattice.

C recomputes nothing: σ, steps and widths come from `Plan.bind`, for every number of ranks that a
communicator may have and for some lengths of messages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dither.files import output_errors
from dither.mpirun.options import Mode, Route
from dither.privacy.account import LEASE
from dither.privacy.lattice import Lattice
from dither.privacy.plan import Plan

FORMAT = 1
# Messages of up to 2**26 elements use one lattice, so that one pool serves all of them.
_LONG, _LONGEST = 26, 34
_SHORTER = (24, 20, 16)
# Ready noise is int32: beyond this σ (DITHER_MAX_SIGMA_I32) it is drawn in place.
_POOL_SIGMA = 2.0**26
_LARGEST_SLACK = 2.0**-5
# Steps are powers of two, so a step may be half of what slack allows; and σ holds slack too.
_MARGIN = 2.1


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """Everything that a rank must know.

    Attributes:
        plan: The promise; its trust, clip bound and noise.
        mode: ``test`` adds no noise, ``encrypted`` none either; both promise nothing.
        socket: Of the agent that grants releases.
        token: 64 hexadecimal digits that show a rank belongs to this run.
        ranks: Of the whole program.
        pool: Ready draws; 0 for none.
        warm: Whether MPI_Init waits until the pool is full.
        timeout: Seconds that a call may wait for a peer in shared memory.
        route: ``auto``, ``shm`` or ``mpi``.
        allow_clear: Operations that may pass in clear.
    """

    plan: Plan
    mode: Mode
    socket: Path
    token: str
    ranks: int
    pool: int
    warm: bool
    timeout: float
    route: Route
    allow_clear: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the file's content.

        Raises:
            ConfigError: No lattice holds the sums of so many ranks.
        """
        lines = [
            f"dither-mpi {FORMAT}",
            f"mode {self.mode}",
            f"trust {self.plan.trust}",
            f"clip {self.plan.l2_clip.hex()}",
            f"socket {self.socket}",
            f"token {self.token}",
            f"ranks {self.ranks}",
            f"pool {self.pool}",
            f"warm {int(self.warm)}",
            f"timeout {self.timeout:.17g}",
            f"path {self.route}",
            f"lease {lease(self.plan.steps)}",
        ]
        if self.allow_clear:
            lines.append(f"allow_clear {' '.join(self.allow_clear)}")
        lines += [_grid_line(*each) for each in grids(self.plan, self.ranks, self.mode)]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write it so that its owner alone can read it: it holds the token.

        Raises:
            OutputError: It cannot be written.
        """
        text = self.text()
        with output_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)


def lease(releases: int) -> int:
    """Return how many releases a rank asks for at first: an early stop loses no more of them.

    The library asks for more at a time while it uses them up fast.
    """
    return max(1, min(LEASE, releases // 16))


def with_room_for_a_pool(plan: Plan) -> Plan:
    """Return the plan with a lattice coarse enough that ready noise fits 32 bits, where that helps.

    With much noise (z of 10 and more) the finest lattice would make σ too large for a pool. A
    coarser one costs up to 1/32 of C more sensitivity, which `Plan.bind` counts, and which is small
    beside such noise.
    """
    wanted = plan.noise_multiplier * 2.0 ** (_LONG / 2) * _MARGIN / _POOL_SIGMA
    return replace(plan, lattice_slack=max(plan.lattice_slack, min(_LARGEST_SLACK, wanted)))


def grids(plan: Plan, ranks: int, mode: Mode) -> Iterator[tuple[int, int, Lattice]]:
    """Yield the number of ranks, the logarithm of the longest message, and the lattice."""
    for members in range(1, ranks + 1):
        if mode != "private":  # without noise one serves all lengths
            room = 2.0 if mode == "encrypted" else 1.0
            yield members, _LONGEST, _exact_lattice(plan, members, room)
            continue
        found = {size: plan.bind(plan.l2_clip, 2**size, members) for size in (_LONG, _LONGEST)}
        if found[_LONG].sigma > _POOL_SIGMA:
            shorter = {size: plan.bind(plan.l2_clip, 2**size, members) for size in _SHORTER}
            fits = [size for size, each in shorter.items() if each.sigma <= _POOL_SIGMA]
            found |= {size: shorter[size] for size in fits[:1]}
        for size in sorted(found):
            yield members, size, found[size]


def _exact_lattice(plan: Plan, members: int, room: float) -> Lattice:
    """Return the finest steps that hold the sum in 32 bits: integers stay themselves.

    Args:
        plan: Its clip bound is C.
        members: R.
        room: Largest magnitude of a coordinate, in C.
    """
    largest = room * plan.l2_clip
    exponent = math.ceil(math.log2(largest * members / (2.0**31 - 4.0 * members)))
    return Lattice(
        step_exponent=exponent,
        sigma=0.0,
        clamp=math.ceil(math.ldexp(largest, -exponent)),
        wire_shift=0,
        wire_bits=32,
        world_size=members,
    )


def _grid_line(members: int, size: int, lattice: Lattice) -> str:
    return (
        f"grid {members} {size} {lattice.sigma.hex()} {-lattice.step_exponent} {lattice.clamp} "
        f"{lattice.wire_shift} {lattice.wire_limit} {lattice.wire_bits}"
    )
