"""SIGKILL of ranks and launchers at random moments: no ledger says less than was released."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.distributed.killable import FATE, LEASE, LIFE, RANKS, STEPS, TIMEOUT, beside, ledger_of

from dither.bench.namespaces import Host, hosts, why_not
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.privacy.ledger import Ledger
from dither.train.checkpoint import latest_checkpoint, load_checkpoint
from dither.train.distributed.accounts import rank_ledger_path
from dither.train.distributed.launch import LOST
from dither.train.models import mlp
from dither.train.run import open_run

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600.0  # seconds that a run may take on a machine that has much else to do
# Who dies: by chance from outside, or by itself between its charge and its message.
VICTIMS = ("rank 0", "rank 1", "launcher", "unsent:0", "unsent:1", "sending:1", "untold:0")


@dataclass(frozen=True)
class Trial:
    """What one kill and its resume left.

    Attributes:
        victim: Who was to die.
        killed: Whether it did.
        in_training: Whether something had been released by then, and not all.
        released: Steps of which any rank's message left.
    """

    victim: str
    killed: bool
    in_training: bool
    released: int


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    folder = tmp_path_factory.mktemp("records")
    records = write_synthetic(folder / "persons.parquet", 3000, seed=1)
    return build_store(records, "employment", folder / "store")


_started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Where a test fails, its launchers end, and their ranks with them."""
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.wait()


