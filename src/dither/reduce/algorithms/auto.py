"""Which algorithm for which message: a table of what was fastest where it was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from dither.errors import ConfigError
from dither.files import home, write_json
from dither.reduce.endpoint import Endpoint

# How ranks lie on hosts: all on one, one on each, or some of both.
Layout: TypeAlias = Literal["one_host", "one_rank_a_host", "mixed"]

# What a table may choose; the registry has the functions.
NAMES = (
    *("naive", "round_robin", "binomial", "recursive_doubling", "ring", "rabenseifner"),
    *("hierarchical", "backend"),
)
ANY_TRANSPORT = "*"
_FORMAT = "dither allreduce table"
_VERSION = 1
_MOST_CHOSEN = 1024  # choices remembered: programs send few sizes


@dataclass(frozen=True)
class TableRow:
    """What to use from some size of message on.

    Attributes:
        transport: An endpoint's ``kind``, or * for those without rows of their own.
        layout: How ranks lie on hosts.
        world_size: From how many ranks on; the smallest listed also serves fewer.
        from_bytes: From how many bytes on.
        algorithm: What was fastest.
        fallback: What was fastest but for the back end's own; used where that cannot sum the type.
    """

    transport: str
    layout: Layout
    world_size: int
    from_bytes: int
    algorithm: str
    fallback: str

    def __post_init__(self) -> None:
        texts = (self.transport, self.layout, self.algorithm, self.fallback)
        numbers = (self.world_size, self.from_bytes)
        if (
            not all(isinstance(text, str) for text in texts)
            or not all(type(number) is int and number >= 0 for number in numbers)
            or self.layout not in get_args(Layout)
            or self.algorithm not in NAMES
            or self.fallback not in NAMES
            or self.fallback == "backend"
        ):
            raise ConfigError(
                expected="a transport, a layout, two sizes and two algorithms, not falling back "
                "on the back end",
                got=str(asdict(self)),
                fix=f"use layouts {', '.join(get_args(Layout))} and algorithms {', '.join(NAMES)}",
            )

    @property
    def group(self) -> tuple[str, str, int]:
        """Transport, layout and number of ranks."""
        return self.transport, self.layout, self.world_size


@dataclass(frozen=True)
class Table:
    """What was fastest, by transport, layout, ranks and bytes.

    Attributes:
        rows: In any order; with one from 0 bytes on for every transport, layout and number of
            ranks that occurs, and every layout for any transport.
        measured: Where and when, for people.

    Raises:
        ConfigError: Rows are missing or contradict each other.
    """

    rows: tuple[TableRow, ...]
    measured: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = [(row.group, row.from_bytes) for row in self.rows]
        starts = {group for group, from_bytes in keys if from_bytes == 0}
        layouts = {row.layout for row in self.rows if row.transport == ANY_TRANSPORT}
        if (
            len(set(keys)) < len(keys)
            or starts != {row.group for row in self.rows}
            or layouts != set(get_args(Layout))
        ):
            raise ConfigError(
                expected="one row for each number of bytes, from 0 on, and rows for any transport",
                got="a table with rows missing or twice",
                fix="start from the table that dither ships",
            )

    @cached_property
    def digest(self) -> str:
        """What two tables have in common exactly if they choose alike."""
        rows = sorted(json.dumps(asdict(row), sort_keys=True) for row in self.rows)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    @cached_property
    def _chosen(self) -> dict[tuple[str, tuple[int, ...], int, int], TableRow]:
        return {}

    @cached_property
    def _groups(self) -> dict[tuple[str, str], dict[int, list[TableRow]]]:
        groups: dict[tuple[str, str], dict[int, list[TableRow]]] = {}
        for row in sorted(self.rows, key=lambda row: (row.world_size, row.from_bytes)):
            sizes = groups.setdefault((row.transport, row.layout), {})
            sizes.setdefault(row.world_size, []).append(row)
        return groups

    def choose(self, endpoint: Endpoint, size: int) -> TableRow:
        """Return the row for a message of so many bytes: the same on all ranks."""
        key = endpoint.kind, endpoint.hosts, endpoint.world_size, size
        row = self._chosen.get(key)
        if row is None:
            row = self.find(endpoint.kind, layout_of(endpoint.hosts), endpoint.world_size, size)
            if len(self._chosen) < _MOST_CHOSEN:
                self._chosen[key] = row
        return row

    def find(self, transport: str, layout: Layout, world_size: int, size: int) -> TableRow:
        """Return the row of the largest listed number of ranks, then bytes, that are no larger."""
        groups = self._groups.get((transport, layout)) or self._groups[ANY_TRANSPORT, layout]
        ranks = max((listed for listed in groups if listed <= world_size), default=min(groups))
        return [row for row in groups[ranks] if row.from_bytes <= size][-1]

    def updated(self, rows: Iterable[TableRow], measured: Mapping[str, str]) -> Table:
        """Return a table where new rows replace all of their transport, layout and ranks."""
        rows = tuple(rows)
        new = {row.group for row in rows}
        kept = tuple(row for row in self.rows if row.group not in new)
        return Table(kept + rows, {**self.measured, **measured})


def layout_of(hosts: tuple[int, ...]) -> Layout:
    """Return how ranks lie on hosts."""
    count = len(set(hosts))
    if count == 1:
        return "one_host"
    return "one_rank_a_host" if count == len(hosts) else "mixed"


def table_path() -> Path:
    """Return where this user's measured table lies, if there is one, under dither's home."""
    return home() / "allreduce.json"


def default_table() -> Table:
    """Return the table that dither ships."""
    text = resources.files(__package__).joinpath("default_table.json").read_text(encoding="utf-8")
    return _parse(text, "dither's own table")


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        ConfigError: No such file, or not a whole table of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(str(path), getattr(error, "strerror", None) or "no text") from error
    return _parse(text, str(path))


def write_table(table: Table, path: Path | None = None) -> Path:
    """Write a table, by default where `current_table` looks, and return its path.

    Raises:
        OutputError: It cannot be written; an old table stays as it was.
    """
    path = table_path() if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = sorted(table.rows, key=lambda row: (row.group, row.from_bytes))
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "measured": dict(table.measured),
        "rows": [asdict(row) for row in rows],
    }
    write_json(path, content)
    _cached_table.cache_clear()
    return path


def current_table() -> Table:
    """Return this user's measured table, or dither's own; read once a process.

    Raises:
        ConfigError: The file is damaged.
    """
    return _cached_table(table_path())


@lru_cache(maxsize=4)
def _cached_table(path: Path) -> Table:
    return read_table(path) if path.exists() else default_table()


def _parse(text: str, name: str) -> Table:
    try:
        content: Any = json.loads(text)
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise _refusal(name, f"{content['format']!r}, version {content['version']!r}")
        rows = tuple(TableRow(**row) for row in content["rows"])
        measured = {str(key): str(value) for key, value in content["measured"].items()}
        return Table(rows, measured)
    except ConfigError as error:
        raise _refusal(name, error.got) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refusal(name, f"{type(error).__name__}: {error}") from error


def _refusal(name: str, got: str) -> ConfigError:
    return ConfigError(
        expected=f"{name} to be a whole {_FORMAT}, version {_VERSION}",
        got=got,
        fix="remove the file, or measure it anew with `dither bench allreduce --tune`",
    )
