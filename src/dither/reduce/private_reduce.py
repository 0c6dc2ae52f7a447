"""Sums of one contribution a rank, privately: the state behind `all_reduce` and `PrivateComm`."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np
from jaxtyping import Float

from dither.errors import BudgetExhaustedError, DitherWarning, ReduceError
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.privacy.account import Account
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.trust import LOCAL, Trust
from dither.reduce.agreement import Agreement, Terms, gather
from dither.reduce.algorithms.auto import current_table
from dither.reduce.carrier import carry
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.keys import Authentication
from dither.reduce.rank_ledger import open_rank_ledger
from dither.reduce.small import on_all
from dither.release.arrays import check_arrays
from dither.release.contribution import ContributionRelease, bound_lattice, contribution_plan

# How long a pool waits for a next call where ranks leave no core idle.
LINGER = 0.001
# Shorter messages draw their noise in the pass that adds it: a pool would not be faster.
_SHORTEST_POOLED = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a program promises about each rank's contributions; the same on all ranks.

    Attributes:
        clip: C, the L2 norm that a contribution is scaled down to.
        releases: Largest number of calls.
        delta: δ.
        noise_multiplier: z, noise over C; or
        epsilon: the budget for all calls together.
        trust: ``local``: each message carries noise enough by itself (DPAR). ``distributed(t)``:
            masks, and shares of noise that protect while at most t ranks collude. ``central``:
            only the result is protected, not what travels.
    """

    clip: float
    releases: int
    delta: float
    noise_multiplier: float | None = None
    epsilon: float | None = None
    trust: Trust = field(default=LOCAL)

    def plan(self, world_size: int) -> Plan:
        """Return the plan for so many ranks.

        Raises:
            ConfigError: A value is out of range, or both or neither of z and ε are given.
        """
        return contribution_plan(
            world_size,
            l2_clip=self.clip,
            releases=self.releases,
            delta=self.delta,
            noise_multiplier=self.noise_multiplier,
            epsilon=self.epsilon,
            trust=self.trust,
        )


