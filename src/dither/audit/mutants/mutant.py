"""What a privacy mutant is: a defect that somebody shipped, as a change of one text of ours."""

from __future__ import annotations

from dataclasses import dataclass

# REFERENCE.md, section 9: each entry in a few words.
ENTRIES = {
    1: "float side channel",
    2: "shuffled batches charged as Poisson",
    3: "empty local batch skipped",
    4: "division by the actual batch size",
    5: "the sum's noise added to the mean, or the reverse",
    6: "sensitivity off by the batch size",
    7: "replace-one charged as add/remove",
    8: "a microbatch clipped as one example",
    9: "the same seed on all ranks",
    10: "noise on rank 0 only where trust says otherwise",
    11: "noise stream or ledger lost or repeated on resume or fork",
    12: "noise per micro-step",
    13: "a parameter without noise",
    14: "a bound C for each layer, σ for C in all",
    15: "the fast norm is not the exact norm",
    16: "layers that mix examples let through",
    17: "a NaN or infinite gradient reaches the sum",
    18: "clipping or noise in bf16",
    19: "the noise's tail cut off",
    20: "the accountant fed a wrong rate, number of steps or δ",
    21: "noise scaled by the learning rate",
    22: "a probe, a tuning run or a statistic not charged",
    23: "a public value that depends on the data",
    24: "a block of the noise pool used twice",
    25: "a mask's pad reused, or masks that do not cancel",
    26: "an unsupported call sent in clear",
    27: "a batch replayed on resume",
    28: "a probe or quantile on the gradient's own batch",
    29: "a failed AllReduce retried on the same sum",
    30: "one sampling seed for all ranks",
    31: "two colluders among ring masks",
    32: "a sampler biased in parity",
    33: "the weighted product in bf16",
    34: "a ghost norm too small by cancellation",
    35: "dropout from a public seed by row position",
    36: "a loss divided by a count that depends on the batch",
    37: "a history of scales, or a buffer that follows the data",
    38: "replacement charged C for 2C",
    39: "a lease used by two forks, or a ledger rolled back",
    40: "a clear side channel between ranks or in the log",
    41: "shards by row number under add/remove",
    42: "a person's rows clipped row by row, or split over ranks",
    43: "a checkpoint that holds sums without noise",
    44: "an MPI call form that the interposition never sees",
}


@dataclass(frozen=True)
class Mutant:
    """A defect put into a function at run time.

    Attributes:
        name: In words with hyphens, unique.
        entry: Number in `ENTRIES`.
        shipped: What went wrong elsewhere, in one sentence.
        target: ``module:qualified.name`` of the function. For what is inside another function, the
            outer one.
        right: Text of the function, found there exactly once.
        wrong: What stands there instead.
        killer: Node id of the test that must fail by an assertion.
        fast: Whether clean and changed run take seconds, so that it may stand for its entry in the
            default suite.
    """

    name: str
    entry: int
    shipped: str
    target: str
    right: str
    wrong: str
    killer: str
    fast: bool = True

    @property
    def by(self) -> str:
        """What must notice."""
        return self.killer


@dataclass(frozen=True)
class CoreMutant:
    """A defect put into a copy of the C core, whose own test program must fail.

    Attributes:
        name: As of a `Mutant`.
        entry: As of a `Mutant`; 0 for one that is none of them.
        shipped: What is wrong, in one sentence.
        path: Of the source below ``native/src``.
        right: Text of the source.
        wrong: What stands there instead, wherever that text stood.
        part: Of the test program, that must fail.
        flags: Of the compiler, that the defect needs to be seen.
        fast: As of a `Mutant`; building takes longer.
    """

    name: str
    entry: int
    shipped: str
    path: str
    right: str
    wrong: str
    part: str
    flags: tuple[str, ...] = ()
    fast: bool = False

    @property
    def target(self) -> str:
        """Where it is."""
        return f"native/src/{self.path}"

    @property
    def by(self) -> str:
        """What must notice."""
        return f"native/tests {self.part}"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        mutant: Which.
        killed: Whether its killer passes without it, reaches its line, and fails by an assertion.
        reached: Whether the changed line ran; None where no counter stands there (the C core).
        seconds: Time of the run with the mutant.
        why: The assertion that failed, or why it counts as alive.
    """

    mutant: Mutant | CoreMutant
    killed: bool
    reached: bool | None
    seconds: float
    why: str

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "name": self.mutant.name,
            "killed": self.killed,
            "by": self.mutant.by,
            "seconds": round(self.seconds, 3),
            "entry": self.mutant.entry,
            "target": self.mutant.target,
            "reached": self.reached,
            "why": self.why,
        }
