"""The recode rules in plain Python, one row of texts after another.

They are written down once more here, apart from the expressions of `dither.data.pipeline`, so that
each can be held against the other.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from dither.data.counts import StageCounts
from dither.data.limits import DIGITS
from dither.data.pipeline import MISSING, UNKNOWN, absent
from dither.data.reader import TextTable, resolve_columns
from dither.data.schema import (
    Between,
    Categorical,
    Column,
    Condition,
    KeyColumn,
    Numeric,
    Task,
)

Record = tuple[Any, ...]
"""What rows are ordered by (person, key parts), then codes, values and label."""

_WHOLE = re.compile(r"[0-9]{1,9}(\.0+)?")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_TEXTS_KEPT = 1 << 16  # unknown ones, of a column

Judge = Callable[[str], tuple[int, float | None]]
"""A text's position (or UNKNOWN, MISSING) and the number that it is."""


def whole(text: str) -> int | None:
    """The whole number that a text means: ``1``, ``01`` and ``1.0`` are one; else None."""
    if text.isdigit() and text.isascii() and len(text) <= DIGITS:
        return int(text)
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None


def number(text: str) -> float | None:
    """The finite number that a text means, else None."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def positions_of(column: Categorical) -> dict[int, int]:
    """Position of each code as a number; nothing for a vocabulary of words."""
    codes = column.codes if column.numbered else ()
    return {int(code): position for position, code in enumerate(codes, 1)}


def judge_code(column: Categorical, missing: int) -> Callable[[str], int]:
    """Return what finds a text's position in a vocabulary.

    Args:
        column: Its vocabulary.
        missing: What an empty text is.
    """
    otherwise = UNKNOWN if column.other is None else 0
    if not column.numbered:
        words = {code: position for position, code in enumerate(column.codes, 1)} | {"": missing}
        return lambda text: words.get(text, otherwise)
    positions = positions_of(column)

    def judge(text: str) -> int:
        if not text:
            return missing
        found = whole(text)
        return otherwise if found is None else positions.get(found, otherwise)

    return judge


def judge_number(column: Numeric, missing: int) -> Judge:
    """Return what reads a number: its position is 0 where it is good; the number is as read."""
    lower, upper = (-math.inf, math.inf) if column.clip else (column.lower, column.upper)

    def judge(text: str) -> tuple[int, float | None]:
        if not text:
            return missing, None
        value = number(text)
        if value is None:
            return UNKNOWN, None
        return (0 if lower <= value <= upper else UNKNOWN), value

    return judge


def _stored(column: Numeric, value: float | None) -> float:
    found = float(column.impute or 0.0) if value is None else value
    return min(max(found, column.lower), column.upper) if column.clip else found


def _test(condition: Condition, column: Column) -> Callable[[int, float | None], bool]:
    if isinstance(condition, Between):
        lower, upper = condition.lower, condition.upper
        return lambda _, value: value is not None and lower <= value <= upper
    # Task has checked that the condition fits its column.
    coded = column if isinstance(column, Categorical) else Categorical(column.name, condition.codes)
    codes = {coded.position(code) for code in condition.codes}
    return lambda position, _: position in codes


@dataclass(frozen=True)
class _Place:
    """Where a column's text stands in a row, and where its value goes."""

    column: Column
    at: int
    slot: int


@dataclass(slots=True)
class _Tally:
    """Rows by stage."""

    read: int = 0
    in_scope: int = 0
    kept: int = 0
    positives: int = 0
    keyless: int = 0


