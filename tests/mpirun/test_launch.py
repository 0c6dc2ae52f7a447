"""The launcher as a user meets it: options, early errors, signals, status, what is left."""

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

from dither.cli.main import main, parse
from dither.errors import BudgetExhaustedError, ConfigError, LedgerError, ReduceError
from dither.mpirun import launch as launching
from dither.mpirun.launch import open_accounts, private_folder, run_to_end
from dither.mpirun.options import MpirunConfig, split
from dither.mpirun.preload import require_loads, require_preloadable
from dither.mpirun.promise import make_plan
from dither.mpirun.start import find_program, full_command, look
from dither.privacy.ledger import Ledger

BASE = ["-n", "2", "--trust", "local", "--clip", "1", "--delta", "1e-6", "--releases", "10"]
BASE += ["--noise-multiplier", "10"]


def without(option: str) -> list[str]:
    at = BASE.index(option)
    return [*BASE[:at], *BASE[at + 2 :]]


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run dither mpirun, which must fail by one named error before anything is started."""
    assert main(["mpirun", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    message = " ".join(shown.err.split())
    assert message.count("error:") == 1
    assert re.search(r"expected .*, got .*\. To mend it: .*\.", message)
    return message


# ---- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own", "program"),
    [
        ("-n 2 ./app -x 1", ["-n", "2"], ["./app", "-x", "1"]),
        ("-n 2 -- -odd name", ["-n", "2"], ["-odd", "name"]),
        ("-n 2 python -m pytest --json", ["-n", "2"], ["python", "-m", "pytest", "--json"]),
        ("--allow-clear MPI_MAX MPI_MIN ./a MPI_SUM", ["--allow-clear", "MPI_MAX", "MPI_MIN"],
         ["./a", "MPI_SUM"]),
        ("--allow-clear MPI_MAXX ./a", ["--allow-clear", "MPI_MAXX"], ["./a"]),
        ("--allow-clear max min ./a", ["--allow-clear", "max", "min"], ["./a"]),
        ("--allow-clear MPI_MAX -- max", ["--allow-clear", "MPI_MAX"], ["max"]),
        ("--allow-clear -n 2 ./a", ["--allow-clear", "-n", "2"], ["./a"]),
        ("--json ./a", ["--json=-"], ["./a"]),
        ("--json out.json ./a", ["--json=out.json"], ["./a"]),
        ("--json=x ./a", ["--json=x"], ["./a"]),
        ("--json - ./a", ["--json=-"], ["./a"]),
        ("--mpi-args --oversubscribe ./a", ["--mpi-args=--oversubscribe"], ["./a"]),
        ("--clip -1 ./a", ["--clip=-1"], ["./a"]),
        ("--warm-pool ./a -- b", ["--warm-pool"], ["./a", "--", "b"]),
        ("--help", ["--help"], []),
        ("-np 2 ./app -np 3", ["-n", "2"], ["./app", "-np", "3"]),
        ("-n", ["-n"], []),
        ("", [], []),
    ],
)  # fmt: skip
def test_the_program_is_told_from_the_options(
    words: str, own: list[str], program: list[str]
) -> None:
    assert split(words.split()) == (own, program)


def test_the_issues_example_is_read() -> None:
    words = "mpirun -n 2 --trust local --clip 1 --epsilon 1 --delta 1e-6 --releases 1000 "
    options = parse((words + "--mpi-args '-x' ./app --epsilon 3").split())
    assert isinstance(options, MpirunConfig)
    assert (options.ranks, options.epsilon, options.releases) == (2, 1.0, 1000)
    assert options.program == ("./app", "--epsilon", "3")
    assert options.mode == "private"
    options.check()


@pytest.mark.parametrize("option", ["-n", "--trust", "--clip", "--delta"])
def test_what_is_required_is_never_guessed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["mpirun", *without(option), "true"])
    assert stop.value.code == 2
    assert option.removeprefix("-n").strip("-") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*without("--releases"), "true"], "two of --releases"),
        ([*without("--noise-multiplier"), "true"], "two of --releases"),
        ([*BASE, "--epsilon", "1", "true"], "two of --releases"),
        ([*BASE], "a program after the options"),
        ([*BASE, "--trust", "distributed(1)", "true"], "keys that ranks agree on"),
        ([*BASE, "--trust", "nobody", "true"], "--trust local or central"),
        ([*BASE, "-n", "0", "true"], "ranks"),
        ([*BASE, "--clip", "0", "true"], "--clip above 0"),
        ([*BASE, "--clip", "-1", "true"], "--clip above 0"),
        ([*BASE, "--clip", "inf", "true"], "--clip above 0"),
        ([*BASE, "--clip", "nan", "true"], "--clip above 0"),
        ([*BASE, "--clip", "1e-30", "true"], "l2_clip"),
        ([*BASE, "--delta", "0", "true"], "--delta in"),
        ([*BASE, "--releases", "0", "true"], "--releases"),
        ([*BASE, "--noise-multiplier", "0", "true"], "noise-multiplier above 0"),
        ([*BASE, "--noise-multiplier", "1e-9", "true"], "noise multiplier in"),
        ([*without("--noise-multiplier"), "--epsilon", "-3", "true"], "--epsilon above 0"),
        ([*BASE, "--pool", "-1", "true"], "--pool"),
        ([*BASE, "--timeout", "0", "true"], "--timeout"),
        ([*BASE, "--allow-clear", "max", "true"], "got max. To mend it: choose of MPI_BAND"),
        ([*BASE, "--allow-clear", "MPI_MAX", "MPI_MAXX", "true"], "got MPI_MAXX."),
        ([*BASE, "--allow-clear", "true"], "after --allow-clear, got true"),
        ([*BASE, "--allow-clear", "MPI_MAX", "MPI_MAX", "true"], "each operation once"),
        ([*BASE, "--run", "a/b", "true"], "--run"),
        ([*BASE, "--encrypted", "--insecure-zero-noise", "true"], "one of --encrypted"),
        ([*BASE, "--mpi-args", "'open", "true"], "--mpi-args"),
        ([*BASE, "--mpiexec", "/nowhere/mpiexec", "true"], "/nowhere/mpiexec"),
        ([*BASE, "./no-such-program"], "./no-such-program"),
        ([*BASE, "--json=/nowhere/deep/x.json", "true"], "/nowhere"),
        ([*BASE, "--report", "/nowhere/deep/x", "true"], "/nowhere"),
    ],
)
def test_bad_options_are_named_before_anything_starts(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accounts = tmp_path / "accounts"
    report = tmp_path / "report.json"
    message = fails(["--ledger", str(accounts), "--json", str(report), *words], capsys)
    assert said in message
    assert not accounts.exists()
    assert not report.exists()


_LOADED = """
import sys
from dither.cli.main import main
assert main(["mpirun", *sys.argv[1:]]) == 2
print([name for name in ("dither.privacy.plan", "dp_accounting", "scipy", "torch")
       if name in sys.modules])
