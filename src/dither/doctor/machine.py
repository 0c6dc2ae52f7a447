"""Memory, the source of randomness, and the clock."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dither.doctor.check import Check
from dither.doctor.limits import memory

_SCARCE = 1 << 30  # bytes; PyTorch and a small training need about as much
_BYTES = 32


def checks() -> Iterator[Check]:
    """Look at what no package brings."""
    yield _memory()
    yield _entropy()
    yield _clock()


def _memory() -> Check:
    total, free = memory()
    good = free >= _SCARCE
    return Check(
        "memory",
        "good" if good else "wrong",
        f"{free / 1e9:.3g} GB free of {total / 1e9:.3g} GB",
        "size of models and batches",
        None if good else "end other programs, or give this container more",
    )


def _entropy() -> Check:
    """Ask the operating system's generator as `OsEntropy` does, but without waiting for it."""
    means = "all privacy: keys of noise, masks and samples"
    try:
        if hasattr(os, "getrandom"):
            drawn = [os.getrandom(_BYTES, os.GRND_NONBLOCK) for _ in range(2)]
            kind = "getrandom"
        else:
            drawn, kind = [os.urandom(_BYTES) for _ in range(2)], "urandom"
    except OSError as error:
        early = isinstance(error, BlockingIOError)
        found = "not ready since the start of the machine" if early else f"it fails: {error}"
        fix = "wait, or give the virtual machine a random device (virtio-rng)"
        return Check("entropy", "wrong", found, means, fix, needed=True)
    if drawn[0] == drawn[1] or any(len(each) != _BYTES for each in drawn):
        found, fix = f"{kind} repeats itself or draws short", "train on another machine"
        return Check("entropy", "wrong", found, means, fix, needed=True)
    found = f"the operating system's generator ({kind}), ready"
    return Check("entropy", "good", found, means, needed=True)


def _clock() -> Check:
    now = dt.datetime.now(dt.UTC)
    installed = dt.datetime.fromtimestamp(Path(__file__).stat().st_mtime, dt.UTC)
    resolution = time.get_clock_info("monotonic").resolution
    behind = now < installed
    late = f", before dither was installed ({installed:%Y-%m-%d})" if behind else ""
    return Check(
        "clock",
        "wrong" if behind else "good",
        f"{now:%Y-%m-%d %H:%M:%S} UTC{late}; steps of {resolution:g} s",
        "times in ledgers, deadlines between ranks",
        "set the clock (NTP): entries of ledgers carry its time" if behind else None,
    )
