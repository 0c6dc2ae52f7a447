"""The recipes of docs/guides/distributed.md run as they stand there.

Where a recipe names what is not here (another host, Slurm) the test brings it: two agents of
torchrun meet on this host, and a stand-in for srun starts tasks with the variables that srun sets.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.docs.markdown import ROOT, blocks

from dither.data.synth import write_synthetic
from dither.privacy.ledger import Ledger

PAGE = ROOT / "docs" / "guides" / "distributed.md"
BIN = Path(sys.executable).parent
LIMIT = 280

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("recipes"),  # each of them takes both cores
]

# What srun sets for the tasks of a step, and nothing else of Slurm.
SRUN = """#!{python}
import os, subprocess, sys
tasks = []
for rank in range(2):
    slurm = {{
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_STEP_NODELIST": "localhost",
    }}
    tasks.append(subprocess.Popen(sys.argv[1:], env={{**os.environ, **slurm}}))
sys.exit(max(task.wait() for task in tasks))
"""


def recipe(program: str, *, naming: str = "") -> str:
    """The one line of the page that starts with a program and names something."""
    lines = [
        line
        for block in blocks(PAGE, "console")
        for line in block.splitlines()
        if line.startswith(program + " ") and naming in line
    ]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the records that the recipes name, as the page generates them."""
    (synth,) = (
        line for block in blocks(PAGE, "console") for line in block.splitlines()
        if line.startswith("dither data synth")
    )  # fmt: skip
    words = shlex.split(synth)
    path = tmp_path / "work" / words[words.index("--out") + 1]
    path.parent.mkdir()
    write_synthetic(path, 4000, seed=1)  # fewer than the page's: the same layout
    return path.parent


def environment(**more: str) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PMI_", "OMPI_"))}
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", **more}


def run(words: Sequence[str], folder: Path, **more: str) -> str:
    """Run a command in the folder and return what it said."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_run(line: str, folder: Path, *, ranks: int = 2) -> None:
    """What the recipe promised was kept, and charged to the ledger exactly."""
    words = shlex.split(line)
    place = folder / words[words.index("--out") + 1]
    summary = json.loads((place / "summary.json").read_bytes())
    started = json.loads((place / "run.json").read_bytes())
    steps = int(words[words.index("--steps") + 1])
    assert summary["finished"]
    assert summary["steps"] == {"planned": steps, "taken": steps, "charged": steps, "lost": 0}
    budget = float(words[words.index("--epsilon") + 1])
    assert 0.9 * budget < summary["privacy"]["epsilon"] <= budget
    trust = words[words.index("--trust") + 1] if "--trust" in words else "central"
    assert summary["privacy"]["trust"] == trust
    assert (place / "report.html").is_file()
    assert (place / "model.safetensors").is_file()
    store = Path(json.loads((place / "private" / "run.json").read_bytes())["store"])
    books = sorted(store.glob("ledger*.sqlite"))
    assert len(books) == (1 if trust == "central" else ranks)
    for book in books:
        charged = [count for _, count in Ledger.open(book).events(started["id"])]
        assert sum(charged) == steps


def test_one_host(folder: Path) -> None:
    line = recipe("dither", naming="--out runs/host")
    run(shlex.split(line), folder)
    check_run(line, folder)


def test_torchrun_on_one_host(folder: Path) -> None:
    line = recipe("torchrun", naming="--standalone")
    run(shlex.split(line), folder)
    check_run(line, folder)


def test_torchrun_on_several_hosts(folder: Path) -> None:
    """Two agents, as on two hosts; only the first host's name and port are this test's own."""
    line = recipe("torchrun", naming="--rdzv-endpoint")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = shlex.split(line.replace("first-host:29400", f"127.0.0.1:{port}"))
    options = {"cwd": folder, "env": environment(), "stderr": subprocess.STDOUT, "text": True}
    agents = []
    try:
        for number in range(2):
            log = (folder / f"agent-{number}").open("w")
            with log:
                agents.append(subprocess.Popen(words, stdout=log, **options))  # type: ignore[call-overload]
        statuses = [agent.wait(LIMIT) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    said = [(folder / f"agent-{number}").read_text() for number in range(2)]
    assert statuses == [0, 0], said
    check_run(line, folder)


def test_mpiexec(folder: Path) -> None:
    pytest.importorskip("mpi4py", reason="the [mpi] extra is not installed")
    line = recipe("mpiexec")
    words = shlex.split(line)
    mpiexec = BIN / "mpiexec"
    if not mpiexec.exists():
        pytest.skip("no mpiexec beside python: the [mpi] extra brings MPICH's")
    run([str(mpiexec), *words[1:]], folder)
    check_run(line, folder)


def slurm(folder: Path) -> Path:
    """Write the page's batch script and an srun for it, and return the script."""
    (script,) = blocks(PAGE, "bash")
    assert script.startswith("#!/bin/bash\n#SBATCH")
    (folder / "job.sh").write_text(script)
    tools = folder / "bin"
    tools.mkdir()
    (tools / "srun").write_text(SRUN.format(python=sys.executable))
    (tools / "srun").chmod(0o755)
    return folder / "job.sh"


def test_slurm_by_its_variables(folder: Path) -> None:
    script = slurm(folder)
    path = f"{folder / 'bin'}{os.pathsep}{environment()['PATH']}"
    # As in a batch job: the script itself is in an allocation, and no task of srun.
    job = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    run(["bash", str(script)], folder, PATH=path, **job)
    (line,) = (text for text in script.read_text().splitlines() if text.startswith("srun "))
    check_run(line, folder)
