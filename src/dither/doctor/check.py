"""One check: what was looked at, what was found, what it means, what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["good", "missing", "wrong"]
"""Good; not there and not needed; there and unfit, or needed and not there."""


@dataclass(frozen=True)
class Check:
    """What is known of one part of this machine.

    Attributes:
        name: Of the part.
        state: See `State`.
        found: What is there.
        means: What of dither rests on it.
        fix: What to do, as an imperative sentence without a full stop; None where all is well.
        needed: Whether nothing of dither can be trusted to run without it.
    """

    name: str
    state: State
    found: str
    means: str
    fix: str | None = None
    needed: bool = False

    @property
    def stops(self) -> bool:
        """Whether dither cannot run because of it."""
        return self.needed and self.state == "wrong"

    def to_json(self) -> dict[str, Any]:
        """Return all of it under the names of the attributes."""
        return asdict(self)


def first_line(text: str, longest: int = 200) -> str:
    """Return the first line that says something, cut where it is long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "nothing"
    return lines[0] if len(lines[0]) <= longest else f"{lines[0][:longest]}..."
