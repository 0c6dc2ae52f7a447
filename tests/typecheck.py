"""How annotations are checked while the tests run: an int is a float, as type checkers have it."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
