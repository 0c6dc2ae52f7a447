"""PyTorch, and what it has to work with: matrix units, threads, a graphics card."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dither.doctor.check import Check, first_line
from dither.doctor.limits import processors
from dither.doctor.packages import requirement

_SECONDS = 300  # PyTorch from a cold network disk
_UNKNOWN = "not known, as PyTorch does not load"
_MEND = "mend PyTorch first"


def checks() -> Iterator[Check]:
    """Load PyTorch in a process of its own, and look at what it says."""
    facts, trouble = ask()
    yield _torch(facts, trouble)
    yield _units(facts)
    yield _threads(facts)
    yield _card(facts)


def ask() -> tuple[dict[str, Any], str]:
    """Return what PyTorch says, and in words why it says nothing: one of them is empty."""
    # -P: a torch.py in the folder where the user stands is not the user's PyTorch.
    command = [sys.executable, "-P", "-m", "dither.doctor.torch_facts"]
    try:
        done = subprocess.run(  # noqa: S603 - this Python
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {_SECONDS} s"
    if done.returncode < 0:
        return {}, f"its import was ended by {signal.Signals(-done.returncode).name}"
    said = done.stdout.strip().splitlines()
    if done.returncode or not said:
        told = [line for line in done.stderr.splitlines() if line.strip()]
        return {}, first_line(told[-1] if told else f"exit status {done.returncode}")
    found: dict[str, Any] = json.loads(said[-1])
    return found, ""


def _torch(facts: dict[str, Any], trouble: str) -> Check:
    asked = requirement("torch").specifier
    means = f"training, clipping, low precision (torch {asked})"
    install = f"pip install --force-reinstall 'torch{asked}'"
    if not facts:
        try:
            found = f"torch {version('torch')} does not load: {trouble}"
        except PackageNotFoundError:
            found = "not installed"
        return Check("PyTorch", "wrong", found, means, install, needed=True)
    one_dnn = "with oneDNN" if facts["onednn"] else "without oneDNN"
    if facts["sum"] != 256.0:
        found = f"torch {facts['version']} sums 256 ones to {facts['sum']:g}"
        return Check("PyTorch", "wrong", found, means, install, needed=True)
    good = asked.contains(facts["version"], prereleases=True)
    return Check(
        "PyTorch",
        "good" if good else "wrong",
        f"torch {facts['version']}, {one_dnn}",
        means,
        None if good else f"pip install 'torch{asked}'",
        needed=True,
    )


def _units(facts: dict[str, Any]) -> Check:
    means = "low precision: faster training here, or a study of accuracy only"
    if not facts:
        return Check("matrix units", "missing", _UNKNOWN, means, _MEND)
    processor = facts["processor"]
    fast = [kind for kind in ("bf16", "int8", "fp8") if processor[kind]]
    kinds = f"fast: {', '.join(fast)}" if fast else "no format is faster than float32"
    return Check(
        "matrix units",
        "good" if fast else "missing",
        f"{processor['described']}; {kinds}",
        means,
        None if fast else "train in float32, or on a processor with AMX, AVX-512 bf16 or VNNI",
    )


def _threads(facts: dict[str, Any]) -> Check:
    may, means = processors(), "speed alone"
    variable = os.environ.get("OMP_NUM_THREADS")
    named = f"OMP_NUM_THREADS {'is not set' if variable is None else variable}"
    if not facts:
        return Check("threads", "missing", f"{may} processors, {named}", means, _MEND)
    threads = facts["threads"]
    asked = int(variable) if variable and variable.isdigit() else 1  # other libraries obey it too
    good = max(threads, asked) <= may
    return Check(
        "threads",
        "good" if good else "wrong",
        f"{threads} in PyTorch, on {may} processors that this process may use; {named}",
        means,
        None if good else f"set OMP_NUM_THREADS={may}: more threads wait for each other",
    )


def _card(facts: dict[str, Any]) -> Check:
    means = "training on CUDA devices; noise is drawn on the host"
    if not facts:
        return Check("GPU", "missing", _UNKNOWN, means, _MEND)
    card = facts["cuda"]
    if card is not None:
        found = f"{card['described']}, {card['bytes'] / 1e9:.3g} GB"
        return Check("GPU", "good", found, means)
    driver = shutil.which("nvidia-smi")
    build = facts["cuda_build"]
    if driver and not build:
        fix = "install a build of PyTorch for CUDA"
        return Check("GPU", "wrong", "a driver, and a PyTorch built without CUDA", means, fix)
    if driver:
        fix = f"see what {driver} says, and that the driver is new enough for CUDA {build}"
        return Check("GPU", "wrong", f"a driver, and no device for CUDA {build}", means, fix)
    found = f"no driver; PyTorch is built {f'for CUDA {build}' if build else 'without CUDA'}"
    return Check("GPU", "missing", found, means, "train on the processor, or on a host with a GPU")
