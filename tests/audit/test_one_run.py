"""The one-run audit on a small store: the real step, honest and with half of its noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dither.audit.canaries import GradientCanaries, RecordCanaries, draw_records, place
from dither.audit.defect import WeakNoise
from dither.audit.one_run import OneRun, _log_odds, audit_run, prepare
from dither.audit.scores import Channel, LikelihoodScore
from dither.cli.main import main
from dither.config import AuditRunConfig
from dither.data.build import build_store
from dither.data.store import RecordStore, StoreDataset
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DitherWarning, ReleaseError
from dither.noise.key import Key
from dither.privacy.account import Account
from dither.privacy.events import Relation, SamplerKind
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.release.bounded_sum import BoundedSum
from dither.release.release import release_sum
from dither.train.models import mlp


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("records") / "persons.parquet", 6000, seed=1)


@pytest.fixture
def store(records: Path, tmp_path: Path) -> RecordStore:
    return build_store(records, "employment", tmp_path / "store")


@pytest.fixture
def options(store: RecordStore) -> AuditRunConfig:
    """Few records a step and many steps: where halved noise costs most of what was promised."""
    return AuditRunConfig(
        store.path,
        epsilon=1.0,
        delta=1e-5,
        steps=300,
        batch_size=12,
        canaries=4000,
        hidden=(64,),
        ledger=None,
    )


def audited(options: AuditRunConfig, **changes: Any) -> OneRun:
    return audit_run(prepare(replace(options, **changes)))


def test_an_honest_run_is_below_its_claim_and_charged(
    options: AuditRunConfig, store: RecordStore
) -> None:
    one = audited(options)
    # Above the claim with probability 0.05 at most, by far less here: ε is 0 in most.
    assert one.finding.epsilon <= one.finding.claimed
    assert one.releases == 300
    ledger = Ledger.open(store.ledger_path)
    assert ledger.charged(one.run) == 300
    assert ledger.epsilon(1e-5, one.run) == pytest.approx(one.finding.claimed)
    assert ledger.events() == ledger.events(one.run)  # canaries cost nothing more


def test_halved_noise_is_detected_and_written_down(
    options: AuditRunConfig, store: RecordStore
) -> None:
    with pytest.warns(DitherWarning, match="NOT PRIVATE"):
        one = audited(options, defect=0.5)
    # By simulation this fails in less than 1 of 100 such runs.
    assert one.finding.noise < 1.0
    assert one.finding.epsilon > one.finding.claimed
    kinds = [entry.kind for entry in Ledger.open(store.ledger_path).entries(one.run)]
    assert kinds[:2] == ["plan", "non_private"]  # before any charge, so before any release
    assert Ledger.open(store.ledger_path).epsilon(1e-5) == float("inf")


def test_a_defect_is_refused_on_sensitive_records(records: Path, tmp_path: Path) -> None:
    secret = build_store(records, "employment", tmp_path / "secret", sensitive=True)
    with pytest.raises(ConfigError, match="not sensitive for --defect"):
        prepare(AuditRunConfig(secret.path, epsilon=1.0, delta=1e-5, batch_size=64, defect=0.5))
    assert not secret.ledger_path.exists()


def test_a_sensitive_store_is_audited_like_any_run(records: Path, tmp_path: Path) -> None:
    secret = build_store(records, "employment", tmp_path / "secret", sensitive=True)
    config = AuditRunConfig(
        secret.path,
        noise_multiplier=1.0,
        delta=1e-5,
        steps=20,
        batch_size=64,
        canaries=500,
        hidden=(8,),
    )
    one = audit_run(prepare(config))
    assert Ledger.open(secret.ledger_path).charged(one.run) == one.releases == 20


def test_weak_noise_is_refused_without_the_mark(tmp_path: Path) -> None:
    plan = Plan(
        records=1000, sampling_rate=0.1, steps=5, l2_clip=1.0, noise_multiplier=1.0, delta=1e-5
    )
    ledger = Ledger.create(tmp_path / "l.sqlite", store="s")
    with pytest.raises(ReleaseError, match="own noise"):
        release_sum(bounded(), Account(ledger, "r", plan), None, WeakNoise(Key(), 0.5))
    assert ledger.charged("r") == 0


def bounded(size: int = 3000) -> BoundedSum:
    ticket = SampleTicket(SamplerKind.POISSON, 0.1, secret=True)
    chunk = {"weight": torch.zeros(size - 10), "bias": torch.zeros(10)}
    return BoundedSum([chunk], size, 1.0, ticket, {Relation.ZERO_OUT: 1e-6})


class Sized(torch.nn.Module):
    """A model of the parameters of `bounded`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2990))
        self.bias = torch.nn.Parameter(torch.zeros(10))


