"""Which neighbouring relations low precision can keep."""

from __future__ import annotations

from dither.errors import ConfigError
from dither.privacy.events import Relation


def check_relation(relation: Relation) -> None:
    """Refuse ``add_remove``: a quantiser makes a whole step of a last bit.

    Without one record the rows after it move to other places of their batch, where kernels may
    round them otherwise. Under the other relations they stay.

    Raises:
        ConfigError: It is.
    """
    if relation is Relation.ADD_REMOVE:
        raise ConfigError(
            expected="relation zero_out or replace_one for low precision",
            got="add_remove, where a missing record moves the others' rows; kernels may then round "
            "them otherwise, and a quantiser turns a last bit into a whole step",
            fix="use one of these relations, or leave precision out",
        )
