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
from collections.abc import Sequence

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

STAGED = "staged"
"""Name under which an engine keeps the result of :func:`staged`."""

_UNKNOWN, _MISSING = -1, -2
_WHOLE = r"^[0-9]{1,9}(\.0+)?$"
_NUMBER = r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$"


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

    Columns: ``key_<i>``; ``in_scope``; ``p_<column>`` (position from 1, 0 for a blank or for a
    good number, -1 unknown, -2 missing); ``x_<column>`` (float64); ``label``; ``vintage``; and
    ``t_<column>``, the text itself, for the columns in ``keep``.
    """
    schema = task.schema
    # Each step is a projection of its own, so that an engine computes shared parts once.
    numbered = table.mutate(
        **{f"n_{c.name}": _parse(table[c.name], c) for c in schema.columns},
        **{f"key_{i}": _key(table[part.name], part) for i, part in enumerate(schema.key)},
        vintage=_vintage(table, schema),
    )
    parsed = numbered.select(
        *[f"key_{i}" for i in range(len(schema.key))],
        "vintage",
        **{f"p_{c.name}": _position(numbered, c) for c in schema.columns},
        **{f"x_{c.name}": numbered[f"n_{c.name}"] for c in schema.columns if _is_numeric(c)},
        **{f"t_{name}": numbered[name] for name in keep},
    )
    scope = _all(_holds(parsed, task, condition) for condition in task.where)
    parsed = parsed.mutate(in_scope=scope, label=_holds(parsed, task, task.label))
    everywhere = task.condition_columns
    recoded = {
        f"p_{c.name}": _resolve(parsed, c)
        if c.name in everywhere
        else ibis.ifelse(parsed.in_scope, _resolve(parsed, c), ibis.literal(0, "int16"))
        for c in schema.columns
    }
    imputed = {
        f"x_{c.name}": parsed[f"x_{c.name}"].fill_null(ibis.literal(c.impute or 0.0, "float64"))
        for c in schema.columns
        if isinstance(c, Numeric)
    }
    return parsed.mutate(**recoded, **imputed)


def _is_numeric(column: Column) -> bool:
    return isinstance(column, Numeric)


def _all(parts: object) -> ir.BooleanValue:
    return functools.reduce(operator.and_, parts, ibis.literal(True))  # type: ignore[call-overload]


def _key(text: ir.Value, part: KeyColumn) -> ir.Value:
    return _integer(text).cast("int64") if part.kind == "integer" else text


def _integer(text: ir.Value) -> ir.Value:
    return ibis.cases((text.re_search(_WHOLE), text.try_cast("int32")))


def _parse(text: ir.Value, column: Column) -> ir.Value:
    """The number that a text means, or NULL; the text itself for a vocabulary of words."""
    if isinstance(column, Categorical):
        return _integer(text) if column.numbered else text
    return ibis.cases((text.re_search(_NUMBER), text.try_cast("float64")))


def _vintage(table: ir.Table, schema: Schema) -> ir.Value:
    if schema.vintage is None:
        return ibis.literal("")
    return table[schema.vintage.column].substr(0, schema.vintage.length)


def _position(table: ir.Table, column: Column) -> ir.Value:
    """Position of a code, or what is wrong with the text; no imputation yet."""
    text, value = table[column.name], table[f"n_{column.name}"]
    if isinstance(column, Numeric):
        known = [(value.between(column.lower, column.upper), ibis.literal(0))]
    elif column.numbered:
        known = [
            (value.between(first, first + length - 1), value - (first - start))
            for first, length, start in _runs(column)
        ]
    else:
        known = [(value == code, ibis.literal(i)) for i, code in enumerate(column.codes, 1)]
    return ibis.cases(*known, (text.isnull(), _MISSING), else_=_UNKNOWN).cast("int16")


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


def _resolve(parsed: ir.Table, column: Column) -> ir.Value:
    """Turn a missing value into a blank, into the declared constant, or leave it missing."""
    position = parsed[f"p_{column.name}"]
    if isinstance(column, Categorical) and column.blank is not None:
        substitute = 0
    elif column.impute is None:
        return position
    else:
        substitute = column.position(column.impute) if isinstance(column, Categorical) else 0
    missing = position == ibis.literal(_MISSING, "int16")
    return ibis.ifelse(missing, ibis.literal(substitute, "int16"), position)


def _table(task: Task) -> ir.Table:
    schema = task.schema
    kinds = {"text": "string", "integer": "int64"}
    fields = {f"key_{i}": kinds[part.kind] for i, part in enumerate(schema.key)}
    fields |= {f"p_{column.name}": "int16" for column in schema.columns}
    fields |= {f"x_{column.name}": "float64" for column in schema.columns if _is_numeric(column)}
    fields |= {"vintage": "string", "in_scope": "boolean", "label": "boolean"}
    return ibis.table(fields, name=STAGED)


def _keyed(table: ir.Table, task: Task) -> ir.BooleanValue:
    return _all(table[f"key_{i}"].notnull() for i in range(len(task.schema.key)))


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
        **{f"unknown_{name}": total(table[f"p_{name}"] == _UNKNOWN) for name in names},
        **{f"missing_{name}": total(table[f"p_{name}"] == _MISSING) for name in names},
    )


def read_counts(row: dict[str, object], task: Task) -> StageCounts:
    """Type the row that :func:`counts` yields."""
    numbers = {name: int(value) for name, value in row.items() if isinstance(value, int)}
    names = [column.name for column in task.schema.columns]
    years = {str(row[name]) for name in ("first_vintage", "last_vintage") if row[name]}
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
    bad = rows.filter(rows[f"p_{column}"] == _UNKNOWN)
    tally = bad.group_by(code=bad[f"t_{column}"]).aggregate(rows=bad.count())
    return tally.order_by(ibis.desc("rows"), "code")


def records(task: Task) -> ir.Table:
    """The valid records in scope, in key order: ``key``, ``c_<i>``, ``v_<i>``, ``label``."""
    schema, table = task.schema, _table(task)
    kept = table.filter(_keyed(table, task), table.in_scope, _valid(table, task))
    parts = [kept[f"key_{i}"] for i in range(len(schema.key))]
    key = ibis.literal("-").join([part.cast("string") for part in parts])
    code = code_type(schema)
    return kept.order_by(*parts).select(
        key=key,
        **{f"c_{i}": kept[f"p_{c.name}"].cast(code) for i, c in enumerate(schema.categorical)},
        **{f"v_{i}": kept[f"x_{c.name}"].cast("float32") for i, c in enumerate(schema.numeric)},
        label=kept.label.cast("uint8"),
    )


def code_type(schema: Schema) -> str:
    """The narrowest type that holds every vocabulary's positions."""
    widest = max((column.width for column in schema.categorical), default=0)
    return "uint8" if widest < 1 << 8 else "uint16"
