"""Private statistics: their cost, their accuracy, their account, and what is refused without."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dither.cli.main import main
from dither.data import build_store, find_task
from dither.data.mechanisms import Histogram, Mean, Quantiles, Statistic, Vocabulary, prepare
from dither.data.statistics import (
    Statement,
    default_ledger,
    load_task,
    read_statement,
    release_statistics,
    released_path,
    require_charged,
)
from dither.errors import ConfigError, DataError, LedgerError, OutputError
from dither.privacy.events import ApproximateDP, Relation, Unit
from dither.privacy.ledger import Ledger

K = 4
ABOUT = """
name = "visits"
source = "form 12"
key = {{ WHO = "text", NUMBER = "integer" }}
person = "WHO"
rows_per_person = {k}
label = {{ column = "BACK", codes = ["1"] }}
class_weights = {{ release = true, epsilon = 2 }}
statistics = [{{ kind = "histogram", column = "AGE", edges = [0, 50, 110], epsilon = 2 }}]

[columns]
AGE = {{ bounds = [0, 110], impute = {{ release = "mean", epsilon = 4 }} }}
COST = {{ bounds = {{ release = [0.02, 0.98], epsilon = 4, candidates = [1, 10, 100] }} }}
WARD = {{ codes = {{ release = true, epsilon = 2, delta = 1e-5 }}, other = "rare" }}
BACK = {{ codes = ["0", "1"] }}
"""

pytest.importorskip("opendp")


def visits(people: int = 600) -> list[tuple[str, int, int, float, str, int]]:
    draw = np.random.default_rng(3)
    return [
        (
            f"w{who:04d}",
            number,
            int(draw.integers(20, 80)),
            round(float(draw.lognormal(3.0, 0.5)), 2),
            "AABBBC"[draw.integers(6)] if who else "SECRET",
            int(draw.random() < 0.25),
        )
        for who in range(people)
        for number in range(1, 8)
    ]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "visits.csv"
    lines = [",".join(map(str, row)) for row in visits()]
    path.write_text("\n".join(["WHO,NUMBER,AGE,COST,WARD,BACK", *lines]) + "\n")
    return path


@pytest.fixture
def about(tmp_path: Path) -> Path:
    path = tmp_path / "visits.toml"
    path.write_text(ABOUT.format(k=K))
    return path


def values(statement: Statement) -> dict[str, object]:
    return {constant.name: constant.value for constant in statement.constants}


CASES: list[tuple[Statistic, float]] = [
    (Mean("X", 0.0, 10.0, 0.5), 0.0),
    (Quantiles("X", (0.1, 0.9), 0.5, (0.0, 5.0, 10.0)), 0.0),
    (Histogram("X", 0.5, codes=("a", "b")), 0.0),
    (Vocabulary("X", 0.5, 1e-6), 1e-6),
]


@pytest.mark.parametrize(("statistic", "delta"), CASES, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("d_in", [1, 8])
def test_the_cost_is_what_was_asked_for_whatever_a_unit_may_change(
    statistic: Statistic, delta: float, d_in: int
) -> None:
    found = prepare(statistic, d_in)
    assert found.epsilon == pytest.approx(0.5, rel=1e-6)
    assert found.epsilon <= 0.5 * (1 + 1e-6)
    assert delta / 3 <= found.delta <= delta


def test_noise_grows_with_what_a_unit_may_change() -> None:
    assert [
        round(prepare(statistic, 8).accuracy / prepare(statistic, 1).accuracy)
        for statistic, _ in CASES[:3]
    ] == [8, 8, 8]


def exceeded(errors: list[float], bound: float) -> int:
    return sum(error > bound for error in errors)


def test_stated_accuracies_hold_and_say_something() -> None:
    # 200 draws each, stated to be exceeded by 5 %: more than 24 of 200 has probability below 1e-4.
    draw = np.random.default_rng(5)
    numbers = draw.uniform(0.0, 10.0, 5000)
    counted = prepare(Histogram("X", 0.5, codes=("a",)), 1)
    errors = [abs(counted.run({"a": 700})[0] - 700) for _ in range(200)]
    assert exceeded([float(e) for e in errors], counted.accuracy) <= 24
    assert exceeded([float(e) for e in errors], counted.accuracy / 4) > 60
    middle = prepare(Quantiles("X", (0.5,), 0.5, tuple(np.linspace(0.0, 10.0, 101))), 1)
    ranks = [abs(float((numbers < middle.run(numbers)[0]).sum()) - 2500) for _ in range(200)]
    assert exceeded(ranks, middle.accuracy + 60) <= 24  # 60 rows lie between two candidates
    mean = prepare(Mean("X", 0.0, 10.0, 0.5), 1)
    sums = [abs(mean.run(numbers) - numbers.mean()) * 5000 for _ in range(200)]
    assert exceeded(sums, 1.3 * mean.accuracy) <= 24  # the count's noise adds to it
    assert exceeded(sums, mean.accuracy / 8) > 60


def test_histogram_noise_is_laplace_of_its_scale_and_no_other() -> None:
    counted = prepare(Histogram("X", 0.5, codes=("a",)), 2)
    drawn = [counted.run({"a": 0})[0] for _ in range(4000)]
    scale = np.abs(drawn).mean()  # of a Laplace law its mean absolute value, ± 1/√4000
    assert scale == pytest.approx(4.0, rel=0.08)
    assert not math.isclose(scale, 4.0 * 2 / 3, rel_tol=0.08)
    assert not math.isclose(scale, 4.0 * 3 / 2, rel_tol=0.08)


def test_a_rare_code_is_never_released_and_frequent_ones_are() -> None:
    found = prepare(Vocabulary("X", 1.0, 1e-8), 3)
    counts = {"common": 100_000, "also": 20_000, "one person's": 3}
    assert {found.run(counts) for _ in range(200)} == {("common", "also")}


def test_a_mean_looks_at_all_rows_of_a_long_table() -> None:
    # OpenDP's own sum of floats looks at 2^20 rows at most, whatever their number.
    mean = prepare(Mean("X", 0.0, 10.0, 1.0), 4)
    assert mean.run(np.full(3_000_000, 7.0)) == pytest.approx(7.0, abs=0.001)
    assert mean.run(np.array([np.inf] * 10_000)) == pytest.approx(10.0, abs=0.2)
    assert 0.0 <= mean.run(np.array([])) <= 10.0


def test_a_tiny_epsilon_is_an_answer_and_no_crash() -> None:
    for statistic in (Mean("X", 0.0, 1.0, 1e-9), Histogram("X", 1e-9, codes=("a",))):
        assert prepare(statistic, 8).epsilon == pytest.approx(1e-9)


def test_a_text_with_a_nul_takes_no_count_away_from_another() -> None:
    found = prepare(Vocabulary("X", 1.0, 1e-6), 4)
    counts = {"a": 5000, "a\0b": 1, "b": 5000, "b\0": 2}
    assert all(set(found.run(counts)) == {"a", "b"} for _ in range(20))


def test_mistaken_bounds_of_statistics_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower < upper"):
        Mean("X", 0.0, math.inf, 1.0)
    with pytest.raises(ConfigError, match="finite candidates"):
        Quantiles("X", (0.5,), 1.0, (0.0, math.inf))


def test_releases_for_one_kind_of_person_do_not_serve_another(about: Path, table: Path) -> None:
    release_statistics(about, table)
    about.write_text(ABOUT.format(k=K).replace('person = "WHO"', 'person = "WARD"'))
    with pytest.raises(ConfigError, match="another unit"):
        find_task(str(about))


def test_a_vocabulary_of_which_nothing_is_frequent_says_so(about: Path, table: Path) -> None:
    text = ABOUT.format(k=K).replace("epsilon = 2, delta = 1e-5", "epsilon = 0.001, delta = 1e-9")
    about.write_text(text)
    release_statistics(about, table)
    with pytest.raises(ConfigError, match="none above the threshold"):
        find_task(str(about))


def test_constants_are_released_charged_and_used(about: Path, table: Path) -> None:
    statement = release_statistics(about, table)
    found = values(statement)
    assert 45 < found["imputation of AGE"] < 55  # type: ignore[operator]
    assert found["bounds of COST"] == [1.0, 100.0]
    assert found["vocabulary of WARD"] == ["B", "A", "C"]
    negative, positive = cast(tuple[float, float], found["class weights"])
    assert negative == pytest.approx(1 / 1.5, rel=0.1)
    assert positive == pytest.approx(2.0, rel=0.2)
    assert sum(found["histogram of AGE"]) == pytest.approx(600 * K, rel=0.05)  # type: ignore[call-overload]
    ledger = Ledger.open(default_ledger(about))
    assert [ledger.header.unit, ledger.header.relation] == [Unit.PERSON, Relation.ZERO_OUT]
    charged = sorted(e.epsilon for e, n in ledger.events() if isinstance(e, ApproximateDP))
    assert charged == pytest.approx([2, 2, 2, 4, 4], rel=1e-6)
    assert [entry.kind for entry in ledger.entries()] == ["plan", "lease"] * 5
    task = load_task(about)
    assert [c.name for c in task.released] == [
        "imputation of AGE",
        "bounds of COST",
        "vocabulary of WARD",
        "class weights",
    ]
    store = build_store(table, str(about), about.parent / "store")
    assert {c.account for c in store.manifest.released_inputs} == {ledger.header.id}
    public = {c.name for c in store.manifest.public_inputs}
    assert "bounds of AGE" in public
    assert not public & {c.name for c in task.released}
    assert store.units == 600


def test_at_most_k_rows_of_a_person_are_looked_at(about: Path, table: Path) -> None:
    # Person 0 alone stands in ward SECRET, seven times; k = 4 rows of 2400 are hers.
    about.write_text(ABOUT.format(k=1))
    statement = release_statistics(about, table)
    assert statement.rows_per_unit == 1
    histogram = values(statement)["histogram of AGE"]
    assert sum(histogram) == pytest.approx(600, abs=30)  # type: ignore[call-overload]


def test_replacing_a_person_is_twice_as_far(about: Path, table: Path) -> None:
    ours = release_statistics(about, table, relation="replace_one")
    words = {c.name: c.statistic for c in ours.constants}
    assert "scale 4" in words["histogram of AGE"]  # 2k/ε = 8/2


def test_a_table_that_is_named_twice_is_refused_and_nothing_charged(
    about: Path, table: Path
) -> None:
    with pytest.raises(DataError, match="each key once"):
        release_statistics(about, [table, table])
    assert not default_ledger(about).exists()
    assert not released_path(about).exists()


def test_a_charge_comes_before_the_value(
    about: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(request: object, value: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("dither.data.statistics._constant", fails)
    with pytest.raises(KeyboardInterrupt):
        release_statistics(about, table)
    assert len(Ledger.open(default_ledger(about)).events()) == 1
    assert not released_path(about).exists()


def test_a_second_release_is_refused_for_it_would_cost_again(about: Path, table: Path) -> None:
    release_statistics(about, table)
    before = Ledger.open(default_ledger(about)).head()
    with pytest.raises(OutputError, match="charge"):
        release_statistics(about, table)
    assert Ledger.open(default_ledger(about)).head() == before


def test_a_changed_request_does_not_reuse_a_release(about: Path, table: Path) -> None:
    release_statistics(about, table)
    about.write_text(ABOUT.format(k=K).replace("[0.02, 0.98]", "[0.01, 0.99]"))
    with pytest.raises(ConfigError, match="bounds of COST"):
        find_task(str(about))
    about.write_text(ABOUT.format(k=K + 1))
    with pytest.raises(ConfigError, match="bound on its rows"):
        find_task(str(about))


def test_released_constants_without_their_charge_are_refused(about: Path, table: Path) -> None:
    release_statistics(about, table)
    task = find_task(str(about))
    book = default_ledger(about)
    other = Ledger.create(about.parent / "other.sqlite", store="account visits", unit=Unit.PERSON)
    with pytest.raises(LedgerError, match="dither data statistics"):
        require_charged(task, other)
    with sqlite3.connect(book) as database:
        database.execute("DROP TRIGGER entry_kept")
        database.execute("DELETE FROM entry WHERE seq > 4")
    with pytest.raises(LedgerError, match="a charge for vocabulary of WARD"):
        find_task(str(about))
    book.unlink()
    with pytest.raises(LedgerError):
        find_task(str(about))


def test_altered_releases_are_refused(about: Path, table: Path) -> None:
    release_statistics(about, table)
    path = released_path(about)
    value = json.loads(path.read_text())
    value["constants"][2]["value"] = [0.0, 31.5]
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match="altered"):
        read_statement(about)


def test_the_folder_may_move_with_its_ledger(about: Path, table: Path, tmp_path: Path) -> None:
    release_statistics(about, table)
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    assert find_task(str(moved / about.name)).released
    moved.rename(tmp_path)


def test_without_opendp_the_error_names_the_extra(
    about: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    with pytest.raises(ConfigError, match=r"dither\[opendp\]"):
        release_statistics(about, table)


def test_nothing_to_release_is_said_before_anything_is_charged(about: Path, table: Path) -> None:
    text = ABOUT.format(k=K)
    start = text.index("class_weights")
    public = (
        text[:start] + '[columns]\nAGE = { bounds = [0, 110] }\nBACK = { codes = ["0", "1"] }\n'
    )
    about.write_text(public)
    with pytest.raises(ConfigError, match="something to release"):
        release_statistics(about, table)


def test_the_command_line_releases_and_describes(
    about: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "statistics", "--data", str(table), "--task", str(about), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "person"
    assert {c["name"] for c in found["constants"]} >= {"bounds of COST", "class weights"}
    assert main(["data", "describe", "--task", str(about), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["open"] == {}
    assert said["released"]["vocabulary of WARD"]["value"] == '["B", "A", "C"]'
    assert "histogram of AGE" in said["statistics"]
    assert main(["ledger", str(default_ledger(about)), "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]["epsilon"]
    assert 13.9 < total <= 14.01
