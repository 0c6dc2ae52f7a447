"""What all calls of the C core share: arrays without copies, and errors in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from dither import _native
from dither.errors import ConfigError, DitherError, NoiseError, ReleaseError


@runtime_checkable
class Buffer(Protocol):
    """A one-dimensional, contiguous array in CPU memory: numpy's, torch's, any with DLPack.

    It is read and written in place, never copied.
    """

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """Hand out the memory."""


@contextmanager
def core_errors(expected: str) -> Iterator[None]:
    """Turn the core's refusals into ours; ``expected`` says which arguments the call takes."""
    try:
        yield
    except _native.StatusError as error:
        kind, text = str(error).split(": ", 1)
        raise core_error(kind, text) from None
    except DitherError:
        raise
    except (TypeError, ValueError, BufferError) as error:
        reason = str(error).splitlines()[0]
        if "incompatible function arguments" in reason:
            reason = "another type, shape, device, or memory that cannot be written"
        raise ConfigError(
            expected=expected, got=reason, fix="pass contiguous one-dimensional CPU arrays"
        ) from None


def core_error(kind: str, text: str) -> DitherError:
    """Return the error for a refusal of the core."""
    return _ERRORS.get(kind, _unknown)(text)


def _unknown(text: str) -> DitherError:
    return NoiseError(expected="the C core's work done", got=text, fix="free memory and try again")


def _forked(text: str) -> DitherError:
    return NoiseError(
        expected="a key of this process",
        got=text + ": parent and child would use the same numbers",
        fix="agree on a new key after the fork, or start processes by spawn",
    )


def _not_finite(_: str) -> DitherError:
    return ReleaseError(
        expected="a finite clipped sum",
        got="a sum with NaN or infinity",
        fix="report this as a bug: clipping must mask non-finite gradients",
    )


def _closed(_: str) -> DitherError:
    return NoiseError(expected="an open pool", got="a closed one", fix="make a new NoisePool")


def _bad_sigma(text: str) -> DitherError:
    return ConfigError(
        expected="a sigma in (0, 2^40] lattice steps, at most 2^26 for int32 draws",
        got=text,
        fix="check the plan, or draw int64",
    )


def _bad_grid(text: str) -> DitherError:
    return ConfigError(
        expected="a lattice with |step exponent| ≤ 500, clamp ≤ 2^50 and a shift of at most 48",
        got=text,
        fix="check the plan: less lattice_slack or a smaller batch",
    )


def _bad_argument(text: str) -> DitherError:
    return ConfigError(
        expected="a factor in [0, 1] and a scale that float64 can hold",
        got=text,
        fix="take the factor from clip_factor",
    )


_ERRORS = {
    "bad_argument": _bad_argument,
    "closed": _closed,
    "forked": _forked,
    "not_finite": _not_finite,
    "bad_sigma": _bad_sigma,
    "bad_grid": _bad_grid,
}
