"""What `dither bench allreduce` measures: who against whom, at which size, and what is promised."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20
_LARGE = (MIB, 16 * MIB, 64 * MIB)
_PREPARED, _SUSTAINED = "", "/sustained"
PRIVATE_OVER_ENCRYPTED = 1 / 1.35


@dataclass(frozen=True)
class AllReduceCase:
    """One contest between two ways to sum float32 over the ranks of one host.

    Attributes:
        name: Protection, transport and size; ``/sustained`` where what could be prepared beforehand
            (noise, pads) is made within the measured time.
        ours: Contender, of `allreduce_contenders.CONTENDERS`.
        baseline: The other one.
        size: Bytes of float32.
        target: Largest ratio that is promised, where one is.
    """

    name: str
    ours: str
    baseline: str
    size: int
    target: float | None = None

    @property
    def baseline_name(self) -> str:
        """What the row calls the baseline: mpich, gloo, or one of our own protections."""
        return self.baseline.split("/")[0]


def size_name(size: int) -> str:
    """Return 4KiB for 4096."""
    return f"{size // MIB}MiB" if size >= MIB else f"{size // KIB}KiB"


def _contest(
    kind: str,
    baseline: str,
    sizes: tuple[int, ...],
    target: float | None,
    suffix: str = _PREPARED,
    *,
    form: str = "",
) -> list[AllReduceCase]:
    return [
        AllReduceCase(
            f"{kind}/{size_name(size)}{suffix}", f"{kind}{form}{suffix}", baseline, size, target
        )
        for size in sizes
    ]


# Both of a pair sum in place, or neither: gloo and the encrypted sum do, MPI programs do not.
_IN_PLACE = "/in-place"
_PRIVATE, _MASKED, _ENCRYPTED = "private-local/shm", "masked/shm", "encrypted/shm"

CASES: tuple[AllReduceCase, ...] = (
    *_contest(_PRIVATE, "mpich", (4 * KIB,), 6.0),
    *_contest(_PRIVATE, "mpich", (4 * KIB,), None, _SUSTAINED),
    *_contest(_PRIVATE, "mpich", _LARGE, 1.0),
    *_contest(_PRIVATE, "mpich", _LARGE, 2.0, _SUSTAINED),
    *_contest(_PRIVATE, "gloo", (4 * KIB,), None, form=_IN_PLACE),
    *_contest(_PRIVATE, "gloo", _LARGE, 0.7, form=_IN_PLACE),
    *_contest(_PRIVATE, "gloo", _LARGE, None, _SUSTAINED, form=_IN_PLACE),
    *_contest("private-local/mpi", "mpich", _LARGE, 1.5),
    *_contest("private-local/mpi", "mpich", _LARGE, None, _SUSTAINED),
    *_contest("private-local/gloo", "gloo", _LARGE, None),
    *_contest(_MASKED, "mpich", _LARGE, 2.5),
    *_contest(_MASKED, "mpich", _LARGE, None, _SUSTAINED),
    *_contest(_ENCRYPTED, "mpich", _LARGE, None),
    *_contest(_ENCRYPTED, "mpich", _LARGE, None, _SUSTAINED),
    *_contest(_PRIVATE, _ENCRYPTED, _LARGE, PRIVATE_OVER_ENCRYPTED, form=_IN_PLACE),
    *_contest(_PRIVATE, _ENCRYPTED + _SUSTAINED, _LARGE, None, _SUSTAINED, form=_IN_PLACE),
    *_contest("clear/shm", "mpich", (4 * KIB, *_LARGE), None),
)
NAMES = tuple(dict.fromkeys(case.name for case in CASES))


def chosen(names: tuple[str, ...]) -> tuple[AllReduceCase, ...]:
    """Return the cases of these names; all when empty."""
    return tuple(case for case in CASES if not names or case.name in names)
