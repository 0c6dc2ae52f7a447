"""A run's right to release: charges taken from the ledger in leases."""

from __future__ import annotations

import os
import threading

from dither.errors import ReleaseError
from dither.privacy.events import Event
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan

LEASE = 64


class Account:
    """Charges one run's releases, before they happen and never beyond its plan.

    The ledger is written once per lease (64 releases), not once per release, so durability costs
    nothing per step. After a crash the account can only be too high, by at most one lease. A lease
    belongs to the process that took it: after `fork` the child starts with none, so that no charge
    is used twice.

    Args:
        ledger: The record store's ledger.
        run: Name of the run in the ledger.
        plan: What the run promised; recorded in the ledger before the first charge.
        lease: Releases charged per write, at least 1. Speed only; by default 64, and fewer for
            short plans, so that a stop loses at most a sixteenth of them.
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
        if lease is not None and lease < 1:
            raise ReleaseError(
                expected="a lease of at least 1 release", got=str(lease), fix="choose 64"
            )
        ledger.require_kind(plan.unit, plan.relation)
        ledger.record_plan(run, {"plan": plan.to_json(), "records": records})
        self.ledger = ledger
        self.run = run
        self.plan = plan
        if insecure is not None:
            ledger.record_non_private(run, insecure, {})
        self.insecure = insecure
        self._lease = lease or max(1, min(LEASE, plan.steps // 16))
        self._ready = 0
        self._head = ledger.head()
        self._owner = os.getpid()
        self._lock = threading.Lock()

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
        if event != self.plan.event:
            raise ReleaseError(
                expected=f"the plan's event {self.plan.event}",
                got=f"{event}",
                fix="draw batches with the plan's sampler and rate; nothing else can be charged",
            )
        self._forget_if_forked()
        with self._lock:
            if self._ready == 0:
                self.ledger.require(self._head)  # not rolled back since the last lease
                limit = self.plan.steps
                self._ready = self.ledger.charge(self.run, event, self._lease, limit=limit)
                self._head = self.ledger.head()
            self._ready -= 1

    def _forget_if_forked(self) -> None:
        if os.getpid() != self._owner:
            self._owner = os.getpid()
            self._ready = 0
            self._lock = threading.Lock()
