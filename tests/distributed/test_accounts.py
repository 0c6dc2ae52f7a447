"""Accounts of many ranks: nothing leaves a rank that is not charged, and all stop at one step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.reduce.members import KILLED, die, in_group

from dither.errors import (
    BudgetExhaustedError,
    DitherWarning,
    LedgerBehindError,
    LedgerError,
    MismatchError,
    PeerError,
    ReduceError,
)
from dither.privacy.account import Account
from dither.privacy.events import Relation, Unit
from dither.privacy.leases import OwnLeases
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.trust import CENTRAL, LOCAL, Trust
from dither.reduce.endpoint import Endpoint
from dither.reduce.transports.threads import try_ranks
from dither.train.distributed.accounts import (
    SharedLeases,
    open_rank_account,
    open_rank_ledger,
    rank_ledger_path,
)
from dither.train.distributed.ranks import EndpointRanks, Ranks

RUN = "run-a"
TRUSTS = [CENTRAL, LOCAL, Trust("distributed", 1)]
PLAN = Plan(
    records=10_000,
    sampling_rate=0.01,
    steps=30,
    l2_clip=1.0,
    noise_multiplier=1.0,
    delta=1e-6,
)


def a_ledger(ranks: Ranks | None, path: Path, trust: Trust, **changes: Any) -> Ledger | None:
    options: dict[str, Any] = {
        "store": "records",
        "unit": Unit.RECORD,
        "relation": Relation.ZERO_OUT,
        "sensitive": True,
    }
    return open_rank_ledger(ranks, path, trust, **{**options, **changes})


def an_account(ranks: Ranks | None, path: Path, plan: Plan, lease: int = 4) -> Account:
    return open_rank_account(ranks, a_ledger(ranks, path, plan.trust), RUN, plan, lease=lease)


def spend(account: Account, at_most: int = 1000) -> int:
    for done in range(at_most):
        try:
            account.charge(account.plan.event)
        except BudgetExhaustedError:
            return done
    return at_most


def counts(path: Path, run: str = RUN) -> dict[str, int]:
    """What every ledger says of a run, its chain verified."""
    return {
        found.name: sum(count for _, count in Ledger.open(found).events(run))
        for found in sorted(path.parent.glob("*.sqlite"))
    }


def on_ranks(
    world_size: int, work: Callable[[EndpointRanks], Any], timeout: float = 20.0
) -> list[Any]:
    """What every rank returned or raised."""

    def job(endpoint: Endpoint) -> Any:
        try:
            return work(EndpointRanks(endpoint))
        except (LedgerError, ReduceError) as error:
            return error

    outcomes = try_ranks(world_size, job, timeout=timeout)
    assert outcomes.errors == {}
    return outcomes.results


def kept(trust: Trust, world_size: int) -> int:
    return 1 if trust == CENTRAL else world_size


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store" / "ledger.sqlite"


@pytest.mark.parametrize(
    ("trust", "world_size"),
    [(trust, size) for trust in TRUSTS for size in (1, 2, 3) if size > trust.colluders],
    ids=str,
)
def test_all_ranks_stop_at_one_step_and_every_ledger_has_the_same_events_as_one_process(
    path: Path, trust: Trust, world_size: int
) -> None:
    plan = replace(PLAN, trust=trust)
    done = on_ranks(world_size, lambda ranks: spend(an_account(ranks, path, plan)))
    assert done == [plan.steps] * world_size
    assert list(counts(path).values()) == [plan.steps] * kept(trust, world_size)
    for found in path.parent.glob("*.sqlite"):
        assert {event for event, _ in Ledger.open(found).events()} == {PLAN.event}
        assert Ledger.open(found).epsilon(PLAN.delta) == pytest.approx(PLAN.epsilon(), rel=1e-9)


def test_ledgers_lie_beside_the_stores_own() -> None:
    own = Path("a/ledger.sqlite")
    assert rank_ledger_path(own, 0) == own
    assert rank_ledger_path(own, 3) == Path("a/ledger.rank-3.sqlite")


@pytest.mark.parametrize("trust", TRUSTS, ids=str)
def test_no_rank_is_ahead_of_a_ledger(path: Path, trust: Trust) -> None:
    plan = replace(PLAN, trust=trust)

    def work(ranks: EndpointRanks) -> None:
        account = an_account(ranks, path, plan)
        for step in range(1, plan.steps + 1):
            account.charge(plan.event)
            assert min(counts(path).values()) >= step
            assert account.steps_left == plan.steps - step

    assert on_ranks(3, work) == [None] * 3


def test_under_central_only_rank_zero_keeps_a_ledger(path: Path) -> None:
    def work(ranks: EndpointRanks) -> str:
        account = an_account(ranks, path, PLAN)
        try:
            return account.ledger.path.name
        except LedgerError as error:
            return error.got

    first, *others = on_ranks(3, work)
    assert first == "ledger.sqlite"
    assert [f"rank {rank}" in text for rank, text in enumerate(others, 1)] == [True, True]
    assert [found.name for found in path.parent.iterdir()] == ["ledger.sqlite"]


@pytest.mark.parametrize("trust", TRUSTS, ids=str)
def test_a_step_that_rank_zero_has_not_charged_cannot_be_taken(path: Path, trust: Trust) -> None:
    plan = replace(PLAN, trust=trust)

    def work(ranks: EndpointRanks) -> int:
        account = an_account(ranks, path, plan, lease=4)
        made = spend(account, 4)
        if ranks.rank > 0:
            account.charge(plan.event)
            made += 1
        return made

    first, *others = on_ranks(3, work, timeout=1.0)
    assert first == 4
    assert all(isinstance(found, PeerError) for found in others)
    assert set(counts(path).values()) == {4}


@pytest.mark.parametrize("sick", [0, 1, 2])
def test_a_ledger_that_cannot_be_charged_refuses_on_all_ranks_and_costs_the_others_nothing(
    path: Path, sick: int
) -> None:
    plan = replace(PLAN, trust=LOCAL)

    def work(ranks: EndpointRanks) -> int:
        account = an_account(ranks, path, plan, lease=4)
        mine = rank_ledger_path(path, ranks.rank)
        older = mine.read_bytes()
        spend(account, 4)
        if ranks.rank == sick:
            mine.write_bytes(older)  # rolled back behind what it has charged
        account.charge(plan.event)
        return 5

    found = on_ranks(3, work)
    assert isinstance(found.pop(sick), LedgerBehindError)
    assert all(type(error) is LedgerError for error in found)
    assert all(f"LedgerBehindError on rank {sick}" in error.got for error in found)
    assert sorted(counts(path).values()) == [0, 4, 4]


@pytest.mark.parametrize("sick", [0, 1])
def test_one_rank_without_budget_stops_all(path: Path, sick: int) -> None:
    """Another process charged one ledger meanwhile: all still stop at one step, none beyond."""
    plan = replace(PLAN, trust=LOCAL)

    def work(ranks: EndpointRanks) -> tuple[int, str]:
        account = an_account(ranks, path, plan, lease=4)
        if ranks.rank == sick:
            account.ledger.charge(RUN, plan.event, 16, limit=plan.steps)
        done = spend(account)
        with pytest.raises(BudgetExhaustedError, match="a step left of the 30"):
            account.charge(plan.event)
        return done, "same"

    assert on_ranks(2, work) == [(14, "same")] * 2
    assert sorted(counts(path).values()) == [14, 30]


def test_a_lease_is_kept_when_another_rank_may_have_heard_that_all_is_well(path: Path) -> None:
    """A rank's last word may reach the others while it loses theirs: they go on and release."""
    plan = replace(PLAN, trust=LOCAL)

    class Deaf:
        """Rank 0 gathers as all do, and then loses what it got."""

        def __init__(self, ranks: EndpointRanks) -> None:
            self._ranks, self.left = ranks, 1 << 30
            self.rank, self.world_size = ranks.rank, ranks.world_size
            self.broadcast, self.consent, self.during = ranks.broadcast, ranks.consent, ranks.during

        def gather(self, payload: bytes) -> list[bytes]:
            found = self._ranks.gather(payload)
            self.left -= 1
            if self.left < 0:
                raise PeerError(expected="an answer", got="none", fix="start again")
            return found

    def work(ranks: EndpointRanks) -> int:
        deaf = Deaf(ranks)
        account = an_account(deaf, path, plan, lease=4)
        # What the first charge asks beforehand it hears, whether all could charge it does not.
        deaf.left = 1 if ranks.rank == 0 else deaf.left
        account.charge(plan.event)
        return 1  # a message left

    first, second = on_ranks(2, work)
    assert isinstance(first, PeerError)
    assert second == 1
    assert set(counts(path).values()) == {4}


