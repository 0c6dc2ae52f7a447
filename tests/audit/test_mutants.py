"""Privacy mutants: one of each entry is killed in the default suite, all of them in the full one.

The machinery is held too: what does not count as killed must not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.docs.markdown import ROOT

from dither.audit.mutants.catalogue import ALL, find
from dither.audit.mutants.mutant import ENTRIES, CoreMutant, Mutant, Outcome
from dither.audit.mutants.patching import mutated_source
from dither.audit.mutants.plugin import VARIABLE, pytest_configure
from dither.audit.mutants.runner import checkout, choose, run_mutants
from dither.errors import ConfigError

PYTHON = [mutant for mutant in ALL if isinstance(mutant, Mutant)]
CORE = [mutant for mutant in ALL if isinstance(mutant, CoreMutant)]

TRUST = Mutant(
    name="local-noise-is-halved",
    entry=10,
    shipped="Ranks added half of their noise.",
    target="dither.privacy.trust:Trust.rank_share",
    right="return 1.0\n",
    wrong="return 0.5\n",
    killer="tests/privacy/test_trust.py::test_central_and_local_follow_the_table",
)
# What must not count as killed, and what is said of it.
ALIVE = {
    "a test that passes": (replace(TRUST, wrong="return 1.0 + 0.0\n"), "the test passed"),
    "another line": (
        replace(TRUST, killer="tests/privacy/test_trust.py::test_other_names_are_refused"),
        "without coming there",
    ),
    "a type error": (replace(TRUST, wrong='return "1" + 1.0\n'), "broke rather than failed"),
    "a name error": (replace(TRUST, wrong="return nothing_here\n"), "broke rather than failed"),
    "an assertion of our own": (
        replace(TRUST, wrong="assert False\n        return 1.0\n"),
        "broke rather than failed",
    ),
    "out of time": (
        replace(TRUST, wrong="__import__('time').sleep(60)\n            return 1.0\n"),
        "out of time",
    ),
    "a dead process": (
        replace(TRUST, wrong="__import__('os')._exit(1)\n            return 1.0\n"),
        "broke rather than failed",
    ),
    "a test that is not there": (
        replace(TRUST, killer="tests/privacy/test_trust.py::test_nothing"),
        "no test",
    ),
    "a file that is not there": (
        replace(TRUST, killer="tests/privacy/test_nobody.py::test_nothing"),
        "cannot be imported",
    ),
}


def told(outcomes: Iterable[Outcome]) -> list[str]:
    return [f"{o.mutant.name}: {o.why}" for o in outcomes if not o.killed]


@pytest.mark.timeout(900)  # two minutes on an idle core
def test_one_mutant_of_each_entry_is_killed() -> None:
    chosen = choose(ALL, fast=True)
    assert {mutant.entry for mutant in chosen} == set(ENTRIES)
    outcomes = list(run_mutants(chosen, ROOT))
    assert told(outcomes) == []
    assert all(outcome.reached for outcome in outcomes)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_mutant_of_python_code_is_killed() -> None:
    assert told(run_mutants(PYTHON, ROOT)) == []


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_mutant_of_the_core_is_killed() -> None:
    """Here a part of the core's own test program must fail; no build of these ever stays."""
    assert told(run_mutants(CORE, ROOT)) == []


def test_what_only_breaks_or_is_not_reached_is_not_killed() -> None:
    named = {replace(mutant, name=name): said for name, (mutant, said) in ALIVE.items()}
    outcomes = list(run_mutants([TRUST, *named], ROOT, limit=10.0))
    for outcome in outcomes:
        if outcome.mutant is TRUST:
            assert outcome.killed
            assert outcome.reached
        else:
            assert isinstance(outcome.mutant, Mutant)
            assert not outcome.killed, outcome.mutant.name
            assert named[outcome.mutant] in outcome.why, outcome
    assert len(outcomes) == len(ALIVE) + 1


def test_every_entry_has_a_mutant_and_every_mutant_a_name_of_its_own() -> None:
    assert set(ENTRIES) == {mutant.entry for mutant in PYTHON}
    assert {mutant.entry for mutant in CORE} <= {0, *ENTRIES}
    names = [mutant.name for mutant in ALL]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


