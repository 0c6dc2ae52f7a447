"""Which instruction set the C core uses: the widest there is, or a narrower one on request.

For one key, lattice draws, masks and messages are the same for every choice; only speed differs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from dither import _native
from dither.errors import ConfigError

_VARIABLE = "DITHER_SIMD"
# What an instruction set needs, and what it uses where the processor has it.
_NEEDS = {"portable": (), "neon": ("neon",), "avx2": ("avx2",), "avx512": ("avx512",)}
_USES = {
    "portable": (),
    "neon": ("aes", "neon"),
    "avx2": ("aes", "avx2"),
    "avx512": ("aes", "avx2", "avx512", "vaes"),
}
_chosen: ContextVar[str | None] = ContextVar("dither_simd", default=None)


@cache
def available() -> tuple[str, ...]:
    """Return the instruction sets that this build and processor have, narrowest first."""
    features = set(_native.cpu_features())
    return tuple(
        name
        for name, needs in _NEEDS.items()
        if features.issuperset(needs) and _native.Kernels(list(needs)).name == name
    )


def active() -> str:
    """Return the instruction set in use: `using`, else ``DITHER_SIMD``, else the widest."""
    return _chosen.get() or os.environ.get(_VARIABLE) or available()[-1]


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use another instruction set for a while, in this thread or task; other threads keep theirs.

    New keys made meanwhile take the cipher that is fastest there.

    Raises:
        ConfigError: It is not available here.
    """
    _kernels(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def kernels() -> Any:
    """Return the active kernels, as the functions of ``dither._native`` take them."""
    return _kernels(active())


@cache
def _kernels(name: str) -> Any:
    if name not in available():
        raise ConfigError(
            expected=f"an instruction set of {', '.join(available())}",
            got=repr(name),
            fix=f"name one of these, or leave {_VARIABLE} unset: the widest is then chosen",
        )
    return _native.Kernels(sorted(set(_USES[name]).intersection(_native.cpu_features())))