def start(
    store: RecordStore,
    folder: Path,
    trust: str,
    *,
    restarts: int = 3,
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """The launcher of a run, which makes a session of its own."""
    mode = ["launch", str(store.path), str(folder), trust, str(restarts)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.killable", *mode]
    temporary = beside(folder, ".tmp")
    temporary.mkdir(exist_ok=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    variables |= environ or {}
    with beside(folder, ".log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=variables, start_new_session=True
        )
    _started.append(process)
    return process


def log_of(folder: Path) -> str:
    return beside(folder, ".log").read_text()[-4000:]


def pid_of(folder: Path, who: str) -> int | None:
    with suppress(OSError, ValueError):
        return int((beside(folder, ".pids") / who).read_text())
    return None


def alive(pid: int | None) -> bool:
    """Whether a process runs; a zombie does not."""
    if pid is None:
        return False
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(ready: Callable[[], bool], limit: float = LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ready()


def all_ended(folder: Path) -> bool:
    return not any(alive(pid_of(folder, who)) for who in ("launcher", "rank-0", "rank-1"))


def lives(folder: Path) -> Counter[str]:
    """Steps of which any rank's message left, by start of all ranks."""
    most: Counter[str] = Counter()
    for tap in beside(folder, ".taps").glob("*-*"):
        life = tap.name.rpartition("-")[0]
        most[life] = max(most[life], tap.stat().st_size)
    return most


def releases(folder: Path) -> int:
    """The same over all starts."""
    return lives(folder).total()


def charges(folder: Path, trust: str) -> list[int]:
    """What the ledger of every rank that keeps one says of the run, hash chains verified."""
    paths = [rank_ledger_path(ledger_of(folder), r) for r in range(1 if trust == "central" else 2)]
    return [
        sum(count for _, count in Ledger.open(path).events()) if path.exists() else 0
        for path in paths
    ]


def check(store: RecordStore, folder: Path, trust: str) -> None:
    """No undercount, no corrupt file, no more than a lease lost in each life."""
    released, lost = releases(folder), len(lives(folder)) * LEASE
    for charged in charges(folder, trust):
        assert released <= charged <= min(STEPS, released + lost), (released, charged)
    if not folder.exists():
        return
    json.loads((folder / "run.json").read_bytes())
    path = latest_checkpoint(folder / "checkpoints")
    if path is not None:
        model = mlp(store.feature_dim, (8,), 2)
        optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
        load_checkpoint(path, open_run(folder).id, model, optimizer)


def check_end(store: RecordStore, folder: Path, trust: str) -> None:
    check(store, folder, trust)
    assert set(charges(folder, trust)) == {STEPS}
    steps = json.loads((folder / "summary.json").read_bytes())["steps"]
    assert steps["taken"] + steps["lost"] == steps["charged"] == STEPS
    assert steps["taken"] <= releases(folder) <= STEPS


def kill(folder: Path, victim: str, launcher: subprocess.Popen[bytes]) -> None:
    """Kill a rank, or the launcher, also where the rank has not been born."""
    pid = pid_of(folder, victim.replace(" ", "-")) if victim.startswith("rank") else None
    with suppress(ProcessLookupError):
        os.kill(pid if pid is not None and alive(pid) else launcher.pid, signal.SIGKILL)


def try_one(
    store: RecordStore,
    folder: Path,
    trust: str,
    victim: str,
    chance: float,
    *,
    environ: Mapping[str, str],
) -> Trial:
    """Kill once, look at what is left, go on to the end."""
    if ":" in victim:
        moment, rank = victim.split(":")
        most = STEPS // LEASE if moment == "untold" else STEPS
        fate = f"{moment}:{rank}:{1 + int(chance * (most - 1))}"
        process = start(store, folder, trust, restarts=0, environ={**environ, FATE: fate})
        process.wait(LIMIT)
    else:
        process = start(store, folder, trust, restarts=0, environ=environ)
        wait_for(lambda: pid_of(folder, "rank-1") is not None)
        aim = int(chance * 1.2 * STEPS) - STEPS // 10  # before the first step, too
        wait_for(lambda: releases(folder) >= aim or process.poll() is not None)
        kill(folder, victim, process)
        process.wait(LIMIT)
    wait_for(lambda: all_ended(folder))
    killed, released = process.returncode != 0, releases(folder)
    check(store, folder, trust)
    if killed:
        again = start(store, folder, trust, environ=environ)
        assert again.wait(LIMIT) == 0, log_of(folder)
    check_end(store, folder, trust)
    return Trial(victim, killed, killed and 0 < released < STEPS, released)


def kill_at_random(store: RecordStore, folder: Path, kills: int, seed: int) -> list[Trial]:
    moments = random.Random(seed)  # noqa: S311 - when to kill is no secret
    trials = []
    for index in range(kills):
        trust = ("central", "local")[index % 2]
        victim = VICTIMS[index % len(VICTIMS)]
        environ = {"KILLABLE_DDP": "1"} if index % 3 == 2 else {}  # the other engine
        run = folder / f"run{index}"
        trials.append(try_one(store, run, trust, victim, moments.random(), environ=environ))
    return trials


@pytest.mark.timeout(3600)
def test_a_few_kills(store: RecordStore, tmp_path: Path) -> None:
    trials = kill_at_random(store, tmp_path, kills=4, seed=7)
    assert sum(trial.killed for trial in trials) >= 3
    assert any(trial.in_training for trial in trials)


@pytest.mark.full
@pytest.mark.timeout(4 * 3600)
def test_fifty_kills(store: RecordStore, tmp_path: Path) -> None:
    trials = kill_at_random(store, tmp_path, kills=56, seed=11)
    killed = sum(trial.killed for trial in trials)
    in_training = sum(trial.in_training for trial in trials)
    between = sum(trial.killed for trial in trials if ":" in trial.victim)
    print(f"killed {killed}, of them between first and last release {in_training}, by themselves "
          f"between charge and message {between}; undercounts 0")  # fmt: skip
    assert killed >= 50
    assert in_training >= 25


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("trust", ["central", pytest.param("local", marks=pytest.mark.full)])
def test_the_launcher_starts_all_ranks_again_and_they_go_on_by_themselves(
    store: RecordStore, tmp_path: Path, trust: str
) -> None:
    folder = tmp_path / "run"
    process = start(store, folder, trust, restarts=2, environ={FATE: "unsent:1:111"})
    assert process.wait(LIMIT) == 0, log_of(folder)
    assert (tmp_path / "run.fate").exists()
    assert "starting all 2 ranks again" in log_of(folder)
    check_end(store, folder, trust)
    assert json.loads((folder / "summary.json").read_bytes())["steps"]["lost"] > 0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", [pytest.param("run", marks=pytest.mark.full), "ledger"])
def test_a_full_disk_ends_all_ranks_and_space_resumes_them(
    store: RecordStore,
    tmp_path: Path,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """A disk that something else fills while the run is on."""
    disk = small_disk(2048)
    folder = (disk if where == "run" else tmp_path) / "run"
    monkeypatch.setenv("KILLABLE_NOTES", str(tmp_path))
    monkeypatch.setenv(
        "KILLABLE_LEDGER", str((disk if where == "ledger" else tmp_path) / "l.sqlite")
    )
    process = start(store, folder, "central")
    wait_for(lambda: releases(folder) >= 50 or process.poll() is not None)
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)) == 4096:
            pass
    assert process.wait(LIMIT) == 2, log_of(folder)
    assert re.search("a full disk|disk is full|disk I/O error", log_of(folder))
    filler.unlink()
    wait_for(lambda: all_ended(folder))
    assert releases(folder) < STEPS
    check(store, folder, "central")
    assert start(store, folder, "central").wait(LIMIT) == 0, log_of(folder)
    check_end(store, folder, "central")


def start_on(
    network: list[Host], store: RecordStore, folder: Path, trust: str, life: int
) -> list[subprocess.Popen[bytes]]:
    """One rank a host, as torchrun's variables or a shell script would start them."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.killable", "rank"]
    started = []
    for rank, host in enumerate(network):
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "WORLD_SIZE": str(len(network)),
            "MASTER_ADDR": network[0].address,
            "MASTER_PORT": str(29600 + life),
            "GLOO_SOCKET_IFNAME": host.interface,
            LIFE: f"life{life}",
        }
        with beside(folder, ".log").open("ab") as log:
            argv = [*command, str(store.path), str(folder), trust]
            started.append(host.popen(argv, cwd=ROOT, stdout=log, stderr=log, env=variables))
    return started


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("trust", ["central", pytest.param("local", marks=pytest.mark.full)])
def test_a_link_that_is_cut_is_a_lost_peer_in_time_and_training_resumes(
    store: RecordStore, tmp_path: Path, trust: str
) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path / "run"
    with hosts(2, 200.0) as network:
        ranks = start_on(network, store, folder, trust, 0)
        wait_for(lambda: releases(folder) >= 40 or ranks[0].poll() is not None)
        link(network[1], "down")
        cut = time.monotonic()
        assert [rank.wait(LIMIT) for rank in ranks] == [LOST, LOST], log_of(folder)
        assert time.monotonic() - cut < 3 * TIMEOUT + 10.0  # the machine may be busy
        check(store, folder, trust)
        assert 40 <= releases(folder) < STEPS
        link(network[1], "up")
        ranks = start_on(network, store, folder, trust, 1)
        assert [rank.wait(LIMIT) for rank in ranks] == [0, 0], log_of(folder)
    check_end(store, folder, trust)


def link(host: Host, state: str) -> None:
    subprocess.run(["ip", "-n", host.name, "link", "set", "dev", host.interface, state], check=True)


def test_there_are_as_many_ranks_as_the_launcher_starts() -> None:
    assert RANKS == 2
