"""A typed description of a table: columns, public vocabularies and bounds, and learning tasks.

Every constant in a schema must be public knowledge (a published dictionary, a law, a design
document) or a private release that was charged (`Released`), never computed from the records at
hand without a charge: what is read off the records costs privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from dither.data.limits import LARGEST, are_numbers
from dither.data.schema_json import decode, encode
from dither.errors import ConfigError


@dataclass(frozen=True)
class Categorical:
    """A column that holds one code of a published vocabulary.

    When every code is a number of at most nine digits, codes compare as integers written as text:
    ``1``, ``01`` and ``1.0`` are one code. Otherwise they compare as exact text. The stored value
    is 0 for a blank and the code's position, counted from 1, for all others.

    Args:
        name: Column name; also the name in errors and reports.
        codes: The vocabulary, in the order of the one-hot columns.
        blank: What a blank says ("less than 17 years old"); its one-hot is all zeros. ``None``
            when a blank is not an answer but a missing value.
        impute: The declared public code that replaces a missing value; ``None`` refuses it.
        aliases: Other names the publisher has given the column.
        other: What a text outside the vocabulary says ("a rare merchant"); its one-hot is all
            zeros. ``None`` refuses such a text. A vocabulary that was released needs it, since
            rare codes are never released.
    """

    name: str
    codes: tuple[str, ...]
    blank: str | None = None
    impute: str | None = None
    aliases: tuple[str, ...] = ()
    other: str | None = None

    def __post_init__(self) -> None:
        codes = [self.canonical(code) for code in self.codes]
        if not codes or len(set(codes)) != len(codes):
            raise ConfigError(
                expected=f"distinct codes for column {self.name}",
                got="none" if not codes else "the same code twice",
                fix="list each code of the published vocabulary once",
            )
        if "" in codes:
            raise ConfigError(
                expected=f"codes of column {self.name} that are not empty",
                got='""',
                fix='say what an empty field means with blank = "...", or replace it with impute',
            )
        if self.impute is not None and self.canonical(self.impute) not in codes:
            raise ConfigError(
                expected=f"an impute code out of the vocabulary of {self.name}",
                got=repr(self.impute),
                fix="name one of the column's codes",
            )

    @property
    def width(self) -> int:
        """Number of one-hot features."""
        return len(self.codes)

    @cached_property
    def numbered(self) -> bool:
        """Whether all codes are whole numbers, so that leading zeros do not matter."""
        return are_numbers(self.codes)

    def canonical(self, code: str) -> str:
        """The spelling under which two codes are compared."""
        return str(int(code)) if self.numbered and are_numbers((code,)) else code

    def position(self, code: str) -> int:
        """The stored value of a code: its position in the vocabulary, counted from 1.

        Raises:
            ConfigError: The vocabulary lacks the code.
        """
        position = self._positions.get(self.canonical(code))
        if position is None:
            raise ConfigError(
                expected=f"a code of column {self.name}",
                got=repr(code),
                fix="use a code of the published vocabulary",
            )
        return position

    @cached_property
    def _positions(self) -> dict[str, int]:
        """The stored value of each code, in its canonical spelling."""
        return {self.canonical(code): i for i, code in enumerate(self.codes, 1)}


@dataclass(frozen=True)
class Numeric:
    """A number with public bounds, scaled to [0, 1] by them when it is gathered.

    Args:
        name: Column name.
        lower: Public lower bound, in the column's own unit.
        upper: Public upper bound; above ``lower``.
        impute: The declared public value that replaces a missing one; ``None`` refuses it.
        aliases: Other names the publisher has given the column.
        clip: Whether a number beyond the bounds is stored as the bound next to it; else it is
            refused. Conditions of a task look at the number as it was read.
        scale: ``linear``, or ``log`` for skewed amounts: (ln(1 + x - lower)) / (ln(1 + upper -
            lower)).
    """

    name: str
    lower: int | float
    upper: int | float
    impute: int | float | None = None
    aliases: tuple[str, ...] = ()
    clip: bool = False
    scale: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        _as_floats(self, "lower", "upper", "impute")
        if self.scale not in {"linear", "log"}:
            raise ConfigError(
                expected=f"scale linear or log for column {self.name}",
                got=repr(self.scale),
                fix="name one of them",
            )
        if not -LARGEST <= self.lower < self.upper <= LARGEST:
            raise ConfigError(
                expected=f"lower < upper, both finite, for column {self.name}",
                got=f"[{self.lower}, {self.upper}]",
                fix="give the bounds of the published dictionary",
            )
        if self.impute is not None and not self.lower <= self.impute <= self.upper:
            raise ConfigError(
                expected=f"an impute value in [{self.lower:g}, {self.upper:g}] for {self.name}",
                got=f"{self.impute:g}",
                fix="name one within the column's bounds",
            )

    @property
    def width(self) -> int:
        """Number of features."""
        return 1


Column = Categorical | Numeric


@dataclass(frozen=True)
class OneOf:
    """Holds where a categorical column has one of these codes (never for a blank)."""

    column: str
    codes: tuple[str, ...]


@dataclass(frozen=True)
class Between:
    """Holds where a numeric column lies in [lower, upper] (never for a missing value)."""

    column: str
    lower: int | float
    upper: int | float

    def __post_init__(self) -> None:
        _as_floats(self, "lower", "upper")


Condition = OneOf | Between


@dataclass(frozen=True)
class KeyColumn:
    """A part of the stable key that names a record, compared as text or as an integer."""

    name: str
    kind: Literal["text", "integer"] = "text"


@dataclass(frozen=True)
class Vintage:
    """Where a record's year stands: the first characters of a column. One store, one year."""

    column: str
    length: int


