"""Model inversion finds what a model memorised, and calls nothing else a leak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dither.audit.inversion import Attribute, attack_inversion, imputed, invert
from dither.audit.telling import dp_ceiling
from dither.audit.trainings import Pool, Recipe, draw_rows
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:delta:dither.errors.DitherWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    folder = tmp_path_factory.mktemp("records")
    source = write_synthetic(folder / "persons.parquet", 4000, seed=6)
    return build_store(source, "employment", folder / "store", sensitive=False)


@pytest.fixture(scope="module")
def pools(store: RecordStore) -> tuple[Pool, Pool]:
    rows = draw_rows(store, 1200, np.random.default_rng(0))
    return Pool.of(store, rows[:400]), Pool.of(store, rows[400:])


class _Knows(nn.Module):
    """Says that the label is 1 exactly for one value of the attribute, more or less surely."""

    def __init__(self, column: int, sure: float) -> None:
        super().__init__()
        self._column = column
        self._sure = sure

    def forward(self, features: Tensor) -> Tensor:
        positive = self._sure * (2.0 * features[:, self._column] - 1.0)
        return torch.stack([-positive, positive], dim=1)


def test_a_model_that_tells_the_attribute_is_inverted(pools: tuple[Pool, Pool]) -> None:
    pool, known = pools
    attribute = Attribute.of("SEX", known)
    truth = attribute.truth(pool)
    labelled = Pool(pool.features, torch.from_numpy((truth == 0).astype(np.int64)), pool.names)
    model = _Knows(attribute.columns[0], 20.0)
    assert np.array_equal(invert(model, labelled, attribute), truth)


def test_a_model_that_tells_nothing_leaves_the_most_common_value(pools: tuple[Pool, Pool]) -> None:
    pool, known = pools
    for name in ("SEX", "MAR", "DIS"):
        attribute = Attribute.of(name, known)
        guesses = invert(_Knows(attribute.columns[0], 0.0), pool, attribute)
        assert set(guesses.tolist()) == {int(attribute.prior.argmax())}


def test_the_attack_does_not_look_at_the_attribute(pools: tuple[Pool, Pool]) -> None:
    pool, known = pools
    attribute = Attribute.of("MAR", known)
    model = nn.Linear(pool.features.shape[1], 2)
    changed = Pool(pool.features.clone(), pool.labels, pool.names)
    block = list(attribute.columns)
    changed.features[:, block] = pool.features[:, block].roll(1, dims=1)
    assert not np.array_equal(attribute.truth(pool), attribute.truth(changed))
    assert np.array_equal(invert(model, pool, attribute), invert(model, changed, attribute))
    assert np.array_equal(imputed(known, pool, attribute), imputed(known, changed, attribute))


def test_few_known_people_who_are_all_alike_give_one_guess(pools: tuple[Pool, Pool]) -> None:
    pool, known = pools
    one = Pool(known.features[:1], known.labels[:1], known.names)
    attribute = Attribute.of("SEX", one)
    assert set(imputed(one, pool, attribute).tolist()) == {int(attribute.truth(one)[0])}


def test_the_prior_is_counted_and_never_zero(pools: tuple[Pool, Pool]) -> None:
    _, known = pools
    attribute = Attribute.of("RAC1P", known)
    assert float(attribute.prior.sum()) == pytest.approx(1.0)
    assert float(attribute.prior.min()) > 0.0
    count = float(known.features[:, attribute.columns[0]].sum())
    assert float(attribute.prior[0]) == pytest.approx((count + 1) / (len(known) + 9))


@pytest.mark.full
def test_overfitted_models_leak_and_private_ones_do_not(pools: tuple[Pool, Pool]) -> None:
    """The control is the point: without it, being often right would look like a leak."""
    pool, known = pools
    recipe = Recipe(hidden=(64,), batch_size=50, epochs=30)
    generator = np.random.default_rng(0)
    (plain,) = attack_inversion(
        pool,
        known,
        recipe,
        ["SEX"],
        8,
        generator=generator,
        confidence=0.999,
    )
    assert plain.leak_low > 0.0
    assert plain.leak == pytest.approx(plain.accuracy - plain.control)
    assert plain.leak_ceiling == 1.0
    private_recipe = replace(recipe, epochs=8, epsilon=1.0)
    (private,) = attack_inversion(
        pool, known, private_recipe, ["SEX"], 8, generator=generator, confidence=0.999
    )
    assert private.leak_low <= private.leak_ceiling == dp_ceiling(1.0, 1e-5)
    assert private.leak < plain.leak / 2
    assert private.majority == plain.majority


@pytest.mark.parametrize("name", ["AGEP", "NOTHING"])
def test_an_attribute_without_codes_is_refused(pools: tuple[Pool, Pool], name: str) -> None:
    with pytest.raises(ConfigError, match="SEX"):
        Attribute.of(name, pools[1])
