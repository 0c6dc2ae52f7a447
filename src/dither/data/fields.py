"""Typed access to a table of a TOML file: a field that is not as it must be names its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from dither.errors import ConfigError

_REQUIRED: Final = object()
_NAME = re.compile(r"\w[\w .-]*")


class Fields:
    """One table of a file; `done` refuses what nobody has asked for.

    Args:
        place: Where it stands, for messages ("cards.toml, columns, AMOUNT").
        values: The table.
    """

    def __init__(self, place: str, values: Mapping[str, Any]) -> None:
        self._place = place
        self._values = values
        self._asked: set[str] = set()

    @property
    def name(self) -> str:
        """The table's own name."""
        return self._place.rsplit(", ", 1)[-1]

    def has(self, name: str) -> bool:
        """Whether a field is there."""
        return name in self._values

    def any(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a field as it is."""
        self._asked.add(name)
        if name not in self._values:
            if default is _REQUIRED:
                self.refuse(name, f"a field {name}")
            return default
        return self._values[name]

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a text."""
        value = self.any(name, default)
        if value is not default and not isinstance(value, str):
            self.refuse(name, "a text")
        return value

    def choice(self, name: str, *choices: str) -> str:
        """Return one of several words, the first where the field is absent."""
        value = self.text(name, choices[0])
        if value not in choices:
            self.refuse(name, " or ".join(choices))
        return str(value)

    def texts(self, name: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        """Return a list of texts; whole numbers count as their digits."""
        value = self.any(name, default)
        if value is default:
            return tuple(value)
        plain = isinstance(value, list) and all(
            isinstance(item, str) or type(item) is int for item in value
        )
        if not plain:
            self.refuse(name, "a list of codes in quotes")
        return tuple(map(str, value))

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a number."""
        value = self.any(name, default)
        if value is not default and not _is_number(value):
            self.refuse(name, "a number")
        return value if value is default else float(value)

    def whole(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a whole number of at least 1."""
        value = self.any(name, default)
        if value is not default and (type(value) is not int or value < 1):
            self.refuse(name, "a whole number of at least 1")
        return value

    def numbers(self, name: str, default: Any = _REQUIRED) -> tuple[float, ...]:
        """Return a list of numbers."""
        value = self.any(name, default)
        if value is default:
            return tuple(value)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            self.refuse(name, "a list of numbers")
        return tuple(map(float, value))

    def flag(self, name: str, *, default: Any = _REQUIRED) -> bool:
        """Return true or false."""
        value = self.any(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def short_name(self, name: str) -> str:
        """Return a text that can name a folder."""
        value = self.text(name)
        if not _NAME.fullmatch(value):
            self.refuse(name, "a short name of letters, digits, blanks, . - and _")
        return str(value)

    def yes(self, name: str) -> None:
        """Ask for a field that can only be true."""
        if self.any(name) is not True:
            self.refuse(name, f"{name} = true, or a public constant instead of this table,")

    def inner(self, name: str) -> Fields:
        """Return a table inside this one."""
        value = self.any(name)
        if not isinstance(value, dict):
            self.refuse(name, "a table")
        return Fields(f"{self._place}, {name}", value)

    def inners(self, name: str) -> tuple[Fields, ...]:
        """Return a list of tables; none where it is absent."""
        value = self.any(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.refuse(name, "a list of tables")
        return tuple(Fields(f"{self._place}, {name} {i}", item) for i, item in enumerate(value, 1))

    def all_inner(self) -> tuple[Fields, ...]:
        """Return all fields, each a table."""
        return tuple(self.inner(name) for name in self._values)

    def done(self) -> None:
        """Refuse fields that nobody knows.

        Raises:
            ConfigError: Names them, and those that are known here.
        """
        unknown = sorted(set(self._values) - self._asked)
        if unknown:
            raise ConfigError(
                expected=f"fields out of {', '.join(sorted(self._asked))} in {self._place}",
                got=", ".join(unknown),
                fix="mend the spelling, or take it out",
            )

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the error for one field."""
        got = repr(self._values[name])[:80] if name in self._values else f"no {name}"
        raise ConfigError(
            expected=f"{expected} in {self._place}", got=got, fix=f"mend {name} there"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124
