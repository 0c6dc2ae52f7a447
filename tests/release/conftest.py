"""A small plan, its account, and sums to release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dither.privacy.account import Account
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.release.bounded_sum import BoundedSum

RUN = "run"


@pytest.fixture(scope="session")
def plan() -> Plan:
    return Plan(
        records=10_000,
        sampling_rate=0.01,
        steps=2000,
        l2_clip=2.0,
        noise_multiplier=1.5,
        delta=1e-6,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite", store="records")


@pytest.fixture
def account(ledger: Ledger, plan: Plan) -> Account:
    return Account(ledger, RUN, plan, lease=1)


def ticket(plan: Plan) -> SampleTicket:
    return SampleTicket(plan.sampler, plan.sampling_rate, secret=True)


def bounded(plan: Plan, *chunks: Mapping[str, Tensor], dimension: int | None = None) -> BoundedSum:
    """A sum on a fresh sample; an empty batch of 3 + 4 coordinates by default."""
    parts = chunks or (
        {"weight": torch.zeros(3, dtype=torch.float64)},
        {"bias": torch.zeros(2, 2, dtype=torch.float64)},
    )
    count = sum(tensor.numel() for part in parts for tensor in part.values())
    return BoundedSum(parts, count if dimension is None else dimension, plan.l2_clip, ticket(plan))
