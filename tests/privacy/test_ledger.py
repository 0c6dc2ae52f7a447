"""The account: order, chain, limits and the errors that keep it honest."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import pld
from tests.privacy.conftest import RUN

from dither.errors import BudgetExhaustedError, LedgerBehindError, LedgerError
from dither.privacy.accountant import epsilon
from dither.privacy.events import Gaussian, NonPrivate, Relation, SampledGaussian, Unit
from dither.privacy.ledger import Ledger
from dither.privacy.ledger_entries import Head, releases
from dither.privacy.ledger_file import entry_hash
from dither.privacy.plan import Plan

EVENT = SampledGaussian(0.01, 1.0)
COLUMNS = ("seq", "time", "run", "kind", "event", "count", "detail", "hash")


@contextlib.contextmanager
def tampering(path: Path) -> Iterator[sqlite3.Connection]:
    """A raw connection on which the triggers are gone."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as raw:
        for trigger in ("header_fixed", "entry_fixed", "entry_kept"):
            raw.execute(f"DROP TRIGGER {trigger}")
        yield raw


def test_entries_are_what_was_charged(used: Ledger, plan: Plan) -> None:
    entries = used.entries()
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4]
    assert [entry.kind for entry in entries] == ["plan", "lease", "lease", "non_private"]
    assert [entry.count for entry in entries] == [0, 4, 5, 1]
    assert [entry.event for entry in entries] == [None, EVENT, EVENT, NonPrivate("plain baseline")]
    assert entries[0].detail == {"plan": plan.to_json()}
    assert [entry.run for entry in used.entries(RUN)] == [RUN] * 3
    assert used.charged(RUN) == 9
    assert used.charged("run-b") == 0  # not a lease
    assert used.events(RUN) == [(EVENT, 4), (EVENT, 5)]
    assert len({entry.hash for entry in entries}) == 4


def test_a_charge_is_in_the_file_when_it_returns(ledger: Ledger) -> None:
    assert ledger.charge(RUN, EVENT, 3, limit=5) == 3
    with contextlib.closing(sqlite3.connect(ledger.path)) as raw:  # shares nothing with us
        assert raw.execute("SELECT run, kind, count FROM entry").fetchall() == [(RUN, "lease", 3)]


def test_limit_is_granted_in_part_and_never_exceeded(ledger: Ledger) -> None:
    assert ledger.charge(RUN, EVENT, 3, limit=5) == 3
    assert ledger.charge(RUN, EVENT, 3, limit=5) == 2
    before = ledger.head()
    with pytest.raises(BudgetExhaustedError, match="5 charged"):
        ledger.charge(RUN, EVENT, 1, limit=5)
    assert ledger.head() == before
    assert ledger.charge("another", EVENT, 9, limit=5) == 5


def test_what_a_lease_has_left_can_be_returned(ledger: Ledger) -> None:
    other = Gaussian(2.0)
    assert ledger.charge(RUN, EVENT, 8, limit=20) == 8
    assert ledger.charge(RUN, EVENT, 8, limit=20) == 8
    assert ledger.charge(RUN, other, 2, limit=20) == 2
    ledger.give_back(RUN, EVENT, 9)
    assert ledger.charged(RUN) == 9
    assert ledger.events(RUN) == [(EVENT, 7), (other, 2)]
    assert [entry.kind for entry in ledger.entries()] == ["lease", "lease", "lease", "returned"]
    assert releases(ledger.entries()) == 9
    assert ledger.charge(RUN, EVENT, 20, limit=20) == 11  # and used by somebody else
    only = epsilon([(EVENT, 7), (other, 2), (EVENT, 11)], 1e-6, Relation.ZERO_OUT)
    assert ledger.epsilon(1e-6, RUN) == pytest.approx(only)


@pytest.mark.parametrize("count", [4, -1])
def test_no_more_is_returned_than_was_charged(ledger: Ledger, count: int) -> None:
    ledger.charge(RUN, EVENT, 3, limit=5)
    ledger.charge("another", EVENT, 5, limit=5)
    ledger.charge(RUN, Gaussian(2.0), 2, limit=5)
    before = ledger.head()
    with pytest.raises(LedgerError, match="at most the 3 releases"):
        ledger.give_back(RUN, EVENT, count)
    ledger.give_back(RUN, EVENT, 0)
    assert ledger.head() == before


def test_epsilon_is_dp_accountings_for_the_same_events(ledger: Ledger) -> None:
    ledger.charge(RUN, EVENT, 40, limit=100)
    ledger.charge(RUN, EVENT, 60, limit=100)
    ledger.charge("statistics", Gaussian(20.0), 2, limit=2)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    noise = dp_accounting.GaussianDpEvent(1.0)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.01, noise), 100)
    assert ledger.epsilon(1e-6, RUN) == pytest.approx(accountant.get_epsilon(1e-6), abs=1e-9)
    accountant.compose(dp_accounting.GaussianDpEvent(20.0), 2)
    assert ledger.epsilon(1e-6) == pytest.approx(accountant.get_epsilon(1e-6), abs=1e-9)
    ledger.record_non_private("plain", "why not", {})
    assert ledger.epsilon(1e-6) == float("inf")
    assert ledger.epsilon_rdp(1e-6) == float("inf")
    assert ledger.epsilon(1e-6, RUN) < 10.0


