"""The one pipeline: from text columns to codes, as ibis expressions that every engine runs.

Stages: keep the schema's record type; parse and validate each column against its public
vocabulary or bounds; keep the rows in the task's scope; find what is missing; impute declared
constants; recode to positions. One-hot encoding and scaling happen when rows are gathered, from
the same public schema.

Columns that decide the scope or the label are validated in every row; the others only in scope,
for a bad code in a row that is not used does no harm.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Sequence
from typing import Any

import ibis
import ibis.expr.types as ir

from dither.data.counts import StageCounts
from dither.data.reader import TextTable, resolve_columns
from dither.data.schema import (
    Between,
    Categorical,
    Column,
    Condition,
    KeyColumn,
    Numeric,
    OneOf,
    Schema,
    Task,
)
from dither.errors import ConfigError

STAGED = "staged"
"""Name under which an engine keeps the result of :func:`staged`."""

UNKNOWN, MISSING = -1, -2
"""Stored instead of a position: a text that the schema does not know; none where it wants one."""

# \A and \z mean the same to RE2 and Java; $ would also pass a line end.
_POSITION = "int16"
_LONGEST = (1 << 15) - 1
_FLAT = 64  # branches that are tried one after another, and
_LEAF = 64  # codes that are looked up in one map
_FINITE = sys.float_info.max  # "1e400" is no number, whatever an engine reads it as
_WHOLE = r"\A[0-9]{1,9}(\.0+)?\z"
_NUMBER = r"\A[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\z"


def source_name(index: int) -> str:
    """Name under which an engine presents the source table of this index, all columns text."""
    return f"source_{index}"


def raw(tables: Sequence[TextTable], schema: Schema) -> ir.Table:
    """All sources as one table under the schema's own column names; an empty text is NULL."""
    return ibis.union(*parts) if len(parts := _parts(tables, schema)) > 1 else parts[0]


def _parts(tables: Sequence[TextTable], schema: Schema) -> list[ir.Table]:
    parts = []
    for index, source in enumerate(tables):
        table = ibis.table(dict.fromkeys(source.columns, "string"), name=source_name(index))
        kind = schema.record_type
        if kind is not None and kind.column in source.columns:
            table = table.filter(table[kind.column].isin(kind.codes))
        names = resolve_columns(source, schema)
        parts.append(table.select(**{new: table[old].nullif("") for new, old in names.items()}))
    return parts


def staged(table: ir.Table, task: Task, keep: tuple[str, ...] = ()) -> ir.Table:
    """Parse, validate and recode every row of :func:`raw`; small integers instead of text.

    Columns: ``key_<i>``; ``person``, where the schema has one; ``in_scope``; ``p_<column>``
    (position from 1, 0 for a blank, another word or a good number, -1 unknown, -2 missing);
    ``x_<column>`` (float64); ``label``; ``vintage``; and ``t_<column>``, the text itself, for the
    columns in ``keep``.
    """
    schema = task.schema
    deciding = [c for c in schema.columns if c.name in task.condition_columns]
    others = [c for c in schema.columns if c.name not in task.condition_columns]
    # A user's column may have any name: none of them must be one of ours.
    table = table.rename(lambda name: f"r_{name}")
    # Each step is a projection of its own, so that an engine computes shared parts once.
    numbered = table.mutate(
        **{f"n_{c.name}": _parse(table[f"r_{c.name}"], c) for c in deciding},
        **{name: _key(table[f"r_{part.name}"], part) for name, part in _names(schema).items()},
        vintage=_vintage(table, schema),
    )
    decided = numbered.select(
        *_names(schema),
        "vintage",
        *[f"r_{c.name}" for c in others],
        **{f"p_{c.name}": _position(numbered, c) for c in deciding},
        **{f"x_{c.name}": numbered[f"n_{c.name}"] for c in deciding if _is_numeric(c)},
        **{f"t_{name}": numbered[f"r_{name}"] for name in keep},
    )
    scope = _all(_holds(decided, task, condition) for condition in task.where)
    scoped = decided.mutate(in_scope=scope, label=_holds(decided, task, task.label))
    # In scope only: a text that nobody uses is not even parsed.
    parsed = scoped.mutate(
        **{f"n_{c.name}": _parse(scoped[f"r_{c.name}"], c, scoped) for c in others}
    )
    return _recoded(parsed, schema, deciding, others, keep)


