"""The launcher as a user meets it: accounts, signals, status, what is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.mpirun.harness import Mpi, Programs
from tests.mpirun.words import BASE, fails, options

from dither.errors import BudgetExhaustedError, ConfigError, LedgerError
from dither.mpirun import launch as launching
from dither.mpirun.launch import open_accounts, private_folder, run_to_end
from dither.mpirun.promise import make_plan
from dither.privacy.ledger import Ledger

# ---- accounts -------------------------------------------------------------------------------


def test_the_promise_is_written_down_first(tmp_path: Path) -> None:
    plan = make_plan(options())
    ledgers = open_accounts(tmp_path, "a", plan, options())
    assert [ledger.path.name for ledger in ledgers] == ["rank-0.sqlite", "rank-1.sqlite"]
    assert [entry.kind for entry in ledgers[0].entries("a")] == ["plan"]
    assert ledgers[0].epsilon(1e-6) == 0.0
    again = open_accounts(tmp_path, "a", plan, options())
    assert len(again[0].entries("a")) == 1


def test_another_promise_for_the_same_run_is_refused(tmp_path: Path) -> None:
    open_accounts(tmp_path, "a", make_plan(options()), options())
    other = options(noise_multiplier=9.0)
    with pytest.raises(LedgerError, match=r"multiplier 10\.0, got another plan: noise .* 9\.0"):
        open_accounts(tmp_path, "a", make_plan(other), other)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({}, {"insecure_zero_noise": True}, "private sums.*another plan: --insecure-zero-noise"),
        ({}, {"encrypted": True}, "private sums.*another plan: --encrypted"),
        ({"encrypted": True}, {}, "with: --encrypted, got another plan: private sums"),
        ({"encrypted": True}, {"insecure_zero_noise": True}, "--encrypted, got another plan: --in"),
        ({}, {"allow_clear": ("MPI_MAX",)}, "no --allow-clear, got .*: --allow-clear MPI_MAX"),
        ({"allow_clear": ("MPI_MAX", "MPI_MIN")}, {"allow_clear": ("MPI_MAX",)}, "MPI_MAX MPI_MIN"),
    ],
)
def test_another_mode_of_the_same_run_is_refused_and_leaves_no_entry(
    first: dict[str, Any], second: dict[str, Any], said: str, tmp_path: Path
) -> None:
    before, after = options(**first), options(**second)
    ledgers = open_accounts(tmp_path, "a", make_plan(before), before)
    written = [ledger.head() for ledger in ledgers]
    with pytest.raises(LedgerError, match=said):
        open_accounts(tmp_path, "a", make_plan(after), after)
    assert [ledger.head() for ledger in ledgers] == written
    open_accounts(tmp_path, "b", make_plan(after), after)


def test_no_account_is_written_while_one_knows_the_run_otherwise(tmp_path: Path) -> None:
    chosen, other = options(), options(insecure_zero_noise=True)
    open_accounts(tmp_path, "a", make_plan(chosen), chosen)
    (tmp_path / "rank-0.sqlite").unlink()
    with pytest.raises(LedgerError, match="another plan"):
        open_accounts(tmp_path, "a", make_plan(other), other)
    assert Ledger.open(tmp_path / "rank-0.sqlite").entries() == []


def test_two_first_starts_at_once_cannot_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other start writes its plan between our look and our own entry."""
    chosen, other = options(), options(insecure_zero_noise=True)
    real = Ledger.record_plan

    def late(self: Ledger, run: str, detail: dict[str, Any]) -> None:
        monkeypatch.setattr(Ledger, "record_plan", real)
        open_accounts(tmp_path, "a", make_plan(chosen), chosen)
        real(self, run, detail)

    monkeypatch.setattr(Ledger, "record_plan", late)
    with pytest.raises(LedgerError, match="another plan: --insecure-zero-noise"):
        open_accounts(tmp_path, "a", make_plan(other), other)
    assert Ledger.open(tmp_path / "rank-0.sqlite").epsilon(1e-6, "a") == 0.0


