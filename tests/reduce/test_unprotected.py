"""Clear and encrypted sums: exact, refused on sensitive records, and charged as what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dither.errors import ConfigError, DitherWarning, MismatchError
from dither.privacy.events import Relation, Unit
from dither.privacy.ledger import Ledger
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.protections.encrypted import Encryption
from dither.reduce.transports.threads import run_ranks
from dither.reduce.unprotected import clear_sum, encrypted_sum


def book(folder: Path, rank: int, *, sensitive: bool) -> Ledger:
    return Ledger.create(
        folder / f"{rank}.sqlite",
        store="records",
        unit=Unit.RANK,
        relation=Relation.REPLACE_ONE,
        sensitive=sensitive,
    )


def clear(endpoint: Endpoint, values: Buffer, ledger: Ledger, **options: Any) -> None:
    clear_sum(endpoint, values, ledger=ledger, run="run", **options)


def encrypted(endpoint: Endpoint, values: Buffer, ledger: Ledger, **options: Any) -> None:
    with Encryption.agree(endpoint, largest=4.0) as encryption:
        encrypted_sum(endpoint, values, encryption, ledger=ledger, run="run", **options)


@pytest.mark.parametrize("sums", [clear, encrypted])
def test_a_sum_is_exact_and_has_no_end_of_epsilon(
    sums: Callable[..., None], tmp_path: Path
) -> None:
    def rank(endpoint: Endpoint) -> Any:
        ledger = book(tmp_path, endpoint.rank, sensitive=False)
        values = np.full(100, 0.5 + endpoint.rank, np.float32)
        sums(endpoint, values, ledger)
        return values, ledger.epsilon(1e-6, "run")

    with pytest.warns(DitherWarning, match="NOT PRIVATE"):
        found = run_ranks(3, rank)
    for values, epsilon in found:
        assert np.abs(values - 4.5).max() < 1e-6
        assert math.isinf(epsilon)


@pytest.mark.parametrize("sums", [clear, encrypted])
def test_sensitive_records_need_force(sums: Callable[..., None], tmp_path: Path) -> None:
    sent: list[int] = []

    def rank(endpoint: Endpoint) -> Any:
        ledger = book(tmp_path, endpoint.rank, sensitive=True)
        values = np.full(1000, 0.5, np.float32)
        with pytest.raises(ConfigError, match="force"):
            sums(endpoint, values, ledger)
        before = list(sent)
        assert 1000 not in before
        assert ledger.entries("run") == []
        sums(endpoint, values, ledger, force=True)
        return float(values[0]), [entry.kind for entry in ledger.entries("run")]

    def tap(_: int, __: int, message: Buffer) -> None:
        sent.append(message.size)

    with pytest.warns(DitherWarning, match="NOT PRIVATE"):
        found = run_ranks(1, rank, observe=tap)
    assert found == [(0.5, ["non_private"])]


def test_other_lengths_are_refused_on_all_before_anything_is_sent(tmp_path: Path) -> None:
    def rank(endpoint: Endpoint) -> str:
        ledger = book(tmp_path, endpoint.rank, sensitive=False)
        with pytest.raises(MismatchError) as caught:
            clear(endpoint, np.zeros(3 + endpoint.rank % 2, np.float32), ledger)
        return str(caught.value)

    with pytest.warns(DitherWarning):
        found = run_ranks(3, rank)
    assert len(set(found)) == 1
