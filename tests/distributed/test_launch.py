"""The launcher: who is started, with what, what their ends mean, and that nobody stays behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dither.errors import ConfigError
from dither.train.distributed.launch import (
    LOST,
    REFUSED,
    STOPPED,
    follow_launcher,
    judge,
    launch,
    tell_launcher,
)
from dither.train.distributed.place import find_place

ROOT = Path(__file__).resolve().parents[2]


def script(folder: Path, text: str) -> list[str]:
    """A rank that needs no PyTorch: it knows its rank, its start and the folder."""
    path = folder / "rank.py"
    head = (
        "import os, signal, sys, time, pathlib\n"
        "rank, start = int(os.environ['RANK']), int(os.environ['DITHER_RESTARTS'])\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
    )
    path.write_text(head + text)
    return [sys.executable, "-S", str(path)]


def wait_for(ready: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.02)
    return ready()


def alive(pid: int) -> bool:
    """Whether a process runs: one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def test_every_rank_learns_its_place(tmp_path: Path) -> None:
    command = script(
        tmp_path, "import json; (folder / f'{rank}.json').write_text(json.dumps(dict(os.environ)))"
    )
    assert launch(command, 3) == 0
    places = [find_place(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in range(3)]
    assert [place.rank for place in places] == [0, 1, 2]
    assert {(p.world_size, p.local_size, p.launcher, p.restarts) for p in places} == {
        (3, 3, "dither", 0)
    }
    assert len({place.meet for place in places}) == 1
    meeting = Path(places[0].meet.removeprefix("file://"))
    assert not meeting.parent.exists()  # nothing of it stays


def test_cores_are_shared_out_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    command = script(tmp_path, "(folder / f'{rank}').write_text(os.environ['OMP_NUM_THREADS'])")
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    assert launch(command, 2, environ=environ) == 0
    cores = len(os.sched_getaffinity(0))
    assert (tmp_path / "1").read_text() == str(max(1, cores // 2))
    assert launch(command, 2, environ={**environ, "OMP_NUM_THREADS": "7"}) == 0
    assert (tmp_path / "1").read_text() == "7"


@pytest.mark.parametrize(
    ("statuses", "status", "again"),
    [
        ([0, 0], 0, False),
        ([LOST, -9], 137, True),  # the killed one is the cause
        ([LOST, 1], 1, True),
        ([LOST, LOST], LOST, True),  # a link, perhaps
        ([REFUSED, LOST], REFUSED, False),
        ([-11, REFUSED], REFUSED, False),
        ([STOPPED, STOPPED], STOPPED, False),
        ([STOPPED, -9], STOPPED, False),
        ([0, -15], 143, True),
    ],
)
def test_what_ends_mean(statuses: list[int], status: int, again: bool) -> None:
    verdict = judge(statuses)
    assert (verdict.status, verdict.again) == (status, again)


def test_the_cause_is_named() -> None:
    assert judge([LOST, -9]).reason == "rank 1 was killed by SIGKILL"
    assert judge([0, 3]).reason == "rank 1 ended with status 3"


def test_a_killed_rank_starts_all_again(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        "(folder / f'{rank}-{start}').touch()\n"
        "if rank == 1 and start < 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if start < 2: time.sleep(60)\n",  # the other is ended
    )
    told: list[str] = []
    assert launch(command, 2, grace=0.2, told=told.append) == 0
    assert len(list(tmp_path.glob("?-?"))) == 6
    assert ["rank 1 was killed by SIGKILL" in text for text in told] == [True, True]
    assert "(2 of 3)" in told[1]


def test_starting_again_has_an_end(tmp_path: Path) -> None:
    command = script(
        tmp_path, "(folder / f'{rank}-{start}').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert launch(command, 2, max_restarts=1) == 128 + signal.SIGKILL
    assert len(list(tmp_path.glob("?-?"))) == 4


def test_a_named_error_is_not_tried_again(tmp_path: Path) -> None:
    command = script(
        tmp_path, f"(folder / f'{{rank}}-{{start}}').touch(); sys.exit({REFUSED} if rank else 75)"
    )
    assert launch(command, 2) == REFUSED
    assert len(list(tmp_path.glob("?-?"))) == 2


def test_one_that_ends_well_leaves_the_others_their_time(tmp_path: Path) -> None:
    command = script(tmp_path, "time.sleep(1.0 if rank == 0 else 0); (folder / str(rank)).touch()")
    assert launch(command, 2, grace=0.1) == 0
    assert (tmp_path / "0").exists()


def test_a_rank_that_hangs_is_ended_once_another_has_failed(tmp_path: Path) -> None:
    command = script(tmp_path, "sys.exit(75) if rank else time.sleep(600)")
    start = time.monotonic()
    assert launch(command, 2, max_restarts=0, grace=0.5) == LOST
    assert time.monotonic() - start < 30.0


STOPPABLE = (
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
    "(folder / f'{rank}.pid').write_text(str(os.getpid()))\n"
    "time.sleep(600)\n"
)
UNWILLING = (
    "signal.signal(signal.SIGTERM, lambda *_: (folder / f'{rank}.asked').touch())\n"
    "(folder / f'{rank}.pid').write_text(str(os.getpid()))\n"
    "while True: time.sleep(600)\n"
)


def pids(folder: Path) -> list[int]:
    texts = [path.read_text() for path in sorted(folder.glob("*.pid"))]
    return [int(text) for text in texts if text]


def as_process(command: list[str]) -> subprocess.Popen[bytes]:
    """The launcher in a process of its own, to be signalled and killed."""
    code = (
        "import sys; from dither.train.distributed.launch import launch; "
        "sys.exit(launch(sys.argv[1:], 2))"
    )
    return subprocess.Popen([sys.executable, "-c", code, *command], cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_reaches_all_ranks(tmp_path: Path, number: signal.Signals) -> None:
    process = as_process(script(tmp_path, STOPPABLE))
    assert wait_for(lambda: len(pids(tmp_path)) == 2)
    process.send_signal(number)
    assert process.wait(30) == STOPPED
    assert not any(map(alive, pids(tmp_path)))


def test_the_third_request_kills(tmp_path: Path) -> None:
    process = as_process(script(tmp_path, UNWILLING))
    assert wait_for(lambda: len(pids(tmp_path)) == 2)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert all(map(alive, pids(tmp_path)))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == STOPPED
    assert not any(map(alive, pids(tmp_path)))
    assert {path.name for path in tmp_path.glob("*.asked")} == {"0.asked", "1.asked"}


def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    follow = (
        f"sys.path[:] = {[str(ROOT / 'src'), *sys.path]!r}\n"
        "from dither.train.distributed.launch import follow_launcher\n"
        "follow_launcher(); follow_launcher()\n"
    )
    process = as_process(script(tmp_path, follow + STOPPABLE))
    assert wait_for(lambda: len(pids(tmp_path)) == 2)
    assert all(map(alive, pids(tmp_path)))
    process.kill()
    process.wait(30)
    assert wait_for(lambda: not any(map(alive, pids(tmp_path))), 10.0)


def test_what_a_killed_rank_has_started_ends_too(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "(folder / f'{rank}.pid').write_text(str(child.pid))\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    assert launch(command, 2, max_restarts=0) == 128 + signal.SIGKILL
    assert len(pids(tmp_path)) == 2
    assert wait_for(lambda: not any(map(alive, pids(tmp_path))), 10.0)


def test_it_works_away_from_the_main_thread(tmp_path: Path) -> None:
    """Signals are the main thread's there: nothing of theirs is touched."""
    before, found = signal.getsignal(signal.SIGINT), list[int]()
    thread = threading.Thread(target=lambda: found.append(launch(script(tmp_path, ""), 2)))
    thread.start()
    thread.join(30)
    assert found == [0]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-there"):
        launch([str(tmp_path / "nothing-there")], 2)


def test_what_ended_a_run_is_said_once(tmp_path: Path) -> None:
    """By the launcher, in the words of the rank that was the cause."""
    command = script(
        tmp_path,
        "from dither.train.distributed.launch import tell_launcher\n"
        "assert tell_launcher(rank, f'why {rank}')\n"
        f"sys.exit({LOST} if rank == 0 else {REFUSED})\n",
    )
    said: list[tuple[int, str]] = []
    told: list[str] = []
    ended = launch(
        [word for word in command if word != "-S"],  # it needs dither
        3,
        told=told.append,
        failed=lambda rank, text: said.append((rank, text)),
    )
    assert ended == REFUSED
    assert said == [(1, "why 1")]
    assert told == []


def test_a_rank_that_ended_without_a_word_is_named(tmp_path: Path) -> None:
    told: list[str] = []
    command = script(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")
    assert launch(command, 1, max_restarts=0, told=told.append) == 128 + signal.SIGSEGV
    assert told == ["rank 0 was killed by SIGSEGV"]


def test_without_a_launcher_nobody_says_it_for_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITHER_MEET", raising=False)
    assert not tell_launcher(0, "text")
    monkeypatch.setenv("DITHER_MEET", "file:///nowhere/at/all")
    assert not tell_launcher(0, "text")


@pytest.mark.parametrize("text", ["0", "99", "abc", "", "-1"])
def test_a_stale_lifeline_kills_nobody(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITHER_LIFELINE", text)
    monkeypatch.delenv("DITHER_MEET", raising=False)
    follow_launcher()  # another program's business
    monkeypatch.setenv("DITHER_LIFELINE", text)
    monkeypatch.setenv("DITHER_MEET", "file:///tmp/x")
    with pytest.raises(ConfigError, match="unset DITHER_LIFELINE"):
        follow_launcher()


def test_a_pipe_that_somebody_writes_to_kills_nobody(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "import os, time\n"
        "os.environ['DITHER_MEET'] = 'file:///tmp/x'\n"
        "end, pen = os.pipe()\n"
        "end = os.dup2(end, 9); os.environ['DITHER_LIFELINE'] = '9'\n"
        "from dither.train.distributed.launch import follow_launcher\n"
        "follow_launcher(); os.write(pen, b'hello'); time.sleep(0.3); print('alive', flush=True)\n"
        "os.close(pen); time.sleep(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode == -signal.SIGKILL


def test_folders_of_killed_launchers_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, held, new = (tmp_path / f"dither-ranks-{name}" for name in ("old", "held", "new"))
    for folder in (old, held, new):
        folder.mkdir()
        (folder / "lock").touch()
        if folder != new:
            os.utime(folder, (1.0, 1.0))
    (tmp_path / "rank").mkdir()
    with (held / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert launch(script(tmp_path / "rank", ""), 1) == 0
    left = {path.name for path in tmp_path.glob("dither-ranks-*")}
    assert left == {held.name, new.name}