@pytest.fixture
def canaries() -> GradientCanaries:
    draw = np.random.default_rng(1)
    channel = Channel(steps=10, rate=0.5, sigma=1.0, delta=1e-5)
    return GradientCanaries(
        place(Sized(), 1000, draw),
        rate=0.5,
        l2_clip=2.0,
        score=LikelihoodScore(1000, channel, l2_clip=2.0),
        draw=draw,
    )


def test_canaries_add_what_no_record_changes(canaries: GradientCanaries) -> None:
    total = bounded()
    (chunk,) = canaries.join(total.chunks)
    flat = torch.cat([part.reshape(-1) for part in chunk.values()])
    assert set(flat.tolist()) == {-2.0, 0.0, 2.0}
    # A quarter of 1000: in with 1/2, sampled with 1/2. Outside of this: 1e-6.
    assert 185 < int((flat != 0).sum()) < 320
    (untouched,) = total.chunks
    assert not torch.cat(list(untouched.values())).any()  # the engine's own sums serve again


def test_canaries_move_neighbouring_sums_alike() -> None:
    """The same coins on S and on S without a record: the difference is the record's, to the bit."""
    record = {"weight": torch.randn(2990) / 60.0, "bias": torch.randn(10) / 60.0}
    found = []
    for factor in (0.0, 1.0):
        draw = np.random.default_rng(7)
        channel = Channel(steps=10, rate=0.5, sigma=1.0, delta=1e-5)
        score = LikelihoodScore(1000, channel)
        own = GradientCanaries(
            place(Sized(), 1000, draw), rate=0.5, l2_clip=1.0, score=score, draw=draw
        )
        chunk = {name: factor * part for name, part in record.items()}
        (joined,) = own.join([chunk])
        found.append(torch.cat([part.double() for part in joined.values()]))
    expected = torch.cat([part.double() for part in record.values()])
    assert torch.allclose(found[1] - found[0], expected, rtol=0.0, atol=1e-15)


def test_released_numbers_reach_their_canary(canaries: GradientCanaries) -> None:
    for _ in range(20):
        (chunk,) = canaries.join(bounded().chunks)
        canaries.released({name: 0.25 * part.float() for name, part in chunk.items()}, 0.25)
    assert canaries.seen == 20
    high = canaries.score.values > 0.0
    assert high.any()
    assert canaries.included[high].all()  # without noise only those in stand out


def test_more_canaries_than_coordinates_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 1 and 3000"):
        place(Sized(), 3001, np.random.default_rng(0))


def test_inserted_records_come_in_the_order_of_rows(store: RecordStore) -> None:
    draw = np.random.default_rng(3)
    features, labels = draw_records(store.task.schema, 6, draw)
    assert features.shape == (6, store.feature_dim)
    included = np.array([True, False, True, True, False, False])
    base = StoreDataset(store, np.arange(10))
    dataset = RecordCanaries(base, features, labels, included)
    assert len(dataset) == 13
    rows = np.array([11, 2, 10, 3, 12])
    found, known = dataset.gather_batch(rows)
    own, _ = base.gather_batch(np.array([2, 3]))
    expected = torch.stack([features[2], own[0], features[0], own[1], features[3]])
    assert torch.equal(found, expected)
    assert known[0] == labels[2]


