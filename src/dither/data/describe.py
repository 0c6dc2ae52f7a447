"""A user's own table: its description, read from a TOML file of some twenty lines.

    name = "card-fraud"
    source = "ISO 18245 merchant groups; terms of the card, section 4"
    key = { CARD = "text", NUMBER = "integer" }
    person = "CARD"
    rows_per_person = 8
    label = { column = "FRAUD", codes = ["1"] }

    [columns]
    AMOUNT = { bounds = [0, 5000], clip = true, scale = "log" }
    GROUP = { codes = ["food", "fuel", "travel"] }
    FRAUD = { codes = ["0", "1"] }

Constants in it are public by the word of ``source``. Where none is public, a column says how to
release one under differential privacy (``bounds = { release = [0.01, 0.99], epsilon = 0.1 }``):
`dither data statistics` charges the ledger and writes the constants beside the file, and until then
the description makes no task. Nothing here ever looks at a record.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dither.data.fields import Fields
from dither.data.mechanisms import Histogram, Mean, Quantiles, Statistic, Vocabulary
from dither.data.schema import (
    Between,
    Categorical,
    Column,
    Condition,
    KeyColumn,
    Numeric,
    OneOf,
    Released,
    Schema,
    Task,
)
from dither.errors import ConfigError

LABEL = "(label)"
"""Stands for the label in a statistic: codes 0 and 1."""

Values = Mapping[str, Any]
"""Released values by the name of their constant."""
_PLACE = "?"


@dataclass(frozen=True)
class Request:
    """A constant that is to be released, or a statistic for its own sake.

    Attributes:
        name: Of the constant, as reports name it: "bounds of AMOUNT".
        statistic: What is released.
        wanted: Whether the task needs it.
    """

    name: str
    statistic: Statistic
    wanted: bool = True


@dataclass(frozen=True)
class ColumnText:
    """What a description says about one column.

    Attributes:
        name: Column name.
        numeric: Whether it holds numbers.
        known: Its constants that are public.
        requests: Its constants that are to be released.
        feature: Whether the model sees it.
    """

    name: str
    numeric: bool
    known: Mapping[str, Any]
    requests: tuple[Request, ...]
    feature: bool

    def column(self, released: Values) -> Column:
        """Return the column with all its constants."""
        found = dict(self.known)
        for constant, field in (("bounds", "bounds"), ("vocabulary", "codes")):
            if f"{constant} of {self.name}" in released:
                found[field] = released[f"{constant} of {self.name}"]
        if not self.numeric:
            codes = tuple(found.pop("codes")) or self._none_released()
            return Categorical(self.name, codes, **found)
        lower, upper = found.pop("bounds")
        impute = released.get(f"imputation of {self.name}", found.get("impute"))
        if impute is not None and self.requests:  # one of the two may lie beyond the other
            impute = min(max(impute, lower), upper)
        return Numeric(self.name, lower, upper, **{**found, "impute": impute})

    def _none_released(self) -> NoReturn:
        fix = "take the column out, or release all again with a larger epsilon or delta"
        what = f"codes of {self.name} that enough rows have"
        raise ConfigError(expected=what, got="none above the threshold of their release", fix=fix)


@dataclass(frozen=True)
class Description:
    """A table and a question, with or without constants that are still to be released.

    Attributes:
        path: The file.
        name: Short name of table and task.
        source: Citation of the public constants.
        key: Columns that together name a row.
        person: Whose a row is; None where a row is the unit.
        rows_per_person: k.
        columns: All columns.
        where: Conditions that a row must meet.
        label: The positive class.
        class_weights: Declared public weights; None where they are released.
        weights_source: Where they come from.
        requests: What is to be released, in order.
    """

    path: Path
    name: str
    source: str
    key: tuple[KeyColumn, ...]
    person: KeyColumn | None
    rows_per_person: int
    columns: tuple[ColumnText, ...]
    where: tuple[Condition, ...]
    label: Condition
    class_weights: tuple[float, float] | None
    weights_source: str
    requests: tuple[Request, ...]

    @property
    def open_constants(self) -> tuple[str, ...]:
        """Names of the constants that the task needs and that are not public."""
        return tuple(request.name for request in self.requests if request.wanted)

    def task(self, values: Values, released: tuple[Released, ...] = ()) -> Task:
        """Return the task, once every constant is public or released.

        Args:
            values: Released values by name.
            released: What they cost.

        Raises:
            ConfigError: A constant is neither public nor released.
        """
        absent = [name for name in self.open_constants if name not in values]
        if absent:
            raise ConfigError(
                expected=f"every constant of {self.path.name} to be public or released",
                got=f"neither for {', '.join(absent)}",
                fix="release them with `dither data statistics`, or give public ones",
            )
        weights = values.get("class weights", self.class_weights)
        return Task(
            name=self.name,
            schema=self._schema(values),
            where=self.where,
            label=self.label,
            class_weights=tuple(weights),
            weights_source=self.weights_source,
            released=released,
        )

    def skeleton(self) -> Task:
        """Return the task with made-up constants, for reading its texts only."""
        made_up = {
            request.name: (0.0, 1.0) if request.name.startswith("bounds") else (_PLACE,)
            for request in self.requests
            if request.name.startswith(("bounds", "vocabulary"))
        }
        return Task(self.name, self._schema(made_up), self.where, self.label)

    def _schema(self, values: Values) -> Schema:
        return Schema(
            name=self.name,
            key=self.key,
            features=tuple(c.column(values) for c in self.columns if c.feature),
            context=tuple(c.column(values) for c in self.columns if not c.feature),
            source=self.source,
            person=self.person,
            rows_per_person=self.rows_per_person,
        )


def read_description(path: str | Path) -> Description:
    """Read a description file. No record is looked at.

    Raises:
        ConfigError: It is missing, no TOML, or says something that dither does not know; the place
            is named.
    """
    file = Path(path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            expected=f"a description of a table in TOML at {file}",
            got=getattr(error, "strerror", None) or str(error),
            fix="write one; `dither data describe --data TABLE` prints a first draft",
        ) from error
    return _Reader(file, Fields(file.name, values)).read()


class _Reader:
    """Turns the tables of a TOML file into a `Description`, naming the place of every mistake."""

    def __init__(self, path: Path, top: Fields) -> None:
        self._path = path
        self._top = top
        self._requests: list[Request] = []

    def read(self) -> Description:
        top = self._top
        name, source = top.short_name("name"), top.text("source")
        key = self._key()
        person_name = top.text("person", None)
        rows = top.whole("rows_per_person", *([None] if person_name is None else []))
        label_fields, wheres = top.inner("label"), top.inners("where")
        hidden = {label_fields.text("column")}
        columns = tuple(self._column(f, hidden) for f in top.inner("columns").all_inner())
        kinds = {c.name: c.numeric for c in columns}
        weights = self._weights()
        for extra in top.inners("statistics"):
            self._requests.append(_statistic(extra, kinds))
        description = Description(
            path=self._path,
            name=name,
            source=source,
            key=key,
            person=self._person(person_name, key),
            rows_per_person=rows or 1,
            columns=columns,
            where=tuple(_condition(fields, kinds) for fields in wheres),
            label=_condition(label_fields, kinds),
            class_weights=weights,
            weights_source=top.text("weights_source", "unweighted" if weights else source),
            requests=tuple(self._requests),
        )
        top.done()
        _check(description, top)
        return description

    def _key(self) -> tuple[KeyColumn, ...]:
        given = self._top.any("key")
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            given = dict.fromkeys(given, "text")
        kinds = {"text", "integer"}
        if not isinstance(given, dict) or not given or not set(given.values()) <= kinds:
            self._top.refuse("key", "a list of columns, or a table of columns with text or integer")
        return tuple(KeyColumn(name, kind) for name, kind in given.items())

    def _person(self, name: str | None, key: tuple[KeyColumn, ...]) -> KeyColumn | None:
        if name is None:
            return None
        return next((part for part in key if part.name == name), KeyColumn(name))

    def _weights(self) -> tuple[float, float] | None:
        given = self._top.any("class_weights", [1.0, 1.0])
        if isinstance(given, dict):
            fields = self._top.inner("class_weights")
            fields.yes("release")
            counted = Histogram(LABEL, fields.number("epsilon"), codes=("0", "1"))
            self._requests.append(Request("class weights", counted))
            fields.done()
            return None
        weights = self._top.numbers("class_weights", (1.0, 1.0))
        if len(weights) != 2 or min(weights) <= 0.0:
            self._top.refuse("class_weights", "two positive weights, of the negative class first")
        return weights[0], weights[1]

    def _column(self, fields: Fields, hidden: set[str]) -> ColumnText:
        name = fields.name
        numeric = fields.has("bounds")
        if numeric == fields.has("codes"):
            fields.refuse("bounds", "either bounds, of a number, or codes, of a vocabulary")
        before = len(self._requests)
        known = (self._numeric if numeric else self._categorical)(name, fields)
        known["aliases"] = fields.texts("aliases", ())
        feature = fields.flag("feature", default=name not in hidden)
        if feature and name in hidden:
            fields.refuse("feature", "false, for the model must not see the label")
        fields.done()
        return ColumnText(name, numeric, known, tuple(self._requests[before:]), feature)

    def _numeric(self, name: str, fields: Fields) -> dict[str, Any]:
        known: dict[str, Any] = {"scale": fields.choice("scale", "linear", "log")}
        bounds = fields.any("bounds")
        if isinstance(bounds, dict):
            ask = fields.inner("bounds")
            levels = ask.numbers("release")
            if len(levels) != 2 or not levels[0] < levels[1]:
                ask.refuse("release", "two quantile levels, such as [0.01, 0.99]")
            asked = Quantiles(name, levels, ask.number("epsilon"), ask.numbers("candidates", ()))
            if len(asked.candidates) == 1:
                ask.refuse("candidates", "at least two candidates")
            self._requests.append(Request(f"bounds of {name}", asked))
            ask.done()
        else:
            known["bounds"] = fields.numbers("bounds")
            if len(known["bounds"]) != 2:
                fields.refuse("bounds", "a lower and an upper bound")
        known["clip"] = fields.flag("clip", default=isinstance(bounds, dict))
        if isinstance(fields.any("impute", None), dict):
            self._impute(name, fields.inner("impute"), known.get("bounds"))
        else:
            known["impute"] = fields.number("impute", None)
        return known

    def _impute(self, name: str, ask: Fields, bounds: tuple[float, ...] | None) -> None:
        kind, epsilon = ask.text("release"), ask.number("epsilon")
        if kind == "median":
            asked: Statistic = Quantiles(name, (0.5,), epsilon, ask.numbers("candidates", ()))
        elif kind == "mean" and bounds is not None:
            asked = Mean(name, bounds[0], bounds[1], epsilon)
        else:
            ask.refuse("release", '"median", or "mean" where the bounds are public')
        self._requests.append(Request(f"imputation of {name}", asked))
        ask.done()

    def _categorical(self, name: str, fields: Fields) -> dict[str, Any]:
        known: dict[str, Any] = {
            "blank": fields.text("blank", None),
            "impute": fields.text("impute", None),
            "other": fields.text("other", None),
        }
        if isinstance(fields.any("codes"), dict):
            ask = fields.inner("codes")
            ask.yes("release")
            asked = Vocabulary(name, ask.number("epsilon"), ask.number("delta"))
            self._requests.append(Request(f"vocabulary of {name}", asked))
            ask.done()
            if known["other"] is None:
                fields.refuse("other", "a word for codes that are too rare to be released")
        else:
            known["codes"] = fields.texts("codes")
        return known


def _condition(fields: Fields, kinds: Mapping[str, bool]) -> Condition:
    name = fields.text("column")
    if name not in kinds:
        fields.refuse("column", "a column of the table under [columns]")
    if kinds[name]:
        between = fields.numbers("between")
        if len(between) != 2:
            fields.refuse("between", "a lower and an upper bound")
        found: Condition = Between(name, between[0], between[1])
    else:
        found = OneOf(name, fields.texts("codes"))
    fields.done()
    return found


def _statistic(fields: Fields, kinds: Mapping[str, bool]) -> Request:
    """Return a statistic that is released for its own sake."""
    kind, column, epsilon = fields.text("kind"), fields.text("column"), fields.number("epsilon")
    if column not in kinds:
        fields.refuse("column", "a column of the table under [columns]")
    found: Statistic
    if kind == "mean":
        lower, upper = (*fields.numbers("bounds"), 0.0, 0.0)[:2]
        found = Mean(column, lower, upper, epsilon)
    elif kind == "quantiles":
        candidates = fields.numbers("candidates", ())
        found = Quantiles(column, fields.numbers("levels"), epsilon, candidates)
    elif kind == "histogram":
        edges, codes = fields.numbers("edges", ()), fields.texts("codes", ())
        found = Histogram(column, epsilon, edges=edges, codes=codes)
    elif kind == "vocabulary":
        found = Vocabulary(column, epsilon, fields.number("delta"))
    else:
        fields.refuse("kind", "mean, quantiles, histogram or vocabulary")
    fields.done()
    numeric = isinstance(found, Mean | Quantiles) or bool(getattr(found, "edges", ()))
    if numeric != kinds[column]:
        fields.refuse("kind", "a statistic that fits its column: numbers or codes")
    return Request(f"{kind} of {column}", found, wanted=False)


def _check(description: Description, top: Fields) -> None:
    names = [request.name for request in description.requests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        top.refuse("statistics", f"each statistic once ({', '.join(twice)})")
    conditions = {condition.column for condition in (*description.where, description.label)}
    for column in description.columns:
        if column.name in conditions and any("vocab" in r.name for r in column.requests):
            top.refuse("columns", f"public codes for {column.name}, which decides scope or label")
    description.skeleton()
    if not description.open_constants:
        description.task({})
