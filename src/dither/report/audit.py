"""An audit of a run's promise, as `dither audit run --out` lays it into the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dither.report.documents import Document, check_format, read_optional

FILE = "audit.json"


@dataclass(frozen=True)
class AuditRun:
    """One audited run.

    Attributes:
        about: Its part of the file.
    """

    about: Document

    @property
    def epsilon(self) -> float:
        """Lower bound on ε."""
        return self.about.number("epsilon_lower") or 0.0

    @property
    def defect(self) -> float | None:
        """Share of the noise that a self-test used; None of an honest run."""
        return self.about.number("defect")

    @property
    def noise(self) -> float | None:
        """Upper bound on the share of the claimed noise; None without one."""
        return self.about.number("noise_share_upper")


@dataclass(frozen=True)
class Audit:
    """What ``audit.json`` says.

    Attributes:
        about: The claim, the canaries, the confidence.
        runs: Audited runs.
        power: Simulated audits.
    """

    about: Document
    runs: tuple[AuditRun, ...]
    power: tuple[Document, ...]

    @property
    def claimed(self) -> float | None:
        """ε that was claimed."""
        return self.about.number("claimed", "epsilon")

    @property
    def honest(self) -> tuple[AuditRun, ...]:
        """Runs without a defect."""
        return tuple(run for run in self.runs if run.defect is None)

    @property
    def above(self) -> int:
        """Honest runs whose bound is above the claim."""
        claimed = self.claimed
        return sum(claimed is not None and run.epsilon > claimed for run in self.honest)


def read_audit(path: Path) -> Audit | None:
    """Read an audit; None where there is none.

    Raises:
        DataError: The file is broken.
    """
    about = read_optional(path)
    if about is None:
        return None
    check_format(about)
    return Audit(
        about,
        tuple(AuditRun(each) for each in _parts(about, "runs")),
        _parts(about, "power"),
    )


def _parts(about: Document, name: str) -> tuple[Document, ...]:
    value = about.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        about.refuse("a list of objects", (name,))
    return tuple(Document(f"{about.source}, {name} {n}", v) for n, v in enumerate(value, start=1))
