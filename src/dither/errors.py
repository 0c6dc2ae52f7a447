"""The errors and warnings of dither: what was expected, what came, what to do."""

from __future__ import annotations


class DitherError(Exception):
    """Base of all errors a user can mend.

    Every message has three parts, so that nobody has to guess: what was expected, what came
    instead, and what to do about it. The command line prints it as one message and exits with 2.

    Args:
        expected: What dither needed, as a noun phrase ("a sampling rate in (0, 1]").
        got: What it found instead.
        fix: What to do, as an imperative sentence without a full stop.
    """

    def __init__(self, *, expected: str, got: str, fix: str) -> None:
        super().__init__(f"expected {expected}, got {got}. To mend it: {fix}.")
        self.expected = expected
        self.got = got
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Keep errors intact across process boundaries."""
        return _rebuild, (type(self), self.expected, self.got, self.fix)


def _rebuild(kind: type[DitherError], expected: str, got: str, fix: str) -> DitherError:
    return kind(expected=expected, got=got, fix=fix)


class ConfigError(DitherError, ValueError):
    """An option or argument is out of range or contradicts another."""


class DataError(DitherError, ValueError):
    """Input records, a zip, a schema or a record store are not as they must be."""


class OutputError(DitherError, RuntimeError):
    """An output folder cannot be written, is not empty, or the disk is full."""


class FetchError(DitherError, RuntimeError):
    """A download failed or its checksum differs."""


class ModelError(DitherError, ValueError):
    """A model or a loss that cannot be trained privately as it is."""


class SamplingError(DitherError, RuntimeError):
    """A sample was used twice, or does not come from the sampler that the plan charges."""


class LedgerError(DitherError, RuntimeError):
    """The ledger cannot be trusted, or belongs to other records."""


class LedgerLockedError(LedgerError):
    """Another process holds the ledger."""


class LedgerBehindError(LedgerError):
    """A checkpoint knows of charges that this ledger lacks."""


class StoppedError(DitherError, RuntimeError):
    """A run was asked to stop; it saved a checkpoint and can be resumed."""


class BudgetExhaustedError(LedgerError):
    """The plan has no step left to charge."""


class CheckpointError(DitherError, RuntimeError):
    """A checkpoint is damaged or belongs to another model or run."""


class NoiseError(DitherError, RuntimeError):
    """Noise, a key or a mask cannot be had, or not safely."""


class ReleaseError(DitherError, RuntimeError):
    """A sum cannot be released under the promised guarantee."""


class ReduceError(DitherError, RuntimeError):
    """Ranks cannot sum their messages, or may not: nothing of this call can be used."""


class PeerError(ReduceError):
    """A peer is dead, left the group or did not answer in time."""


class MismatchError(ReduceError):
    """Ranks came with different lengths, types, plans or versions."""


class DitherWarning(UserWarning):
    """A legal but doubtful choice; the text gives the reason."""
