"""One durable, append-only account per record store.

Everything that touches records (training, tuning, statistics, probes) is an entry in one SQLite
file beside the records, written *before* anything is released. Entries form a hash chain, so a
changed or missing entry shows; ε is never stored, always recomputed from the events.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import secrets
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dither.errors import BudgetExhaustedError, LedgerBehindError, LedgerError
from dither.privacy.accountant import epsilon, epsilon_rdp
from dither.privacy.events import Event, NonPrivate, Relation, Unit
from dither.privacy.ledger_entries import (
    FORMAT,
    Entry,
    Head,
    Header,
    charged_by,
    event_text,
    has_entry,
    head_of,
    net,
    read_entries,
    read_header,
)
from dither.privacy.ledger_file import SCHEMA, connect, entry_hash, header_hash


class Ledger:
    """The account of one record store. Cheap to hold: every call opens the file anew.

    That also makes it safe across `fork`: no connection, lock or cached balance is inherited.
    Opening verifies the whole hash chain.
    """

    def __init__(self, path: Path, header: Header, busy_seconds: float) -> None:
        self.path = path
        self.header = header
        self._busy_seconds = busy_seconds

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        store: str,
        unit: Unit = Unit.RECORD,
        relation: Relation = Relation.ZERO_OUT,
        sensitive: bool = True,
        busy_seconds: float = 10.0,
    ) -> Ledger:
        """Open the account of a store, creating it when there is none.

        Raises:
            LedgerError: The file belongs to another store, unit or relation, or is damaged.
            LedgerLockedError: Another process holds it.
        """
        header = Header(
            store, unit, relation, sensitive, _now(), uuid.uuid4().hex, secrets.token_hex(32)
        )
        with connect(path, busy_seconds, create=True) as database:
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name='header'").fetchone():
                for statement in SCHEMA:
                    database.execute(statement)
                values = {"format": FORMAT, **asdict(header)}
                database.execute(
                    "INSERT INTO header VALUES (1, ?, ?)", (json.dumps(values), header_hash(values))
                )
            database.execute("COMMIT")
        ledger = cls.open(path, store=store, busy_seconds=busy_seconds)
        ledger.require_kind(unit, relation, sensitive=sensitive)
        return ledger

    @classmethod
    def open(cls, path: Path, *, store: str | None = None, busy_seconds: float = 10.0) -> Ledger:
        """Open an existing account and verify its chain.

        Args:
            path: The SQLite file.
            store: Content hash that the account must be of; None accepts any.
            busy_seconds: How long to wait for another process.

        Raises:
            LedgerError: No ledger there, another store's, or a broken entry.
            LedgerLockedError: Another process holds it.
        """
        with connect(path, busy_seconds) as database:
            header = read_header(database, path)
            if store is not None and header.store != store:
                raise LedgerError(
                    expected=f"the ledger of store {store[:16]}",
                    got=f"that of store {header.store[:16]} in {path}",
                    fix="give the --ledger that belongs to these records",
                )
            for _ in read_entries(database, path):
                pass
        return cls(path.absolute(), header, busy_seconds)

    def entries(self, run: str | None = None) -> list[Entry]:
        """Return the verified entries, of one run or of all.

        A part of a run is named after it, ``run/quantile``, and belongs to it.

        Raises:
            LedgerError: The chain is broken.
        """
        with connect(self.path, self._busy_seconds) as database:
            read_header(database, self.path)
            found = list(read_entries(database, self.path))
        return [entry for entry in found if run is None or f"{entry.run}/".startswith(f"{run}/")]

    def head(self) -> Head:
        """Return the last entry's number and hash; number 0 for an empty account."""
        with connect(self.path, self._busy_seconds) as database:
            return head_of(database)

    def require(self, head: Head) -> None:
        """Refuse to go on if this ledger lacks an entry that a checkpoint has seen.

        Raises:
            LedgerBehindError: The ledger was rolled back, or is not the one charged.
        """
        with connect(self.path, self._busy_seconds) as database:
            self._require_head(database, head)

    def _require_head(self, database: sqlite3.Connection, head: Head) -> None:
        # Its hash stands for all entries before it; opening has verified those.
        if head.sequence > 0 and not has_entry(database, head):
            raise LedgerBehindError(
                expected=f"a ledger with entry {head.sequence} ({head.hash[:12]})",
                got=f"{head_of(database).sequence} entries in {self.path}, and not that one",
                fix="restore the ledger that was charged; an older copy would hide what was spent",
            )

    def charge(
        self, run: str, event: Event, count: int, *, limit: int, seen: Head | None = None
    ) -> int:
        """Durably charge up to ``count`` more releases of a run, never beyond ``limit`` in all.

        Check and write are one transaction, so two processes of one run cannot together exceed
        the limit. When this returns, the charge is on disk. Entries of before are not read again,
        only added up.

        Args:
            run: The run that is charged.
            event: What one release costs.
            count: How many to charge, at least 1.
            limit: The plan's number of steps.
            seen: An entry that must be there still.

        Returns:
            How many were charged, between 1 and ``count``.

        Raises:
            BudgetExhaustedError: The run has charged its limit.
            LedgerBehindError: The ledger was rolled back since ``seen``.
            LedgerError: The count is no whole number.
        """
        return self.lease(run, event, count, limit=limit, seen=seen)[0]

    def lease(
        self, run: str, event: Event, count: int, *, limit: int, seen: Head | None = None
    ) -> tuple[int, Head]:
        """Do what `charge` does; return also the entry that it wrote, to be ``seen`` next time."""
        count = _whole(count)
        with self._transaction() as database:
            if seen is not None:
                self._require_head(database, seen)
            charged = charged_by(database, run)
            granted = min(count, limit - charged)
            if granted < 1:
                raise BudgetExhaustedError(
                    expected=f"a step left of the {limit} that the plan allows",
                    got=f"{charged} charged for run {run}",
                    fix="stop here, or make a new plan with more budget",
                )
            head = self._insert(database, run=run, kind="lease", event=event, count=granted)
        return granted, head

    def give_back(
        self, run: str, event: Event, count: int, *, seen: Head | None = None
    ) -> Head | None:
        """Return charged releases that were not made and never will be.

        Only who holds a lease knows that: call it once, when the lease's holder has ended well and
        said what it used. Of a holder that crashed everything stays charged.

        Args:
            run: The run that was charged.
            event: What one release costs.
            count: How many; 0 writes nothing.
            seen: The entry that charged them, or a later one, which must be there still: in a
                ledger that was rolled back the charge is gone, and would be taken off twice.

        Returns:
            The entry that it wrote; None without any.

        Raises:
            LedgerError: More than the run has charged for that event, or no whole number.
            LedgerBehindError: The ledger was rolled back since ``seen``.
        """
        count = _whole(count)
        if count == 0:
            return None
        with self._transaction() as database:
            if seen is not None:
                self._require_head(database, seen)
            charged = charged_by(database, run, event)
            if not 0 < count <= charged:
                raise LedgerError(
                    expected=f"to return at most the {charged} releases charged for run {run}",
                    got=str(count),
                    fix="return what a lease has left, once",
                )
            return self._insert(database, run=run, kind="returned", event=event, count=count)

    def record_plan(self, run: str, detail: dict[str, Any]) -> None:
        """Write down what a run promises, before its first charge.

        Raises:
            LedgerError: The run is there already with another promise.
        """
        with self._transaction() as database:
            known = database.execute(
                "SELECT detail FROM entry WHERE run=? AND kind='plan'", (run,)
            ).fetchone()
            if known is None:
                self._insert(database, run=run, kind="plan", detail=detail)
            elif json.loads(known[0]).get("plan") != json.loads(json.dumps(detail)).get("plan"):
                raise LedgerError(
                    expected=f"the plan that run {run} was started with",
                    got="another plan",
                    fix="resume with the same options, or start a new run",
                )

    def record_non_private(self, run: str, reason: str, detail: dict[str, Any]) -> None:
        """Write down an unprotected use of the records: ε = ∞ from here on."""
        with self._transaction() as database:
            event = NonPrivate(reason)
            self._insert(database, run=run, kind="non_private", event=event, count=1, detail=detail)

    def charged(self, run: str) -> int:
        """Return how many releases a run has charged, without those of its parts."""
        with connect(self.path, self._busy_seconds) as database:
            return charged_by(database, run)

    def events(self, run: str | None = None) -> list[tuple[Event, int]]:
        """Return charged events with their counts, of one run or of all."""
        return net(self.entries(run))

    def epsilon(self, delta: float, run: str | None = None) -> float:
        """Return ε recomputed from the charged events; ``inf`` if any is not private."""
        return epsilon(self.events(run), delta, self.header.relation)

    def epsilon_rdp(self, delta: float, run: str | None = None) -> float | None:
        """Return the RDP cross-check, None where it does not apply."""
        return epsilon_rdp(self.events(run), delta, self.header.relation)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with connect(self.path, self._busy_seconds) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                self._require_unchanged(database)
                yield database
            except BaseException:
                # SQLite has rolled back by itself after a full disk; the first error must show.
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _require_unchanged(self, database: sqlite3.Connection) -> None:
        """Refuse to charge a file that was put in this one's place."""
        found = read_header(database, self.path)
        if found.id != self.header.id:
            raise LedgerError(
                expected=f"account {self.header.id} in {self.path}",
                got=f"account {found.id}",
                fix="restore the ledger that this run was opened with",
            )

    def _insert(
        self,
        database: sqlite3.Connection,
        *,
        run: str,
        kind: str,
        event: Event | None = None,
        count: int = 0,
        detail: dict[str, Any] | None = None,
    ) -> Head:
        head = head_of(database)
        text = event_text(event)
        details = json.dumps(detail or {}, sort_keys=True)
        row = (head.sequence + 1, _now(), run, kind, text, count, details)
        written = Head(head.sequence + 1, entry_hash(head.hash, row))
        database.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, written.hash))
        return written

    def require_kind(self, unit: Unit, relation: Relation, *, sensitive: bool = False) -> None:
        """Refuse a plan of another unit or relation than the account's.

        Raises:
            LedgerError: They differ, or records are sensitive and the account is not marked so.
        """
        if (self.header.unit, self.header.relation) != (unit, relation):
            raise LedgerError(
                expected=f"an account per {unit} under {relation}",
                got=f"one per {self.header.unit} under {self.header.relation} in {self.path}",
                fix="use the account's unit and relation: budgets of two kinds do not add up",
            )
        if sensitive and not self.header.sensitive:
            raise LedgerError(
                expected="an account of records marked sensitive",
                got=f"one marked as not sensitive in {self.path}",
                fix="open a new account for these records; the mark of an old one is fixed",
            )


def _whole(count: object) -> int:
    """Return a count; of another number SQLite would store something else than what is hashed."""
    if type(count) is int:
        return count
    raise LedgerError(
        expected="a whole number of releases",
        got=f"{count!r}, {type(count).__name__}",
        fix="count releases as int; nothing was written",
    )


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
