"""What became of the rows on their way into a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageCounts:
    """Exact row counts by stage: for the operator's private eyes.

    Exact counts are not released values: under zero-out and replace-one only the final number
    of records is declared public, so these stay out of the manifest and the report.

    Args:
        read: Rows read (person records).
        in_scope: Rows that meet the task's conditions.
        kept: Rows in scope whose columns are all valid; with ``bounded`` 0, the store's size.
        positives: Kept rows of the positive class.
        keyless: Rows without a complete key.
        unknown: Rows by column whose code or number the schema does not know.
        missing: Rows by column that lack a value the schema demands.
        vintages: The lowest and the highest year read.
        bounded: Kept rows that the bound on a person's rows leaves out of the store.
    """

    read: int
    in_scope: int
    kept: int
    positives: int
    keyless: int
    unknown: dict[str, int]
    missing: dict[str, int]
    vintages: tuple[str, ...]
    bounded: int = 0

    @property
    def out_of_scope(self) -> int:
        """Rows that the task's conditions leave out."""
        return self.read - self.in_scope

    @property
    def invalid(self) -> dict[str, int]:
        """Rows by column that are unknown or missing; only columns that have any."""
        names = self.unknown.keys() | self.missing.keys()
        total = {name: self.unknown.get(name, 0) + self.missing.get(name, 0) for name in names}
        return {name: rows for name, rows in sorted(total.items()) if rows}

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file in the operator's private folder."""
        return {
            "read": self.read,
            "out_of_scope": self.out_of_scope,
            "invalid": self.invalid,
            "keyless": self.keyless,
            "kept": self.kept,
            "positives": self.positives,
            "bounded": self.bounded,
            "unknown": {name: rows for name, rows in self.unknown.items() if rows},
            "missing": {name: rows for name, rows in self.missing.items() if rows},
            "vintages": list(self.vintages),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StageCounts:
        """What :meth:`to_json` wrote, but for columns without a bad row.

        Raises:
            KeyError, TypeError: The values are not those of counts.
        """
        return cls(
            read=value["read"],
            in_scope=value["read"] - value["out_of_scope"],
            kept=value["kept"],
            positives=value["positives"],
            keyless=value["keyless"],
            unknown=dict(value["unknown"]),
            missing=dict(value["missing"]),
            vintages=tuple(value["vintages"]),
            bounded=value["bounded"],
        )
