"""A small plan and a ledger with a few entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from dither.privacy.events import SampledGaussian
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan

RUN = "run-a"


@pytest.fixture
def plan() -> Plan:
    return Plan(
        records=10_000,
        sampling_rate=0.01,
        steps=30,
        l2_clip=1.0,
        noise_multiplier=1.0,
        delta=1e-6,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite", store="records")


@pytest.fixture
def used(ledger: Ledger, plan: Plan) -> Ledger:
    """A ledger with a plan, two leases and an unprotected use: four entries."""
    ledger.record_plan(RUN, {"plan": plan.to_json()})
    ledger.charge(RUN, SampledGaussian(0.01, 1.0), 4, limit=30)
    ledger.charge(RUN, SampledGaussian(0.01, 1.0), 5, limit=30)
    ledger.record_non_private("run-b", "plain baseline", {"why": "a comparison"})
    return ledger