def _names(schema: Schema) -> dict[str, KeyColumn]:
    """What rows are ordered by, in this order: whose a row is, then which."""
    person = {} if schema.person is None else {"person": schema.person}
    return person | {f"key_{i}": part for i, part in enumerate(schema.key)}


def _recoded(
    parsed: ir.Table,
    schema: Schema,
    deciding: Sequence[Column],
    others: Sequence[Column],
    keep: tuple[str, ...],
) -> ir.Table:
    return parsed.select(
        *_names(schema),
        *("vintage", "in_scope", "label"),
        *[f"t_{name}" for name in keep],
        **{f"p_{c.name}": _resolve(parsed, c) for c in deciding},
        **{f"p_{c.name}": _position(parsed, c, parsed.in_scope, absent(c)) for c in others},
        **{f"x_{c.name}": _imputed(parsed[f"x_{c.name}"], c) for c in deciding if _is_numeric(c)},
        **{f"x_{c.name}": _imputed(parsed[f"n_{c.name}"], c) for c in others if _is_numeric(c)},
    )


def _is_numeric(column: Column) -> bool:
    return isinstance(column, Numeric)


def _all(parts: object) -> ir.BooleanValue:
    return functools.reduce(operator.and_, parts, ibis.literal(True))  # type: ignore[call-overload]


def _key(text: ir.Value, part: KeyColumn) -> ir.Value:
    return _integer(text).cast("int64") if part.kind == "integer" else text


def _integer(text: ir.Value, when: ir.BooleanValue | None = None) -> ir.Value:
    # "1.0" is a number to every engine, but an integer to some only.
    number = ibis.coalesce(text.try_cast("int32"), text.try_cast("float64").try_cast("int32"))
    whole = text.re_search(_WHOLE)
    return ibis.cases((whole if when is None else when & whole, number))


def _parse(text: ir.Value, column: Column, scoped: ir.Table | None = None) -> ir.Value:
    """The number that a text means, or NULL; the text itself for a vocabulary of words."""
    when = None if scoped is None else scoped.in_scope
    if isinstance(column, Categorical):
        return _integer(text, when) if column.numbered else text
    return number(text, when)


def number(text: ir.Value, when: ir.BooleanValue | None = None) -> ir.Value:
    """The number that a text means, as float64, or NULL; NULL also where ``when`` is false."""
    plain = text.re_search(_NUMBER)
    return ibis.cases((plain if when is None else when & plain, text.try_cast("float64")))


def _vintage(table: ir.Table, schema: Schema) -> ir.Value:
    if schema.vintage is None:
        return ibis.literal("")
    return table[f"r_{schema.vintage.column}"].substr(0, schema.vintage.length)


def _position(
    table: ir.Table,
    column: Column,
    when: ir.BooleanValue | None = None,
    missing: int = MISSING,
) -> ir.Value:
    """Position of a code, or what is wrong with the text; 0 where ``when`` does not hold."""
    text, value = table[f"r_{column.name}"], table[f"n_{column.name}"]
    unused = [] if when is None else [(~when, ibis.literal(0))]
    blank = (text.isnull(), missing)
    otherwise = UNKNOWN if isinstance(column, Numeric) or column.other is None else 0
    if isinstance(column, Categorical) and _is_long(column):
        found = ibis.cases(*unused, blank, else_=_lookup(value, _pairs(column), otherwise))
    else:
        found = ibis.cases(*unused, *_known(value, column), blank, else_=otherwise)
    return found.cast(_POSITION)


