"""The doors on real groups of processes: mpiexec, torchrun, shared memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.reduce.door_jobs import SIZE, Z
from tests.reduce.launch import launch

from dither.privacy.events import Relation, Unit
from dither.privacy.ledger import Ledger
from dither.privacy.trust import parse_trust


@pytest.mark.parametrize(
    ("transport", "size", "trust"),
    [
        ("mpi", 2, "local"),
        ("torchrun", 2, "local"),
        pytest.param("mpi", 3, "distributed(1)", marks=pytest.mark.full),
        pytest.param("torchrun", 3, "distributed(1)", marks=pytest.mark.full),
        pytest.param("mpi", 1, "local", marks=pytest.mark.full),
        pytest.param("shared_memory", 2, "central", marks=pytest.mark.full),
    ],
)
def test_a_door_sums_privately_and_charges_every_rank(
    transport: str, size: int, trust: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts, out = tmp_path / "accounts", tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("DITHER_TEST_FOLDER", str(accounts))
    monkeypatch.setenv("DITHER_TEST_TRUST", trust)
    reports = launch(transport, size, "doors", out, limit=200.0)
    assert len(reports) == size
    sigma = Z * parse_trust(trust).sum_multiple(size) * 1.003
    for report in reports:
        assert report["heads"] == reports[0]["heads"]  # the same bits on all ranks
        assert report["heads"][0] != report["heads"][1]  # and new noise for each call
        for found in report["sigma"][:2]:
            assert found == pytest.approx(sigma, rel=6.0 / math.sqrt(2 * SIZE))
        assert report["sigma"][2] == pytest.approx(sigma, rel=6.0 / math.sqrt(2 * 500))
        assert "float32" in report["refused"][0]
        assert len(report["refused"]) == (3 if transport == "mpi" else 2)
        assert report["left"] == 0
        assert report["exhausted"]
    assert sorted(path.name for path in accounts.glob("*.sqlite")) == [
        f"rank-{rank}.sqlite" for rank in range(size)
    ]
    for path in accounts.glob("*.sqlite"):
        book = Ledger.open(path)
        assert (book.header.unit, book.header.relation) == (Unit.RANK, Relation.REPLACE_ONE)
        assert book.charged("doors") == 4