def test_relation_of_the_account_decides_epsilon(tmp_path: Path) -> None:
    values = {}
    for relation in (Relation.ZERO_OUT, Relation.REPLACE_ONE):
        book = Ledger.create(tmp_path / relation, store="s", relation=relation)
        book.charge(RUN, Gaussian(4.0), 1, limit=1)
        values[relation] = book.epsilon(1e-6)
    assert values[Relation.REPLACE_ONE] > 1.8 * values[Relation.ZERO_OUT]


def _positions(length: int, every: int) -> list[int]:
    return sorted({*range(0, length, max(1, length // every)), length - 1})


def _flip_each(ledger: Ledger, every: int) -> int:
    """Change one byte at a time, everywhere, and expect the entry to be named."""
    flips = 0
    with tampering(ledger.path) as raw:
        for sequence in range(1, 5):
            for column in COLUMNS[1:]:
                where = f"{column} = ? WHERE seq = {sequence}"
                (value,) = raw.execute(
                    f"SELECT {column} FROM entry WHERE seq = {sequence}"  # noqa: S608
                ).fetchone()
                text = str(value)
                for position in _positions(len(text), every) if text else []:
                    byte = chr(ord(text[position]) ^ 1)
                    raw.execute(
                        f"UPDATE entry SET {where}",  # noqa: S608
                        (text[:position] + byte + text[position + 1 :],),
                    )
                    with pytest.raises(LedgerError, match=f"entry {sequence} that does not"):
                        Ledger.open(ledger.path)
                    flips += 1
                raw.execute(f"UPDATE entry SET {where}", (value,))  # noqa: S608
    Ledger.open(ledger.path)  # all put back
    return flips


def test_a_changed_byte_in_any_column_names_its_entry(used: Ledger) -> None:
    assert _flip_each(used, 4) > 80


@pytest.mark.full
def test_every_single_changed_byte_names_its_entry(used: Ledger) -> None:
    assert _flip_each(used, 10**6) > 800


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("kind", ["BLOB", "empty"])
def test_a_value_of_another_type_is_a_broken_entry(used: Ledger, column: str, kind: str) -> None:
    value = f"CAST({column} AS BLOB)" if kind == "BLOB" else "''"
    if column == "seq":
        value = "77"
    with tampering(used.path) as raw:
        raw.execute("PRAGMA ignore_check_constraints=ON")
        raw.execute(f"UPDATE entry SET {column} = {value} WHERE seq = 2")  # noqa: S608
    with pytest.raises(LedgerError, match="unbroken hash chain"):
        Ledger.open(used.path)


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_a_deleted_entry_breaks_the_chain(used: Ledger, sequence: int) -> None:
    with tampering(used.path) as raw:
        raw.execute("DELETE FROM entry WHERE seq = ?", (sequence,))
    with pytest.raises(LedgerError, match=f"entry {sequence + 1} that does not"):
        Ledger.open(used.path)


def test_a_renumbered_gap_breaks_the_chain(used: Ledger) -> None:
    with tampering(used.path) as raw:
        raw.execute("DELETE FROM entry WHERE seq = 2")
        raw.execute("UPDATE entry SET seq = seq - 1 WHERE seq > 2")
    with pytest.raises(LedgerError, match="entry 2 that does not"):
        Ledger.open(used.path)


def test_a_forged_entry_with_a_hash_of_its_own_breaks_the_next(used: Ledger) -> None:
    with tampering(used.path) as raw:
        rows = raw.execute("SELECT * FROM entry ORDER BY seq").fetchall()
        forged = (*rows[1][:5], 1, rows[1][6])  # fewer releases than were charged
        own = entry_hash(rows[0][-1], forged)
        raw.execute("UPDATE entry SET count = 1, hash = ? WHERE seq = 2", (own,))
    with pytest.raises(LedgerError, match="entry 3 that does not"):
        Ledger.open(used.path)


def test_swapped_entries_break_the_chain(used: Ledger) -> None:
    with tampering(used.path) as raw:
        raw.execute("UPDATE entry SET seq = 99 WHERE seq = 2")
        raw.execute("UPDATE entry SET seq = 2 WHERE seq = 3")
        raw.execute("UPDATE entry SET seq = 3 WHERE seq = 99")
    with pytest.raises(LedgerError, match="entry 2 that does not"):
        Ledger.open(used.path)


def test_a_broken_chain_is_seen_by_all_who_read(used: Ledger) -> None:
    with tampering(used.path) as raw:
        raw.execute("UPDATE entry SET count = 1 WHERE seq = 3")
    for read in (used.entries, used.events, lambda: used.epsilon(1e-6)):
        with pytest.raises(LedgerError, match="entry 3 that does not"):
            read()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET count = 0",
        "UPDATE entry SET detail = '{}' WHERE seq = 1",
        "DELETE FROM entry WHERE seq = 4",
        "DELETE FROM entry",
        "UPDATE header SET value = '{}'",
    ],
)
def test_triggers_refuse_to_change_the_past(used: Ledger, statement: str) -> None:
    before = used.entries()
    with (
        contextlib.closing(sqlite3.connect(used.path)) as raw,
        pytest.raises(sqlite3.IntegrityError, match=r"append-only|fixed"),
    ):
        raw.execute(statement)
    assert used.entries() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE header SET value = replace(value, 'zero_out', 'add_remove')",
        "UPDATE header SET value = replace(value, 'true', 'false')",
        "UPDATE header SET value = 'nonsense'",
        "UPDATE header SET value = '[1]'",
        "UPDATE header SET value = X'FF00'",
        "UPDATE header SET hash = ''",
        "DELETE FROM header",
    ],
)
def test_a_changed_header_is_refused(used: Ledger, statement: str) -> None:
    with tampering(used.path) as raw:
        raw.execute(statement)
    with pytest.raises(LedgerError, match="a ledger header"):
        Ledger.open(used.path)


