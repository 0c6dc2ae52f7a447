"""A run's right to release: charges taken from the ledger in leases."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref

from dither.errors import LedgerError, OutputError, ReleaseError
from dither.privacy.events import Event
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

    Args:
        ledger: The record store's ledger.
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
        ledger: Ledger,
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
        ledger.require_kind(plan.unit, plan.relation)
        ledger.record_plan(run, {"plan": plan.to_json(), "records": records})
        self.ledger = ledger
        self.run = run
        self.plan = plan
        if insecure is not None:
            ledger.record_non_private(run, insecure, {})
        self.insecure = insecure
        self._event = plan.event
        self._most = lease or max(1, plan.steps // 16)
        self._lease = min(LEASE if lease is None else lease, self._most)
        self._leased_at = -math.inf
        self._ready = 0
        self._head = ledger.head()
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
    def steps_left(self) -> int:
        """Releases still allowed: those leased and unused here, and those not yet charged."""
        self._forget_if_forked()
        return self._ready + self.plan.steps - self.ledger.charged(self.run)

    @property
    def steps_charged(self) -> int:
        """Releases charged in the ledger, used or not."""
        return self.ledger.charged(self.run)

    def charge(self, event: Event) -> None:
        """Pay for one release. When this returns, the charge is durable.

        Raises:
            ReleaseError: The event is not the plan's.
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
            if self._ready <= 0:
                self._take_lease()
            self._ready -= 1

    def _take_lease(self) -> None:
        now = time.monotonic()
        if now - self._leased_at < _LEASE_SECONDS:
            self._lease = min(2 * self._lease, self._most)
        limit, seen = self.plan.steps, self._head  # not rolled back since the last lease
        self._ready, self._head = self.ledger.lease(
            self.run, self._event, self._lease, limit=limit, seen=seen
        )
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
            with contextlib.suppress(LedgerError, OutputError):
                head = self.ledger.give_back(self.run, self._event, left, seen=self._head)
                self._head = head or self._head
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