def _known(value: ir.Value, column: Column) -> list[tuple[ir.BooleanValue, ir.Value]]:
    """Stretches of good values, with their positions."""
    if isinstance(column, Numeric):
        lower, upper = (-_FINITE, _FINITE) if column.clip else (column.lower, column.upper)
        return [(value.between(lower, upper), ibis.literal(0))]
    if column.numbered:
        return [
            (value.between(first, first + length - 1), value - (first - start))
            for first, length, start in _runs(column)
        ]
    return [(value == code, ibis.literal(i)) for i, code in enumerate(column.codes, 1)]


def _is_long(column: Categorical) -> bool:
    return (len(_runs(column)) if column.numbered else column.width) > _FLAT


def _pairs(column: Categorical) -> list[tuple[Any, int]]:
    """Codes in ascending order, with their positions."""
    codes = map(int, column.codes) if column.numbered else column.codes
    return sorted((code, position) for position, code in enumerate(codes, 1))


def _lookup(value: ir.Value, pairs: Sequence[tuple[Any, int]], otherwise: int) -> ir.Value:
    """Halve a long vocabulary, or each row would be held against each code.

    Engines order texts by their bytes in UTF-8, and Python by code points: the same order.
    """
    if len(pairs) > _LEAF:
        half = len(pairs) // 2
        low, high = (_lookup(value, part, otherwise) for part in (pairs[:half], pairs[half:]))
        return ibis.ifelse(value < pairs[half][0], low, high)
    kind = "string" if isinstance(pairs[0][0], str) else "int32"
    table = ibis.literal(dict(pairs), type=f"map<{kind}, {_POSITION}>")
    return table.get(value, ibis.literal(otherwise, _POSITION))


def _runs(column: Categorical) -> list[tuple[int, int, int]]:
    """Maximal runs of consecutive codes: first code, length, position of the first."""
    runs: list[tuple[int, int, int]] = []
    for position, code in enumerate(map(int, column.codes), 1):
        if runs and code == runs[-1][0] + runs[-1][1]:
            first, length, start = runs[-1]
            runs[-1] = (first, length + 1, start)
        else:
            runs.append((code, 1, position))
    return runs


def _holds(parsed: ir.Table, task: Task, condition: Condition) -> ir.Value:
    column = task.schema.column(condition.column)
    if isinstance(condition, OneOf) and isinstance(column, Categorical):
        positions = [column.position(code) for code in condition.codes]
        return parsed[f"p_{column.name}"].isin(positions).fill_null(False)
    if isinstance(condition, Between):
        value = parsed[f"x_{column.name}"]
        return value.between(condition.lower, condition.upper).fill_null(False)
    raise AssertionError("Task checks that conditions fit their columns")


def absent(column: Column) -> int:
    """What a missing value is stored as: a blank, the declared constant, or missing."""
    if isinstance(column, Categorical) and column.blank is not None:
        return 0
    if column.impute is None:
        return MISSING
    return column.position(str(column.impute)) if isinstance(column, Categorical) else 0


def _resolve(parsed: ir.Table, column: Column) -> ir.Value:
    position = parsed[f"p_{column.name}"]
    if absent(column) == MISSING:
        return position
    missing = position == ibis.literal(MISSING, _POSITION)
    return ibis.ifelse(missing, ibis.literal(absent(column), _POSITION), position)


def _imputed(number: ir.Value, column: Column) -> ir.Value:
    value = number.fill_null(ibis.literal(float(column.impute or 0.0), "float64"))
    if isinstance(column, Numeric) and column.clip:
        lower, upper = (ibis.literal(b, "float64") for b in (column.lower, column.upper))
        return ibis.cases((value < lower, lower), (value > upper, upper), else_=value)
    return value


def _table(task: Task) -> ir.Table:
    schema = task.schema
    kinds = {"text": "string", "integer": "int64"}
    fields = {name: kinds[part.kind] for name, part in _names(schema).items()}
    fields |= {f"p_{column.name}": _POSITION for column in schema.columns}
    fields |= {f"x_{column.name}": "float64" for column in schema.columns if _is_numeric(column)}
    fields |= {"vintage": "string", "in_scope": "boolean", "label": "boolean"}
    return ibis.table(fields, name=STAGED)


