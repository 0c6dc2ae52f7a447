"""What records must be to make a store."""

from __future__ import annotations

from dither.data.counts import StageCounts
from dither.data.engines import Staged
from dither.data.limits import DIGITS
from dither.data.schema import Schema, Task
from dither.errors import DataError

_CODES_SHOWN = 5


def check(counts: StageCounts, staged: Staged, task: Task, origins: str, *, strict: bool) -> None:
    """Refuse records that cannot make a store of this task.

    Args:
        counts: What became of the rows.
        staged: Tells the unknown codes.
        task: The task.
        origins: The sources, as a user knows them.
        strict: Whether a bad row is an error, or is left out.

    Raises:
        DataError: Says which rule the records break.
    """
    if counts.read == 0:
        raise DataError(
            expected=f"records in {origins}",
            got="none",
            fix="give person records; a housing file or a bare header holds none",
        )
    if len(counts.vintages) > 1:
        raise DataError(
            expected="records of one year",
            got=f"years {counts.vintages[0]} to {counts.vintages[-1]}",
            fix="build one store for each year",
        )
    if strict:
        _check_rows(counts, staged, task)
    if counts.kept == 0:
        raise DataError(
            expected=f"records in the scope of task {task.name}",
            got=f"none among those of {origins}",
            fix="check that these are the right records for the task",
        )
    if counts.positives in {0, counts.kept}:
        raise DataError(
            expected="records of both classes",
            got=f"only label {int(counts.positives > 0)} for task {task.name}",
            fix="give more records, or another task",
        )


def _check_rows(counts: StageCounts, staged: Staged, task: Task) -> None:
    drop = 'mend them, or leave such rows out with on_invalid="drop" (--on-invalid drop)'
    if counts.keyless:
        raise DataError(
            expected=f"a complete key in every row ({_key_words(task.schema)})",
            got=f"{counts.keyless} rows without",
            fix=drop,
        )
    for column, rows in counts.unknown.items():
        if rows:
            found = staged.unknown_codes(column)
            codes = ", ".join(repr(code[:20]) for code, _ in found[:_CODES_SHOWN])
            more = f" and {len(found) - _CODES_SHOWN} more" if len(found) > _CODES_SHOWN else ""
            raise DataError(
                expected=f"codes or numbers of column {column} as its schema has them",
                got=f"{codes}{more} in {rows} rows",
                fix=drop,
            )
    for column, rows in counts.missing.items():
        if rows:
            raise DataError(
                expected=f"a value of column {column} in every row",
                got=f"none in {rows} rows",
                fix=f"declare what stands for it (impute, or blank for codes), {drop}",
            )


def _key_words(schema: Schema) -> str:
    order = [*([] if schema.person is None else [schema.person]), *schema.key]
    kinds = {"text": "a text", "integer": f"a whole number of at most {DIGITS} digits"}
    return ", ".join(
        f"{name}: {kinds[kind]}" for name, kind in {p.name: p.kind for p in order}.items()
    )
