"""What is known before a start: options, the program, and the command of a rank."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mpirun.harness import Mpi
from tests.mpirun.words import BASE, fails, options

from dither.cli.main import main, parse
from dither.errors import ConfigError, ReduceError
from dither.mpirun.options import MpirunConfig, split
from dither.mpirun.preload import require_loads, require_preloadable
from dither.mpirun.start import find_program, full_command, look


def without(option: str) -> list[str]:
    at = BASE.index(option)
    return [*BASE[:at], *BASE[at + 2 :]]


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


# ---- what is started ------------------------------------------------------------------------


@pytest.fixture
def rank_command(
    mpi: Mpi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """The command of one rank, without mpiexec."""
    for name, value in mpi.environment().items():
        monkeypatch.setenv(name, value)
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
