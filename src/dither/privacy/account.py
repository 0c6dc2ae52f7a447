"""A run's right to release: charges taken from the ledger in leases."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref

from dither.errors import LedgerError, OutputError, ReduceError, ReleaseError, SamplingError
from dither.privacy.events import Event, Relation
from dither.privacy.leases import Leases, OwnLeases
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan

LEASE = 64
# A lease that served for less than this was too small: the next one is twice as large.
_LEASE_SECONDS = 0.25


class Account:
    """Charges one run's releases, before they happen and never beyond its plan.

    The ledger is written once per lease (64 releases), not once per release, so durability costs
    nothing per step; where releases come so fast that a lease serves for less than a quarter of a
    second, the next is twice as large. After a crash the account can only be too high, by at most
    one lease: what half a second releases, or 64. `give_back` returns what is left. A lease
    belongs to the process that took it: after `fork` the child starts with none, so that no charge
    is used twice.

    With the leases of many ranks, which all ranks take and return together, everything here that
    takes or returns is a call that all of them make, at the same step.

    Args:
        ledger: The record store's ledger; or where else leases come from.
        run: Name of the run in the ledger.
        plan: What the run promised; recorded in the ledger before the first charge.
        lease: Releases charged per write, at least 1. Speed only; by default 64 or as above, and
            at most a sixteenth of the plan's, so that a stop loses no more of them.
        records: Content hash of the records, for accounts that several stores share.
        insecure: Why this run is not private (a seeded generator); written down as ε = ∞.

    Raises:
        LedgerError: The ledger counts another unit or relation, or knows the run by another plan.
    """

    def __init__(
        self,
        ledger: Ledger | Leases,
        run: str,
        plan: Plan,
        *,
        lease: int | None = None,
        records: str | None = None,
        insecure: str | None = None,
    ) -> None:
        if lease is not None and (type(lease) is not int or lease < 1):
            raise ReleaseError(
                expected="a lease of at least 1 release", got=repr(lease), fix="choose 64"
            )
        self._leases = OwnLeases(ledger) if isinstance(ledger, Ledger) else ledger
        self._leases.promise(run, plan, records, insecure)
        self.run = run
        self.plan = plan
        self.insecure = insecure
        self._event = plan.event
        self._most = lease or max(1, plan.steps // 16)
        self._lease = min(LEASE if lease is None else lease, self._most)
        self._leased_at = -math.inf
        self._ready = 0
        self._disjoint = False
        self._owner = os.getpid()
        self._lock = threading.Lock()
        _accounts.add(self)

    def __reduce__(self) -> str:
        raise ReleaseError(
            expected="one account object for one lease",
            got="an attempt to copy or pickle it",
            fix="open the account again where it is needed",
        )

    @property
    def ledger(self) -> Ledger:
        """The ledger that is charged.

        Raises:
            LedgerError: Another rank keeps it.
        """
        return self._leases.ledger

    @property
    def steps_left(self) -> int:
        """Releases still allowed: those leased and unused here, and those not yet charged."""
        self._forget_if_forked()
        return self._ready + self.plan.steps - self._leases.charged(self.run)

    @property
    def steps_charged(self) -> int:
        """Releases charged in the ledger, used or not."""
        return self._leases.charged(self.run)

    def part(self, name: str, plan: Plan, *, records: str | None = None) -> Account:
        """Return the account of other releases of the same run, ``RUN/name``, paid alike.

        Args:
            name: What they are.
            plan: Their promise.
            records: Content hash of the records.

        Raises:
            LedgerError: The ledger knows them by another plan.
        """
        return Account(
            self._leases, f"{self.run}/{name}", plan, records=records, insecure=self.insecure
        )

    def charge(self, event: Event, population: int = 0) -> None:
        """Pay for one release. When this returns, the charge is durable.

        Args:
            event: The plan's.
            population: How many records this rank's sample was drawn from; 0 for no sample.

        Raises:
            ReleaseError: The event is not the plan's.
            SamplingError: The ranks sample from more records together than there are: some record
                could be in one sum several times.
            BudgetExhaustedError: The plan has no step left.
        """
        if event is not self._event and event != self._event:
            raise ReleaseError(
                expected=f"the plan's event {self._event}",
                got=f"{event}",
                fix="draw batches with the plan's sampler and rate; nothing else can be charged",
            )
        self._forget_if_forked()
        with self._lock:
            if not self._disjoint:
                self._require_disjoint(population)
            if self._ready <= 0:
                self._take_lease()
            self._ready -= 1

    def _require_disjoint(self, population: int) -> None:
        """Refuse ranks that share records, as far as sizes tell; where they are public."""
        if self.plan.relation is not Relation.ADD_REMOVE:
            found = self._leases.total(population)
            if found > self.plan.records:
                raise SamplingError(
                    expected=f"ranks that sample from parts of the plan's {self.plan.records} "
                    "records, each record on one rank",
                    got=f"parts of {found} records in all",
                    fix="give each rank its own part, for instance Subset(records, "
                    "rank_rows(len(records), world.rank, world.world_size)) of "
                    "dither.sampling.shard, and a PoissonSampler of its length",
                )
        self._disjoint = True

    def catch_up(self, spent: int) -> None:
        """Charge what the account lacks of so many releases, which a checkpoint knows of.

        Nothing may be released for it: those releases were made.

        Raises:
            BudgetExhaustedError: More than the plan has.
        """
        with self._lock:
            missing = spent - self._leases.charged(self.run)
            if missing > 0:
                self._leases.take(self.run, self._event, missing, self.plan.steps)

    def _take_lease(self) -> None:
        now = time.monotonic()
        if now - self._leased_at < _LEASE_SECONDS:
            self._lease = min(2 * self._lease, self._most)
        self._ready = self._leases.take(self.run, self._event, self._lease, self.plan.steps)
        self._leased_at = now

    def give_back(self) -> None:
        """Return what the lease has left, at a clean end.

        Where it cannot be returned it stays charged: in the middle of a charge (a signal's handler
        may come then), with a full disk, or in a ledger that was rolled back, which the next charge
        then refuses.
        """
        self._forget_if_forked()
        if not self._lock.acquire(blocking=False):
            return
        try:
            left, self._ready = self._ready, 0  # first: never both returned and used
            with contextlib.suppress(LedgerError, OutputError, ReduceError):
                self._leases.give_back(self.run, self._event, left)
        finally:
            self._lock.release()

    def _forget_if_forked(self) -> None:
        if os.getpid() != self._owner:
            self.forget()

    def forget(self) -> None:
        """Drop the lease: it is another process's, of which this one is a copy."""
        self._owner = os.getpid()
        self._ready = 0
        self._lock = threading.Lock()


# Told by the interpreter: a child may come to have its parent's number.
_accounts: weakref.WeakSet[Account] = weakref.WeakSet()


def _forget_all() -> None:
    for account in list(_accounts):
        account.forget()


os.register_at_fork(after_in_child=_forget_all)