def test_another_store_is_refused(used: Ledger) -> None:
    for book in (Ledger.open, Ledger.create):
        with pytest.raises(LedgerError, match="the ledger of store other"):
            book(used.path, store="other")
    assert Ledger.open(used.path).header == used.header


def test_another_unit_or_relation_is_refused(used: Ledger, plan: Plan) -> None:
    with pytest.raises(LedgerError, match="an account per person"):
        Ledger.create(used.path, store="records", unit=Unit.PERSON)
    with pytest.raises(LedgerError, match="under add_remove"):
        Ledger.create(used.path, store="records", relation=Relation.ADD_REMOVE)
    with pytest.raises(LedgerError, match="an account per rank"):
        used.require_kind(Unit.RANK, Relation.ZERO_OUT)
    used.require_kind(plan.unit, plan.relation)


def test_a_run_cannot_change_its_promise(used: Ledger, plan: Plan) -> None:
    before = used.head()
    used.record_plan(RUN, {"plan": plan.to_json(), "code": "newer"})  # the promise is the same
    assert used.head() == before
    with pytest.raises(LedgerError, match=f"the plan that run {RUN} was started with"):
        used.record_plan(RUN, {"plan": dataclasses.replace(plan, steps=31).to_json()})
    assert used.head() == before


def test_a_rolled_back_ledger_is_behind(used: Ledger, tmp_path: Path) -> None:
    old = tmp_path / "old.sqlite"
    shutil.copy(used.path, old)
    used.charge(RUN, EVENT, 1, limit=30)
    head = used.head()
    used.require(head)
    shutil.copy(old, used.path)
    back = Ledger.open(used.path)
    with pytest.raises(LedgerBehindError, match=f"entry {head.sequence}"):
        back.require(head)
    back.charge(RUN, EVENT, 1, limit=30)  # as long again, but not the same past
    assert back.head().sequence == head.sequence
    with pytest.raises(LedgerBehindError):
        back.require(head)


def test_head_is_the_last_entry(ledger: Ledger) -> None:
    assert ledger.head().sequence == 0
    ledger.require(ledger.head())
    ledger.charge(RUN, EVENT, 1, limit=3)
    last = ledger.entries()[-1]
    assert ledger.head() == Head(last.sequence, last.hash)
    ledger.charge(RUN, EVENT, 1, limit=3)
    ledger.require(Head(last.sequence, last.hash))  # an older head is fine


def test_a_failed_charge_writes_nothing(used: Ledger) -> None:
    before = used.entries()
    with pytest.raises(TypeError, match="JSON"):
        used.record_non_private("x", "reason", {"bad": object()})
    assert used.entries() == before
    assert used.charge(RUN, EVENT, 1, limit=30) == 1  # and no lock is left


def test_parts_of_a_run_belong_to_it_and_have_limits_of_their_own(
    ledger: Ledger, plan: Plan
) -> None:
    ledger.charge(RUN, plan.event, 3, limit=3)
    ledger.charge(f"{RUN}/quantile", SampledGaussian(0.01, 5.0), 2, limit=4)
    ledger.charge(f"{RUN}-other", plan.event, 7, limit=7)
    assert ledger.charged(RUN) == 3
    assert ledger.charged(f"{RUN}/quantile") == 2
    assert [count for _, count in ledger.events(RUN)] == [3, 2]
    assert [count for _, count in ledger.events(f"{RUN}/quantile")] == [2]
    assert ledger.epsilon(1e-6, RUN) > plan.epsilon(3)


def test_a_count_that_is_no_whole_number_is_refused_unwritten(ledger: Ledger) -> None:
    """The file would keep another number than the one in the hash, and be refused for ever."""
    ledger.charge(RUN, EVENT, 3, limit=10)
    for write in (partial(ledger.charge, limit=10), ledger.give_back):
        with pytest.raises(LedgerError, match="a whole number"):
            write(RUN, EVENT, True)  # others the suite's checks of types see first
    assert Ledger.open(ledger.path).charged(RUN) == 3
