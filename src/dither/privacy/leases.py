"""Where an account's charges come from: a ledger, or the ledgers of many ranks together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.metadata import version
from typing import final

from dither.privacy.events import Event
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan


class Leases(ABC):
    """Right to release, bought ahead. What `take` returns has been charged, durably."""

    @property
    @abstractmethod
    def ledger(self) -> Ledger:
        """The ledger that is charged here.

        Raises:
            LedgerError: This rank keeps none.
        """

    @abstractmethod
    def promise(self, run: str, plan: Plan, records: str | None, insecure: str | None) -> None:
        """Write down what a run promises, before its first charge.

        Args:
            run: Name of the run.
            plan: Its promise.
            records: Content hash of the records.
            insecure: Why it is not private after all.

        Raises:
            LedgerError: The ledger counts another unit or relation, or knows the run by another
                plan.
        """

    def total(self, count: int) -> int:  # noqa: ARG002 - one rank has nobody to ask
        """Return the sum of all ranks' numbers; 0 for one rank, which shares with nobody.

        Args:
            count: This rank's, public.
        """
        return 0

    @abstractmethod
    def charged(self, run: str) -> int:
        """Return how many releases a run has charged, used or not."""

    @abstractmethod
    def take(self, run: str, event: Event, count: int, limit: int) -> int:
        """Charge up to ``count`` more releases of a run, never beyond ``limit`` in all.

        Returns:
            How many were charged, at least 1.

        Raises:
            BudgetExhaustedError: The run has charged its limit.
        """

    @abstractmethod
    def give_back(self, run: str, event: Event, count: int) -> None:
        """Return charged releases that were not made and never will be.

        Raises:
            LedgerError: More than the run has charged.
        """


@final
class OwnLeases(Leases):
    """Leases of one ledger.

    Args:
        ledger: What is charged.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._head = ledger.head()

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return self._ledger

    def promise(self, run: str, plan: Plan, records: str | None, insecure: str | None) -> None:
        """Write the promise down."""
        self._ledger.require_kind(plan.unit, plan.relation)
        detail = {"plan": plan.to_json(), "records": records, "code": version("dither")}
        self._ledger.record_plan(run, detail)
        if insecure is not None:
            self._ledger.record_non_private(run, insecure, {})
        self._head = self._ledger.head()

    def charged(self, run: str) -> int:
        """Return what the ledger says."""
        return self._ledger.charged(run)

    def take(self, run: str, event: Event, count: int, limit: int) -> int:
        """Charge the ledger, unless it was rolled back since the last time."""
        granted, self._head = self._ledger.lease(run, event, count, limit=limit, seen=self._head)
        return granted

    def give_back(self, run: str, event: Event, count: int) -> None:
        """Return them to the ledger, unless it was rolled back since the last time."""
        head = self._ledger.give_back(run, event, count, seen=self._head)
        self._head = head or self._head
