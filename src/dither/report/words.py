"""Numbers as readers read them. A privacy parameter is never rounded down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context

NONE = "—"
Number = int | float


def rounded_up(value: Number | None, digits: int = 4) -> str:
    """Return ε or δ with some significant digits, rounded up: a bound must stay a bound."""
    if value is None or not math.isfinite(value):
        return "∞"
    return plain(
        float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(float(value))))
    )


def plain(value: Number | None, digits: int | None = None) -> str:
    """Return a number without superfluous zeros, ``1e-7`` for small ones; all digits by default."""
    if value is None:
        return NONE
    text = repr(value) if digits is None else f"{value:.{digits}g}"
    mantissa, mark, exponent = text.partition("e")
    if mark:
        return f"{mantissa}e{int(exponent)}"
    return mantissa.removesuffix(".0")


def fixed(value: Number | None, digits: int = 4) -> str:
    """Return a number with a fixed count of decimals."""
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: Number | None, digits: int = 4) -> str:
    """Return a difference with its sign."""
    return NONE if value is None else f"{value:+.{digits}f}".replace("-", "−")


def count(value: Number | None) -> str:
    """Return a whole number with thousands separators."""
    return NONE if value is None else f"{value:,.0f}"


def percent(value: Number | None) -> str:
    """Return a share as a percentage."""
    return NONE if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def duration(seconds: Number | None) -> str:
    """Return a span of time."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: Number | None) -> str:
    """Return a number of bytes in binary units."""
    if value is None:
        return NONE
    amount, units = value, ["B", "KiB", "MiB", "GiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.2f} {units[0]}"


def anything(value: object) -> str:
    """Return any JSON value in one line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, list | tuple):
        return ", ".join(anything(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {anything(item)}" for key, item in value.items()) or "none"
    return str(value)