@final
class Recoder:
    """Applies a task's rules to rows, and counts what became of them.

    Args:
        task: What to keep and how to label it.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        schema = task.schema
        self._order = {} if schema.person is None else {"": schema.person}
        self._order |= {part.name: part for part in schema.key}
        self._years: set[str] = set()
        self._unknown: dict[str, Counter[str]] = {c.name: Counter() for c in schema.columns}
        self._missing: Counter[str] = Counter()
        self._unknown_rows: Counter[str] = Counter()
        self._rows = _Tally()

    def counts(self) -> StageCounts:
        """What became of the rows so far."""
        names = [column.name for column in self._task.schema.columns]
        rows, years = self._rows, sorted(self._years)
        return StageCounts(
            read=rows.read,
            in_scope=rows.in_scope,
            kept=rows.kept,
            positives=rows.positives,
            keyless=rows.keyless,
            unknown={name: self._unknown_rows[name] for name in names},
            missing={name: self._missing[name] for name in names},
            vintages=tuple(years[:1] + years[1:][-1:]),
        )

    def unknown_codes(self, column: str) -> list[tuple[str, int]]:
        """Texts that a column's schema does not know, most frequent first."""
        return sorted(self._unknown[column].items(), key=lambda item: (-item[1], item[0]))

    def records(self, table: TextTable, rows: Iterable[Sequence[str]]) -> Iterator[Record]:
        """Yield the valid records in scope, in the order of the rows.

        Args:
            table: Names the columns.
            rows: Texts in their order.
        """
        read_row = self._reader(table)
        for row in rows:
            record = read_row(row)
            if record is not None:
                yield record

    def _places(self, names: dict[str, int]) -> tuple[list[_Place], list[_Place]]:
        """Deciding columns, and the others."""
        schema = self._task.schema
        slots = {c.name: i for i, c in enumerate(schema.categorical)}
        slots |= {c.name: i for i, c in enumerate(schema.numeric)}
        all_places = [_Place(c, names[c.name], slots.get(c.name, -1)) for c in schema.columns]
        deciding = self._task.condition_columns
        return (
            [place for place in all_places if place.column.name in deciding],
            [place for place in all_places if place.column.name not in deciding],
        )

    def _reader(self, table: TextTable) -> Callable[[Sequence[str]], Record | None]:
        schema, tally, years = self._task.schema, self._rows, self._years
        names = {
            new: table.columns.index(old) for new, old in resolve_columns(table, schema).items()
        }
        keep = schema.record_type
        kind = table.columns.index(keep.column) if keep and keep.column in table.columns else None
        order = [(names[part.name], _key(part)) for part in self._order.values()]
        vintage = schema.vintage
        decide = self._decider(self._places(names)[0])
        fill = self._filler(self._places(names)[1])
        sizes = (len(schema.categorical), len(schema.numeric))
        wide = any(column.width > 255 for column in schema.categorical)

        def read_row(row: Sequence[str]) -> Record | None:
            if kind is not None and keep is not None and row[kind] not in keep.codes:
                return None
            tally.read += 1
            if vintage is not None and (year := row[names[vintage.column]][: vintage.length]):
                years.add(year)
            key = [parse(row[at]) for at, parse in order]
            keyless = None in key
            tally.keyless += keyless
            codes, values = [0] * sizes[0], [0.0] * sizes[1]
            in_scope, label, good = decide(row, codes, values)
            if not in_scope:
                return None
            tally.in_scope += 1
            if not fill(row, codes, values) or not good or keyless:
                return None
            tally.kept += 1
            tally.positives += label
            return (*key, tuple(codes) if wide else bytes(codes), tuple(values), label)

        return read_row

    def _decider(
        self, places: Sequence[_Place]
    ) -> Callable[[Sequence[str], list[int], list[float]], tuple[bool, bool, bool]]:
        """Return what reads the deciding columns: in scope, label, all of them good."""
        task = self._task
        steps = []
        for place in places:
            column = place.column
            tests = [_test(c, column) for c in task.where if c.column == column.name]
            label = _test(task.label, column) if task.label.column == column.name else None
            judge = _pair(column)
            steps.append((place, column, judge, tests, label, absent(column)))

        def decide(
            row: Sequence[str], codes: list[int], values: list[float]
        ) -> tuple[bool, bool, bool]:
            in_scope, positive, good = True, False, True
            for place, column, judge, tests, label, substitute in steps:
                position, value = judge(row[place.at])
                for test in tests:
                    in_scope = in_scope and test(position, value)
                if label is not None:
                    positive = label(position, value)
                if position == MISSING:
                    position = substitute
                if position < 0:
                    good = self._bad(column.name, position, row[place.at])
                elif place.slot >= 0 and isinstance(column, Numeric):
                    values[place.slot] = _stored(column, value)
                elif place.slot >= 0:
                    codes[place.slot] = position
            return in_scope, positive, good

        return decide

    def _filler(
        self, places: Sequence[_Place]
    ) -> Callable[[Sequence[str], list[int], list[float]], bool]:
        """Return what reads the other columns of a row in scope; False where one is bad."""
        coded = [
            (
                *(place.at, place.slot, place.column.name, positions_of(place.column)),
                absent(place.column),
                judge_code(place.column, absent(place.column)),
            )
            for place in places
            if isinstance(place.column, Categorical)
        ]
        numbers = [
            (place.at, place.slot, place.column, judge_number(place.column, absent(place.column)))
            for place in places
            if isinstance(place.column, Numeric)
        ]

        def fill(row: Sequence[str], codes: list[int], values: list[float]) -> bool:
            good = True
            for at, slot, name, positions, missing, judge in coded:
                text = row[at]
                # A known code, spelled with digits only: nearly all. The rest takes the long way.
                if text.isdigit() and text.isascii() and len(text) <= DIGITS and positions:
                    position = positions.get(int(text), UNKNOWN)
                else:
                    position = UNKNOWN if text else missing
                if position < 0 and (position := judge(text)) < 0:
                    good = self._bad(name, position, text)
                elif slot >= 0:
                    codes[slot] = position
            for at, slot, column, judge_value in numbers:
                position, value = judge_value(row[at])
                if position < 0:
                    good = self._bad(column.name, position, row[at])
                elif slot >= 0:
                    values[slot] = _stored(column, value)
            return good

        return fill

    def _bad(self, name: str, position: int, text: str) -> bool:
        if position == MISSING:
            self._missing[name] += 1
            return False
        self._unknown_rows[name] += 1
        found = self._unknown[name]
        if text in found or len(found) < _TEXTS_KEPT:
            found[text] += 1
        return False


def _key(part: KeyColumn) -> Callable[[str], str | int | None]:
    return whole if part.kind == "integer" else lambda text: text or None


def _pair(column: Column) -> Judge:
    if isinstance(column, Numeric):
        return judge_number(column, MISSING)
    judge = judge_code(column, MISSING)
    return lambda text: (judge(text), None)
