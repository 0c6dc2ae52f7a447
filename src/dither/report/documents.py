"""JSON files of a run folder, read strictly: a field that is not as it must be names its file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dither.errors import DataError

FORMAT = 1
_FIX = "restore the file from the run that wrote it, or train again into a new folder"


@dataclass(frozen=True)
class Document:
    """One JSON object with typed access; an absent or null field reads as None.

    Attributes:
        source: The file it came from, and the line for JSON lines ("metrics.jsonl, line 3").
        values: The object.
    """

    source: str
    values: Mapping[str, object]

    def get(self, *keys: str) -> object:
        """Return the value at a path of keys, None where any of them is absent."""
        value: object = self.values
        for key in keys:
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return value

    def number(self, *keys: str) -> float | None:
        """Return a finite number.

        Raises:
            DataError: The field holds something else.
        """
        value = self.get(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse("a number", keys)
        return float(value)

    def text(self, *keys: str) -> str | None:
        """Return a string.

        Raises:
            DataError: The field holds something else.
        """
        value = self.get(*keys)
        if value is not None and not isinstance(value, str):
            self.refuse("a text", keys)
        return value

    def flag(self, *keys: str) -> bool:
        """Return true or false; an absent flag is an error, for "private" is never assumed.

        Raises:
            DataError: The field is absent or holds something else.
        """
        value = self.get(*keys)
        if not isinstance(value, bool):
            self.refuse("true or false", keys)
        return value

    def table(self, *keys: str) -> dict[str, object]:
        """Return a nested object, empty where it is absent or null.

        Raises:
            DataError: The field holds something else.
        """
        value = self.get(*keys)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse("an object", keys)
        return value

    def numbers(self, *keys: str) -> tuple[float, ...]:
        """Return a list of numbers, empty where it is absent or null.

        Raises:
            DataError: The field holds something else.
        """
        value = self.get(*keys)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(_is_number(item) for item in value):
            self.refuse("a list of numbers", keys)
        return tuple(float(item) for item in value)

    def refuse(self, expected: str, keys: tuple[str, ...]) -> NoReturn:
        """Raise the error for one field."""
        raise DataError(
            expected=f"{expected} as {'.'.join(keys)} in {self.source}",
            got=repr(self.get(*keys))[:120],
            fix=_FIX,
        )


def read_document(path: Path) -> Document:
    """Read one JSON object.

    Raises:
        DataError: The file is missing, not UTF-8 JSON, or no object.
    """
    return _parse(_read_text(path), path.name)


def read_list(path: Path) -> tuple[float | None, ...]:
    """Read one JSON list of numbers and nulls; empty where there is no such file.

    Raises:
        DataError: The file holds something else.
    """
    if not path.exists():
        return ()
    values = _load(_read_text(path), path.name)
    if not isinstance(values, list) or not all(v is None or _is_number(v) for v in values):
        raise DataError(
            expected=f"a list of numbers in {path.name}", got=str(values)[:60], fix=_FIX
        )
    return tuple(None if value is None else float(value) for value in values)


def read_optional(path: Path) -> Document | None:
    """Read one JSON object, or None where there is no such file (yet)."""
    return read_document(path) if path.exists() else None


def read_lines(path: Path) -> tuple[Document, ...]:
    """Read JSON lines; none where there is no such file.

    A last line without its newline is one that a running or killed process had not finished
    writing: it is left out unless it is whole.

    Raises:
        DataError: A finished line is not a JSON object.
    """
    if not path.exists():
        return ()
    *lines, rest = _read_text(path).split("\n")
    documents = [
        _parse(line, f"{path.name}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if rest.strip():
        with contextlib.suppress(DataError):
            documents.append(_parse(rest, f"{path.name}, last line"))
    return tuple(documents)


def check_format(document: Document) -> Document:
    """Refuse a file of another format version.

    Raises:
        DataError: The format is not the one this version reads.
    """
    if document.get("format") != FORMAT:
        raise DataError(
            expected=f"{document.source} with format {FORMAT}",
            got=f"format {document.get('format')!r}",
            fix="make the report with the version of dither that trained the run",
        )
    return document


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            expected=f"a readable file {path.name} in the run folder", got=str(error), fix=_FIX
        ) from error


def _load(text: str, source: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise DataError(
            expected=f"JSON in {source}", got=f"{text[:60]!r} ({error})", fix=_FIX
        ) from error


def _parse(text: str, source: str) -> Document:
    values = _load(text, source)
    if not isinstance(values, dict):
        raise DataError(expected=f"a JSON object in {source}", got=repr(values)[:60], fix=_FIX)
    return Document(source, values)


def _no_constant(name: str) -> NoReturn:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