@dataclass(frozen=True)
class Schema:
    """A table: its key, the feature columns, and the columns that filters and labels read.

    Args:
        name: Short name.
        key: Columns that together name a record, among those of its person where there is one; the
            store is in the order of this key.
        features: What the model sees, in this order.
        context: What only the row filter and the label rule read.
        source: Citation of where bounds and vocabularies come from.
        public: Whether tables of this kind are published, so that a store of them is not
            sensitive unless its owner says so.
        unit: The unit of privacy: ``record``, or ``person``.
        vintage: Where the year stands, if records of several years must not be mixed.
        record_type: Keeps only such rows where the table has that column at all.
        person: The column that says whose a row is, where a person may have several rows; the unit
            is then the person.
        rows_per_person: k ≥ 1, how many rows of one person are used at most.
    """

    name: str
    key: tuple[KeyColumn, ...]
    features: tuple[Column, ...]
    context: tuple[Column, ...]
    source: str
    public: bool = False
    unit: str = "record"
    vintage: Vintage | None = None
    record_type: OneOf | None = None
    person: KeyColumn | None = None
    rows_per_person: int = 1

    def __post_init__(self) -> None:
        self._check_unit()
        names = [column.name for column in self.columns]
        if not self.features or len(set(names)) != len(names) or not self.key:
            raise ConfigError(
                expected="a schema with a key, features, and each column once",
                got=f"key {[part.name for part in self.key]}, columns {names}",
                fix="list a column either as a feature or as context",
            )

    def _check_unit(self) -> None:
        if self.person is not None:
            object.__setattr__(self, "unit", "person")
        if self.unit not in {"record", "person"}:
            raise ConfigError(
                expected="unit record or person", got=repr(self.unit), fix="name one of them"
            )
        if type(self.rows_per_person) is not int or self.rows_per_person < 1:
            raise ConfigError(
                expected="at least 1 row a person",
                got=repr(self.rows_per_person),
                fix="say how many rows of one person may be used at most",
            )
        if self.person is None and self.rows_per_person != 1:
            raise ConfigError(
                expected="a person column beside a bound on the rows of a person",
                got=f"{self.rows_per_person} rows and no column",
                fix="name the column that says whose a row is",
            )
        if self.person is not None and any(
            part.name == self.person.name and part.kind != self.person.kind for part in self.key
        ):
            raise ConfigError(
                expected=f"one kind for column {self.person.name}",
                got="another as a part of the key than as the person",
                fix="compare it as text, or as an integer, in both places",
            )

    @property
    def columns(self) -> tuple[Column, ...]:
        """All validated columns: features, then context."""
        return self.features + self.context

    @property
    def categorical(self) -> tuple[Categorical, ...]:
        """The categorical features, in order."""
        return tuple(column for column in self.features if isinstance(column, Categorical))

    @property
    def numeric(self) -> tuple[Numeric, ...]:
        """The numeric features, in order."""
        return tuple(column for column in self.features if isinstance(column, Numeric))

    @property
    def feature_dim(self) -> int:
        """Number of model inputs after one-hot encoding."""
        return sum(column.width for column in self.features)

    def column(self, name: str) -> Column:
        """Look a column up by name.

        Raises:
            ConfigError: The schema has no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise ConfigError(
            expected=f"a column of schema {self.name}",
            got=repr(name),
            fix="list the column under features or context",
        )


@dataclass(frozen=True)
class Released:
    """A constant that looked at records: released under differential privacy, and charged first.

    Attributes:
        name: Which constant, as `dither.data.store.manifest.public_inputs` names it ("bounds of
            AMOUNT").
        value: What was released, as text.
        statistic: How: the mechanism and its public parameters.
        epsilon: ε that the ledger was charged.
        delta: δ that the ledger was charged.
        account: Which ledger: the id in its header.
        run: Under which name it was charged there.
    """

    name: str
    value: str
    statistic: str
    epsilon: float
    delta: float
    account: str
    run: str


@dataclass(frozen=True)
class Task:
    """A yes/no question about the records of a schema.

    Args:
        name: Short name, used on the command line.
        schema: The table.
        where: Conditions that a record must all meet to be in the task.
        label: Holds for the positive class.
        class_weights: Declared public weights of the negative and the positive class.
        weights_source: Citation of where the weights come from; never these records, unless they
            are among those released.
        released: The constants of schema and task that were released from records.
    """

    name: str
    schema: Schema
    where: tuple[Condition, ...]
    label: Condition
    class_weights: tuple[int | float, int | float] = (1.0, 1.0)
    weights_source: str = "unweighted"
    released: tuple[Released, ...] = ()

    def __post_init__(self) -> None:
        weights = tuple(map(float, self.class_weights))
        object.__setattr__(self, "class_weights", weights)
        for condition in (*self.where, self.label):
            column = self.schema.column(condition.column)
            if isinstance(condition, OneOf) != isinstance(column, Categorical):
                raise ConfigError(
                    expected="codes for a categorical column, bounds for a numeric one",
                    got=f"{type(condition).__name__} for column {column.name}",
                    fix="use OneOf for categorical and Between for numeric columns",
                )
            if isinstance(condition, OneOf) and isinstance(column, Categorical):
                for code in condition.codes:
                    column.position(code)

    @property
    def condition_columns(self) -> frozenset[str]:
        """Names of the columns that decide whether a record is in the task, and its label."""
        return frozenset(condition.column for condition in (*self.where, self.label))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest; :meth:`from_json` reads them back."""
        return encode(self, _KINDS)  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Task:
        """Rebuild a task from a manifest.

        Raises:
            KeyError, TypeError, ValueError: The values are not those of a task.
        """
        task = decode(value, _KINDS)
        if not isinstance(task, Task):
            raise TypeError(type(task).__name__)
        return task


def _as_floats(value: Numeric | Between, *names: str) -> None:
    """One spelling of each number, so that 5 and 5.0 make the same manifest and hash."""
    for name in names:
        number = getattr(value, name)
        object.__setattr__(value, name, None if number is None else float(number))


_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (Categorical, Numeric, OneOf, Between, KeyColumn, Vintage, Schema, Task, Released)
}
