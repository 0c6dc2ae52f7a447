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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dither.errors import BudgetExhaustedError, LedgerBehindError, LedgerError
from dither.privacy.accountant import epsilon, epsilon_rdp
from dither.privacy.events import (
    Event,
    NonPrivate,
    Relation,
    Unit,
    event_from_json,
    event_to_json,
)
from dither.privacy.ledger_file import SCHEMA, connect, entry_hash, header_hash

FORMAT = 1


@dataclass(frozen=True)
class Header:
    """Whose account this is. One relation and one unit per account.

    Attributes:
        store: Content hash (or the user's name) of the records.
        unit: Unit of privacy.
        relation: Neighbouring relation.
        sensitive: Whether unprotected runs must be forced.
        created: Time of creation, ISO 8601, UTC.
        id: Random name of the account, which may be published.
        salt: Random and secret: with it in the chain, published hashes tell nothing of the store.
    """

    store: str
    unit: Unit
    relation: Relation
    sensitive: bool
    created: str
    id: str
    salt: str


@dataclass(frozen=True)
class Head:
    """The ledger's last entry, as a checkpoint remembers it."""

    sequence: int
    hash: str


@dataclass(frozen=True)
class Entry:
    """One line of the account.

    Attributes:
        sequence: Number in the chain, from 1.
        time: When it was written, ISO 8601, UTC.
        run: Which run is charged.
        kind: ``plan`` (a promise, charges nothing), ``lease`` or ``non_private``.
        event: What one release costs; None for a plan.
        count: How many releases are charged.
        detail: Public facts for the auditor (plan, code version, reason).
        hash: Of this entry and the one before.
    """

    sequence: int
    time: str
    run: str
    kind: str
    event: Event | None
    count: int
    detail: dict[str, Any]
    hash: str


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
            header = _read_header(database, path)
            if store is not None and header.store != store:
                raise LedgerError(
                    expected=f"the ledger of store {store[:16]}",
                    got=f"that of store {header.store[:16]} in {path}",
                    fix="give the --ledger that belongs to these records",
                )
            for _ in _read_entries(database, path):
                pass
        return cls(path.absolute(), header, busy_seconds)

    def entries(self, run: str | None = None) -> list[Entry]:
        """Return the verified entries, of one run or of all.

        A part of a run is named after it, ``run/quantile``, and belongs to it.

        Raises:
            LedgerError: The chain is broken.
        """
        with connect(self.path, self._busy_seconds) as database:
            _read_header(database, self.path)
            found = list(_read_entries(database, self.path))
        return [entry for entry in found if run is None or f"{entry.run}/".startswith(f"{run}/")]

    def head(self) -> Head:
        """Return the last entry's number and hash; number 0 for an empty account."""
        with connect(self.path, self._busy_seconds) as database:
            return _head(database)

    def require(self, head: Head) -> None:
        """Refuse to go on if this ledger lacks an entry that a checkpoint has seen.

        Raises:
            LedgerBehindError: The ledger was rolled back, or is not the one charged.
        """
        if head.sequence == 0:
            return
        found = {entry.sequence: entry.hash for entry in self.entries()}
        if found.get(head.sequence) != head.hash:
            raise LedgerBehindError(
                expected=f"a ledger with entry {head.sequence} ({head.hash[:12]})",
                got=f"{len(found)} entries in {self.path}, and not that one",
                fix="restore the ledger that was charged; an older copy would hide what was spent",
            )

    def charge(self, run: str, event: Event, count: int, *, limit: int) -> int:
        """Durably charge up to ``count`` more releases of a run, never beyond ``limit`` in all.

        Check and write are one transaction, so two processes of one run cannot together exceed
        the limit. When this returns, the charge is on disk.

        Args:
            run: The run that is charged.
            event: What one release costs.
            count: How many to charge, at least 1.
            limit: The plan's number of steps.

        Returns:
            How many were charged, between 1 and ``count``.

        Raises:
            BudgetExhaustedError: The run has charged its limit.
        """
        with self._transaction() as database:
            charged = _charged(database, run)
            granted = min(count, limit - charged)
            if granted < 1:
                raise BudgetExhaustedError(
                    expected=f"a step left of the {limit} that the plan allows",
                    got=f"{charged} charged for run {run}",
                    fix="stop here, or make a new plan with more budget",
                )
            self._insert(database, run=run, kind="lease", event=event, count=granted)
        return granted

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
            return _charged(database, run)

    def events(self, run: str | None = None) -> list[tuple[Event, int]]:
        """Return charged events with their counts, of one run or of all."""
        return [(e.event, e.count) for e in self.entries(run) if e.event is not None]

    def epsilon(self, delta: float, run: str | None = None) -> float:
        """Return ε (PLD) recomputed from the charged events; ``inf`` if any is not private."""
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
        found = _read_header(database, self.path)
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
    ) -> None:
        head = _head(database)
        text = "" if event is None else json.dumps(event_to_json(event), sort_keys=True)
        details = json.dumps(detail or {}, sort_keys=True)
        row = (head.sequence + 1, _now(), run, kind, text, count, details)
        database.execute(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, entry_hash(head.hash, row))
        )

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


def _read_header(database: sqlite3.Connection, path: Path) -> Header:
    row = database.execute("SELECT value, hash FROM header").fetchone()
    try:
        values: Any = json.loads(row[0]) if row else None
    except (TypeError, ValueError):
        values = None
    sound = isinstance(values, dict) and header_hash(values) == row[1]
    if not sound or values.get("format") != FORMAT:
        raise LedgerError(
            expected=f"a ledger header of format {FORMAT} with its hash",
            got=f"another in {path}",
            fix="restore the ledger from a backup; never edit it",
        )
    return Header(
        store=values["store"],
        unit=Unit(values["unit"]),
        relation=Relation(values["relation"]),
        sensitive=values["sensitive"],
        created=values["created"],
        id=values["id"],
        salt=values["salt"],
    )


def _read_entries(database: sqlite3.Connection, path: Path) -> Iterator[Entry]:
    previous = database.execute("SELECT hash FROM header").fetchone()[0]
    for position, row in enumerate(database.execute("SELECT * FROM entry ORDER BY seq"), start=1):
        *fields, stored = row
        whole = all(isinstance(field, int | str) for field in row)
        if not whole or row[0] != position or entry_hash(previous, tuple(fields)) != stored:
            raise LedgerError(
                expected=f"an unbroken hash chain in {path}",
                got=f"entry {row[0]} that does not continue entry {position - 1}",
                fix="restore the ledger from a backup; until then nothing may be released",
            )
        previous = stored
        sequence, time, run, kind, event, count, detail = fields
        yield Entry(
            sequence=sequence,
            time=time,
            run=run,
            kind=kind,
            event=event_from_json(json.loads(event)) if event else None,
            count=count,
            detail=json.loads(detail),
            hash=stored,
        )


def _head(database: sqlite3.Connection) -> Head:
    row = database.execute("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
    if row:
        return Head(*row)
    return Head(0, database.execute("SELECT hash FROM header").fetchone()[0])


def _charged(database: sqlite3.Connection, run: str) -> int:
    query = "SELECT COALESCE(SUM(count), 0) FROM entry WHERE run=? AND kind='lease'"
    return int(database.execute(query, (run,)).fetchone()[0])


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