def _keyed(table: ir.Table, task: Task) -> ir.BooleanValue:
    return _all(table[name].notnull() for name in _names(task.schema))


def _valid(table: ir.Table, task: Task) -> ir.BooleanValue:
    return _all(table[f"p_{column.name}"] >= 0 for column in task.schema.columns)


def counts(task: Task) -> ir.Table:
    """One row of exact counts over the staged table; read it with :func:`read_counts`."""
    table = _table(task)
    names = [column.name for column in task.schema.columns]
    kept = _keyed(table, task) & table.in_scope & _valid(table, task)

    def total(condition: ir.Value) -> ir.Value:
        return table.count(where=condition)

    return table.aggregate(
        read=table.count(),
        in_scope=total(table.in_scope),
        kept=total(kept),
        positives=total(kept & table.label),
        keyless=total(~_keyed(table, task)),
        first_vintage=table.vintage.min(),
        last_vintage=table.vintage.max(),
        **{f"unknown_{name}": total(table[f"p_{name}"] == UNKNOWN) for name in names},
        **{f"missing_{name}": total(table[f"p_{name}"] == MISSING) for name in names},
    )


def read_counts(row: dict[str, object], task: Task) -> StageCounts:
    """Type the row that :func:`counts` yields."""
    # The sum over no rows is NULL.
    texts = ("first_vintage", "last_vintage")
    numbers = {name: int(str(row[name] or 0)) for name in row if name not in texts}
    names = [column.name for column in task.schema.columns]
    years = {str(row[name]) for name in texts if row[name]}
    return StageCounts(
        read=numbers["read"],
        in_scope=numbers["in_scope"],
        kept=numbers["kept"],
        positives=numbers["positives"],
        keyless=numbers["keyless"],
        unknown={name: numbers[f"unknown_{name}"] for name in names},
        missing={name: numbers[f"missing_{name}"] for name in names},
        vintages=tuple(sorted(years)),
    )


def unknown_codes(table: ir.Table, task: Task, column: str) -> ir.Table:
    """The texts of :func:`raw` that a column's schema does not know, with their row counts."""
    rows = staged(table, task, keep=(column,))
    bad = rows.filter(rows[f"p_{column}"] == UNKNOWN)
    tally = bad.group_by(code=bad[f"t_{column}"]).aggregate(rows=bad.count())
    return tally.order_by(ibis.desc("rows"), "code")


def records(task: Task) -> ir.Table:
    """The valid records in scope: ``key``, ``c_<i>``, ``v_<i>``, ``label``, maybe ``person``.

    In key order; where the schema has a person, all rows of one stand together, in key order.
    Types are those that every engine has; the writer narrows them.
    """
    schema, table = task.schema, _table(task)
    kept = table.filter(_keyed(table, task), table.in_scope, _valid(table, task))
    parts = [kept[f"key_{i}"] for i in range(len(schema.key))]
    key = ibis.literal("-").join([part.cast("string") for part in parts])
    whose = {} if schema.person is None else {"person": kept.person.cast("string")}
    return kept.order_by(*_names(schema)).select(
        key=key,
        **whose,
        **{f"c_{i}": kept[f"p_{c.name}"] for i, c in enumerate(schema.categorical)},
        **{f"v_{i}": kept[f"x_{c.name}"].cast("float32") for i, c in enumerate(schema.numeric)},
        label=kept.label.cast("int8"),
    )


def code_type(schema: Schema) -> str:
    """The narrowest type that holds every vocabulary's positions.

    Raises:
        ConfigError: A vocabulary is too long.
    """
    widest = max((column.width for column in schema.categorical), default=0)
    if widest > _LONGEST:
        raise ConfigError(
            expected=f"at most {_LONGEST} codes a column",
            got=str(widest),
            fix="group the codes, or hash them to fewer",
        )
    return "uint8" if widest < 1 << 8 else "uint16"
