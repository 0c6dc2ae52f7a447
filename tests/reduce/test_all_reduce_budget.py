"""Calls with the same options share one budget, however the options were written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dither.errors import BudgetExhaustedError
from dither.privacy.ledger import Ledger
from dither.reduce.all_reduce import all_reduce
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.keys import Authentication, ClusterSecret, Identity
from dither.reduce.transports.threads import run_ranks

KEYS = [Ed25519PrivateKey.generate() for _ in range(2)]


def identity(rank: int) -> Authentication:
    return Identity(KEYS[rank], {other: key.public_key() for other, key in enumerate(KEYS)})


def secret(_: int) -> Authentication:
    return ClusterSecret(bytes(range(32)))


@pytest.mark.parametrize("anew", [identity, secret])
def test_an_authentication_made_anew_for_each_call_does_not_renew_the_budget(
    anew: Any, tmp_path: Path
) -> None:
    def rank(endpoint: Endpoint) -> int:
        for call in range(3):
            try:
                all_reduce(
                    torch.ones(10),
                    clip=1.0,
                    releases=2,
                    delta=1e-6,
                    noise_multiplier=8.0,
                    ledger=tmp_path,
                    trust="distributed(0)",
                    group=endpoint,
                    authentication=anew(endpoint.rank),
                )
            except BudgetExhaustedError:
                return call
        return 3

    assert run_ranks(2, rank, timeout=60.0) == [2, 2]
    for path in tmp_path.glob("rank-*.sqlite"):
        assert len({entry.run for entry in Ledger.open(path).entries()}) == 1


def test_keys_and_secrets_that_differ_are_not_one() -> None:
    assert identity(0) == identity(0)
    assert identity(0) != identity(1)
    assert identity(0) != Identity(KEYS[0], {0: KEYS[0].public_key()})
    assert secret(0) != ClusterSecret(bytes(32))
    assert secret(0) != identity(0)
