"""Starts an MPI program with the library before it, and keeps its ranks' accounts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dither.errors import BudgetExhaustedError, ConfigError, LedgerError
from dither.files import home, output_errors
from dither.mpirun.agent import Agent
from dither.mpirun.build import library
from dither.mpirun.options import MpirunConfig
from dither.mpirun.plan_file import PlanFile
from dither.mpirun.preload import require_loads
from dither.mpirun.promise import make_plan
from dither.mpirun.report import Facts
from dither.mpirun.start import Found, full_command
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.reduce.rank_ledger import open_rank_ledger

_FORWARDED = tuple(
    getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")
)
_ENDING = frozenset({signal.SIGINT, signal.SIGTERM})
_PATIENCE = 3  # requests to end, after which nobody is asked any more
_GRACE = 3.0
_LONGEST_FOLDER = 80  # a socket's path has 107 bytes
_PREFIX, _SUFFIX = "dither-mpi-", ".run"
_ACCOUNTS = "mpi-accounts"
_OPTIONS = {
    "records": "-n",
    "trust": "--trust",
    "l2_clip": "--clip",
    "delta": "--delta",
    "steps": "--releases",
    "noise_multiplier": "noise multiplier",
    "mode": "",
    "allow_clear": "--allow-clear",
}
_MODES = {
    "private": "private sums (neither --encrypted nor --insecure-zero-noise)",
    "encrypted": "--encrypted",
    "test": "--insecure-zero-noise",
}
_REASONS = {
    "encrypted": "sums were encrypted, not made private, to compare with",
    "test": "no noise was added, to test a program",
}


def launch(
    options: MpirunConfig, found: Found, told: Callable[[str], None] = lambda _: None
) -> Facts:
    """Run the program to its end.

    Args:
        options: Of the command line.
        found: By `look`.
        told: Is told what takes time before the start, and which ranks are missing.

    Returns:
        What is to be reported; also when the program failed.

    Raises:
        ConfigError: The plan cannot be, or mpiexec cannot be started.
        LedgerError: An account cannot be opened, or has no release left; nothing was started.
        OutputError: A folder cannot be written.
        ReduceError: The library cannot be built.
    """
    plan = make_plan(options)
    preload = library(found.mpi, told)
    require_loads(preload)
    folder = (options.ledger or home() / _ACCOUNTS).absolute()
    run = options.run or uuid.uuid4().hex
    ledgers = open_accounts(folder, run, plan, options)
    before = [ledger.charged(run) for ledger in ledgers]
    with private_folder() as work:
        file = plan_file(options, plan, work / "agent")
        file.write(work / "plan")
        encrypted = options.mode == "encrypted"
        with Agent(
            file.socket, file.token, plan, run, ledgers, unlimited=encrypted, told=told
        ) as agent:
            command = full_command(options, found, preload, work / "plan")
            start = time.monotonic()
            status = run_to_end(command)
            agent.finish(_GRACE)
            seconds = time.monotonic() - start
    return Facts(
        plan=plan,
        mode=options.mode,
        run=run,
        folder=folder,
        ranks=agent.ranks,
        before=before,
        status=status,
        seconds=seconds,
        library=preload,
    )


def plan_file(options: MpirunConfig, plan: Plan, socket: Path) -> PlanFile:
    """Return what the ranks of these options must know, with a new token."""
    return PlanFile(
        plan=plan,
        mode=options.mode,
        socket=socket,
        token=secrets.token_hex(32),
        ranks=options.ranks,
        pool=options.pool,
        warm=options.warm_pool,
        timeout=options.timeout,
        route=options.path,
        allow_clear=options.allow_clear,
    )


def open_accounts(folder: Path, run: str, plan: Plan, options: MpirunConfig) -> list[Ledger]:
    """Open every rank's account and write the promise into it.

    A run's promise is its plan, its mode and what may pass in clear; while any account knows it
    otherwise, nothing is written into any.

    Raises:
        LedgerError: One cannot be opened, or knows the run by another promise.
        BudgetExhaustedError: A rank of this run has no release left.
    """
    ledgers = [open_rank_ledger(folder, rank) for rank in range(options.ranks)]
    detail = {
        "plan": plan.to_json(),
        "records": None,
        "mode": options.mode,
        "allow_clear": sorted(set(options.allow_clear)),
    }
    for rank, ledger in enumerate(ledgers):
        _require_same(ledger, run, detail)
        if ledger.charged(run) >= plan.steps:
            raise BudgetExhaustedError(
                expected=f"releases left in run {run}",
                got=f"all {plan.steps} charged to rank {rank} in {ledger.path}",
                fix="start a new run, which costs more of the ranks' privacy, or stop here",
            )
    for ledger in ledgers:
        ledger.record_plan(run, detail)
        _require_same(ledger, run, detail)  # of two first starts at once, one was first
        if options.mode != "private":
            ledger.record_non_private(run, _REASONS[options.mode], {})
    return ledgers


def _require_same(ledger: Ledger, run: str, detail: dict[str, Any]) -> None:
    """Say by option what this run promised otherwise when it was started."""
    known = [each.detail for each in ledger.entries(run) if each.kind == "plan"]
    if not known:
        return
    earlier, now = _promised(known[0]), _promised(detail)
    differing = [name for name in earlier | now if earlier.get(name) != now.get(name)]
    if not differing:
        return
    named = [name for name in differing if name in _OPTIONS] or differing
    raise LedgerError(
        expected=f"the plan that run {run} was started with: "
        + ", ".join(_shown(name, earlier.get(name)) for name in named),
        got="another plan: " + ", ".join(_shown(name, now.get(name)) for name in named),
        fix="resume with the same options, or start a new run under another --run",
    )


def _promised(detail: dict[str, Any]) -> dict[str, Any]:
    """Return all that must stay the same; `dither.PrivateComm` knows neither of the last two."""
    plain = {"mode": "private", "allow_clear": []}
    return {**detail["plan"], **{name: detail.get(name, plain[name]) for name in plain}}


def _shown(name: str, value: Any) -> str:
    if name == "mode":
        return _MODES.get(value, f"mode {value}")
    if name == "allow_clear":
        return f"--allow-clear {' '.join(value)}" if value else "no --allow-clear"
    return f"{_OPTIONS.get(name, name)} {value}"


def run_to_end(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command, pass signals on to it, and return its exit status (128 + n for a signal).

    It gets a session of its own, so that Ctrl-C reaches it once, through us.

    Raises:
        ConfigError: It cannot be started.
    """
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []
    early: list[int] = []

    def forward(number: int, _: FrameType | None = None) -> None:
        asked.extend([number] if number in _ENDING else [])
        early.extend([] if started else [number])
        for process in started:
            with contextlib.suppress(OSError):
                if len(asked) >= _PATIENCE:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.send_signal(number)

    with _handled(forward):
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own program
                list(command), start_new_session=True, env=environment
            )
        except OSError as error:
            raise ConfigError(
                expected=f"to start {command[0]}",
                got=error.strerror or str(error),
                fix="see that mpiexec can be run, or name another by --mpiexec",
            ) from error
        started.append(process)
        for number in early:
            process.send_signal(number)
        status = process.wait()
    if status != 0:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)  # what a killed mpiexec left behind
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {number: signal.signal(number, handler) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only its owner can enter, gone afterwards.

    Folders that killed launchers left behind are removed first.

    Raises:
        OutputError: It cannot be made.
    """
    root = Path(tempfile.gettempdir())
    if len(os.fsencode(root)) > _LONGEST_FOLDER or len(str(root).split()) != 1:
        root = Path("/tmp")  # noqa: S108 - mkdtemp's name is random and its folder private
    with output_errors(root):
        _sweep(root)
        work = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=root))
    try:
        with (work / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(root: Path) -> None:
    for stale in root.glob(f"{_PREFIX}*{_SUFFIX}"):
        # A live launcher holds its lock; the kernel drops a dead one's.
        try:
            if stale.lstat().st_uid != os.getuid():
                continue
            with (stale / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale, ignore_errors=True)
        except OSError:
            continue