@pytest.mark.parametrize("trust", TRUSTS, ids=str)
def test_what_is_given_back_is_what_the_busiest_rank_has_left(path: Path, trust: Trust) -> None:
    plan = replace(PLAN, trust=trust)

    def work(ranks: EndpointRanks) -> int:
        account = an_account(ranks, path, plan, lease=10)
        spend(account, 3 + ranks.rank)  # rank 2 stopped two steps after rank 0
        account.give_back()
        return account.steps_charged

    assert on_ranks(3, work) == [5, 5, 5]
    assert set(counts(path).values()) == {5}


def test_nothing_is_given_back_where_a_rank_is_missing(path: Path) -> None:
    def work(ranks: EndpointRanks) -> None:
        account = an_account(ranks, path, PLAN, lease=10)
        spend(account, 3)
        if ranks.rank == 0:
            account.give_back()

    assert on_ranks(2, work, timeout=1.0) == [None, None]
    assert counts(path) == {"ledger.sqlite": 10}


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_resume_brings_all_accounts_to_the_highest(
    path: Path, ahead: int, world_size: int
) -> None:
    """After a crash in the middle of a lease; the third rank is new, its records moved to it."""
    plan = replace(PLAN, trust=LOCAL)
    for rank in range(2):
        ledger = Ledger.create(rank_ledger_path(path, rank), store="records")
        ledger.record_plan(RUN, {"plan": plan.to_json(), "records": None})
        ledger.charge(RUN, plan.event, 12 if rank == ahead else 8, limit=plan.steps)
        ledger.charge("another run", plan.event, 5, limit=plan.steps)  # no business of ours
    lost = pytest.warns(DitherWarning, match="ledger of rank 2 has none of the 12 steps")
    with lost if world_size == 3 else nullcontext():
        left = on_ranks(world_size, lambda ranks: an_account(ranks, path, plan).steps_left)
    assert left == [18] * world_size
    assert list(counts(path).values()) == [12] * world_size
    others = counts(path, "another run")
    assert [others[rank_ledger_path(path, rank).name] for rank in range(2)] == [5, 5]
    assert on_ranks(world_size, lambda r: spend(an_account(r, path, plan))) == [18] * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("trust", [CENTRAL, LOCAL], ids=str)
