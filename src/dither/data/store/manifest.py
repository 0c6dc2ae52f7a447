"""What a record store says about itself: public declarations, checksums, and where it is from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dither.data.schema import Categorical, Condition, Numeric, OneOf, Released, Task
from dither.data.store.persons import Persons
from dither.errors import DataError

FORMAT = "dither-record-store"
FORMAT_VERSION = 1
FILE = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One Arrow IPC file of the store."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class PublicInput:
    """A constant that everyone may know, and where it comes from; never computed from records."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Manifest:
    """The store's ``manifest.json``.

    Args:
        task: Task and schema with all public constants.
        records: Number of records, declared public.
        sensitive: Whether unprotected use of the store must be refused.
        relation: Neighbouring relation under which ``records`` and row numbers are public.
        shard_rows: Rows of every shard but the last.
        shards: The files, in key order.
        content_hash: SHA-256 over keys, codes, values, labels and task; does not depend on the
            engine, the source's format or the shard files' bytes. It is a function of the
            records: do not publish it for a sensitive store.
        sources: Names and SHA-256 of the source files.
        written_by: Version of dither.
        persons: Whose rows are whose, where the unit is a person with several rows; how many
            persons there are is then declared public, and ``records`` is not.
    """

    task: Task
    records: int
    sensitive: bool
    shard_rows: int
    shards: tuple[Shard, ...]
    content_hash: str
    sources: tuple[tuple[str, str], ...]
    relation: str = "zero_out"
    written_by: str = ""
    persons: Persons | None = None

    @property
    def units(self) -> int:
        """Number of persons, or of records where a record is the unit: declared public."""
        return self.records if self.persons is None else self.persons.persons

    @property
    def unit(self) -> str:
        """Unit of privacy: record or person."""
        return self.task.schema.unit

    @property
    def public_inputs(self) -> tuple[PublicInput, ...]:
        """Every declared public constant that the store and its training use."""
        return public_inputs(self.task, self.units)

    @property
    def released_inputs(self) -> tuple[Released, ...]:
        """Every constant that was released from records, with what it cost."""
        return self.task.released


def public_inputs(task: Task, units: int) -> tuple[PublicInput, ...]:
    """The public constants behind a store: n, vocabularies, bounds, imputation, class weights.

    Those that were released from records are in ``task.released`` instead.
    """
    released = {constant.name for constant in task.released}
    return tuple(c for c in _constants(task, units) if c.name not in released)


def _constants(task: Task, units: int) -> tuple[PublicInput, ...]:
    schema = task.schema
    what = f"declared public (number of {schema.unit}s in the task)"
    found = [PublicInput("n", str(units), what)]
    if schema.person is not None:
        most = str(schema.rows_per_person)
        found.append(PublicInput("rows of a person", f"at most {most}", "declared public"))
    for column in schema.columns:
        if isinstance(column, Numeric):
            bounds = f"[{column.lower:g}, {column.upper:g}]"
            found.append(PublicInput(f"bounds of {column.name}", bounds, schema.source))
        else:
            codes = f"{column.width} codes"
            found.append(PublicInput(f"vocabulary of {column.name}", codes, schema.source))
    imputed = [
        PublicInput(f"imputation of {column.name}", str(column.impute), schema.source)
        for column in schema.columns
        if column.impute is not None
    ]
    none = PublicInput("imputation", "none: a missing value is refused", schema.source)
    found += imputed or [none]
    scope = " and ".join(map(_words, task.where)) or "every row"
    found.append(PublicInput("scope", scope, "the task"))
    found.append(PublicInput("label", _words(task.label), "the task"))
    weights = f"({task.class_weights[0]:g}, {task.class_weights[1]:g})"
    return (*found, PublicInput("class weights", weights, task.weights_source))


def _words(condition: Condition) -> str:
    if isinstance(condition, OneOf):
        return f"{condition.column} in {', '.join(condition.codes)}"
    return f"{condition.column} from {condition.lower:g} to {condition.upper:g}"


def code_widths(task: Task) -> tuple[int, ...]:
    """One-hot width of each categorical feature, in order."""
    return tuple(c.width for c in task.schema.features if isinstance(c, Categorical))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` with a checksum of its own."""
    value: dict[str, Any] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "task": manifest.task.to_json(),
        "records": manifest.records,
        "unit": manifest.unit,
        "relation": manifest.relation,
        "sensitive": manifest.sensitive,
        "shard_rows": manifest.shard_rows,
        "shards": [vars(shard) for shard in manifest.shards],
        "content_hash": manifest.content_hash,
        "sources": [{"name": name, "sha256": digest} for name, digest in manifest.sources],
        "public_inputs": [vars(constant) for constant in manifest.public_inputs],
        "released_inputs": [vars(constant) for constant in manifest.released_inputs],
        "persons": None if manifest.persons is None else vars(manifest.persons),
        "written_by": manifest.written_by,
    }
    value["checksum"] = _checksum(value)
    (folder / FILE).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        DataError: There is none, it is of another format, or it was altered.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError(
            expected=f"a record store with a {FILE} at {folder}",
            got="none",
            fix="build one with `dither data build`",
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        checksum = value.pop("checksum")
        if value["format"] != FORMAT or value["version"] != FORMAT_VERSION:
            raise DataError(
                expected=f"{FORMAT} version {FORMAT_VERSION} in {path}",
                got=f"{value['format']} version {value['version']}",
                fix="build the store again with this version of dither",
            )
        if checksum != _checksum(value):
            raise _altered(path)
        return _parsed(value)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise _altered(path) from error


def _parsed(value: dict[str, Any]) -> Manifest:
    return Manifest(
        task=Task.from_json(value["task"]),
        records=value["records"],
        sensitive=value["sensitive"],
        shard_rows=value["shard_rows"],
        shards=tuple(Shard(**shard) for shard in value["shards"]),
        content_hash=value["content_hash"],
        sources=tuple((source["name"], source["sha256"]) for source in value["sources"]),
        relation=value["relation"],
        written_by=value["written_by"],
        persons=None if value.get("persons") is None else Persons(**value["persons"]),
    )


def _altered(path: Path) -> DataError:
    return DataError(
        expected=f"the manifest at {path} as dither wrote it",
        got="one that was altered or cut short",
        fix="restore it, or build the store again",
    )


def _checksum(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def dither_version() -> str:
    """The installed version, or "0" where dither runs from a plain folder."""
    try:
        return version("dither")
    except PackageNotFoundError:
        return "0"
