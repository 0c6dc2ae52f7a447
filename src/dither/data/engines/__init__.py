"""Engines that run the pipeline, by name."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from dither.data.engines.base import Engine, Staged
from dither.data.engines.duckdb import DuckDB
from dither.data.engines.rows import Rows
from dither.data.engines.spark import Spark
from dither.data.engines.streaming import Streaming
from dither.errors import ConfigError

ENGINES: MappingProxyType[str, Callable[[], Engine]] = MappingProxyType(
    {kind.name: kind for kind in (DuckDB, Rows, Spark, Streaming)}
)

__all__ = ["ENGINES", "DuckDB", "Engine", "Rows", "Spark", "Staged", "Streaming", "find_engine"]


def find_engine(engine: str | Engine, *, master: str | None = None) -> Engine:
    """An engine by name, or the engine itself.

    Args:
        engine: Which.
        master: Where Spark runs: ``local[N]``, ``spark://HOST:PORT`` or another master's address.

    Raises:
        ConfigError: No engine has this name, or a master is given for another than Spark.
    """
    if master is not None and engine != Spark.name:
        raise ConfigError(
            expected="a master with the engine spark only",
            got=f"{master!r} with {engine if isinstance(engine, str) else engine.name}",
            fix="leave --master out, or take --engine spark",
        )
    if isinstance(engine, Engine):
        return engine
    if engine not in ENGINES:
        raise ConfigError(
            expected="an engine out of " + ", ".join(sorted(ENGINES)),
            got=repr(engine),
            fix="name one of these with --engine",
        )
    return ENGINES[engine]() if master is None else Spark(master=master)
