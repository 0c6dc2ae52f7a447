"""Membership inference on real trainings: overfitted models tell who was in, private do not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dither.audit.membership import Attacked, attack_membership, judged, ratio_at
from dither.audit.telling import dp_tpr
from dither.audit.trainings import (
    Pool,
    Recipe,
    charge_unprotected,
    confidences,
    draw_rows,
    halves,
    trained,
)
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DitherWarning
from dither.privacy.events import NonPrivate, Relation
from dither.privacy.ledger import Ledger

pytestmark = pytest.mark.filterwarnings("ignore:delta:dither.errors.DitherWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("records") / "persons.parquet", 3000, seed=5)


@pytest.fixture
def store(source: Path, tmp_path: Path) -> RecordStore:
    return build_store(source, "employment", tmp_path / "store", sensitive=False)


def attacked(store: RecordStore, recipe: Recipe, models: int, records: int) -> Attacked:
    generator = np.random.default_rng(0)
    pool = Pool.of(store, draw_rows(store, records, generator))
    return attack_membership(pool, recipe, models, generator=generator)


@pytest.mark.full
def test_overfitted_models_tell_who_was_in_and_private_ones_do_not(store: RecordStore) -> None:
    """The plain AUC is above 0.8 as a rule, the private one's near a half.

    240 guesses in each of 10 models: the AUC of useless scores deviates by about 0.012.
    """
    recipe = Recipe(hidden=(64,), batch_size=60, epochs=40)
    plain = attacked(store, recipe, 10, 240)
    private = attacked(store, replace(recipe, epsilon=1.0), 10, 240)
    assert plain.accuracy > plain.accuracy_outside + 0.1
    assert plain.attacks[0].auc > 0.6
    assert private.attacks[0].auc < 0.58
    assert private.ceilings == tuple(dp_tpr(rate, 1.0, 1e-5) for rate in (0.001, 0.01))
    assert plain.ceilings == (1.0, 1.0)


def test_a_leak_beyond_the_promise_is_said() -> None:
    """Confidences that tell all, of models that claim ε = 1."""
    members = halves(16, 300, np.random.default_rng(0))
    phi = np.where(members, 10.0, -10.0) + np.random.default_rng(1).standard_normal(members.shape)
    loud = judged(phi, members, Recipe(epsilon=1.0))
    assert not loud.within()
    quiet = judged(np.random.default_rng(2).standard_normal(members.shape), members, Recipe())
    assert ratio_at(loud, quiet) > 20
    claimed = judged(quiet_phi(members), members, Recipe(epsilon=1.0))
    assert claimed.within()


def quiet_phi(members: np.ndarray) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(members.shape)


def test_every_record_is_in_half_of_the_models() -> None:
    members = halves(12, 500, np.random.default_rng(0))
    assert (members.sum(axis=0) == 6).all()
    sizes = members.sum(axis=1)
    assert (np.abs(sizes - 250) < 6 * np.sqrt(125)).all()
    assert len({tuple(column) for column in members.T}) > 300  # of 924


@pytest.mark.parametrize("models", [6, 9])
def test_too_few_or_odd_models_are_refused(models: int) -> None:
    with pytest.raises(ConfigError, match="even"):
        halves(models, 10, np.random.default_rng(0))


def test_models_differ_though_recipes_are_the_same(store: RecordStore) -> None:
    """No public seed of a training: shadows are independent."""
    pool = Pool.of(store, np.arange(100))
    chosen = np.arange(100) < 50
    one, other = (confidences(trained(pool, chosen, Recipe(epochs=1)), pool) for _ in range(2))
    assert not np.array_equal(one, other)


def test_plain_trainings_are_refused_on_sensitive_records(source: Path, tmp_path: Path) -> None:
    sensitive = build_store(source, "employment", tmp_path / "secret", sensitive=True)
    with pytest.raises(ConfigError, match="force"):
        charge_unprotected(sensitive, "an attack", force=False)
    with pytest.warns(DitherWarning, match="NOT PRIVATE"):
        charge_unprotected(sensitive, "an attack", force=True)
    ledger = Ledger.open(Path(sensitive.ledger_path))
    assert [type(event) for event, _ in ledger.events()] == [NonPrivate]
    assert ledger.epsilon(1e-5) == float("inf")


def test_on_public_records_they_are_written_down(store: RecordStore) -> None:
    with pytest.warns(DitherWarning, match="an attack"):
        charge_unprotected(store, "an attack", force=False)
    assert Ledger.open(Path(store.ledger_path)).epsilon(1e-5) == float("inf")


@pytest.mark.parametrize("count", [0, 10_000_000])
def test_no_more_records_than_there_are(store: RecordStore, count: int) -> None:
    with pytest.raises(ConfigError, match="records"):
        draw_rows(store, count, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"hidden": (0,)}, {"learning_rate": 0.0}])
def test_recipes_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Recipe(**wrong)  # type: ignore[arg-type]


def test_private_trainings_keep_their_clip(store: RecordStore) -> None:
    """Enormous noise: the model is noise, and the attack knows nothing."""
    pool = Pool.of(store, np.arange(200))
    model = trained(pool, np.arange(200) < 100, Recipe(epochs=2, epsilon=0.01, delta=1e-9))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_an_account_of_another_relation_is_charged_too(store: RecordStore) -> None:
    """ε = ∞ adds up under any: the records' one account must have it."""
    path = Path(store.ledger_path)
    Ledger.create(path, store=store.id, relation=Relation.REPLACE_ONE, sensitive=False)
    with pytest.warns(DitherWarning, match="an attack"):
        charge_unprotected(store, "an attack", force=False)
    assert Ledger.open(path).epsilon(1e-5) == float("inf")


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"epsilon": math.nan}, {"l2_clip": 0.0}])
def test_promises_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Recipe(**wrong)  # type: ignore[arg-type]
