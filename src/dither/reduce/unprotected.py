"""Sums that protect no contribution: in clear, or encrypted on the way. Charged as ε = ∞."""

from __future__ import annotations

import numpy as np

from dither.privacy.guard import unprotected
from dither.privacy.ledger import Ledger
from dither.reduce.agreement import Agreement, Terms
from dither.reduce.algorithms.registry import check_buffer, sum_over
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.encrypted import Encryption


def clear_sum(
    endpoint: Endpoint,
    values: np.ndarray,
    *,
    ledger: Ledger,
    run: str,
    force: bool = False,
    algorithm: str = "auto",
) -> None:
    """Sum over ranks in place, for all to see: the baseline, and for what is public.

    Guarantee: none. It is written into this rank's ledger first, and refused where the ledger's
    records are sensitive and nobody forces it.

    Args:
        endpoint: This rank's end.
        values: As `sum_over` takes them.
        ledger: Account of what the values are made of.
        run: Name of the run in it.
        force: The operator takes the responsibility.
        algorithm: Name, or auto.

    Raises:
        ConfigError: The records are sensitive, or these values cannot be summed; nothing was sent.
        MismatchError: Ranks came with different values; nothing was sent.
    """
    check_buffer(values)
    _charge(ledger, run, "a sum in clear", force=force)
    _agree(endpoint, values, "clear", algorithm)
    sum_over(endpoint, values, algorithm)


def encrypted_sum(
    endpoint: Endpoint,
    values: np.ndarray,
    encryption: Encryption,
    *,
    ledger: Ledger,
    run: str,
    force: bool = False,
) -> None:
    """Sum float32 over ranks in place, hidden from the network: in HEAR's manner, the rival.

    Guarantee: computational, against the network alone. Every rank learns the exact sum, which may
    tell a contribution: no differential privacy, so it is charged as `clear_sum` is.

    Args:
        endpoint: This rank's end.
        values: float32, within the bound that the encryption was agreed with.
        encryption: Of this endpoint.
        ledger: Account of what the values are made of.
        run: Name of the run in it.
        force: The operator takes the responsibility.

    Raises:
        ConfigError: The records are sensitive, or these values cannot be summed; nothing was sent.
        MismatchError: Ranks came with different values; nothing was sent.
    """
    check_buffer(values)
    _charge(ledger, run, "an encrypted sum without noise", force=force)
    _agree(endpoint, values, "encrypted", "auto")
    encryption.reduce(endpoint, values)


def _charge(ledger: Ledger, run: str, what: str, *, force: bool) -> None:
    ledger.record_non_private(run, unprotected(ledger, what, force=force), {})


def _agree(endpoint: Endpoint, values: np.ndarray, protection: str, algorithm: str) -> None:
    Agreement(endpoint).agree(
        Terms(
            length=values.size,
            dtype=values.dtype.name,
            protection=protection,
            algorithm=algorithm,
        )
    )
