"""What a ledger's file says: entries read back and verified, and what they add up to."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dither.errors import LedgerError
from dither.privacy.events import Event, Relation, Unit, event_from_json, event_to_json
from dither.privacy.ledger_file import entry_hash, header_hash

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
        kind: ``plan`` (a promise, charges nothing), ``lease``, ``returned`` or ``non_private``.
        event: What one release costs; None for a plan.
        count: How many releases are charged, or ``returned``: charged before and never made.
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


def read_header(database: sqlite3.Connection, path: Path) -> Header:
    """Return whose account a file is.

    Raises:
        LedgerError: It has no sound header.
    """
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


def read_entries(database: sqlite3.Connection, path: Path) -> Iterator[Entry]:
    """Yield entries in order, verified.

    Raises:
        LedgerError: One does not continue the chain.
    """
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


def head_of(database: sqlite3.Connection) -> Head:
    """Return the last entry; number 0 and the header's hash without any."""
    row = database.execute("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
    if row:
        return Head(*row)
    return Head(0, database.execute("SELECT hash FROM header").fetchone()[0])


def has_entry(database: sqlite3.Connection, head: Head) -> bool:
    """Return whether an entry is there, and as it was."""
    row = database.execute("SELECT * FROM entry WHERE seq=?", (head.sequence,)).fetchone()
    before = database.execute(
        "SELECT hash FROM entry WHERE seq=?1 - 1 UNION ALL SELECT hash FROM header WHERE ?1 = 1",
        (head.sequence,),
    ).fetchone()
    if row is None or before is None or row[-1] != head.hash:
        return False
    return entry_hash(before[0], tuple(row[:-1])) == head.hash


def charged_by(database: sqlite3.Connection, run: str, event: Event | None = None) -> int:
    """Return a run's leases less what was returned of them, of one event or of all."""
    query = (
        "SELECT COALESCE(SUM(CASE kind WHEN 'lease' THEN count WHEN 'returned' THEN -count END), 0)"
        " FROM entry WHERE run=?1 AND (?2='' OR event=?2)"
    )
    return int(database.execute(query, (run, event_text(event))).fetchone()[0])


def event_text(event: Event | None) -> str:
    """Return an event as the file has it; none is empty."""
    return "" if event is None else json.dumps(event_to_json(event), sort_keys=True)


def net(entries: Iterable[Entry]) -> list[tuple[Event, int]]:
    """Return events with counts; what was returned is taken from the run's latest leases."""
    kept: list[tuple[str, Event, int]] = []
    for entry in entries:
        if entry.event is None:
            continue
        if entry.kind != "returned":
            kept.append((entry.run, entry.event, entry.count))
            continue
        left = entry.count
        for place in reversed(range(len(kept))):
            run, event, count = kept[place]
            if (run, event) == (entry.run, entry.event):
                taken = min(left, count)
                kept[place] = run, event, count - taken
                left -= taken
    return [(event, count) for _, event, count in kept if count]


def releases(entries: Iterable[Entry]) -> int:
    """Return how many releases these entries charge, unprotected ones apart."""
    sign = {"lease": 1, "returned": -1}
    return sum(sign.get(entry.kind, 0) * entry.count for entry in entries)
