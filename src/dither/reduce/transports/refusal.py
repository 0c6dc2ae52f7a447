"""What a broken endpoint says."""

from __future__ import annotations

from dither.errors import ReduceError


def check_whole(broken: str | None) -> None:
    """Refuse further use of an endpoint after an error.

    Args:
        broken: What broke it, None if nothing did.

    Raises:
        ReduceError: Something did.
    """
    if broken is not None:
        raise ReduceError(
            expected="an endpoint in working order",
            got=f"one broken by this: {broken}",
            fix="make a new group after an error",
        )
