"""What `dither bench mpi` measures: programs, manners of protection, and what is promised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

KIB, MIB = 1 << 10, 1 << 20
READY: Final = "ready"
SUSTAINED: Final = "sustained"
ENCRYPTED: Final = "encrypted"
CONTROL: Final = "control"
Manner = Literal["ready", "sustained", "encrypted", "control"]
Program = Literal["workload", "sweep"]


@dataclass(frozen=True)
class MpiCase:
    """One program's work under one manner of protection, against the same work bare.

    Attributes:
        work: Workload (``resnet152/compute``) or size (``sweep/1MiB``).
        manner: ``ready``: private, with noise made ahead; ``sustained``: private, with nothing made
            ahead of the timed calls; ``encrypted``: HEAR's way, pads made ahead, for comparison;
            ``control``: no library at all, against the bare calls of the other manners.
        program: Which of benchmarks/mpi runs it.
        argument: What the program is told: a workload, or a size in bytes.
        scale: What the model's sizes and sleeps are divided by.
        full: Whether it runs with ``--full`` only, unless asked for by name.
        target: Largest ratio that is promised, where one is.
    """

    work: str
    manner: Manner
    program: Program
    argument: str
    scale: int = 1
    full: bool = False
    target: float | None = None

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.work if self.manner == READY else f"{self.work}/{self.manner}"


@dataclass(frozen=True)
class _Work:
    name: str
    target: float | None = None
    scale: int = 1
    full: bool = False


# A step of the scaled ones has 26 to 52 million numbers: the noise of one fits the pool.
_WORKLOADS = (
    _Work("resnet152/compute", target=1.03),
    _Work("resnet152/comm", target=1.10),
    _Work("dlrm/compute"),
    _Work("dlrm/comm"),
    _Work("cosmoflow/compute"),
    _Work("cosmoflow/comm"),
    _Work("resnet152/compute/overlap", full=True),
    _Work("resnet152/comm/overlap", full=True),
    _Work("gpt3/compute", scale=16, full=True),
    _Work("gpt3/comm", scale=16, full=True),
    _Work("deepseek-v2-lite/compute", scale=32, full=True),
    _Work("deepseek-v2-lite/comm", scale=32, full=True),
    _Work("deepseek-v3/compute", scale=32, full=True),
    _Work("deepseek-v3/comm", scale=32, full=True),
)
_SIZES = tuple(4 << power for power in range(25))  # 4 B to 64 MiB
_QUICK_SIZES = frozenset(_SIZES[::2])


def size_name(size: int) -> str:
    """Return 4B, 4KiB, 4MiB for so many bytes."""
    if size >= MIB:
        return f"{size // MIB}MiB"
    return f"{size // KIB}KiB" if size >= KIB else f"{size}B"


def _size_target(size: int) -> float:
    if size >= MIB:
        return 1.1
    return 1.4 if size >= 4 * KIB else 2.0


def _cases() -> Iterator[MpiCase]:
    manners: tuple[Manner, ...] = (READY, SUSTAINED, ENCRYPTED, CONTROL)
    for work in _WORKLOADS:
        scaled = work.name if work.scale == 1 else f"{work.name}@{work.scale}"
        for manner in manners:
            yield MpiCase(
                work.name,
                manner,
                "workload",
                scaled,
                scale=work.scale,
                full=work.full or manner == CONTROL,
                target=work.target if manner == READY else None,
            )
    for size in _SIZES:
        for manner in manners:
            yield MpiCase(
                f"sweep/{size_name(size)}",
                manner,
                "sweep",
                str(size),
                full=size not in _QUICK_SIZES or manner == CONTROL,
                target=_size_target(size) if manner == READY else None,
            )


CASES: tuple[MpiCase, ...] = tuple(_cases())
NAMES = tuple(case.name for case in CASES)


def chosen(names: tuple[str, ...], *, full: bool) -> tuple[MpiCase, ...]:
    """Return the cases of these names; without names all short ones, and the long ones if full."""
    return tuple(case for case in CASES if (case.name in names if names else full or not case.full))