@final
class PrivateReduce:
    """Sums float vectors over ranks; each rank's contribution to a call is the unit of privacy.

    Guarantee: under ``local`` whoever sees the network and all other ranks learns no more of this
    rank's contributions than (ε, δ) allows under ``replace_one``; under ``distributed(t)`` the same
    against t colluding ranks and the network, computationally; under ``central`` against whoever
    sees only results. Contributions are clipped, charged to this rank's own ledger and made noisy
    before they leave (`ContributionRelease`). What cannot be protected is refused.

    All ranks make the same calls in the same order; new lengths and types are agreed on first.
    After an error the object is of no more use: what was charged stays charged.

    Args:
        endpoint: This rank's end; it stays the caller's.
        promise: Of privacy.
        ledger: Folder where this rank keeps its account, ``rank-R.sqlite``, or an open ledger.
        run: Name of the run in the ledger; name one of before to go on with its budget.
        algorithm: Name; auto goes through shared memory where all ranks are on one host.
        authentication: For masks: `Identity` or `ClusterSecret`.
        noise_pool: Make noise ahead, on a thread.
        lease: Calls charged at a time.

    Raises:
        ConfigError: The promise is out of range.
        MismatchError: Ranks came with different promises; on all of them.
        BudgetExhaustedError: A rank's account has no call left; on all of them.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        promise: Promise,
        *,
        ledger: str | Path | Ledger,
        run: str | None = None,
        algorithm: str = "auto",
        authentication: Authentication | None = None,
        noise_pool: bool = True,
        lease: int | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.plan = promise.plan(endpoint.world_size)
        self._agreement = Agreement(endpoint)
        self._agreement.agree(_opening(self.plan, algorithm, run))
        self._lock = threading.Lock()
        self._starting = threading.RLock()  # held shortly, while calls may be under way
        self._broken: str | None = None
        self._open = ExitStack()
        self._pooled = noise_pool
        self._key = Key()
        self._noise: dict[float, FreshNoise | NoisePool] = {}
        self._releases: dict[int, ContributionRelease] = {}
        self._known: dict[tuple[int, str], ContributionRelease] = {}
        self._worker: ThreadPoolExecutor | None = None
        self._worker_thread = 0
        self._started: Future[np.ndarray] | None = None
        self.account = self._account(ledger, run, lease)
        self._left = self._fewest_left()
        self.transport = carry(
            endpoint,
            self.plan.trust,
            self._open,
            algorithm=algorithm,
            authentication=authentication,
        )

    def __call__(self, values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the noisy sum of all ranks' clipped contributions, after all calls of `start`.

        Args:
            values: Flat, contiguous float32 or float64; the same length and type on all ranks. No
                other thread may write to them meanwhile: what changes after the norm was taken
                would leave beyond the clip. Memory that other processes may write to is copied.
            out: Where it goes; ``values`` itself or memory apart. A new array by default.

        Raises:
            ConfigError: Another type; nothing was sent.
            BudgetExhaustedError: No call is left; on all ranks alike.
            ReduceError: There is no sum; on all ranks.
        """
        check_arrays(values, out)
        self.settle()
        return self._call(values, np.empty_like(values) if out is None else out)

    def _call(self, values: np.ndarray, out: np.ndarray) -> np.ndarray:
        with self._lock:
            self._require_usable()
            try:
                release = self._known.get((values.size, values.dtype.char))
                if release is None:
                    release = self._first(values)
                self._left -= 1
                release(values, out)
            except DitherWarning:  # the program wants errors for warnings; the call went well
                raise
            except BaseException as error:
                self._broken = f"an earlier {type(error).__name__}"
                raise
        return out

    def start(self, values: np.ndarray, out: np.ndarray) -> Future[np.ndarray]:
        """Start a call that goes on beside the caller's own work; calls run in their order.

        Args:
            values: Copied: what changes after its norm was taken would leave the ball.
            out: Not to be read until then.

        Raises:
            ConfigError: Another type; nothing was sent.
            ReduceError: It is closed, or an earlier call failed.
        """
        check_arrays(values, out)
        with self._starting:
            self._require_whole()
            if self._worker is None:
                self._worker = ThreadPoolExecutor(
                    1, thread_name_prefix="dither-reduce", initializer=self._note_worker
                )
            self._started = self._worker.submit(self._call, values.copy(), out)
            return self._started

    def _note_worker(self) -> None:
        self._worker_thread = threading.get_ident()

    def settle(self) -> None:
        """Wait until all calls of `start` have ended, well or not: calls keep one order."""
        if self._started is not None:
            wait([self._started])

    @property
    def releases_left(self) -> int:
        """Calls that all ranks may still make."""
        return self._left

    def epsilon(self) -> float:
        """Return ε charged so far by this run, from this rank's ledger."""
        return self.account.ledger.epsilon(self.plan.delta, self.account.run)

    def wait_until_ready(self) -> None:
        """Wait until the noise pools are full: they fill by themselves between calls."""
        for noise in self._noise.values():
            if isinstance(noise, NoisePool):
                noise.wait_until_full()

    def close(self) -> None:
        """Stop threads, wipe noise, leave shared memory, return the lease's rest.

        Closing twice is harmless.
        """
        with self._starting:
            if self._worker is not None:  # one that closes itself cannot wait for itself
                self._worker.shutdown(wait=threading.get_ident() != self._worker_thread)
            self._broken = self._broken or "being closed"
            self._open.close()
            self.account.give_back()

    def __enter__(self) -> PrivateReduce:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _require_whole(self) -> None:
        if self._broken is not None:
            raise ReduceError(
                expected="a private AllReduce whose calls all ended well",
                got=f"one that is of no more use after {self._broken}",
                fix="make a new group on all ranks; what was charged stays charged",
            )

    def _require_usable(self) -> None:
        self._require_whole()
        if self._left <= 0:
            raise BudgetExhaustedError(
                expected=f"at most {self.plan.steps} calls in all, as planned",
                got="one more",
                fix="plan with more releases; they cost more epsilon or more noise",
            )

    def _first(self, values: Float[np.ndarray, " size"]) -> ContributionRelease:
        """Agree on a new length and type, before anything is charged."""
        self._agreement.agree(
            Terms(
                length=values.size,
                dtype=values.dtype.name,
                protection="private",
                trust=str(self.plan.trust),
                plan=self.plan.digest(),
            )
        )
        # Of one size class, so that a few pools serve messages of all lengths.
        dimension = 1 << max(values.size - 1, 0).bit_length()
        release = self._releases.get(dimension)
        if release is None:
            noise = self._noise_for(dimension)
            release = ContributionRelease(self.account, self.transport, noise, dimension=dimension)
            self._releases[dimension] = release
        self._known[values.size, values.dtype.char] = release
        return release

    def _noise_for(self, dimension: int) -> FreshNoise | NoisePool:
        if not self._pooled or dimension < _SHORTEST_POOLED:
            return self._noise.setdefault(0.0, FreshNoise(self._key))
        sigma = bound_lattice(self.plan, dimension, self.endpoint.world_size).sigma
        if sigma not in self._noise:
            pool = NoisePool(sigma, self._key, dimension=dimension)
            if self.endpoint.crowded:
                pool.linger(LINGER)
            self._noise[sigma] = self._open.enter_context(pool)
        return self._noise[sigma]

    def _account(self, ledger: str | Path | Ledger, run: str | None, lease: int | None) -> Account:
        """Open this rank's account; where one cannot, all ranks say so."""

        def open_it() -> Account:
            rank = self.endpoint.rank
            book = ledger if isinstance(ledger, Ledger) else open_rank_ledger(ledger, rank)
            return Account(book, run or uuid.uuid4().hex, self.plan, lease=lease)

        return on_all(self.endpoint, open_it, "open its account")

    def _fewest_left(self) -> int:
        """Return the calls that every rank can still pay, so that all refuse the same one."""
        mine = self.account.steps_left
        fewest = min(int(left) for left in gather(self.endpoint, str(mine).encode()))
        if fewest <= 0:
            raise BudgetExhaustedError(
                expected="at least one call left in every rank's account",
                got=f"{mine} here, {fewest} on another rank",
                fix="name another run, which adds to the account, or plan with more releases",
            )
        return fewest


def _opening(plan: Plan, algorithm: str, run: str | None) -> Terms:
    return Terms(
        length=0,
        dtype="none",
        operation="open a private AllReduce",
        protection="private",
        trust=str(plan.trust),
        plan=plan.digest(),
        algorithm=algorithm,
        table=current_table().digest,
        others=(("run", run or ""),),
    )