def test_a_resume_never_says_less_than_the_checkpoint(
    path: Path, trust: Trust, world_size: int
) -> None:
    plan = replace(PLAN, trust=trust)

    def work(ranks: EndpointRanks) -> tuple[int, int]:
        account = an_account(None if world_size == 1 else ranks, path, plan)
        account.catch_up(11)
        account.catch_up(7)
        return account.steps_charged, spend(account)

    assert on_ranks(world_size, work) == [(11, 19)] * world_size
    assert set(counts(path).values()) == {30}


def test_the_quantiles_account_is_shared_in_the_same_way(path: Path) -> None:
    gradients = replace(PLAN, trust=LOCAL)
    plan = replace(gradients, steps=5, noise_multiplier=9.0)
    Ledger.create(rank_ledger_path(path, 1), store="records").charge(
        f"{RUN}/quantile", plan.event, 2, limit=5
    )

    def work(ranks: EndpointRanks) -> int:
        part = an_account(ranks, path, gradients).part("quantile", plan)
        assert part.run == f"{RUN}/quantile"
        return spend(part)

    assert on_ranks(2, work) == [3, 3]
    assert list(counts(path, f"{RUN}/quantile").values()) == [5, 5]
    assert list(counts(path).values()) == [5, 5]  # a part belongs to its run


@pytest.mark.parametrize("change", ["run", "plan"])
def test_ranks_of_different_minds_are_refused_before_anything_is_written(
    path: Path, change: str
) -> None:
    def work(ranks: EndpointRanks) -> None:
        plan, run = PLAN, RUN
        if ranks.rank == 1:
            plan = replace(PLAN, steps=31) if change == "plan" else PLAN
            run = "run-b" if change == "run" else RUN
        open_rank_account(ranks, a_ledger(ranks, path, CENTRAL), run, plan)

    assert all(isinstance(error, MismatchError) for error in on_ranks(3, work))
    assert Ledger.open(path).entries() == []


def test_a_rank_that_must_keep_a_ledger_and_has_none_is_refused_on_all(path: Path) -> None:
    plan = replace(PLAN, trust=LOCAL)

    def work(ranks: EndpointRanks) -> None:
        ledger = None if ranks.rank == 1 else a_ledger(ranks, path, LOCAL)
        open_rank_account(ranks, ledger, RUN, plan)

    first, second = on_ranks(2, work)
    assert "LedgerError on rank 1" in first.got
    assert "none on rank 1" in second.got
    with pytest.raises(LedgerError, match="a ledger on this rank"):
        open_rank_account(None, None, RUN, PLAN)


def test_a_ledger_that_refuses_the_run_on_one_rank_refuses_it_on_all(path: Path) -> None:
    plan = replace(PLAN, trust=LOCAL)
    Ledger.create(rank_ledger_path(path, 1), store="records").record_plan(RUN, {"plan": "another"})
    first, second = on_ranks(2, lambda ranks: an_account(ranks, path, plan))
    assert "on rank 1" in first.got
    assert "another plan" in second.got