def test_the_order_of_operations_that_may_pass_is_no_other_plan(tmp_path: Path) -> None:
    for clear in (("MPI_MAX", "MPI_MIN"), ("MPI_MIN", "MPI_MAX")):
        chosen = options(allow_clear=clear)
        open_accounts(tmp_path, "a", make_plan(chosen), chosen)


def test_an_exhausted_run_is_refused_before_the_start(tmp_path: Path) -> None:
    plan = make_plan(options())
    second = open_accounts(tmp_path, "a", plan, options())[1]
    second.charge("a", plan.event, 10, limit=10)
    with pytest.raises(BudgetExhaustedError, match="rank 1"):
        open_accounts(tmp_path, "a", plan, options())
    open_accounts(tmp_path, "b", plan, options())


@pytest.mark.parametrize("how", ["encrypted", "insecure_zero_noise"])
def test_what_is_not_private_is_written_down_as_such(how: str, tmp_path: Path) -> None:
    chosen = options(**{how: True})
    ledgers = open_accounts(tmp_path, "a", make_plan(chosen), chosen)
    assert [ledger.epsilon(1e-6, "a") for ledger in ledgers] == [float("inf")] * 2


def test_accounts_that_cannot_be_written_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mpich: None
) -> None:
    (tmp_path / "file").write_text("")
    assert "accounts" in fails([*BASE, "--ledger", str(tmp_path / "file"), "true"], capsys)


# ---- processes ------------------------------------------------------------------------------


def test_status_and_signals_of_a_command(tmp_path: Path) -> None:
    assert run_to_end(["sh", "-c", "exit 7"]) == 7
    assert run_to_end(["sh", "-c", "kill -9 $$"]) == 137
    with pytest.raises(ConfigError, match="/nowhere"):
        run_to_end(["/nowhere/mpiexec"])


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in launching._FORWARDED]
    run_to_end(["true"])
    assert [signal.getsignal(number) for number in launching._FORWARDED] == before


_RUNNER = """
import sys
from dither.mpirun.launch import run_to_end
sys.exit(run_to_end(["sh", "-c", sys.argv[1]]))
"""


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a shell under `run_to_end`, and wait until it says that it is ready."""
    with contextlib.ExitStack() as opened:

        def begin(script: str) -> subprocess.Popen[str]:
            process = opened.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _RUNNER, script], stdout=subprocess.PIPE, text=True
                )
            )
            opened.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield begin


@pytest.mark.parametrize(
    "name",
    ["TERM", *(pytest.param(name, marks=pytest.mark.full) for name in ("INT", "HUP", "USR1"))],
)
def test_signals_are_passed_on(name: str, start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start(f"trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.02; done")
    process.send_signal(getattr(signal, f"SIG{name}"))
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("got\n", 9)


def test_who_does_not_listen_is_killed_at_the_third_request(
    start: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = start("trap '' INT; echo ready; while :; do sleep 0.02; done")
    for _ in range(3):
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 137


def test_a_signal_that_comes_during_the_start_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen

    def signalled(*words: Any, **named: Any) -> Any:
        process = real(*words, **named)
        signal.raise_signal(signal.SIGUSR1)
        return process

    monkeypatch.setattr(subprocess, "Popen", signalled)
    assert run_to_end(["sleep", "60"]) == 128 + signal.SIGUSR1


def test_the_folder_is_private_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder() as work:
        assert work.parent == tmp_path
        assert work.stat().st_mode & 0o777 == 0o700
        (work / "agent").touch()
        with private_folder() as other:  # does not sweep a live one
            assert other != work
        assert (work / "agent").exists()
    with pytest.raises(KeyError), private_folder():
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_launchers_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, others = tmp_path / "dither-mpi-x.run", tmp_path / "dither-mpi-y"
    for folder in (stale, others):
        folder.mkdir()
        (folder / "lock").touch()
    with private_folder():
        assert not stale.exists()
        assert others.exists()


@pytest.mark.parametrize("name", ["x" * 90, "with space"])
def test_a_folder_that_a_socket_or_plan_cannot_name_is_not_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / name
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with private_folder() as work:
        assert len(str(work / "agent")) < 108
        assert " " not in str(work)


# ---- whole launches -------------------------------------------------------------------------


@pytest.fixture
def mpich(mpi: Mpi, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process sees one MPI and a home that keeps the library."""
    for name, value in mpi.environment(DITHER_HOME=str(programs.home)).items():
        monkeypatch.setenv(name, value)


