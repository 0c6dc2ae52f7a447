"""Engines that run the pipeline, by name."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from dither.data.engines.base import Engine, Staged
from dither.data.engines.duckdb import DuckDB
from dither.errors import ConfigError

ENGINES: MappingProxyType[str, Callable[[], Engine]] = MappingProxyType({DuckDB.name: DuckDB})

__all__ = ["ENGINES", "DuckDB", "Engine", "Staged", "find_engine"]


def find_engine(engine: str | Engine) -> Engine:
    """An engine by name, or the engine itself.

    Raises:
        ConfigError: No engine has this name.
    """
    if isinstance(engine, Engine):
        return engine
    if engine not in ENGINES:
        raise ConfigError(
            expected="an engine out of " + ", ".join(sorted(ENGINES)),
            got=repr(engine),
            fix="name one of these with --engine",
        )
    return ENGINES[engine]()