def test_a_resumed_store_ledger_must_be_there_and_that_of_a_new_rank_may_be_new(
    path: Path,
) -> None:
    with pytest.raises(LedgerError):
        a_ledger(None, path, LOCAL, create=False)

    def work(ranks: EndpointRanks) -> str:
        if ranks.rank == 0:
            return ""
        ledger = a_ledger(ranks, path, LOCAL, create=False)
        assert ledger is not None
        return ledger.path.name

    assert on_ranks(2, work) == ["", "ledger.rank-1.sqlite"]


def test_a_ledger_of_other_records_is_refused(path: Path) -> None:
    Ledger.create(rank_ledger_path(path, 1), store="other records")
    assert isinstance(on_ranks(2, lambda r: a_ledger(r, path, LOCAL))[1], LedgerError)


def test_a_forked_child_is_no_rank(path: Path) -> None:
    def work(ranks: EndpointRanks) -> tuple[str, int]:
        account = Account(
            SharedLeases(ranks, a_ledger(ranks, path, CENTRAL), keeps=True), RUN, PLAN
        )
        account.charge(PLAN.event)
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                account.charge(PLAN.event)
            except LedgerError as error:
                os.write(write, error.got.encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return said, account.steps_charged

    (said, charged), = on_ranks(1, work)  # fmt: skip
    assert "a forked child" in said
    assert charged == 1


# Processes that die. Each counts what leaves it in a file, by no part of the ledger.

LEASE = 4
STEPS = 24


@dataclass(frozen=True)
class Fate:
    """Which rank of which group dies, when, and after how many steps of its own."""

    life: int
    rank: int = -1
    moment: str = ""
    at: int = 0


def member(path: Path, plan: Plan, fate: Fate, endpoint: Any) -> int:
    """A rank that charges and sends until the budget is spent, or until it dies."""
    name = path.parent / f"life-{fate.life}-rank-{endpoint.rank}.tap"
    tap = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    account = an_account(EndpointRanks(endpoint), path, plan, LEASE)
    if endpoint.rank == fate.rank and fate.moment == "charged alone":
        die_once_charged(account.steps_charged + fate.at)
    made = 0
    while True:
        try:
            account.charge(plan.event)
        except BudgetExhaustedError:
            return made
        dies = endpoint.rank == fate.rank and made == fate.at
        if dies and fate.moment == "charged by all":
            die()
        os.write(tap, b".")  # a message is about to leave
        if dies and fate.moment == "sent":
            die()
        endpoint.all_reduce(np.ones(3, np.int32))
        made += 1


def die_once_charged(count: int) -> None:
    """Die with a lease on disk that no other rank has heard of."""
    take = OwnLeases.take

    def fatal(self: OwnLeases, run: str, event: Any, wanted: int, limit: int) -> int:
        granted = take(self, run, event, wanted, limit)
        if self.charged(run) > count:
            die()
        return granted

    OwnLeases.take = fatal  # type: ignore[assignment,method-assign]


def releases(path: Path) -> int:
    """Steps of which any rank's message left, over all groups that were."""
    most: dict[str, int] = {}
    for tap in path.parent.glob("*.tap"):
        life = tap.name.split("-rank-")[0]
        most[life] = max(most.get(life, 0), tap.stat().st_size)
    return sum(most.values())


DEATHS = [
    (trust, victim, moment)
    for trust in (CENTRAL, LOCAL)
    for victim in (0, 1)
    for moment in ("charged alone", "charged by all", "sent")
    if moment != "charged alone" or victim < kept(trust, 2)
]


@pytest.mark.filterwarnings("ignore:the ledger of rank 2 has none:dither.errors.DitherWarning")
@pytest.mark.parametrize(("trust", "victim", "moment"), DEATHS, ids=str)
def test_a_rank_that_dies_leaves_no_message_uncharged(
    path: Path, trust: Trust, victim: int, moment: str
) -> None:
    """Three deaths, each in a group of another size, then the rest of the plan."""
    plan, folder = replace(PLAN, trust=trust, steps=STEPS), path.parent / "group"
    for life, (world_size, at) in enumerate([(2, 2), (3, 5), (2, 1)]):
        fate = Fate(life, victim, moment, at)
        found = in_group(world_size, partial(member, path, plan, fate), folder)
        assert found.pop(victim) == KILLED
        assert all(isinstance(report, PeerError) for report in found)
        charged = counts(path)
        for rank in range(kept(trust, 2)):  # who was there all the time
            count = charged[rank_ledger_path(path, rank).name]
            assert releases(path) <= count <= releases(path) + LEASE * (life + 1)
    before = releases(path)
    made = in_group(3, partial(member, path, plan, Fate(3)), folder)
    assert made == [releases(path) - before] * 3
    assert list(counts(path).values()) == [STEPS] * kept(trust, 3)
    assert before < releases(path) <= STEPS