def test_black_box_sees_records_that_a_model_without_noise_has_learnt(
    options: AuditRunConfig,
) -> None:
    """With next to no noise (the claim is then huge) the loss tells members: a bound above 0.5."""
    with pytest.warns(DitherWarning):
        one = audited(
            options,
            score="black-box",
            canaries=600,
            epsilon=None,
            noise_multiplier=0.5,
            defect=0.01,
            steps=1000,
            batch_size=400,
            hidden=(256,),
            learning_rate=1.0,
        )
    assert one.finding.epsilon > 0.5
    assert one.finding.epsilon < one.finding.claimed


def test_black_box_of_an_honest_run_is_below_its_claim(options: AuditRunConfig) -> None:
    one = audited(options, score="black-box", canaries=200, steps=30, batch_size=100)
    assert one.finding.epsilon <= one.finding.claimed
    assert one.plan.records == pytest.approx(200 + 0.8 * 4695, rel=0.05)


def test_command_writes_json_figures_and_the_report(
    store: RecordStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--noise-multiplier", "1", "--delta", "1e-5", "--steps", "20", "--batch-size", "64"]
    small += ["--hidden", "8"]
    run = tmp_path / "run"
    assert main(["train", "--store", str(store.path), "--out", str(run), *small]) == 0
    audit = ["audit", "run", str(store.path), *small, "--canaries", "500", "--out", str(run)]
    assert main(audit) == 0
    assert "ε above the claim in 0 of 1" in capsys.readouterr().out
    assert main([*audit, "--power", "--trials", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {point["canaries"] for point in facts["power"]} == {500, 1000}
    kept = json.loads((run / "audit.json").read_bytes())
    assert len(kept["runs"]) == 1
    assert kept["power"] == facts["power"]
    assert {path.name for path in run.glob("*.svg")} == {"audit-power.svg", "audit-scores.svg"}
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Audit: an attack on the promise" in page
    assert "that of this run" in page
    assert "ε at least" in page


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_models_have_as_many_coordinates_as_said(options: AuditRunConfig) -> None:
    found = prepare(options)
    model = mlp(found.store.feature_dim, found.train.hidden, 2, 0)
    assert found.dimension == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": 95.0},
        {"confidence": float("nan")},
        {"canaries": 1},
        {"canaries": 1, "score": "black-box"},
        {"canaries": 1_000_000},
        {"steps": 10},
        {"power": True, "score": "black-box"},
    ],
)
def test_what_is_refused_is_refused_before_it_is_charged(
    options: AuditRunConfig, store: RecordStore, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        prepare(replace(options, **wrong))
    assert not store.ledger_path.exists()


def test_a_model_out_of_range_tells_nothing() -> None:
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, float("inf"))
    odds = _log_odds(model, torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]), torch.tensor([0, 1]))
    assert odds.tolist() == [0.0, 0.0]


def test_runs_of_one_claim_add_up_and_none_is_lost(
    store: RecordStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever audits until the result pleases shows all of them; whoever stops keeps the first."""
    words = ["audit", "run", str(store.path), "--noise-multiplier", "1", "--delta", "1e-5"]
    words += ["--steps", "12", "--batch-size", "64", "--hidden", "8", "--canaries", "50"]
    words += ["--out", str(tmp_path)]
    (tmp_path / "audit.json").write_text("[]")  # somebody's half of something
    made: list[OneRun] = []

    def stopped(*given: Any) -> OneRun:
        if made:
            raise KeyboardInterrupt
        made.append(audit_run(*given))
        return made[0]

    with monkeypatch.context() as patch:
        patch.setattr("dither.cli.audit_run.audit_run", stopped)
        assert main([*words, "--repeat", "2"]) == 130
    assert [run["run"] for run in json.loads((tmp_path / "audit.json").read_bytes())["runs"]] == [
        made[0].run
    ]
    assert main(words) == 0
    names = [run["run"] for run in json.loads((tmp_path / "audit.json").read_bytes())["runs"]]
    assert len(names) == 2
    assert names[0] == made[0].run
    assert set(names) == {entry.run for entry in Ledger.open(store.ledger_path).entries()}
