"""The report: numbers from the accounts, calls added up, and no word that hides a gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dither.mpirun.agent import RankState
from dither.mpirun.options import MpirunConfig
from dither.mpirun.promise import make_plan
from dither.mpirun.report import Facts, report, text
from dither.privacy.plan import Plan
from dither.reduce.rank_ledger import open_rank_ledger

RUN = "run-a"


@pytest.fixture
def plan() -> Plan:
    return make_plan(
        MpirunConfig(
            ranks=2, trust="local", clip=1.0, delta=1e-6, releases=100, noise_multiplier=10.0
        )
    )


def statistics(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "calls": {
            "MPI_Allreduce": {"protected": 5, "bytes": 4096, "refused": 1, "cleared": 0},
            "MPI_Send": {"counted": 2, "bytes": 0},
        },
        "releases": 5,
        "draws": {"used": 300, "dry": 100},
        "seconds": {"clip": 0.5, "sum": 1.0, "noise": 0.25, "wait": 0.125},
    }
    return {**values, **changes}


@pytest.fixture
def facts(plan: Plan, tmp_path: Path) -> Facts:
    """Rank 0 made 5 releases and ended well, rank 1 charged 8 and was lost."""
    ledgers = [open_rank_ledger(tmp_path / "accounts", rank) for rank in range(2)]
    for ledger, count in zip(ledgers, (5, 8), strict=True):
        ledger.charge(RUN, plan.event, count, limit=100)
    ranks = [RankState(ledger, ledger.head(), 100) for ledger in ledgers]
    ranks[0].ended, ranks[0].used, ranks[0].statistics = "well", 5, [statistics()]
    ranks[1].ended = "lost"
    ranks[0].charged, ranks[1].charged = 5, 6
    return Facts(
        plan=plan,
        mode="private",
        run=RUN,
        folder=tmp_path / "accounts",
        ranks=ranks,
        before=[0, 2],
        status=137,
        seconds=1.5,
        library=tmp_path / "library.so",
    )


def changed(facts: Facts, **values: Any) -> Facts:
    return Facts(**{**vars(facts), **values})


def test_epsilon_is_that_of_the_rank_that_charged_most(facts: Facts, plan: Plan) -> None:
    found = report(facts)
    assert found["epsilon"] == pytest.approx(plan.epsilon(8))
    assert found["epsilon_allowed"] == pytest.approx(plan.epsilon())
    assert [each["epsilon"] for each in found["ranks"]] == [
        pytest.approx(plan.epsilon(5)),
        pytest.approx(plan.epsilon(8)),
    ]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_rank_says_what_it_charged_and_how_it_ended(facts: Facts) -> None:
    first, second = report(facts)["ranks"]
    assert (first["ended"], first["releases"], first["charged"], first["left"]) == (
        "well",
        5,
        5,
        95,
    )
    assert (second["ended"], second["releases"]) == ("lost", None)
    assert (second["charged"], second["charged_before"], second["left"]) == (6, 2, 92)


def test_what_another_start_of_the_run_charges_meanwhile_is_not_this_ones(
    facts: Facts, plan: Plan
) -> None:
    facts.ranks[0].ledger.charge(RUN, plan.event, 40, limit=100)
    first = report(facts)["ranks"][0]
    assert (first["charged"], first["left"]) == (5, 55)
    assert first["epsilon"] == pytest.approx(plan.epsilon(45))


def test_calls_and_draws_of_ranks_add_up_and_times_are_the_slowest(facts: Facts) -> None:
    slow = statistics(seconds={"clip": 0.1, "sum": 3.0, "noise": 0.0, "wait": 0.0})
    more = statistics(calls={"MPI_Allreduce": {"protected": 1, "cleared": 7}})
    facts.ranks[1].statistics = [slow, more]
    facts.ranks[1].ended = "well"
    found = report(facts)
    assert found["calls"]["MPI_Allreduce"] == {
        "protected": 11,
        "bytes": 8192,
        "refused": 2,
        "cleared": 7,
    }
    assert found["calls"]["MPI_Send"] == {"counted": 4, "bytes": 0}
    assert found["draws"] == {"used": 900, "dry": 300, "dry_share": 0.25}
    assert found["time"] == {"clip": 0.6, "sum": 4.0, "noise": 0.25, "wait": 0.125}


def test_a_refused_extension_is_not_called_passed(facts: Facts) -> None:
    facts.ranks[0].statistics = [statistics(calls={"MPIX_Allreduce_enqueue": {"refused": 3}})]
    found = report(facts)
    assert found["calls"] == {"MPIX_Allreduce_enqueue": {"refused": 3}}
    assert "NOT COVERED" not in text(found)


def test_people_read_what_is_not_covered(facts: Facts) -> None:
    said = text(report(facts))
    assert "exit status 137" in said
    assert "NOT COVERED, passed as they are: MPI_Send 2" in said
    assert "MPI_Allreduce: 5 protected, 1 refused, 4 KiB" in said
    assert "rank 1 did not end well" in said
    assert "25.0% of the draws were not ready" in said
    assert str(facts.folder) in said
    assert f"{facts.plan.epsilon(8):.4g}" in said
    assert "z·C·√R = 14.14 (z = 10, C = 1)" in said
    assert "1.000 s (in them noise made at the call 0.250 s); apart from these, waiting" in said


def test_what_earlier_runs_cost_is_in_the_accounts_total(facts: Facts, plan: Plan) -> None:
    facts.ranks[0].ledger.charge("earlier", plan.event, 50, limit=100)
    found = report(facts)
    assert found["epsilon_account"] == pytest.approx(plan.epsilon(55))
    assert found["epsilon"] == pytest.approx(plan.epsilon(8))
    assert f"over all their runs: {plan.epsilon(55):.4g}" in text(found)


def test_what_a_lost_rank_did_is_not_called_nothing(facts: Facts) -> None:
    facts.ranks[0].statistics = [statistics(calls={})]
    assert "the calls of rank 1 are not known" in text(report(facts))
    assert "no other call" not in text(report(facts))
    facts.ranks[1].ended = "well"
    assert "not known" not in text(report(facts))
    assert "no other call that moves data was seen" in text(report(facts))


def test_what_passed_in_clear_is_shouted(facts: Facts) -> None:
    facts.ranks[0].statistics = [statistics(calls={"MPI_Reduce": {"cleared": 4, "bytes": 16}})]
    assert "MPI_Reduce: 4 IN CLEAR" in text(report(facts))


def test_ranks_that_never_came_are_named(facts: Facts) -> None:
    facts.ranks[1].ended = "absent"
    said = text(report(facts))
    assert "rank 1 never reached MPI_Init" in said
    assert "NOTHING OF IT WAS PROTECTED" in said


@pytest.mark.parametrize(("status", "exit_status"), [(0, 3), (7, 7)])
def test_a_rank_that_never_came_is_no_success(status: int, exit_status: int, facts: Facts) -> None:
    facts.ranks[1].ended = "well"
    assert changed(facts, status=0).exit_status == 0
    facts.ranks[1].ended = "absent"
    now = changed(facts, status=status)
    assert now.exit_status == exit_status
    assert report(now)["launcher_status"] == exit_status
    assert ("ends with 3" in text(report(now))) == (status == 0)


@pytest.mark.parametrize("mode", ["test", "encrypted"])
def test_what_is_not_private_is_said_first(mode: Any, facts: Facts) -> None:
    for state in facts.ranks:
        state.ledger.record_non_private(RUN, "for this test", {})
    found = report(changed(facts, mode=mode))
    assert (found["private"], found["epsilon"], found["epsilon_allowed"]) == (False, None, None)
    said = text(found)
    assert "NOT PRIVATE" in said
    assert "noise on each number" not in said
    assert "not ready" not in said
    assert "5 protected" not in said
    json.dumps(found, allow_nan=False)


def test_trouble_with_an_account_is_said(facts: Facts) -> None:
    facts.ranks[0].error = "expected a disk, got none. To mend it: buy one."
    found = report(facts)
    assert found["ranks"][0]["error"] == facts.ranks[0].error
    assert "buy one" in text(found)


def test_a_program_without_any_call_reports_too(facts: Facts) -> None:
    for state in facts.ranks:
        state.statistics, state.ended = [], "absent"
    found = report(facts)
    assert found["calls"] == {}
    assert found["draws"]["dry_share"] is None
    assert "not ready" not in text(found)


@pytest.mark.parametrize(
    ("size", "shown"), [(5, "5 B"), (2048, "2 KiB"), (3 << 30, "3 GiB"), (5 << 40, "5 TiB")]
)
def test_sizes_are_short(size: int, shown: str, facts: Facts) -> None:
    calls = {"MPI_Reduce": {"protected": 1, "bytes": size}}
    facts.ranks[0].statistics = [statistics(calls=calls)]
    assert f"1 protected, {shown}" in text(report(facts))