@pytest.mark.parametrize("mutant", PYTHON, ids=lambda mutant: mutant.name)
def test_every_place_and_every_killer_is_there(mutant: Mutant) -> None:
    spec = importlib.util.find_spec(mutant.target.partition(":")[0])
    assert spec is not None
    source = Path(str(spec.origin)).read_text()
    changed, line = mutated_source(mutant, source)
    compile(changed, mutant.name, "exec")
    assert changed != source
    assert source.splitlines()[: line - 1] == changed.splitlines()[: line - 1]
    file, _, test = mutant.killer.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("mutant", CORE, ids=lambda mutant: mutant.name)
def test_every_place_in_the_core_is_there(mutant: CoreMutant) -> None:
    assert mutant.right in (ROOT / mutant.target).read_text()


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"right": "return 3.0\n"}, "0 times"),
        ({"right": "self."}, "times in"),
        ({"target": "dither.privacy.trust:Trust.rank_part"}, "no function Trust.rank_part"),
    ],
)
def test_a_place_that_moved_is_told(change: dict[str, str], got: str) -> None:
    source = (ROOT / "src/dither/privacy/trust.py").read_text()
    with pytest.raises(ConfigError, match="has moved on") as error:
        mutated_source(replace(TRUST, **change), source)  # type: ignore[arg-type]
    assert got in str(error.value)


def test_mutants_are_chosen_by_name_entry_and_speed() -> None:
    assert choose(ALL, ["ring-against-two"]) == [find("ring-against-two")]
    assert {mutant.entry for mutant in choose(ALL, entry=15)} == {15}
    assert len(choose(ALL, entry=15, fast=True)) == 1
    with pytest.raises(ConfigError, match="nobody"):
        choose(ALL, ["nobody"])
    with pytest.raises(ConfigError, match="a mutant"):
        choose(ALL, entry=99)


def test_they_need_a_checkout(tmp_path: Path) -> None:
    assert checkout(ROOT / "tests" / "audit") == ROOT
    with pytest.raises(ConfigError, match="a checkout of dither, with its tests"):
        checkout(tmp_path)
    (tmp_path / "src" / "dither").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").touch()
    with pytest.raises(ConfigError, match="that dither is imported from"):
        checkout(tmp_path)


def dither(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_the_command_says_what_was_killed_and_by_what(tmp_path: Path) -> None:
    found = tmp_path / "mutants.json"
    done = dither(
        "dither", "audit", "mutants", "local-noise-is-shared", "--json", str(found), COLUMNS="200"
    )
    assert done.returncode == 0, done.stderr
    assert "1 killed, 0 alive" in done.stderr
    (mutant,) = json.loads(found.read_text())["mutants"]
    assert (mutant["name"], mutant["killed"], mutant["by"]) == (
        "local-noise-is-shared",
        True,
        "tests/privacy/test_trust.py::test_central_and_local_follow_the_table",
    )
    assert mutant["seconds"] > 0.0
    elsewhere = dither("dither", "audit", "mutants", "local-noise-is-shared", cwd=tmp_path)
    assert elsewhere.returncode == 2
    assert "with its tests" in elsewhere.stderr


def test_a_mutant_can_be_run_by_hand() -> None:
    killer = TRUST.killer
    command = ("pytest", "-p", "dither.audit.mutants.plugin", "-p", "no:cacheprovider", killer)
    done = dither(*command, DITHER_MUTANT="local-noise-is-shared")
    assert done.returncode == 1, done.stdout
    assert "AssertionError" in done.stdout
    assert "local-noise-is-shared: the changed line ran" in done.stdout
    assert dither(*command, DITHER_MUTANT="").returncode == 0


def test_a_name_of_no_mutant_is_said(pytestconfig: pytest.Config) -> None:
    """Not a traceback: that would read as a test that failed."""
    for name, said in (("no-such", "expected the name of a mutant"), (CORE[0].name, "the C core")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, name)
            with pytest.raises(pytest.UsageError, match=said):
                pytest_configure(pytestconfig)


def test_the_page_lists_them_all() -> None:
    """``docs/concepts/mutants.md`` has one line a mutant, in the order of the entries."""
    text = (ROOT / "docs/concepts/mutants.md").read_text()
    lines = [line for line in text.splitlines() if re.match(r"\| (\d+|-) \|", line)]
    wanted = [
        f"| {one.entry or '-'} | `{one.name}` | {one.shipped} | `{one.by.removeprefix('tests/')}` |"
        for one in sorted(ALL, key=lambda m: m.entry or 99)
    ]
    assert lines == wanted
