"""`dither train` on two processes, as each launcher starts it, by both engines; killed and stopped.

Each starts real processes, so there are few of them, and each checks much.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.launchers import ROOT, commands, run_under
from tests.distributed.test_launch import alive

from dither.data.store import RecordStore
from dither.privacy.ledger import Ledger
from dither.train.distributed.accounts import rank_ledger_path
from dither.train.run import open_run

OPTIONS = (
    *("--noise-multiplier", "8", "--batch-size", "64", "--delta", "1e-5", "--hidden", "8"),
    *("--threads", "1", "--lease", "8"),
)


def command(store: RecordStore, out: Path, *words: str, steps: int = 20) -> list[str]:
    fixed = ["--store", str(store.path), "--out", str(out), "--steps", str(steps)]
    return [sys.executable, "-m", "dither", "train", *fixed, *OPTIONS, *words]


def finished(words: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_bytes())  # type: ignore[no-any-return]


def check_whole(store: RecordStore, folder: Path, ranks: int = 2) -> dict[str, Any]:
    """A finished run of all its steps, its ledger in step, its report written."""
    summary = summary_of(folder)
    planned, taken, charged, lost = (
        summary["steps"][name] for name in ("planned", "taken", "charged", "lost")
    )
    assert summary["ranks"] == ranks
    assert taken + lost == charged == planned
    assert Ledger.open(Path(store.ledger_path)).charged(open_run(folder).id) == charged
    assert (folder / "report.html").is_file()
    return summary


@pytest.mark.parametrize(
    ("launcher", "words", "trust"),
    [
        ("torchrun", ("--engine", "ddp"), "central"),
        ("mpi", ("--trust", "local"), "local"),
        ("mpi", ("--engine", "ddp", "--algorithm", "ring"), "central"),
        ("slurm", ("--algorithm", "recursive_doubling"), "central"),
    ],
)
def test_a_launcher_starts_a_run(
    store: RecordStore, tmp_path: Path, launcher: str, words: tuple[str, ...], trust: str
) -> None:
    run_under(launcher, 2, command(store, tmp_path / "run", *words), tmp_path / "log")
    summary = check_whole(store, tmp_path / "run")
    assert summary["steps"]["lost"] == 0
    assert summary["privacy"]["trust"] == trust
    other = rank_ledger_path(Path(store.ledger_path), 1)
    assert other.exists() == (trust == "local")


def test_nproc_starts_a_run(store: RecordStore, tmp_path: Path) -> None:
    words = [*("--nproc", "2", "--engine", "ddp", "--clipping", "adaptive", "--profile")]
    words += [str(tmp_path / "trace.json"), "--track", f"tensorboard:{tmp_path / 'board'}"]
    pytest.importorskip("tensorboard")
    done = finished(command(store, tmp_path / "run", *words))
    assert done.returncode == 0, done.stderr
    assert "differentially private for one record" in done.stdout
    assert done.stdout.count("held-out AUROC") == 1  # rank 0 speaks for all
    assert check_whole(store, tmp_path / "run")["privacy"]["quantile"]["charged"] == 2
    assert {p.name for p in tmp_path.glob("trace*")} == {"trace.json", "trace.rank-1.json"}
    assert list((tmp_path / "board").rglob("*tfevents*"))


@pytest.mark.parametrize("engine", ["reduce", "ddp"])
def test_plain_training_on_two_processes(store: RecordStore, tmp_path: Path, engine: str) -> None:
    fixed = ["--store", str(store.path), "--out", str(tmp_path / "run"), "--steps", "10"]
    words = ["--no-private", "--nproc", "2", "--engine", engine, "--threads", "1", "--batch-size"]
    done = finished([sys.executable, "-m", "dither", "train", *fixed, *words, "64"])
    assert done.returncode == 0, done.stderr
    assert "NOT PRIVATE" in done.stdout
    summary = summary_of(tmp_path / "run")
    assert (summary["ranks"], summary["private"]) == (2, False)


@contextmanager
def running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()  # its ranks follow
        process.wait()


def wait_for(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 120.0
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)


def checkpoints(folder: Path) -> int:
    lines = folder / "metrics.jsonl"
    return len(lines.read_text().splitlines()) if lines.exists() else 0


def ranks_of(launcher: int) -> dict[int, int]:
    """Process numbers by rank of all that descends from a process."""
    found, parents = dict[int, int](), dict[int, int]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
            except OSError:
                continue
    for pid in parents:
        above = pid
        while above not in {0, launcher}:
            above = parents.get(above, 0)
        match = re.search(rb"\0RANK=(\d+)\0", _environ(pid)) if above == launcher else None
        if match is not None and alive(pid):
            found[int(match[1])] = pid
    return found


def _environ(pid: int) -> bytes:
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(("rank", "trust"), [(0, "central"), (1, "local")])
def test_a_killed_rank_costs_a_few_steps_and_no_run(
    store: RecordStore, tmp_path: Path, rank: int, trust: str
) -> None:
    words = command(
        store, tmp_path / "run", "--nproc", "2", "--trust", trust, "--checkpoint-every", "40",
        steps=600,
    )  # fmt: skip
    log = tmp_path / "log"
    with running(words, log) as process:
        wait_for(lambda: checkpoints(tmp_path / "run") >= 3, process, log)
        os.kill(ranks_of(process.pid)[rank], signal.SIGKILL)
        assert process.wait(200) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert f"rank {rank} was killed by SIGKILL" in text.replace("\n", " ")
    assert "from the last checkpoint (1 of 3)" in text.replace("\n", " ")
    lost = check_whole(store, tmp_path / "run")["steps"]["lost"]
    assert 0 <= lost <= 40 + 8 * 8  # a checkpoint's distance, and a lease that may have grown


def test_torchrun_goes_on_by_itself(store: RecordStore, tmp_path: Path) -> None:
    words = command(store, tmp_path / "run", "--checkpoint-every", "40", steps=400)
    start, _ = commands("torchrun", 2, words)[0]
    place = start.index("--standalone")
    # More than one: gloo may still meet the address of a rank of before, and is started once more.
    start = [*start[:place], "--max-restarts=8", *start[place:]]
    log = tmp_path / "log"
    with running(start, log) as process:
        wait_for(lambda: checkpoints(tmp_path / "run") >= 3, process, log)
        os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
        assert process.wait(200) == 0, log.read_text()[-3000:]
    check_whole(store, tmp_path / "run")


def test_a_stop_saves_and_resume_goes_on(store: RecordStore, tmp_path: Path) -> None:
    """Stopped on two processes, resumed on one."""
    words = command(store, tmp_path / "run", "--nproc", "2", steps=100_000)
    log = tmp_path / "log"
    with running([*words, "--checkpoint-every", "50"], log) as process:
        wait_for(lambda: checkpoints(tmp_path / "run") >= 2, process, log)
        members = ranks_of(process.pid)
        assert members.keys() == {0, 1}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()[-3000:]
        assert not any(map(alive, members.values()))
    assert "a checkpoint was saved" in log.read_text().replace("\n", " ")
    run, ledger = open_run(tmp_path / "run"), Ledger.open(Path(store.ledger_path))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert ledger.charged(run.id) == json.loads(lines[-1])["step"]  # the lease's rest went back
    resumed = [sys.executable, "-m", "dither", "train", "--resume", str(tmp_path / "run")]
    with running(resumed, log) as process:
        before = checkpoints(tmp_path / "run")
        wait_for(lambda: checkpoints(tmp_path / "run") > before, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130, log.read_text()[-3000:]


def test_a_rank_that_stands_still_is_named_and_replaced(store: RecordStore, tmp_path: Path) -> None:
    words = ("--nproc", "2", "--timeout", "3", "--checkpoint-every", "50", "--max-restarts", "0")
    log = tmp_path / "log"
    with running(command(store, tmp_path / "run", *words, steps=100_000), log) as process:
        wait_for(lambda: checkpoints(tmp_path / "run") >= 2, process, log)
        ranks = ranks_of(process.pid)
        os.kill(ranks[1], signal.SIGSTOP)
        assert process.wait(60) not in {0, 2, 130}
    text = log.read_text().replace("\n", " ")
    assert re.search(r"error: rank 0: expected .*rank 1", text)
    assert not any(map(alive, ranks.values()))
    # Nothing was lost but time: the run goes on from where it was.
    ledger = Ledger.open(Path(store.ledger_path)).charged(open_run(tmp_path / "run").id)
    assert (
        ledger
        >= json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    )


def test_wrong_options_end_all_at_once(store: RecordStore, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    done = finished(command(store, tmp_path / "run", "--nproc", "2"))
    assert done.returncode == 2
    assert "choose another --out" in done.stderr.replace("\n", " ")
    assert "starting all" not in done.stderr
    done = finished(command(store, tmp_path / "run", "--nproc", "2"), RANK="0")
    assert done.returncode == 2
    assert "WORLD_SIZE" in done.stderr