"""


@pytest.mark.parametrize(
    "words",
    [
        [*BASE, "--clip", "0", "true"],
        [*BASE, "./no-such-program"],
        [*BASE, "--mpiexec", "/nowhere/mpiexec", "true"],
    ],
)
def test_mistakes_answer_before_the_accountant_is_loaded(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# ---- the program ----------------------------------------------------------------------------


def test_programs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_program("sh") == shutil.which("sh")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match="not executable"):
        find_program(str(script))
    script.chmod(0o755)
    assert find_program(str(script)) == str(script)
    monkeypatch.chdir(tmp_path)
    assert find_program("./script") == "./script"
    with pytest.raises(ConfigError, match="none of that name"):
        find_program("script-not-there")


def test_programs_that_no_library_goes_before_are_refused(tmp_path: Path) -> None:
    source, still = tmp_path / "still.c", tmp_path / "still"
    source.write_text("int main(void) { return 0; }\n")
    compiled = subprocess.run(
        ["cc", "-static", source, "-o", still], capture_output=True, check=False, timeout=60
    )
    if compiled.returncode == 0:
        with pytest.raises(ConfigError, match="statically"):
            require_preloadable(still)
    own = tmp_path / "own"
    shutil.copy(Path("/bin/sh").resolve(), own)
    require_preloadable(own)
    own.chmod(0o4755)
    with pytest.raises(ConfigError, match="set-user-ID"):
        require_preloadable(own)
    own.chmod(0o755)
    foreign = bytearray(own.read_bytes())
    foreign[18:20] = b"\x15\x00"  # EM_PPC64
    own.write_bytes(foreign)
    with pytest.raises(ConfigError, match="another one"):
        require_preloadable(own)
    own.write_bytes(b"#!/bin/sh\n")
    require_preloadable(own)


def test_a_library_that_does_not_load_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(b"not a library")
    with pytest.raises(ReduceError, match=r"library\.so"):
        require_loads(tmp_path / "library.so")
    with pytest.raises(ReduceError):
        require_loads(tmp_path / "absent.so")


# ---- accounts -------------------------------------------------------------------------------


def options(**changes: Any) -> MpirunConfig:
    values: dict[str, Any] = {
        "ranks": 2,
        "trust": "local",
        "clip": 1.0,
        "delta": 1e-6,
        "releases": 10,
        "noise_multiplier": 10.0,
        "program": ("true",),
    }
    return MpirunConfig(**{**values, **changes})


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


# ---- what is started ------------------------------------------------------------------------


@pytest.fixture
def rank_command(mpich: None, tmp_path: Path) -> Callable[..., list[str]]:
    """The command of one rank, without mpiexec."""
    (tmp_path / "library.so").touch()
    (tmp_path / "plan").touch()

    def command(*program: str) -> list[str]:
        chosen = options(program=program)
        found = look(chosen)
        words = full_command(chosen, found, tmp_path / "library.so", tmp_path / "plan")
        assert words[:3] == [str(found.mpi.launcher), "-n", "2"]
        return words[3:]

    return command


@pytest.mark.parametrize("shells", ["bash", "sh"])
@pytest.mark.parametrize("missing", ["library.so", "plan"])
def test_no_rank_starts_where_library_or_plan_cannot_be_read(
    shells: str,
    missing: str,
    rank_command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shells == "sh":
        _hide_bash(monkeypatch)
    command = rank_command("touch", str(tmp_path / "ran"))
    assert ("bash" in Path(command[0]).name) == (shells == "bash")
    (tmp_path / missing).rename(tmp_path / "away")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "no rank is started" in done.stderr
    assert str(tmp_path / missing) in done.stderr
    assert not (tmp_path / "ran").exists()


def _hide_bash(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **to: None if name == "bash" else real(name, **to)
    )


@pytest.mark.parametrize("shells", ["bash", "sh"])
def test_the_check_leaves_words_and_environment_as_they_are(
    shells: str,
    rank_command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shells == "sh":
        _hide_bash(monkeypatch)
    script = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    words = ["a b", "", "$HOME", "-x", "line\nline", "'"]
    (tmp_path / "startup").write_text("echo not wanted\n")
    more = {"BASH_ENV": str(tmp_path / "startup"), "ENV": str(tmp_path / "startup"), "f": "x"}
    more |= {"BASH_FUNC_module%%": "() { :; }", "a.b": "1"} if shells == "bash" else {}
    done = subprocess.run(
        rank_command(sys.executable, "-c", script, *words),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, **more},
    )
    got, environment = json.loads(done.stdout)
    assert got == words
    assert {name: environment.get(name) for name in more} == more
    assert environment["LD_PRELOAD"].split(":")[0] == str(tmp_path / "library.so")
    assert environment["DITHER_MPI_PLAN"] == str(tmp_path / "plan")


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


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1"])
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
    words = [*BASE, "--ledger", tmp_path / "a", "--pool", "0"]
    kept = [*words, "--report", tmp_path / "text", "--json", tmp_path / "r.json"]
    done = dither(*kept, "env", "-u", "LD_PRELOAD", app, "1")
    assert done.returncode == 3, done.stderr
    assert "ranks 0, 1 never reached MPI_Init" in done.stderr
    assert "ends with 3, though the program ended with 0" in done.stderr
    assert "NOTHING OF IT WAS PROTECTED" in (tmp_path / "text").read_text()
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["exit_status"], found["launcher_status"]) == (0, 3)


@pytest.mark.usefixtures("mpich")
def test_what_is_preloaded_already_stays(app: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    (tmp_path / "other.c").write_text("int dither_test_other;\n")
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "other.c", "-o", other], check=True)
    done = dither(*BASE, "--ledger", tmp_path / "a", "--pool", "0", app, "1", LD_PRELOAD=str(other))
    assert done.returncode == 0, done.stderr
    assert f"libdither_mpi.so:{other}" in done.stdout


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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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


@pytest.mark.usefixtures("mpich")
def test_a_killed_rank_ends_the_launch(app: Path, tmp_path: Path) -> None:
    process, rank = running(app, tmp_path)
    os.kill(rank, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in {0, 2}
    assert "rank 0 did not end well" in err
    assert not list(short_folder(tmp_path).glob("dither-mpi-*"))
    assert Ledger.open(tmp_path / "a" / "rank-0.sqlite").charged("r") >= 2


@pytest.mark.usefixtures("mpich")
def test_the_number_of_ranks_is_the_plans(app: Path, tmp_path: Path) -> None:
    """Options of mpiexec that start another number are noticed by the agent."""
    words = [*BASE[2:], "-n", "3", "--mpi-args", "-n 1", "--pool", "0"]
    done = dither(*words, "--ledger", tmp_path / "a", app, "1")
    if done.returncode == 0:
        pytest.skip("this mpiexec goes by the first -n")
    assert done.returncode != 0
    assert not Ledger.open(tmp_path / "a" / "rank-0.sqlite").charged("r")
