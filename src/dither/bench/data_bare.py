"""The census task as one loop over `csv.reader`, written out by hand: what a baseline may cost.

The engine ``rows`` is what the others are measured against, so it must not be a straw man. This
loop does the same work (the same checks of every value, the same order, the same store) for one
task and one layout, with everything that is known beforehand written into it. The bench tells how
much slower ``rows`` is, and refuses to go on where the two stores differ.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from dither.data.acs import ACS, UNEMPLOYMENT
from dither.data.reader import describe_sources
from dither.data.schema import Categorical
from dither.data.store.writer import write_shards
from dither.errors import DataError

_WHOLE = re.compile(r"[0-9]{1,9}(\.0+)?")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_KNOWN, _SCOPE = set(range(7)), {1, 2, 3}
_POSITIVE = 3
_BATCH = 1 << 17

Person = tuple[str, int, bytes, float, bool]


def bare_build(source: Path, folder: Path) -> str:
    """Build the store of the labour force from a CSV file in the layout of 2024.

    Args:
        source: The file.
        folder: Where shards go; exists and is empty.

    Returns:
        The content hash.

    Raises:
        DataError: A row is broken or holds an unknown code.
    """
    describe_sources([source])  # the manifest names the source's digest
    persons = _read(source)
    persons.sort()
    blocks = (persons[start : start + _BATCH] for start in range(0, len(persons), _BATCH))
    _, content = write_shards(map(_batch, blocks), UNEMPLOYMENT, folder)
    return content


def _read(source: Path) -> list[Person]:
    with source.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader)
        serial, order, status = map(header.index, ("SERIALNO", "SPORDER", "ESR"))
        age, weight, width = header.index("AGEP"), header.index("PWGTP"), len(header)
        coded = _vocabularies(header)
        years, persons = set[str](), list[Person]()
        for row in reader:
            if len(row) != width or not row[serial]:
                raise _bad(source, reader.line_num)
            years.add(row[serial][:4])
            person, code = _whole(row[order]), _whole(row[status] or "0")
            if person is None or code not in _KNOWN:
                raise _bad(source, reader.line_num)
            if code not in _SCOPE:
                continue
            codes = _codes(row, coded)
            years_of_age = _number(row[age], 0, 99)
            if codes is None or years_of_age is None or _number(row[weight], 1, 9999) is None:
                raise _bad(source, reader.line_num)
            persons.append((row[serial], person, codes, years_of_age, code == _POSITIVE))
    if len(years) != 1:
        raise _bad(source, 1)
    return persons


def _vocabularies(header: list[str]) -> list[tuple[int, dict[int, int], bool]]:
    """Of each coded feature: its place, its positions by code, and whether a blank is an answer."""
    return [
        (
            next(header.index(name) for name in (c.name, *c.aliases) if name in header),
            {int(code): position for position, code in enumerate(c.codes, 1)},
            c.blank is not None,
        )
        for c in ACS.features
        if isinstance(c, Categorical)
    ]


def _codes(row: list[str], coded: list[tuple[int, dict[int, int], bool]]) -> bytes | None:
    codes = []
    for place, positions, blank in coded:
        text = row[place]
        if text.isdigit() and text.isascii() and len(text) <= 9:
            position = positions.get(int(text))
        elif not text and blank:
            position = 0
        else:
            position = positions.get(_whole(text) or -1)
        if position is None:
            return None
        codes.append(position)
    return bytes(codes)


def _whole(text: str) -> int | None:
    if text.isdigit() and text.isascii() and len(text) <= 9:
        return int(text)
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None


def _number(text: str, lower: float, upper: float) -> float | None:
    value = float(text) if _NUMBER.fullmatch(text) else -1.0
    return value if lower <= value <= upper else None


def _batch(persons: list[Person]) -> pa.RecordBatch:
    serials, orders, codes, ages, labels = zip(*persons, strict=True)
    keys = [f"{serial}-{order}" for serial, order in zip(serials, orders, strict=True)]
    positions = np.frombuffer(b"".join(codes), dtype=np.uint8).reshape(len(persons), -1)
    columns = {"key": pa.array(keys)}
    columns |= {
        f"c_{i}": pa.array(np.ascontiguousarray(positions[:, i])) for i in range(positions.shape[1])
    }
    columns["v_0"] = pa.array(np.array(ages, dtype=np.float32))
    columns["label"] = pa.array(np.array(labels, dtype=np.uint8))
    return pa.record_batch(columns)


def _bad(source: Path, line: int) -> DataError:
    return DataError(
        expected=f"census records of one year, all valid, in {source.name}",
        got=f"a row that is not, at line {line}",
        fix="measure on records that build without --on-invalid drop",
    )