APP = """
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
    double values[4] = {1, 2, 3, 4}, out[4];
    int rank, calls = atoi(words[1]);
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int i = 0; i < calls; i++)
        MPI_Allreduce(values, out, 4, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("pid %d preload %s\\n", (int)getpid(), getenv("LD_PRELOAD"));
    fflush(stdout);
    if (count > 2 && !strcmp(words[2], "sleep")) sleep(600);
    MPI_Finalize();
    return count > 2 ? atoi(words[2]) : 0;
}
"""


@pytest.fixture
def app(mpi: Mpi, programs: Programs) -> Path:
    executable = programs.built / f"launch-app.{mpi.name}"
    if not executable.exists():
        source = programs.work / "app.c"
        source.write_text(APP)
        part = programs.work / "app"
        subprocess.run([mpi.tool("mpicc"), source, "-o", part], check=True, timeout=120)
        shutil.move(part, executable)
    return executable


def dither(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dither", "mpirun", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        env={**os.environ, **more},
    )


@pytest.mark.usefixtures("mpich")
def test_a_program_runs_pays_and_goes_on(app: Path, tmp_path: Path) -> None:
    accounts = tmp_path / "accounts"
    words = [*BASE, "--ledger", str(accounts), "--run", "one", "--pool", "0"]
    out = tmp_path / "report.json"
    done = dither(*words, "--json", out, "--report", tmp_path / "text", app, "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(out.read_text())
    assert [each["ended"] for each in found["ranks"]] == ["well", "well"]
    assert [each["charged"] for each in found["ranks"]] == [3, 3]
    assert found["calls"]["MPI_Allreduce"]["protected"] == 6
    assert "3 a rank, 7 of 10 left" in (tmp_path / "text").read_text()
    assert "releases charged" not in done.stderr
    again = dither(*words, "--json", "-", app, "4", "5")
    assert again.returncode == 5, again.stderr
    second = json.loads(again.stdout.split("\n", 1)[1])
    assert [each["charged_before"] for each in second["ranks"]] == [3, 3]
    assert Ledger.open(accounts / "rank-1.sqlite").charged("one") == 7
    assert "7 of 10" not in again.stderr
    assert "4 a rank, 3 of 10 left" in again.stderr
    spent = dither(*words, app, "4")
    assert spent.returncode != 0
    assert "refused" in spent.stderr
    # Aborted ranks give nothing back, so now nothing is left, and that is said before the start.
    last = dither(*words, app, "1")
    assert last.returncode == 2
    assert "releases left in run one" in " ".join(last.stderr.split())


@pytest.mark.full
@pytest.mark.usefixtures("mpich")
def test_a_named_run_goes_on_in_its_own_mode_only(app: Path, tmp_path: Path) -> None:
    words = [*BASE, "--ledger", str(tmp_path / "a"), "--run", "r", "--pool", "0"]
    assert dither(*words, app, "1").returncode == 0
    other = dither(*words, "--insecure-zero-noise", app, "1")
    assert other.returncode == 2
    assert "another plan: --insecure-zero-noise" in " ".join(other.stderr.split())
    assert other.stdout == ""
    ledger = Ledger.open(tmp_path / "a" / "rank-0.sqlite")
    assert "non_private" not in {entry.kind for entry in ledger.entries()}
    assert ledger.charged("r") == 1


@pytest.mark.usefixtures("mpich")
def test_ranks_that_ran_bare_are_no_success(app: Path, tmp_path: Path) -> None:
    words = [*BASE, "--ledger", str(tmp_path / "a"), "--pool", "0"]
    kept: list[str | Path] = [*words, "--report", tmp_path / "text", "--json", tmp_path / "r.json"]
    done = dither(*kept, "env", "-u", "LD_PRELOAD", app, "1")
    assert done.returncode == 3, done.stderr
    assert "ranks 0, 1 never reached MPI_Init" in done.stderr
    assert "ends with 3, though the program ended with 0" in done.stderr
    assert "NOTHING OF IT WAS PROTECTED" in (tmp_path / "text").read_text()
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["exit_status"], found["launcher_status"]) == (0, 3)


