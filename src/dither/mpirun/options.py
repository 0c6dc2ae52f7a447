"""The options of ``dither mpirun``. Light to load: every verb does."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from dither.errors import ConfigError
from dither.mpirun.calls import ALLOWABLE

Mode = Literal["private", "encrypted", "test"]
Route = Literal["auto", "shm", "mpi"]

MOST_RELEASES = 10**9
_MOST_RANKS = 1 << 14
_RUN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPERATION = re.compile(r"MPIX?_[A-Za-z0-9_]{1,40}")
# MPI's own; the library knows no others by name.
_OPERATIONS = frozenset(
    {"MPI_MAX", "MPI_MIN", "MPI_SUM", "MPI_PROD", "MPI_LAND", "MPI_BAND", "MPI_LOR", "MPI_BOR"}
    | {"MPI_LXOR", "MPI_BXOR", "MPI_MAXLOC", "MPI_MINLOC", "MPI_REPLACE", "MPI_NO_OP"}
    | ALLOWABLE
)
# Options of one value that may begin with a dash, and those whose value may be left out.
_VALUED = frozenset(
    {"-n", "--ranks", "--trust", "--clip", "--delta", "--releases", "--epsilon"}
    | {"--noise-multiplier", "--ledger", "--run", "--pool", "--path", "--timeout"}
    | {"--mpiexec", "--mpi-args", "--report"}
)


@dataclass(frozen=True)
class MpirunConfig:
    """Run an MPI program as it is, with every AllReduce and Reduce private.

    The program and its arguments come after the options, with or without -- before them:
    dither mpirun -n 2 --trust local --clip 1 --epsilon 1 --delta 1e-6 --releases 1000 ./app

    What is private: each rank's contribution to each call, the whole vector, which is clipped to
    --clip, made noisy and charged before it leaves. Other calls that move data pass as they are,
    and the report names them.

    The exit status is the program's; 2 if nothing was started; 3 if the program ended with 0, but
    a rank never reached MPI_Init through dither, so that what it did is not protected.

    Attributes:
        ranks: Number of ranks.
        trust: Who must not learn a rank's contribution. local: the network and all other ranks;
            central: only who sees the results.
        clip: Bound on the L2 norm of one contribution; a longer one is scaled down.
        delta: δ, of all releases together.
        releases: Largest number of calls of each rank. With --epsilon or --noise-multiplier, or
            left out where both are given: it is then as many as --epsilon allows.
        epsilon: Budget ε of all releases of a rank; the noise multiplier follows.
        noise_multiplier: Noise over --clip; ε follows.
        ledger: Folder of the ranks' accounts, rank-R.sqlite. By default the folder mpi-accounts
            of DITHER_HOME. Keep it for as long as the data is used.
        run: Name of the run in the accounts; name an earlier one to go on with what it has left.
        allow_clear: Operations that may pass unprotected, for instance MPI_MAX, and
            MPI_Comm_spawn, whose programs run without dither; they are counted.
        pool: Draws of noise to hold ready; 0 makes noise at the call. Changes speed only.
        warm_pool: Let MPI_Init wait until the pool is full.
        path: auto goes through shared memory; mpi uses MPI's own collectives.
        timeout: Seconds that a call may wait for other ranks in shared memory.
        mpiexec: Launcher of the MPI to use, instead of the one on the PATH.
        mpi_args: Options for mpiexec, as one text.
        json: Write the report as JSON: --json to standard output, --json=FILE into a file.
        report: Write the report for people into this file instead of standard error.
        encrypted: Encrypt sums instead, to compare with. NOT PRIVATE, and charged as ε = ∞.
        insecure_zero_noise: Add no noise, to test a program. NOT PRIVATE, charged as ε = ∞.
        program: The program with its arguments.
    """

    ranks: Annotated[int, tyro.conf.arg(aliases=["-n"])]
    trust: str
    clip: float
    delta: float
    releases: int | None = None
    epsilon: float | None = None
    noise_multiplier: float | None = None
    ledger: Path | None = None
    run: str | None = None
    allow_clear: tuple[str, ...] = ()
    pool: int = 1 << 24
    warm_pool: bool = False
    path: Route = "auto"
    timeout: float = 86400.0
    mpiexec: str | None = None
    mpi_args: str = ""
    json: str | None = None
    report: Path | None = None
    encrypted: bool = False
    insecure_zero_noise: bool = False
    program: Positional[tuple[str, ...]] = ()

    @property
    def mode(self) -> Mode:
        """What the library does with contributions."""
        if self.encrypted:
            return "encrypted"
        return "test" if self.insecure_zero_noise else "private"

    @property
    def mpi_words(self) -> list[str]:
        """The options for mpiexec, one by one.

        Raises:
            ConfigError: A quote is open.
        """
        try:
            return shlex.split(self.mpi_args)
        except ValueError as error:
            raise ConfigError(
                expected="options of mpiexec in --mpi-args",
                got=f"{self.mpi_args!r}: {error}",
                fix="close all quotes",
            ) from error

    def check(self) -> None:
        """Refuse what can be seen as wrong before anything is looked for.

        Raises:
            ConfigError: Names the option, what came and the fix.
        """
        self._check_clear()
        if not self.program:
            raise ConfigError(
                expected="a program after the options",
                got="none",
                fix="name it, for instance: dither mpirun -n 2 ... ./app its arguments",
            )
        self._check_promise()
        _require(1 <= self.ranks <= _MOST_RANKS, f"1 to {_MOST_RANKS} ranks (-n)", self.ranks)
        _require(0 <= self.pool < 1 << 40, "a --pool of 0 to 2^40 draws", self.pool)
        _require(0.0 < self.timeout < 1e9, "a --timeout of 0 to 1e9 seconds", self.timeout)
        if self.encrypted and self.insecure_zero_noise:
            raise ConfigError(
                expected="one of --encrypted and --insecure-zero-noise",
                got="both",
                fix="leave one out; with neither the sums are private",
            )
        if self.run is not None and not _RUN.fullmatch(self.run):
            raise ConfigError(
                expected="a --run of up to 64 letters, digits, dots, dashes and underscores",
                got=repr(self.run),
                fix="choose such a name",
            )
        _ = self.mpi_words

    def _check_clear(self) -> None:
        wrong = [name for name in self.allow_clear if name not in _OPERATIONS]
        if wrong:
            raise ConfigError(
                expected="operations of MPI by their names after --allow-clear",
                got=", ".join(wrong),
                fix=f"choose of {', '.join(sorted(_OPERATIONS))}; the program comes after them",
            )
        if len(set(self.allow_clear)) < len(self.allow_clear):
            raise ConfigError(
                expected="each operation once after --allow-clear",
                got=" ".join(self.allow_clear),
                fix="leave out what is there twice",
            )

    def _check_promise(self) -> None:
        if self.trust not in {"local", "central"}:
            masks = ", which needs keys that ranks agree on among themselves"
            raise ConfigError(
                expected="--trust local or central",
                got=f"{self.trust!r}{masks if self.trust.startswith('distributed') else ''}",
                fix="use --trust local; for masked sums use dither.PrivateComm in Python",
            )
        _require(0.0 < self.clip < math.inf, "a finite --clip above 0", self.clip)
        _require(0.0 < self.delta < 1.0, "a --delta in (0, 1)", self.delta)
        given = (self.releases, self.epsilon, self.noise_multiplier)
        if sum(value is not None for value in given) != 2:
            named = ("--releases", "--epsilon", "--noise-multiplier")
            came = [n for n, value in zip(named, given, strict=True) if value is not None]
            raise ConfigError(
                expected="two of --releases, --epsilon and --noise-multiplier; the third follows",
                got=" and ".join(came) if came else "none: a budget is never guessed",
                fix="give for instance --epsilon 1 --releases 1000",
            )
        for name, value in zip(("epsilon", "noise-multiplier"), given[1:], strict=True):
            _require(value is None or 0.0 < value < math.inf, f"a finite --{name} above 0", value)
        _require(
            self.releases is None or 1 <= self.releases <= MOST_RELEASES,
            f"--releases of 1 to {MOST_RELEASES}",
            self.releases,
        )


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the launcher's own words and the program's, which may look like options too.

    The program begins after ``--``, or at the first word that is neither an option nor its value.
    ``--json`` takes the next word only if that is ``-`` or ends in ``.json``.
    """
    own: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        word = "-n" if word == "-np" else word  # as mpirun's users write it
        if word == "--":
            return own, rest
        if not word.startswith("-") or word == "-":
            return own, [word, *rest]
        if word == "--allow-clear":
            own.append(word)
            while rest and _may_be_operation(rest[0], first=own[-1] == word):
                own.append(rest.pop(0))
        elif word == "--json":
            named = bool(rest) and (rest[0] == "-" or rest[0].endswith(".json"))
            own.append(f"--json={rest.pop(0) if named else '-'}")
        elif word in _VALUED and rest:
            value = rest.pop(0)
            own += [word, value] if word == "-n" else [f"{word}={value}"]
        else:
            own.append(word)
    return own, []


def _may_be_operation(word: str, *, first: bool) -> bool:
    """Whether a word after --allow-clear belongs to it; wrong names do, so that they are named."""
    if first:
        return not word.startswith("-")
    return bool(_OPERATION.fullmatch(word)) or f"MPI_{word.upper()}" in _OPERATIONS


def _require(holds: bool, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(expected=expected, got=repr(value), fix="give a value in that range")
