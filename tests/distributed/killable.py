"""Runs of several ranks that a test may kill.

``python -m tests.distributed.killable launch STORE FOLDER TRUST [RESTARTS]`` starts two ranks as
``dither train --nproc 2`` does; ``... rank STORE FOLDER TRUST`` is one of them, or one that a test
starts itself. Each starts the run in FOLDER or goes on with it. Releases are counted in
``FOLDER.taps``, by no part of the ledger: one byte in a file of this rank and this start for every
release of which a message leaves, written before it does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from dither.config import TrainConfig
from dither.train.distributed.launch import launch
from dither.train.distributed.place import MEET, Place, find_place

# What needs PyTorch is imported by ranks alone: the launcher must not wait for it.

STEPS, LEASE, RANKS = 320, 8, 2
# "moment:rank:count", where a rank is to kill itself, once in the life of a run.
FATE = "KILLABLE_FATE"
# Names of one start of all ranks, where it is no launcher that starts them.
LIFE = "KILLABLE_LIFE"
TIMEOUT = 15.0


def main(mode: str, store: Path, folder: Path, trust: str, *rest: str) -> int:
    if mode == "launch":
        command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.killable", "rank"]
        restarts = int(rest[0]) if rest else 3
        whole = [*command, str(store), str(folder), trust]
        note_pid(folder, "launcher")
        return launch(whole, RANKS, max_restarts=restarts, grace=TIMEOUT, told=print)
    from dither.cli import rank

    setattr(rank, "write_report", lambda run: run)  # noqa: B010 - tested elsewhere, and slow
    place = find_place()
    note_pid(folder, f"rank-{place.rank}")
    tap_releases(folder, place.rank)
    meet_fate(folder, place.rank)
    return rank.train(options(store, folder, trust, place), place)


def options(store: Path, folder: Path, trust: Any, place: Place) -> TrainConfig:
    """Those of a new run, or to go on; started again by its launcher, a run finds out itself."""
    algorithm = os.environ.get("KILLABLE_ALGORITHM", "auto")
    engine: Literal["reduce", "ddp"] = "ddp" if "KILLABLE_DDP" in os.environ else "reduce"
    if (folder / "run.json").is_file() and place.restarts == 0:
        return TrainConfig(
            resume=folder, threads=1, timeout=TIMEOUT, algorithm=algorithm, engine=engine
        )
    return TrainConfig(
        store=store,
        out=folder,
        ledger=ledger_of(folder),
        trust=trust,
        steps=STEPS,
        lease=LEASE,
        batch_size=32,
        # Much noise makes the accountant quick, so that kills also hit the other parts.
        noise_multiplier=8.0,
        delta=1e-5,
        hidden=(8,),
        checkpoint_every=32,
        threads=1,
        timeout=TIMEOUT,
        algorithm=algorithm,
        engine=engine,
    )


def ledger_of(folder: Path) -> Path:
    """Where rank 0's ledger is; on another disk than the run, if the test says so."""
    return Path(os.environ.get("KILLABLE_LEDGER", beside(folder, ".sqlite")))


def beside(folder: Path, suffix: str) -> Path:
    """Where notes on a run are; on another disk than it, if the test says so."""
    return Path(os.environ.get("KILLABLE_NOTES", folder.parent)) / f"{folder.name}{suffix}"


def note_pid(folder: Path, who: str) -> None:
    place = beside(folder, ".pids")
    place.mkdir(exist_ok=True)
    draft = place / f".{who}.{os.getpid()}"
    draft.write_text(str(os.getpid()))
    draft.replace(place / who)


def tap_releases(folder: Path, rank: int) -> None:
    from dither.release.release import Opened

    life = os.environ.get(LIFE) or hashlib.sha256(os.environ[MEET].encode()).hexdigest()[:12]
    taps = beside(folder, ".taps")
    taps.mkdir(exist_ok=True)
    tap = os.open(taps / f"{life}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    send, seen, lock = Opened.send, set[int](), threading.Lock()
    held: list[Opened] = []  # alive, so that no two have one id

    def tapped(self: Opened, *args: Any, **more: Any) -> Any:
        with lock:
            if id(self) not in seen:
                seen.add(id(self))
                held.append(self)
                doom(folder, rank, "unsent", len(seen))
                os.write(tap, b".")
                doom(folder, rank, "sending", len(seen))
        return send(self, *args, **more)

    Opened.send = tapped  # type: ignore[method-assign]


def meet_fate(folder: Path, rank: int) -> None:
    """Let a rank die where it has charged a lease that no other has heard of."""
    from dither.privacy.leases import OwnLeases

    take, taken = OwnLeases.take, 0

    def fatal(self: OwnLeases, *args: Any, **more: Any) -> int:
        nonlocal taken
        granted = take(self, *args, **more)
        taken += 1
        doom(folder, rank, "untold", taken)
        return granted

    OwnLeases.take = fatal  # type: ignore[method-assign]


def doom(folder: Path, rank: int, moment: str, count: int) -> None:
    """Die, if it is here and now, and has not happened yet."""
    if os.environ.get(FATE) != f"{moment}:{rank}:{count}":
        return
    with contextlib.suppress(FileExistsError):
        beside(folder, ".fate").touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    mode, store, folder, *rest = sys.argv[1:]
    sys.exit(main(mode, Path(store), Path(folder), *rest))
