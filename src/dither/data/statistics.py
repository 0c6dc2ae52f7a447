"""Constants and statistics that look at records: charged to the ledger first, then released.

Each is a release of its own in the ledger, with its mechanism and public parameters; a mechanism
that OpenDP's maps call (ε, δ)-private towards k rows is charged as
`dither.privacy.events.ApproximateDP`. What was released is written beside the description with what
it cost, and a task that uses it says so in every manifest. A description whose constants are
neither public nor charged makes no task.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dither.data.describe import LABEL, Description, Request, read_description
from dither.data.limits import are_numbers
from dither.data.mechanisms import Column, Prepared, Quantiles, Vocabulary, prepare
from dither.data.persons import bounded
from dither.data.reader import open_tables, source_files
from dither.data.schema import Released, Task
from dither.data.texts import ordered_columns
from dither.errors import ConfigError, DataError, LedgerError, OutputError
from dither.files import output_errors, write_json
from dither.privacy.events import ApproximateDP, Relation, Unit
from dither.privacy.ledger import Ledger

FORMAT = "dither-released-statistics"
VERSION = 1


@dataclass(frozen=True)
class Constant:
    """One release: what it is, what came out, and what was charged for it.

    Attributes:
        name: Of the constant or statistic.
        value: What was released, as plain JSON.
        statistic: The mechanism and its public parameters.
        accuracy: See `dither.data.mechanisms.Prepared.accuracy`.
        epsilon: ε charged.
        delta: δ charged.
        run: Under which name.
        asked: Digest of the request, so that a changed description does not reuse it.
        wanted: Whether the task uses it.
    """

    name: str
    value: Any
    statistic: str
    accuracy: float
    epsilon: float
    delta: float
    run: str
    asked: str
    wanted: bool


@dataclass(frozen=True)
class Statement:
    """Everything that was released for one description.

    Attributes:
        description: Its name.
        unit: Unit of privacy.
        rows_per_unit: k, rows of one unit that were looked at.
        person: The column that says whose a row is, and how it compares; None without.
        relation: Neighbouring relation.
        ledger: Where it was charged.
        account: Id of that ledger.
        constants: The releases.
    """

    description: str
    unit: str
    rows_per_unit: int
    person: str | None
    relation: str
    ledger: str
    account: str
    constants: tuple[Constant, ...]

    def values(self) -> dict[str, Any]:
        """Return the constants that the task uses, by name."""
        return {constant.name: constant.value for constant in self.constants if constant.wanted}

    def released(self) -> tuple[Released, ...]:
        """Return what a manifest says about them."""
        return tuple(
            Released(
                name=constant.name,
                value=json.dumps(constant.value, ensure_ascii=False),
                statistic=constant.statistic,
                epsilon=constant.epsilon,
                delta=constant.delta,
                account=self.account,
                run=constant.run,
            )
            for constant in self.constants
            if constant.wanted
        )


def released_path(description: Path) -> Path:
    """Where the releases for a description lie: beside it."""
    return description.with_suffix(".released.json")


def default_ledger(description: Path) -> Path:
    """Where they are charged unless told otherwise: beside it."""
    return description.with_suffix(".ledger.sqlite")


def release_statistics(
    description: str | Path | Description,
    sources: str | Path | Iterable[str | Path],
    *,
    ledger: str | Path | None = None,
    relation: str = "zero_out",
    sensitive: bool = True,
    told: Callable[[str], None] = lambda _: None,
) -> Statement:
    """Release what a description asks for, and write it beside the description.

    Guarantee: each value is (ε, δ)-differentially private towards one unit (a record, or a person
    with the k rows that the schema allows), as stated in the ledger before the value was drawn.
    Nothing is charged where reading the records fails.

    Args:
        description: A description file, or what was read of it.
        sources: Census zips, CSV or Parquet files, or folders of them: all records of the account.
        ledger: Account to charge, made where there is none; by default beside the description.
            Training on these records must charge the same one.
        relation: Neighbouring relation of the account.
        sensitive: Whether the account's records are sensitive.
        told: Is told what is being done.

    Raises:
        ConfigError: Nothing is to be released, or OpenDP is missing.
        DataError: The records are not what the description says.
        LedgerError: The ledger counts another unit or relation.
        OutputError: Statistics were released for this description before.
    """
    about = read_description(description) if isinstance(description, str | Path) else description
    path = _check_free(about)
    task = about.skeleton()
    rows = task.schema.rows_per_person
    d_in = rows * (2 if relation == Relation.REPLACE_ONE else 1)
    ready = [(request, prepare(request.statistic, d_in)) for request in about.requests]
    told("reading records")
    columns = _read(task, sources, path.parent, {r.statistic.column for r in about.requests})
    book = Ledger.create(
        default_ledger(about.path) if ledger is None else Path(ledger),
        store=f"account {about.name}",
        unit=Unit(task.schema.unit),
        relation=Relation(relation),
        sensitive=sensitive,
    )
    run = f"statistics-{uuid.uuid4().hex[:12]}"
    constants = tuple(_release(request, p, columns, book, run) for request, p in ready)
    statement = Statement(
        description=about.name,
        unit=task.schema.unit,
        rows_per_unit=rows,
        person=_person(task),
        relation=relation,
        ledger=str(book.path),
        account=book.header.id,
        constants=constants,
    )
    write_json(path, _to_json(statement, path.parent.absolute()))
    return statement


def load_task(path: str | Path) -> Task:
    """Return the task of a description file, with its released constants where it needs some.

    Raises:
        ConfigError: A constant is neither public nor released, or the description changed since.
        LedgerError: What was released was not charged, or its ledger is gone.
        DataError: The file of releases was altered.
    """
    description = read_description(path)
    if not description.open_constants:
        return description.task({})
    statement = read_statement(description.path)
    if statement is None:
        return description.task({})  # says which constants are neither public nor released
    _check_same(description, statement)
    task = description.task(statement.values(), statement.released())
    require_charged(task, Ledger.open(Path(statement.ledger)))
    return task


def require_charged(task: Task, ledger: Ledger) -> None:
    """Refuse records whose constants another account, or none, was charged for.

    Raises:
        LedgerError: A released constant is not among the ledger's charges.
    """
    for constant in task.released:
        if constant.account != ledger.header.id:
            raise LedgerError(
                expected=f"the ledger that {constant.name} was charged to ({constant.account})",
                got=f"account {ledger.header.id} in {ledger.path}",
                fix="give the --ledger that `dither data statistics` has charged",
            )
        events = ledger.events(constant.run)
        if (ApproximateDP(constant.epsilon, constant.delta), 1) not in events:
            raise LedgerError(
                expected=f"a charge for {constant.name} in {ledger.path}",
                got=f"none as {constant.run}",
                fix="restore that ledger, or release the constants again",
            )


def read_statement(description: Path) -> Statement | None:
    """Return what was released for a description; None where nothing was.

    Raises:
        DataError: The file was altered.
    """
    path = released_path(description)
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        checksum = value.pop("checksum")
        whole = checksum == _checksum(value) and value["format"] == FORMAT
        facts = {name: value[name] for name in value if name not in {"format", "version"}}
        facts["constants"] = tuple(Constant(**item) for item in facts["constants"])
        facts["ledger"] = str((path.parent / facts["ledger"]).absolute())
        statement = Statement(**facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _altered(path) from error
    if not whole:
        raise _altered(path)
    return statement


def _altered(path: Path) -> DataError:
    return DataError(
        expected=f"released statistics at {path} as dither wrote them",
        got="a file that was altered or cut short",
        fix="restore it; what it held stays charged",
    )


def _check_free(description: Description) -> Path:
    if not description.requests:
        raise ConfigError(
            expected=f"something to release in {description.path.name}",
            got="public constants only",
            fix="build a store of it right away, or add [[statistics]] to the description",
        )
    path = released_path(description.path)
    if path.exists():
        raise OutputError(
            expected=f"no statistics yet at {path}",
            got="a file of earlier ones",
            fix="use these; or remove the file to release (and charge) them again",
        )
    with output_errors(path):
        tempfile.TemporaryFile(dir=path.parent).close()  # before anything is charged
    return path


def _check_same(description: Description, statement: Statement) -> None:
    asked = {c.name: c.asked for c in statement.constants}
    task = description.skeleton()
    unit = (task.schema.unit, task.schema.rows_per_person, _person(task))
    changed = [r.name for r in description.requests if r.wanted and asked.get(r.name) != _digest(r)]
    if changed or unit != (statement.unit, statement.rows_per_unit, statement.person):
        raise ConfigError(
            expected=f"releases as {description.path.name} asks for them",
            got=f"others: {', '.join(changed) or 'of another unit or bound on its rows'}",
            fix="undo the change, or remove the file of releases and release again",
        )


def _person(task: Task) -> str | None:
    person = task.schema.person
    return None if person is None else f"{person.name} ({person.kind})"


def _digest(request: Request) -> str:
    return hashlib.sha256(repr(request).encode()).hexdigest()[:32]


def _release(
    request: Request,
    prepared: Prepared,
    columns: Mapping[str, Column],
    ledger: Ledger,
    run: str,
) -> Constant:
    """Charge, then draw."""
    name = f"{run}/{request.name.replace(' ', '-')}"
    event = ApproximateDP(prepared.epsilon, prepared.delta)
    ledger.record_plan(name, {"plan": {"statistic": request.name, "mechanism": prepared.words}})
    ledger.charge(name, event, 1, limit=1)
    return Constant(
        name=request.name,
        value=_constant(request, prepared.run(columns[request.statistic.column])),
        statistic=prepared.words,
        accuracy=prepared.accuracy,
        epsilon=event.epsilon,
        delta=event.delta,
        run=name,
        asked=_digest(request),
        wanted=request.wanted,
    )


def _constant(request: Request, value: Any) -> Any:
    """Turn what was drawn into the constant; post-processing, which costs nothing."""
    statistic = request.statistic
    if request.name.startswith("bounds") and isinstance(statistic, Quantiles):
        lower, upper = value
        if upper > lower:
            return [lower, upper]
        above = [c for c in statistic.candidates if c > lower]
        return [lower, above[0]] if above else [statistic.candidates[-2], lower]
    if request.name.startswith("imputation") and isinstance(value, tuple):
        return value[0]
    if request.name == "class weights":
        counts = [max(1, count) for count in value]
        return [sum(counts) / (2.0 * count) for count in counts]
    if isinstance(statistic, Vocabulary):
        seen: dict[str, str] = {}
        plain = are_numbers(value)  # 1 and 01 are one code where all are numbers
        for code in value:
            seen.setdefault(str(int(code)) if plain else code, code)
        return list(seen.values())
    return list(value) if isinstance(value, tuple) else value


def _read(
    task: Task, sources: str | Path | Iterable[str | Path], near: Path, wanted: set[str]
) -> dict[str, Column]:
    """Return the columns that statistics look at, of at most k rows a unit."""
    files = source_files(sources)
    with output_errors(near), tempfile.TemporaryDirectory(dir=near, prefix=".statistics.") as work:
        tables = open_tables(files, task.schema, Path(work))
        with ordered_columns(tables, task, Path(work)) as batches:
            return _collect(bounded(batches, task.schema.rows_per_person), wanted)


def _collect(batches: Iterator[pa.RecordBatch], wanted: set[str]) -> dict[str, Column]:
    numbers: dict[str, list[np.ndarray]] = {}
    texts: dict[str, Counter[str]] = {}
    labels: Counter[str] = Counter({"0": 0, "1": 0})
    for batch in batches:
        positive = pc.sum(batch.column("label")).as_py() or 0
        labels.update({"1": positive, "0": batch.num_rows - positive})
        for name in batch.schema.names:
            kind, _, column = name.partition("_")
            if column not in wanted:
                continue
            values = batch.column(name).drop_null()
            if kind == "n":
                numbers.setdefault(column, []).append(values.to_numpy(zero_copy_only=False))
            else:
                tally = texts.setdefault(column, Counter())
                for item in values.value_counts().to_pylist():
                    tally[item["values"]] += item["counts"]
    if not sum(labels.values()):
        raise DataError(
            expected="records in the scope of the task",
            got="none",
            fix="check that these are the right records",
        )
    joined = {name: np.concatenate(parts) for name, parts in numbers.items()}
    return {LABEL: dict(labels), **joined, **{n: dict(t) for n, t in texts.items()}}


def _to_json(statement: Statement, folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = {"format": FORMAT, "version": VERSION, **vars(statement)}
    ledger = Path(statement.ledger)
    if ledger.is_relative_to(folder):  # so that the folder may move
        value["ledger"] = str(ledger.relative_to(folder))
    value["constants"] = [vars(constant) for constant in statement.constants]
    value["checksum"] = _checksum(value)
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
