"""Where a process stands, by the variables of every launcher."""

from __future__ import annotations

import pytest

from dither.errors import ConfigError
from dither.train.distributed.place import Place, find_place, first_host

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
ELASTIC = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2"}
OURS = {
    **{name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "LOCAL_WORLD_SIZE": "4",
    "DITHER_MEET": "file:///tmp/x/meet-1",
    "DITHER_RESTARTS": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "node[07-08]",
}
ALONE = Place()


@pytest.mark.parametrize(
    ("variables", "launcher", "meet", "restarts"),
    [
        (TORCHRUN, "torchrun", "env://", 0),
        (ELASTIC, "torchrun", "env://", 2),
        (OPEN_MPI, "mpi", "", 0),
        (MPICH, "mpi", "", 0),
        ({**MPICH, "MASTER_ADDR": "n", "MASTER_PORT": "9"}, "mpi", "tcp://n:9", 0),
        (SLURM, "slurm", "tcp://node07:28638", 0),
        ({**SLURM, "SLURM_RESTART_COUNT": "1"}, "slurm", "tcp://node07:28639", 1),
        ({**SLURM, "MASTER_ADDR": "a", "MASTER_PORT": "5"}, "slurm", "tcp://a:5", 0),
        # srun --mpi=pmi2 sets both.
        ({**SLURM, **MPICH}, "slurm", "tcp://node07:28638", 0),
        # torchrun or mpiexec started once a node by srun: the inner one knows.
        ({**SLURM, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", **ELASTIC}, "torchrun", "env://", 2),
        ({**SLURM, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", **MPICH}, "mpi", "", 0),
        ({**MPICH, **TORCHRUN}, "torchrun", "env://", 0),
    ],
)
def test_every_launcher_is_understood(
    variables: dict[str, str], launcher: str, meet: str, restarts: int
) -> None:
    found = find_place(variables)
    assert (found.rank, found.world_size, found.local_rank, found.local_size) == (3, 4, 1, 2)
    assert (found.launcher, found.meet, found.restarts) == (launcher, meet, restarts)


def test_our_own_launcher_is_understood() -> None:
    found = find_place(OURS)
    assert (found.rank, found.world_size, found.local_size) == (3, 4, 4)
    assert (found.launcher, found.meet, found.restarts) == ("dither", "file:///tmp/x/meet-1", 1)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"MASTER_ADDR": "left behind"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        # A batch script without srun, and a shell of salloc: no task of a step.
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"},
        {name: value for name, value in SLURM.items() if name != "SLURM_PROCID"},
        {"RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_one_process_is_one_process(variables: dict[str, str]) -> None:
    found = find_place(variables)
    assert (found.rank, found.world_size, found.launcher) == (0, 1, "none")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT"),
        ({**TORCHRUN, "RANK": "4"}, "rank below the number of processes, 4"),
        ({**TORCHRUN, "RANK": "one"}, "'one'"),
        ({**TORCHRUN, "WORLD_SIZE": "-2"}, "WORLD_SIZE"),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"PMI_RANK": "1"}, "PMI_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK"),
        ({**MPICH, "PMI_RANK": "7"}, "PMI_RANK=7"),
        ({**SLURM, "SLURM_PROCID": "9"}, "SLURM_PROCID=9"),
        ({n: v for n, v in SLURM.items() if n != "SLURM_NTASKS"}, "SLURM_NTASKS"),
        ({n: v for n, v in SLURM.items() if n != "SLURM_JOB_NODELIST"}, "SLURM_JOB_NODELIST"),
        ({**SLURM, "SLURM_JOB_NODELIST": "node["}, "list of hosts"),
        # By hand, and not what the launcher says.
        ({**TORCHRUN, **MPICH, "PMI_RANK": "2"}, "rank 2 of 4 by mpi's"),
        ({**TORCHRUN, **SLURM, "SLURM_NTASKS": "8"}, "rank 3 of 8 by slurm's"),
    ],
)
def test_what_makes_no_sense_is_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", "\\[")):
        find_place(variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("node1,node2", "node1"),
        ("node[07-09,12]", "node07"),
        ("node[3]", "node3"),
        ("rack[1-2]-ib,login", "rack1-ib"),
        ("gpu-a100-[001-004].cluster.org", "gpu-a100-001.cluster.org"),
        ("10.0.0.1,10.0.0.2", "10.0.0.1"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_two_steps_of_one_job_get_two_ports() -> None:
    meets = {find_place({**SLURM, "SLURM_STEP_ID": str(step)}).meet for step in range(3)}
    assert len(meets) == 3