@pytest.mark.full
@pytest.mark.usefixtures("mpich")
def test_what_is_preloaded_already_stays(app: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    (tmp_path / "other.c").write_text("int dither_test_other;\n")
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "other.c", "-o", other], check=True)
    done = dither(*BASE, "--ledger", tmp_path / "a", "--pool", "0", app, "1", LD_PRELOAD=str(other))
    assert done.returncode == 0, done.stderr
    assert f"libdither_mpi.so:{other}" in done.stdout


@pytest.mark.full
@pytest.mark.usefixtures("mpich")
def test_a_program_that_is_not_mpi_passes_and_is_named(tmp_path: Path) -> None:
    script = tmp_path / "a=b"
    script.write_text('#!/bin/sh\necho "$1"; exit 3\n')
    script.chmod(0o755)
    done = dither(*BASE, "--ledger", tmp_path / "a", script, "here")
    assert done.returncode == 3
    assert set(done.stdout.split()) == {"here"}  # Open MPI ends the others at once
    assert "ranks 0, 1 never reached MPI_Init" in done.stderr


def running(app: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a program that sleeps after 2 calls; return the launcher and rank 0's process."""
    words = [*BASE, "--ledger", str(tmp_path / "a"), "--run", "r", "--pool", "0"]
    words += ["--json", str(tmp_path / "r.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "dither", "mpirun", *words, str(app), "2", "sleep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(short_folder(tmp_path))},
    )
    assert process.stdout is not None
    found = re.match(r"pid (\d+)", process.stdout.readline())
    assert found
    return process, int(found[1])


def short_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "t"
    folder.mkdir(exist_ok=True)
    return folder


def gone(pid: int) -> Callable[[], bool]:
    return lambda: (
        not Path(f"/proc/{pid}").exists()
        or "Z" in (Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:1])
    )


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("mpich")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)]
)
def test_a_launcher_that_is_asked_to_end_ends_its_ranks(
    number: signal.Signals, app: Path, tmp_path: Path
) -> None:
    process, rank = running(app, tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(gone(rank))
    assert not list(short_folder(tmp_path).glob("dither-mpi-*"))
    assert "did not end well" in err
    found = json.loads((tmp_path / "r.json").read_text())
    assert {each["ended"] for each in found["ranks"]} == {"lost"}
    charged = Ledger.open(tmp_path / "a" / "rank-0.sqlite").charged("r")
    assert 2 <= charged <= 10
    assert found["ranks"][0]["charged"] == charged


@pytest.mark.full
@pytest.mark.usefixtures("mpich")
def test_a_killed_rank_ends_the_launch(app: Path, tmp_path: Path) -> None:
    process, rank = running(app, tmp_path)
    os.kill(rank, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in {0, 2}
    assert "rank 0 did not end well" in err
    assert not list(short_folder(tmp_path).glob("dither-mpi-*"))
    assert Ledger.open(tmp_path / "a" / "rank-0.sqlite").charged("r") >= 2


@pytest.mark.full
@pytest.mark.usefixtures("mpich")
def test_the_number_of_ranks_is_the_plans(app: Path, tmp_path: Path) -> None:
    """Options of mpiexec that start another number are noticed by the agent."""
    words = [*BASE[2:], "-n", "3", "--mpi-args", "-n 1", "--pool", "0"]
    done = dither(*words, "--ledger", tmp_path / "a", app, "1")
    if done.returncode == 0:
        pytest.skip("this mpiexec goes by the first -n")
    assert done.returncode != 0
    assert not Ledger.open(tmp_path / "a" / "rank-0.sqlite").charged("r")
