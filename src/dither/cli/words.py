"""Figures as people read them."""

from __future__ import annotations


def amount(value: float | None, unit: str) -> str:
    """Return a value with a prefix that keeps it short: 1.5 ms; empty for None."""
    if value is None:
        return ""
    if not unit or unit == "zC":
        return f"{value:.3g} {unit}".strip()
    scales = [(1.0, ""), (1e-3, "m"), (1e-6, "µ")]
    if unit == "B":
        scales = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]
    for scale, prefix in scales:
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value * 1e9:.3g} n{unit}"
