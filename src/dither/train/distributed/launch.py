"""Starts all ranks of a run on this host, starts them again when one dies, and leaves none behind.

Every rank gets a session of its own, so that Ctrl-C reaches it once, through the launcher, and a
pipe to it: when the launcher dies, however it does, the pipe closes and the ranks end themselves
(`follow_launcher`). Ranks meet through a file in a folder that only their owner can enter, so no
port is taken and nobody else can join.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, final

from dither.errors import ConfigError
from dither.files import output_errors
from dither.train.distributed.place import MEET, RESTARTS

# Exit status of a rank: a named error that starting again would not mend; a lost peer; a stop.
REFUSED: Final = 2
LOST: Final = 75
STOPPED: Final = 130

LIFELINE: Final = "DITHER_LIFELINE"
_FORWARDED = tuple(getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP"))
_PATIENCE = 3  # requests to stop, after which nobody is asked any more
_PREFIX = "dither-ranks-"
_LOCK = "lock"
_FILE = "file://"
_SETTLED = 60.0  # seconds after which a folder that nobody holds was left behind


def _say_failure(rank: int, text: str) -> None:
    print(f"error: rank {rank}: {text}", file=sys.stderr)  # noqa: T201 - the default of `launch`


def launch(
    command: Sequence[str],
    ranks: int,
    *,
    max_restarts: int = 3,
    grace: float = 15.0,
    told: Callable[[str], None] = lambda _: None,
    failed: Callable[[int, str], None] = _say_failure,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Run a command as all ranks of a group on this host, to their end.

    Each finds its place by `find_place`. When one dies (by a signal, by an error without a name, or
    because it lost another), all are ended and started again; the program itself goes on from its
    last checkpoint. A named error, or a request to stop, ends all for good.

    Args:
        command: Program and arguments, the same for all ranks.
        ranks: How many to start.
        max_restarts: How often to start all of them again.
        grace: Seconds that the others have to end by themselves once one has failed.
        told: Is told why ranks are started again, or ended without a word.
        failed: Is told the rank that was the cause, and what it said (`tell_launcher`): once,
            however many ranks failed with it.
        environ: Variables for them; this process's by default.

    Returns:
        0 when all ended well; else the status of the rank whose failure was the first cause: 2 for
        a named error, 130 after a request to stop, 128 + n for signal n.

    Raises:
        ConfigError: The command cannot be started.
        OutputError: No temporary folder can be made.
    """
    with _folder() as folder, _Requests() as requests:
        for attempt in range(max_restarts + 1):
            meet = f"{_FILE}{folder / f'meet-{attempt}'}"
            variables = _variables(os.environ if environ is None else environ, ranks)
            variables |= {MEET: meet, RESTARTS: str(attempt)}
            with _Group(command, ranks, variables) as group:
                requests.pass_on(group.signal)
                statuses = group.wait(grace)
                requests.pass_on(None)
            verdict = judge(statuses, stopping=requests.count > 0)
            said = _said(meet, verdict)
            if said:
                failed(verdict.rank, said)
            if not verdict.again or attempt == max_restarts:
                if not said and verdict.status not in {0, STOPPED}:
                    told(verdict.reason)
                break
            told(
                f"{verdict.reason}; starting all {ranks} ranks again from the last checkpoint "
                f"({attempt + 1} of {max_restarts})"
            )
    return verdict.status


@dataclass(frozen=True)
class Verdict:
    """What the ends of all ranks mean.

    Attributes:
        status: Exit status for the launcher.
        again: Whether starting all of them again may help.
        reason: What happened, in words.
        rank: The one that was the cause; -1 for none.
    """

    status: int
    again: bool
    reason: str
    rank: int = -1


def judge(statuses: Sequence[int], *, stopping: bool = False) -> Verdict:
    """Return what to do when all ranks have ended.

    A rank that was killed, or died of an error without a name, is the cause where another one says
    that it lost its peer; a named error comes before both, for the same start would end the same.

    Args:
        statuses: Of each rank, as `subprocess` gives them: -n for a signal.
        stopping: Whether the launcher was asked to stop.
    """
    if not any(statuses):
        return Verdict(0, again=False, reason="all ranks ended well")

    def verdict(rank: int, *, again: bool) -> Verdict:
        status = statuses[rank]
        said = _signal_name(-status) if status < 0 else f"ended with status {status}"
        code = status if status > 0 else 128 - status
        return Verdict(code, again=again, reason=f"rank {rank} {said}", rank=rank)

    if stopping or STOPPED in statuses:
        return Verdict(STOPPED, again=False, reason="all ranks were asked to stop")
    if REFUSED in statuses:
        return verdict(statuses.index(REFUSED), again=False)
    causes = [rank for rank, status in enumerate(statuses) if status not in {0, LOST}]
    return verdict(causes[0] if causes else statuses.index(LOST), again=True)


