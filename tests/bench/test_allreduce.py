"""`dither bench allreduce`: the promised contests, held by real ranks where MPI is there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dither.bench import allreduce, allreduce_hosts, allreduce_scale, allreduce_tune, launch
from dither.bench.allreduce_cases import CASES, KIB, MIB, NAMES, chosen
from dither.bench.allreduce_contenders import CONTENDERS
from dither.bench.allreduce_group import Contender, Group
from dither.bench.allreduce_times import Timed, Wanted
from dither.bench.allreduce_worker import _check, contribution, true_sum
from dither.bench.harness import Row, result
from dither.bench.namespaces import why_not
from dither.errors import ReduceError
from dither.reduce.algorithms.auto import current_table, table_path
from dither.reduce.networks import NETWORKS

NO_MPI = launch.why_no_mpi()
needs_mpi = pytest.mark.skipif(NO_MPI is not None, reason=str(NO_MPI))


@pytest.fixture
def no_mpiexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))


def test_every_promise_of_the_issue_is_a_contest() -> None:
    promised = {
        ("private-local/shm/4KiB", "mpich"): 6.0,
        **{(f"private-local/shm/{size}", "mpich"): 1.0 for size in ("1MiB", "16MiB", "64MiB")},
        **{
            (f"private-local/shm/{size}/sustained", "mpich"): 2.0
            for size in ("1MiB", "16MiB", "64MiB")
        },
        **{(f"private-local/shm/{size}", "gloo"): 0.7 for size in ("1MiB", "16MiB", "64MiB")},
        **{(f"private-local/mpi/{size}", "mpich"): 1.5 for size in ("1MiB", "16MiB", "64MiB")},
        **{(f"masked/shm/{size}", "mpich"): 2.5 for size in ("1MiB", "16MiB", "64MiB")},
        **{
            (f"private-local/shm/{size}", "encrypted"): pytest.approx(1 / 1.35)
            for size in ("1MiB", "16MiB", "64MiB")
        },
    }
    found = {(case.name, case.baseline_name): case.target for case in CASES if case.target}
    assert found == promised
    assert len({(case.name, case.baseline) for case in CASES}) == len(CASES)


def test_every_contest_has_its_contenders_and_the_size_of_its_name() -> None:
    assert {name for case in CASES for name in (case.ours, case.baseline)} == set(CONTENDERS)
    sizes = {"4KiB": 4 * KIB, "1MiB": MIB, "16MiB": 16 * MIB, "64MiB": 64 * MIB}
    assert all(case.size == sizes[case.name.split("/")[2]] for case in CASES)
    assert all(("sustained" in case.name) == ("sustained" in case.ours) for case in CASES)


def test_chosen_cases() -> None:
    assert chosen(()) == CASES
    assert {case.baseline_name for case in chosen(("private-local/shm/1MiB",))} == {
        "mpich",
        "gloo",
        "encrypted",
    }


@pytest.mark.usefixtures("no_mpiexec")
def test_without_mpi_every_contest_is_a_row_with_the_reason() -> None:
    rows = list(allreduce.rows())
    assert [(row.case, row.target) for row in rows] == [(c.name, c.target) for c in CASES]
    assert all(row.ratio is None and "mpiexec" in row.detail for row in rows)
    json.dumps(result("allreduce", rows), allow_nan=False)


@needs_mpi
def test_contests_are_held_by_two_real_ranks() -> None:
    rows = list(allreduce.rows(cases=("private-local/shm/4KiB", "clear/shm/4KiB")))
    assert [(row.case, row.baseline_name) for row in rows] == [
        ("private-local/shm/4KiB", "mpich"),
        ("private-local/shm/4KiB", "gloo"),
        ("clear/shm/4KiB", "mpich"),
    ]
    for row in rows:
        assert row.ratio is not None, row.detail
        assert (row.ours or 0) > 0 < (row.baseline or 0)
        assert (row.ratio_low or 0) <= row.ratio <= (row.ratio_high or 0)
        assert "2 ranks" in row.detail


@needs_mpi
def test_a_rank_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(ReduceError, match="No such file"):
        list(launch.lines_under_mpi("json.tool", ["/no/such/file"], ranks=1, limit=60.0))


@needs_mpi
def test_ranks_that_do_not_end_are_ended() -> None:
    with pytest.raises(ReduceError, match="no end within 3 s"):
        list(launch.lines_under_mpi("http.server", ["0"], ranks=1, limit=3.0))


@pytest.mark.parametrize(
    ("error", "noise", "fine"),
    [(0.0, 0.0, True), (0.0, 0.1, False), (2.0, 2.0, True), (2.0, 0.0, False), (2.0, 3.0, False)],
    ids=["exact", "noise where none is due", "due noise", "no noise", "too much"],
)
def test_a_wrong_sum_is_found_before_it_is_timed(error: float, noise: float, fine: bool) -> None:
    wanted = true_sum(2, 4096)
    got = wanted + noise * np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    contender = Contender(lambda: None, lambda: got, error=error)
    problem = _check(_alone(), "x", contender, wanted)
    assert (problem is None) == fine


def _alone(told: list[str] | None = None) -> Group:
    """Return a group of one rank, without MPI."""
    group = object.__new__(Group)
    group.comm = SimpleNamespace(Barrier=lambda: told.append("|") if told is not None else None)
    return group


def test_nobodys_pool_fills_while_the_other_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    one, two = (
        Contender(
            lambda name=name: told.append(name),  # type: ignore[misc]
            lambda: np.empty(0, np.float32),
            prepare=lambda name=name: told.append(f"{name}-"),  # type: ignore[misc]
            calls=calls,
        )
        for name, calls in (("a", 9), ("b", 2))
    )
    monkeypatch.setattr(Group, "slowest", lambda self, seconds: list(seconds))
    times = _alone(told).contest(one, two, pairs=2, calls=4, warm_up=1)
    assert [len(side) for side in times] == [2, 2]
    a, b = "b- a- | a a", "a- b- | b b"
    assert " ".join(told) in {" ".join((a, b, b, a, a, b)), " ".join((b, a, a, b, b, a))}


def test_contributions_are_twice_the_clip_bound_and_differ() -> None:
    first, second = contribution(0, 1000), contribution(1, 1000)
    assert np.linalg.norm(first) == pytest.approx(2.0, rel=1e-5)
    assert abs(float(first @ second)) < 1.0
    np.testing.assert_allclose(true_sum(2, 1000), first + second)


def _times(**seconds: float) -> list[Timed]:
    return [Timed("mpi", name, 2, 0, value) for name, value in seconds.items()]


def test_the_table_has_what_was_fastest() -> None:
    small = [replace(t, size=64) for t in _times(ring=3.0, naive=1.0, backend=2.0)]
    middle = [replace(t, size=4096) for t in _times(ring=3.0, naive=1.5, backend=2.0)]
    large = [replace(t, size=1 << 20) for t in _times(ring=3.0, naive=4.0, backend=2.0)]
    rows = allreduce_tune.table_rows([*large, *small, *middle])
    assert [(row.from_bytes, row.algorithm, row.fallback) for row in rows] == [
        (0, "naive", "naive"),
        (1 << 20, "backend", "ring"),
    ]
    assert allreduce_tune.table_rows([Timed("mpi", "", 2, 0, None, "none")]) == []


@needs_mpi
def test_tuning_measures_and_writes_the_table_that_auto_reads() -> None:
    assert not table_path().exists()
    rows = list(allreduce_tune.tune(sizes=(64, 1 << 14)))
    names = {row.case.split("/")[-1] for row in rows}
    assert names >= {"naive", "ring", "rabenseifner", "backend"}
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.case.rpartition("/")[0], []).append(row)
    assert {key.split("/")[1] for key in by_group} == {"shared_memory", "mpi", "torch_distributed"}
    for key, group in by_group.items():
        assert min(row.ratio or 9 for row in group) == 1.0
        transport, ranks, size = key.split("/")[1:]
        fastest = min(group, key=lambda row: row.ours or 9).case.split("/")[-1]
        chosen = current_table().find(transport, "one_host", int(ranks), int(size))
        assert chosen.algorithm == fastest
    assert "processor" in current_table().measured


@pytest.mark.usefixtures("no_mpiexec")
def test_tuning_without_mpi_leaves_the_table() -> None:
    with pytest.raises(ReduceError, match="mpiexec"):
        list(allreduce_tune.tune(sizes=(64,)))
    assert not table_path().exists()


@needs_mpi
def test_this_machines_memory_is_fitted() -> None:
    found = allreduce_tune.measured_fit(sizes=(64, 1 << 14, 1 << 18, 1 << 20))
    assert 1e-8 < found.link.latency < 1e-2
    assert 0.0 < found.link.seconds_per_byte + found.seconds_per_reduced_byte < 1e-6
    assert len(found.residuals) == 12


def test_worlds_to_tune_have_a_core_a_rank() -> None:
    sizes = allreduce_tune.world_sizes()
    assert sizes[0] == 2
    assert sizes[-1] <= max(2, len(os.sched_getaffinity(0)))


@pytest.mark.usefixtures("no_mpiexec")
def test_a_simulation_without_mpi_assumes_the_laptop_and_says_so() -> None:
    simulation, rows = allreduce_scale.scale(4, message=1 << 16)
    assert simulation.networks == NETWORKS
    assert [row.case for row in rows] == [
        *("error/central/2", "error/distributed(0)/2", "error/local/2"),
        *("error/central/4", "error/distributed(2)/4", "error/local/4"),
        "network/laptop",
    ]
    assert "assumed" in rows[-1].detail
    for row in rows[:-1]:
        assert (row.ratio_low or 9) < 1.1
        assert (row.ratio_high or 0) > 0.9
    json.dumps(result("allreduce", rows), allow_nan=False)


def test_without_namespaces_hosts_are_rows_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allreduce_hosts, "why_not", lambda: "network namespaces need root")
    rows = list(allreduce_hosts.rows(count=4, mbit=200.0))
    assert [(row.case, row.baseline_name, row.target) for row in rows] == [
        ("hosts/4x200Mbit/ring/16MiB", "naive", pytest.approx(1 / 1.5)),
        ("hosts/4x200Mbit/rabenseifner/16MiB", "naive", pytest.approx(1 / 1.5)),
        ("hosts/4x200Mbit/hierarchical/16MiB/2", "ring", 1.0),
        ("hosts/4x200Mbit/hierarchical/16MiB/2", "rabenseifner", 1.0),
    ]
    assert all("root" in row.detail for row in rows)


@pytest.mark.full
def test_hosts_with_narrow_links_tell_algorithms_apart() -> None:
    """The promise, at a quarter of the size."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    rows = list(allreduce_hosts.rows(count=4, mbit=200.0, size=4 * MIB))
    assert [row.ratio is not None for row in rows] == [True] * 4, [row.detail for row in rows]
    for row in rows[:2]:
        assert (row.ratio or 9.0) < (row.target or 0.0)


def test_what_is_wanted_travels_as_json() -> None:
    wanted = Wanted(("mpi",), ("ring",), (64,), 3)
    assert Wanted(**json.loads(json.dumps(vars(wanted)))).rounds == 3


def test_names_are_unique_and_families_choose_all() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert {name.split("/")[0] for name in NAMES} == {
        *("private-local", "masked", "encrypted", "clear"),
    }
