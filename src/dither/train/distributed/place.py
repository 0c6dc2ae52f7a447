"""Where a process stands among those that train together, as its launcher says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from dither.errors import ConfigError

Launcher = Literal["none", "dither", "torchrun", "mpi", "slurm"]

# Set by `dither train --nproc` for the processes that it starts.
MEET: Final = "DITHER_MEET"
RESTARTS: Final = "DITHER_RESTARTS"

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Rank, size, rank on the host, processes on the host: of Open MPI, MPICH and Intel MPI, MVAPICH.
_MPI = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
)
_FIRST_PORT, _PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Place:
    """One process among those that train together.

    Attributes:
        rank: Its number, 0 ≤ rank < world_size.
        world_size: How many there are.
        local_rank: Its number on its host; 0 where the launcher does not say.
        local_size: How many are on its host; 1 where the launcher does not say.
        launcher: Who started them.
        meet: Where they meet, as torch's ``init_method``; empty where MPI knows.
        restarts: How often they were started again.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: Launcher = "none"
    meet: str = ""
    restarts: int = 0


def find_place(environ: Mapping[str, str] | None = None) -> Place:
    """Return this process's place, from the variables that its launcher has set.

    torchrun's (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``; also when set by hand)
    come first, for torchrun itself may be started by srun or mpiexec; then those of MPI, then
    those of Slurm's srun. A shell or batch script inside a Slurm allocation is no task of srun, and
    is one process by itself.

    Args:
        environ: Variables by name; those of this process by default.

    Raises:
        ConfigError: Some are missing, no numbers, out of range, or contradict each other.
    """
    found = os.environ if environ is None else environ
    torch, mpi, slurm = _of_torchrun(found), _of_mpi(found), _of_slurm(found)
    if torch is not None:
        if "TORCHELASTIC_RUN_ID" not in found and torch.launcher != "dither":
            for other in (mpi, slurm):
                _require_agreement(torch, other)
        return torch
    if mpi is not None and slurm is not None and _same(mpi, slurm):
        return slurm  # srun --mpi=pmi2 sets both, whether or not the program speaks MPI
    return mpi or slurm or Place()


def _of_torchrun(found: Mapping[str, str]) -> Place | None:
    if "RANK" not in found and "WORLD_SIZE" not in found:
        return None
    size = _whole(found, "WORLD_SIZE", least=1)
    meet, wanted = found.get(MEET), _TORCHRUN[:2] if size == 1 or MEET in found else _TORCHRUN
    missing = [name for name in wanted if not found.get(name)]
    if missing:
        _half_set([name for name in _TORCHRUN if name in found], missing)
    rank = _rank(found, "RANK", size)
    if size == 1 and meet is None and "TORCHELASTIC_RUN_ID" not in found:
        return Place(local_rank=_optional(found, "LOCAL_RANK", 0))
    return Place(
        rank=rank,
        world_size=size,
        local_rank=_optional(found, "LOCAL_RANK", 0),
        local_size=_optional(found, "LOCAL_WORLD_SIZE", 1),
        launcher="torchrun" if meet is None else "dither",
        meet="env://" if meet is None else meet,
        restarts=_optional(found, "TORCHELASTIC_RESTART_COUNT" if meet is None else RESTARTS, 0),
    )


def _of_mpi(found: Mapping[str, str]) -> Place | None:
    for rank, size, local_rank, local_size in _MPI:
        if rank not in found and size not in found:
            continue
        missing = [name for name in (rank, size) if name not in found]
        if missing:
            _half_set([name for name in (rank, size) if name in found], missing)
        count = _whole(found, size, least=1)
        if count == 1:
            return None  # one process is one process, however it was started
        return Place(
            rank=_rank(found, rank, count),
            world_size=count,
            local_rank=_optional(found, local_rank, 0),
            local_size=_optional(found, local_size, 1),
            launcher="mpi",
            meet=_by_hand(found),
        )
    return None


def _by_hand(found: Mapping[str, str]) -> str:
    """Return where gloo's processes meet under mpiexec, if somebody says; MPI's need it not."""
    host, port = found.get("MASTER_ADDR"), found.get("MASTER_PORT")
    return f"tcp://{host}:{port}" if host and port else ""


