"""Which option belongs to which bench."""

from __future__ import annotations

from dataclasses import fields

from dither.config import BenchConfig
from dither.errors import ConfigError

_ALL = frozenset({"name", "json", "full", "cases"})  # of any bench; cases are checked by name
_BENCHES = {
    "tune": ("allreduce",),
    "simulate": ("allreduce",),
    "hosts": ("allreduce",),
    "mbit": ("allreduce",),
    "figure": ("allreduce", "scaling", "data", "quant"),
    "data": ("scaling", "data", "quant"),
    "price": ("scaling",),
    "host": ("precision",),
    "out": ("quant",),
    "seeds": ("quant",),
    "processes": ("quant",),
    "hours": ("quant",),
}


def refuse_misplaced(config: BenchConfig) -> None:
    """Refuse options of another bench, which would change nothing.

    Raises:
        ConfigError: Names the first, and where it belongs.
    """
    for field in fields(BenchConfig):
        if field.name in _ALL or getattr(config, field.name) == field.default:
            continue
        benches = _BENCHES[field.name]
        if config.name not in benches:
            raise ConfigError(
                expected=f"--{field.name} with the bench {' or '.join(benches)} only",
                got=f"the bench {config.name}",
                fix=f"leave it out, or run dither bench {benches[0]}",
            )
