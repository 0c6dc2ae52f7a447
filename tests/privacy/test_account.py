"""Leases: charged before use, once, and never beyond the plan."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tests.privacy.conftest import RUN

from dither.errors import BudgetExhaustedError, LedgerBehindError, LedgerError, ReleaseError
from dither.privacy.account import LEASE, Account
from dither.privacy.events import Gaussian, NonPrivate, Relation, SampledGaussian, Unit
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan


def _leases(ledger: Ledger) -> list[int]:
    return [entry.count for entry in ledger.entries() if entry.kind == "lease"]


def test_sixty_four_charges_are_one_write(ledger: Ledger, plan: Plan) -> None:
    plan = dataclasses.replace(plan, steps=150)
    account = Account(ledger, RUN, plan, lease=64)
    assert LEASE == 64  # the most a plan leases by default
    assert _leases(ledger) == []
    for step in range(1, 151):
        account.charge(plan.event)
        assert ledger.charged(RUN) >= step  # never a release before its charge
        assert account.steps_left == 150 - step
        assert _leases(ledger) == [64, 64, 22][: math.ceil(step / 64)]
    with pytest.raises(BudgetExhaustedError):
        account.charge(plan.event)
    assert account.steps_left == 0
    assert account.steps_charged == 150


@pytest.mark.parametrize("lease", [1, 7, 64, 1000])
def test_the_lease_alters_no_event_and_no_total(ledger: Ledger, plan: Plan, lease: int) -> None:
    account = Account(ledger, RUN, plan, lease=lease)
    for _ in range(plan.steps):
        account.charge(plan.event)
    assert {event for event, _ in ledger.events(RUN)} == {plan.event}
    assert ledger.charged(RUN) == plan.steps
    assert len(_leases(ledger)) == math.ceil(plan.steps / lease)


@pytest.mark.parametrize("lease", [0, -5])
def test_a_lease_of_nothing_is_refused(ledger: Ledger, plan: Plan, lease: int) -> None:
    with pytest.raises(ReleaseError, match="a lease of at least 1"):
        Account(ledger, RUN, plan, lease=lease)


def test_after_a_crash_the_account_is_too_high_by_one_lease_at_most(
    ledger: Ledger, plan: Plan
) -> None:
    first = Account(ledger, RUN, plan, lease=8)
    for _ in range(3):
        first.charge(plan.event)
    again = Account(ledger, RUN, plan, lease=8)  # a resumed process
    assert again.steps_left == plan.steps - 8
    assert _spend_all(again) == plan.steps - 8
    assert ledger.charged(RUN) == plan.steps


@pytest.mark.parametrize(
    "event",
    [
        SampledGaussian(0.01, 2.0),
        SampledGaussian(0.02, 1.0),
        SampledGaussian(0.01, math.nextafter(1.0, 2.0)),
        Gaussian(1.0),
        NonPrivate("x"),
    ],
    ids=str,
)
def test_another_event_is_refused_uncharged(ledger: Ledger, plan: Plan, event: object) -> None:
    account = Account(ledger, RUN, plan)
    with pytest.raises(ReleaseError, match="the plan's event"):
        account.charge(event)  # type: ignore[arg-type]
    assert ledger.charged(RUN) == 0


def test_the_promise_is_written_before_the_first_charge(ledger: Ledger, plan: Plan) -> None:
    Account(ledger, RUN, plan).charge(plan.event)
    kinds = [entry.kind for entry in ledger.entries()]
    assert kinds == ["plan", "lease"]
    assert Plan.from_json(ledger.entries()[0].detail["plan"]) == plan
    with pytest.raises(LedgerError, match="the plan that run"):
        Account(ledger, RUN, dataclasses.replace(plan, steps=plan.steps + 1))
    assert Account(ledger, RUN, plan, lease=3).plan == plan  # a speed option may change


@pytest.mark.parametrize(
    "change", [{"relation": Relation.ADD_REMOVE}, {"unit": Unit.PERSON}], ids=str
)
def test_a_plan_of_another_kind_is_refused(
    ledger: Ledger, plan: Plan, change: dict[str, Any]
) -> None:
    with pytest.raises(LedgerError, match="an account per"):
        Account(ledger, RUN, dataclasses.replace(plan, **change))
    assert ledger.entries() == []


def test_an_insecure_run_is_infinite(ledger: Ledger, plan: Plan) -> None:
    Account(ledger, RUN, plan).charge(plan.event)
    assert ledger.epsilon(plan.delta, RUN) < 10.0
    account = Account(ledger, "debug", plan, insecure="seed 7")
    assert account.insecure == "seed 7"
    assert ledger.epsilon(plan.delta, "debug") == math.inf  # before the first release already
    account.charge(plan.event)
    assert ledger.epsilon(plan.delta) == math.inf
    assert NonPrivate("seed 7") in [event for event, _ in ledger.events("debug")]
    assert ledger.epsilon(plan.delta, RUN) < 10.0


def _spend_all(account: Account, at_most: int = 10**6) -> int:
    for done in range(at_most):
        try:
            account.charge(account.plan.event)
        except BudgetExhaustedError:
            return done
    return at_most


def test_a_forked_child_has_no_lease(ledger: Ledger, plan: Plan) -> None:
    account = Account(ledger, RUN, plan, lease=10)
    assert _spend_all(account, 3) == 3  # 7 of the parent's lease are left
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
        child = os.fork()
    if child == 0:
        try:
            left, done = account.steps_left, _spend_all(account)
            os.write(write, f"{left} {done}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        os.close(write)
        left, done = map(int, pipe.read().split())
    assert (left, done) == (20, 20)  # charged by itself, what the parent had not
    assert ledger.charged(RUN) == plan.steps
    assert _spend_all(account) == 7
    assert 3 + done + 7 == plan.steps
    assert _leases(ledger) == [10, 10, 10]


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("impatient_threads")
def test_threads_share_a_lease_without_using_a_charge_twice(ledger: Ledger, plan: Plan) -> None:
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=400), lease=64)
    done: list[int] = []
    threads = [threading.Thread(target=lambda: done.append(_spend_all(account))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 400
    assert ledger.charged(RUN) == 400


def test_short_plans_lease_little(ledger: Ledger, plan: Plan) -> None:
    """A stop loses at most a sixteenth of a plan."""
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=32))
    account.charge(plan.event)
    assert account.steps_charged == 2


def test_leases_grow_while_they_serve_too_shortly(
    ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=16 * 200))
    for _ in range(64 + 128 + 200 + 200):
        account.charge(plan.event)
    assert _leases(ledger) == [64, 128, 200, 200]  # never above a sixteenth of the plan
    now = 1.0
    account = Account(ledger, "slow", dataclasses.replace(plan, steps=16 * 200))
    for _ in range(3):
        now += 0.3
        for _ in range(64):
            account.charge(plan.event)
    assert _leases(ledger)[4:] == [64, 64, 64]


def test_what_a_lease_has_left_can_be_returned_once(ledger: Ledger, plan: Plan) -> None:
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=2000))
    for _ in range(10):
        account.charge(plan.event)
    account.give_back()
    account.give_back()
    assert ledger.charged(RUN) == 10
    assert account.steps_left == 1990
    account.charge(plan.event)  # by a new lease
    assert ledger.charged(RUN) == 10 + 125  # a sixteenth of the plan, as the first served shortly


def test_what_cannot_be_returned_stays_charged(ledger: Ledger, plan: Plan) -> None:
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=2000))
    account.charge(plan.event)
    kept = ledger.path.with_suffix(".kept")
    ledger.path.rename(kept)
    account.give_back()
    kept.rename(ledger.path)
    account.charge(plan.event)
    assert _leases(ledger) == [64, 125]


def test_a_ledger_of_many_entries_is_charged_without_reading_them(
    ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account(ledger, RUN, plan, lease=1)
    account.charge(plan.event)

    def refuse(*_: object) -> None:
        raise AssertionError("all entries were read")

    monkeypatch.setattr("dither.privacy.ledger.read_entries", refuse)
    account.charge(plan.event)


def test_a_ledger_that_was_rolled_back_is_not_charged(ledger: Ledger, plan: Plan) -> None:
    account = Account(ledger, RUN, plan, lease=1)
    account.charge(plan.event)
    older = ledger.path.read_bytes()
    wal = ledger.path.with_name(f"{ledger.path.name}-wal")
    assert not wal.exists()
    account.charge(plan.event)
    ledger.path.write_bytes(older)
    with pytest.raises(LedgerBehindError):
        account.charge(plan.event)
    assert _leases(ledger) == [1]


def test_nothing_is_returned_to_a_ledger_that_was_rolled_back(ledger: Ledger, plan: Plan) -> None:
    """Its charge is gone with the entry: returned, it would be taken off twice, and unseen."""
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=400), lease=10)
    for _ in range(10):
        account.charge(plan.event)
    older = ledger.path.read_bytes()
    account.charge(plan.event)
    ledger.path.write_bytes(older)
    account.give_back()
    assert ledger.charged(RUN) == 10
    with pytest.raises(LedgerBehindError):
        account.charge(plan.event)


def test_a_handler_that_returns_a_lease_during_a_charge_does_not_wait_for_itself(
    ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=400), lease=10)
    charge = Ledger.lease

    def interrupted(*args: Any, **options: Any) -> Any:
        account.give_back()
        return charge(*args, **options)

    monkeypatch.setattr(Ledger, "lease", interrupted)
    for _ in range(11):
        account.charge(plan.event)
    assert ledger.charged(RUN) == 20


def test_a_child_with_its_parents_number_has_no_lease(
    ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first process of a namespace of its own, say."""
    account = Account(ledger, RUN, dataclasses.replace(plan, steps=400), lease=10)
    account.charge(plan.event)
    number = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "getpid", lambda: number)
        account.charge(plan.event)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert _leases(ledger) == [10, 10]


def test_a_lease_that_is_no_whole_number_is_refused(ledger: Ledger, plan: Plan) -> None:
    """Of those that the suite's own checks of types let through."""
    with pytest.raises(ReleaseError, match="a lease of at least 1"):
        Account(ledger, RUN, plan, lease=True)
    Ledger.open(ledger.path)
