"""The C core: whether it loads, and which instruction set it uses."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

from dither import __version__
from dither.doctor.check import Check, first_line
from dither.errors import ConfigError

_MEANS = "noise, masks, sums over ranks"
_AGAIN = "install dither again; in a checkout: make env"


def checks() -> Iterator[Check]:
    """Load the core, and ask what it would use."""
    try:
        native = importlib.import_module("dither._native")
    except Exception as error:  # noqa: BLE001 - whatever a broken library raises
        found = f"it does not load: {first_line(str(error))}"
        yield Check("C core", "wrong", found, _MEANS, _AGAIN, needed=True)
        return
    good = native.version() == __version__
    found = f"version {native.version()}{'' if good else f', beside dither {__version__}'}"
    yield Check(
        "C core", "good" if good else "wrong", found, _MEANS, None if good else _AGAIN, needed=True
    )
    yield _instructions(native)


def _instructions(native: Any) -> Check:
    from dither.noise import simd  # noqa: PLC0415 - loads the core

    means = "speed alone: noise and sums are the same on all"
    has = ", ".join(native.cpu_features()) or "none of those that the core knows"
    chosen = os.environ.get("DITHER_SIMD")
    named = f"DITHER_SIMD {f'is {chosen}' if chosen else 'is not set'}"
    try:
        kernels = simd.kernels()
    except ConfigError as error:
        found = f"{named}; here are {', '.join(simd.available())}"
        return Check("instruction set", "wrong", found, means, error.fix, needed=True)
    widest = simd.available()[-1]
    ignored = chosen and kernels.name != widest
    found = f"{kernels.name} of {', '.join(simd.available())}; AES by {kernels.aes}; {named}; "
    return Check(
        "instruction set",
        "good",
        f"{found}the processor has {has}",
        f"{means}; {widest} would be faster" if ignored else means,
    )