def follow_launcher() -> None:
    """End this process when its launcher ends; where none started it so, do nothing.

    Called again it does nothing: the first call has taken the pipe.

    Raises:
        ConfigError: The variable is an earlier start's, and names no pipe here.
    """
    text = os.environ.pop(LIFELINE, None)
    if text is None or MEET not in os.environ:
        return
    handle = int(text) if re.fullmatch(r"\d{1,6}", text) else -1
    if not _is_pipe(handle):
        raise ConfigError(
            expected=f"the number of a launcher's pipe in {LIFELINE}",
            got=repr(text),
            fix=f"unset {LIFELINE} and {MEET}, which an earlier start has left behind",
        )

    def wait() -> None:
        try:
            while os.read(handle, 1):
                pass  # nobody writes: it ends when the other end closes
        except OSError:
            return
        # At once: what was charged is on disk before it leaves, and checkpoints are whole.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="dither-lifeline", daemon=True).start()


def _is_pipe(handle: int) -> bool:
    with contextlib.suppress(OSError):
        return handle > 2 and stat.S_ISFIFO(os.fstat(handle).st_mode)
    return False


def tell_launcher(rank: int, text: str) -> bool:
    """Leave word with the launcher of what ended this rank.

    Returns:
        Whether it will be said; else this rank must say it itself.
    """
    meet = os.environ.get(MEET, "")
    if not meet.startswith(_FILE):
        return False
    try:
        _word(meet, rank).write_text(text, encoding="utf-8")
    except OSError:
        return False
    return True


def _word(meet: str, rank: int) -> Path:
    return Path(f"{meet.removeprefix(_FILE)}.said-{rank}")


def _said(meet: str, verdict: Verdict) -> str:
    """Return what the rank that was the cause has said; empty for nothing."""
    with contextlib.suppress(OSError):
        return _word(meet, verdict.rank).read_text(encoding="utf-8")
    return ""


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(number).name}"
    return f"was killed by signal {number}"


def _variables(environ: Mapping[str, str], ranks: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = str(max(1, (cores or 1) // ranks))
    return {"OMP_NUM_THREADS": threads, **environ}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    above = Path(tempfile.gettempdir())
    _sweep(above)
    with output_errors(above):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # its owner's alone
    try:
        with (folder / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(above: Path) -> None:
    """Remove folders of this user's launchers that were killed: nobody holds their lock."""
    for stale in above.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = stale.lstat()
            settled = time.time() - about.st_mtime > _SETTLED
            if about.st_uid == os.getuid() and stat.S_ISDIR(about.st_mode) and settled:
                with (stale / _LOCK).open("ab") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(stale, ignore_errors=True)


@final
class _Group:
    """The processes of one start."""

    def __init__(self, command: Sequence[str], ranks: int, variables: Mapping[str, str]) -> None:
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        low, self._lifeline = os.pipe()
        reader = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)  # above a rank's own input and outputs
        os.close(low)
        try:
            for rank in range(ranks):
                self._start(command, rank, {**variables, "WORLD_SIZE": str(ranks)}, reader)
        except OSError as error:
            self.__exit__()
            raise ConfigError(
                expected=f"to start {command[0]}",
                got=error.strerror or str(error),
                fix="see that it can be run, and that this user may have so many processes",
            ) from error
        finally:
            os.close(reader)

    def _start(
        self, command: Sequence[str], rank: int, variables: dict[str, str], reader: int
    ) -> None:
        process = subprocess.Popen(  # noqa: S603 - the user's own program
            list(command),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(reader,),
            env={
                **variables,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": variables["WORLD_SIZE"],
                LIFELINE: str(reader),
            },
        )
        self._processes.append(process)

        def watch() -> None:
            process.wait()
            self._ended.put(rank)

        threading.Thread(target=watch, daemon=True).start()

    def signal(self, number: int) -> None:
        """Send a signal to all that still run."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.send_signal(number)

    def wait(self, grace: float) -> list[int]:
        """Return all exit statuses; once one has failed, the others are ended after a while.

        Those that had to be killed so count as having lost the one that failed.
        """
        running, deadline = len(self._processes), None
        late: set[int] = set()
        while running:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                rank = self._ended.get(timeout=rest)
            except queue.Empty:
                late = {rank for rank, p in enumerate(self._processes) if p.poll() is None}
                self.signal(signal.SIGKILL)
                deadline = None
                continue
            running -= 1
            failed = self._processes[rank].returncode not in {0, STOPPED}
            if failed and deadline is None and not late:
                deadline = time.monotonic() + grace
        codes = [process.returncode for process in self._processes]
        return [LOST if rank in late else code for rank, code in enumerate(codes)]

    def __enter__(self) -> _Group:
        return self

    def __exit__(self, *_: object) -> None:
        """End what is left, with all that it started."""
        for process in self._processes:
            if process.returncode == 0:
                continue
            with contextlib.suppress(OSError):  # nobody of its session is left
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        os.close(self._lifeline)


@final
class _Requests:
    """Requests to stop, passed on to the ranks; the third one kills them."""

    def __init__(self) -> None:
        self.count = 0
        self._send: Callable[[int], None] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Requests:
        if threading.current_thread() is threading.main_thread():
            for number in _FORWARDED:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if callable(handler) else signal.SIG_DFL)

    def pass_on(self, send: Callable[[int], None] | None) -> None:
        """Send requests there from now on, those made by now at once."""
        self._send = send
        if send is not None and self.count:
            send(signal.SIGTERM)

    def _ask(self, _: int, __: FrameType | None) -> None:
        self.count += 1
        if self._send is not None:
            self._send(signal.SIGTERM if self.count < _PATIENCE else signal.SIGKILL)