def _of_slurm(found: Mapping[str, str]) -> Place | None:
    if "SLURM_STEP_ID" not in found or "SLURM_PROCID" not in found:
        return None
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in found else "SLURM_NTASKS"
    if tasks not in found:
        _half_set(["SLURM_PROCID"], ["SLURM_NTASKS"])
    size = _whole(found, tasks, least=1)
    if size == 1:
        return None
    return Place(
        rank=_rank(found, "SLURM_PROCID", size),
        world_size=size,
        local_rank=_optional(found, "SLURM_LOCALID", 0),
        local_size=_tasks_here(found),
        launcher="slurm",
        meet=f"tcp://{_slurm_host(found)}:{_slurm_port(found)}",
        restarts=_optional(found, "SLURM_RESTART_COUNT", 0),
    )


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list, such as ``node[07-09,12]-ib,login1``.

    Raises:
        ConfigError: It is not one.
    """
    match = re.match(r"([^\s,\[\]]*)(?:\[(\w+)[^\]]*\]([^\s,\[\]]*))?(?:,|$)", nodes.strip())
    if match is None or not match[0].strip(","):
        raise ConfigError(
            expected="a list of hosts in SLURM_JOB_NODELIST, such as node[01-04]",
            got=repr(nodes),
            fix="start with srun, or set MASTER_ADDR to the host of rank 0",
        )
    return "".join(match.group(1, 2, 3)) if match[2] else match[1]


def _slurm_host(found: Mapping[str, str]) -> str:
    given = found.get("MASTER_ADDR")
    if given:
        return given
    nodes = found.get("SLURM_STEP_NODELIST") or found.get("SLURM_JOB_NODELIST") or ""
    return first_host(nodes)


def _slurm_port(found: Mapping[str, str]) -> int:
    """Return a port of the step's own, as far as numbers go: two jobs may share a host."""
    if found.get("MASTER_PORT"):
        return _whole(found, "MASTER_PORT", least=1)
    job, step = _optional(found, "SLURM_JOB_ID", 0), _optional(found, "SLURM_STEP_ID", 0)
    return _FIRST_PORT + (job * 7 + step + _optional(found, "SLURM_RESTART_COUNT", 0)) % _PORTS


def _tasks_here(found: Mapping[str, str]) -> int:
    """Return this host's part of ``SLURM_STEP_TASKS_PER_NODE``, such as ``4(x2),3``."""
    text = found.get("SLURM_STEP_TASKS_PER_NODE") or found.get("SLURM_TASKS_PER_NODE") or ""
    node, counts = _optional(found, "SLURM_NODEID", 0), list[int]()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is not None:
            counts += [int(match[1])] * min(int(match[2] or 1), node + 1)
    return counts[node] if node < len(counts) else 1


def _require_agreement(torch: Place, other: Place | None) -> None:
    if other is not None and not _same(torch, other):
        raise ConfigError(
            expected="one answer to how many processes there are, and which this is",
            got=f"rank {torch.rank} of {torch.world_size} by RANK and WORLD_SIZE, rank "
            f"{other.rank} of {other.world_size} by {other.launcher}'s variables",
            fix="unset RANK and WORLD_SIZE, which an earlier launcher may have left behind",
        )


def _same(one: Place, other: Place) -> bool:
    return (one.rank, one.world_size) == (other.rank, other.world_size)


def _rank(found: Mapping[str, str], name: str, size: int) -> int:
    rank = _whole(found, name, least=0)
    if rank >= size:
        raise ConfigError(
            expected=f"a rank below the number of processes, {size}",
            got=f"{name}={rank}",
            fix="number the processes from 0",
        )
    return rank


def _optional(found: Mapping[str, str], name: str, default: int) -> int:
    return _whole(found, name, least=0) if found.get(name) else default


def _whole(found: Mapping[str, str], name: str, *, least: int) -> int:
    text = found.get(name, "")
    if re.fullmatch(r"\d{1,9}", text) is None or int(text) < least:
        raise ConfigError(
            expected=f"a whole number of at least {least} in {name}",
            got=repr(text) if name in found else "none",
            fix="start with torchrun, mpiexec or srun, which set it, or unset the rest to train in "
            "one process",
        )
    return int(text)


def _half_set(there: list[str], missing: list[str]) -> NoReturn:
    raise ConfigError(
        expected=f"{' and '.join(missing)} beside {' and '.join(there)}",
        got=f"no {' and no '.join(missing)}",
        fix="start with torchrun, mpiexec or srun, which set all of them, or unset the rest to "
        "train in one process",
    )
