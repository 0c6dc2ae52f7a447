"""A ledger that is swapped, moved or rolled back under a live run."""

from __future__ import annotations

import copy
import shutil
import threading
from pathlib import Path

import pytest

from dither.errors import LedgerBehindError, LedgerError, ReleaseError, SamplingError
from dither.privacy.account import Account
from dither.privacy.events import SamplerKind
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket

PLAN = Plan(
    records=1000, sampling_rate=0.1, steps=50, l2_clip=1.0, noise_multiplier=1.0, delta=1e-5
)


def test_changing_the_folder_does_not_change_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    account = Account(Ledger.create(Path("l.sqlite"), store="a"), "run", PLAN)
    Ledger.create(tmp_path / "b" / "l.sqlite", store="b")
    monkeypatch.chdir(tmp_path / "b")
    account.charge(PLAN.event)
    assert Ledger.open(tmp_path / "a" / "l.sqlite").charged("run") > 0
    assert Ledger.open(tmp_path / "b" / "l.sqlite").charged("run") == 0


def test_another_ledger_in_its_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    account = Account(Ledger.create(path, store="a"), "run", PLAN, lease=1)
    path.unlink()
    Ledger.create(path, store="a")
    with pytest.raises(LedgerError):
        account.charge(PLAN.event)


def test_a_ledger_rolled_back_under_a_live_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    account = Account(Ledger.create(path, store="a"), "run", PLAN, lease=1)
    shutil.copy(path, tmp_path / "older")
    account.charge(PLAN.event)
    shutil.copy(tmp_path / "older", path)
    with pytest.raises(LedgerBehindError):
        account.charge(PLAN.event)


def test_an_account_cannot_be_copied(tmp_path: Path) -> None:
    account = Account(Ledger.create(tmp_path / "l.sqlite", store="a"), "run", PLAN)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(ReleaseError, match="copy"):
            duplicate(account)


def test_one_ticket_serves_one_of_many_threads() -> None:
    for _ in range(200):
        ticket = SampleTicket(SamplerKind.POISSON, 0.1, secret=True)
        spent: list[int] = []
        start = threading.Barrier(4)

        def spend(ticket: SampleTicket = ticket, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                ticket.spend(PLAN)
                spent.append(1)  # noqa: B023 - joined within the loop
            except SamplingError:
                pass

        threads = [threading.Thread(target=spend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(spent) == 1
