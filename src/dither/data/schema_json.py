"""Frozen descriptions as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Left out where they say nothing, so that a task's digest is what it was before they were there.
_LATER = frozenset({"other", "clip", "scale", "person", "rows_per_person", "released"})


def encode(value: Any, kinds: Mapping[str, type]) -> Any:
    """Return a description's values, each with the name of its kind."""
    if isinstance(value, tuple):
        return [encode(item, kinds) for item in value]
    if type(value).__name__ in kinds:
        fields = {
            f.name: encode(getattr(value, f.name), kinds)
            for f in dataclasses.fields(value)
            if f.name not in _LATER or getattr(value, f.name) != f.default
        }
        return {"kind": type(value).__name__, "fields": fields}
    return value


def decode(value: Any, kinds: Mapping[str, type]) -> Any:
    """Rebuild what `encode` returned.

    Raises:
        KeyError, TypeError, ValueError: The values are of no kind that is known.
    """
    if isinstance(value, list):
        return tuple(decode(item, kinds) for item in value)
    if isinstance(value, dict):
        kind = kinds[value["kind"]]
        return kind(**{name: decode(item, kinds) for name, item in value["fields"].items()})
    return value
