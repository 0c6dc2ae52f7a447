"""All mutants, by family."""

from __future__ import annotations

from dither.audit.mutants import (
    accounting,
    clipping,
    native,
    noise,
    precision,
    records,
    reduce,
    release,
    sampling,
    training,
)
from dither.audit.mutants.mutant import CoreMutant, Mutant
from dither.errors import ConfigError

ALL: tuple[Mutant | CoreMutant, ...] = (
    *sampling.MUTANTS,
    *clipping.MUTANTS,
    *noise.MUTANTS,
    *release.MUTANTS,
    *accounting.MUTANTS,
    *training.MUTANTS,
    *records.MUTANTS,
    *precision.MUTANTS,
    *reduce.MUTANTS,
    *native.MUTANTS,
)


def find(name: str) -> Mutant | CoreMutant:
    """Return a mutant by its name.

    Raises:
        ConfigError: There is none.
    """
    for mutant in ALL:
        if mutant.name == name:
            return mutant
    raise ConfigError(
        expected="the name of a mutant", got=name, fix="see the list in docs/concepts/mutants.md"
    )
