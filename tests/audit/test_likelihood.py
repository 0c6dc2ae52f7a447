"""Scores find members where there is something to find, as well as theory says; else nothing."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy import stats

from dither.audit.likelihood import (
    Members,
    Scores,
    confidence_logit,
    judge,
    likelihood_scores,
)
from dither.audit.telling import gaussian_tpr
from dither.errors import ConfigError

MODELS, RECORDS = 64, 400
CONFIDENCE = 0.9999  # bootstrap over 64 models: a false alarm of a test is about 1e-3 at worst


def simulated(shift: float, spread: float, seed: int) -> tuple[Scores, Members]:
    """Confidences whose law is known: each record has its own mean, membership adds a shift."""
    random = np.random.default_rng(seed)
    members = random.permuted(
        np.repeat(np.arange(MODELS)[:, None] < MODELS // 2, RECORDS, axis=1), axis=0
    )
    ease = random.normal(0.0, spread, RECORDS)
    return ease + shift * members + random.standard_normal(members.shape), members


def test_the_likelihood_ratio_is_as_strong_as_the_best_test() -> None:
    """Shift 2 in unit noise: TPR Φ(Φ⁻¹(fpr) + 2); that means are fitted to 32 models costs a
    little. The loss alone drowns in how easy records are."""
    phi, members = simulated(2.0, 5.0, 0)
    roc = judge("likelihood", likelihood_scores(phi, members), members, confidence=CONFIDENCE)
    for rate in roc.rates:
        best = gaussian_tpr(rate.fpr, 2.0)
        assert rate.low <= best
        assert rate.high >= 0.8 * best
    by_loss = judge("loss", phi, members)
    assert by_loss.rates[1].tpr < roc.rates[1].tpr / 5
    assert roc.auc == pytest.approx(stats.norm.cdf(2 / np.sqrt(2)), abs=0.01)
    assert roc.advantage == pytest.approx(2 * stats.norm.cdf(1.0) - 1, abs=0.02)


def test_members_who_look_like_others_are_not_found() -> None:
    phi, members = simulated(0.0, 5.0, 1)
    for name, scores in (("likelihood", likelihood_scores(phi, members)), ("loss", phi)):
        roc = judge(name, scores, members, confidence=CONFIDENCE)
        assert all(rate.low <= rate.fpr <= rate.high for rate in roc.rates)
        assert roc.auc == pytest.approx(0.5, abs=0.02)


def test_a_target_is_not_its_own_shadow() -> None:
    """One model alone shifts its members by 20: were it among its shadows, they would be askew."""
    phi, members = simulated(0.0, 0.0, 2)
    changed = phi.copy()
    changed[0] += 20.0
    before, after = likelihood_scores(phi, members), likelihood_scores(changed, members)
    others = np.arange(MODELS) != 0
    assert not np.allclose(before[others], after[others])  # they have it as a shadow
    moved = (members[1:].sum(0) >= 0) & members[0]
    inside, outside = phi[1:], ~members[1:]
    mean = np.where(outside, inside, 0).sum(0) / outside.sum(0)
    # By hand, for one record, from the others alone.
    record = int(np.flatnonzero(moved)[0])
    seen = inside[members[1:, record], record]
    means = (seen.mean(), mean[record])
    variances = []
    for chosen in (members[1:], outside):
        centre = np.where(chosen, inside, 0).sum(0) / chosen.sum(0)
        squares = np.where(chosen, (inside - centre) ** 2, 0).sum()
        variances.append(squares / (chosen.sum() - RECORDS))
    laws = [stats.norm(m, np.sqrt(v)) for m, v in zip(means, variances, strict=True)]
    by_hand = laws[0].logpdf(changed[0, record]) - laws[1].logpdf(changed[0, record])
    assert after[0, record] == pytest.approx(by_hand, rel=1e-9)


def test_ties_are_not_split_in_the_attackers_favour() -> None:
    scores = np.zeros((4, 100))
    members = np.repeat([[True], [False], [True], [False]], 100, axis=1)
    roc = judge("constant", scores, members)
    assert [rate.tpr for rate in roc.rates] == [0.0, 0.0]
    assert roc.auc == 0.5


def test_a_perfect_attack_is_perfect() -> None:
    members = np.repeat([[True], [False]], 100, axis=1)
    roc = judge("known", members.astype(float), members)
    assert [(rate.tpr, rate.low, rate.high) for rate in roc.rates] != []
    assert roc.rates[0].tpr == 1.0
    assert roc.advantage == roc.auc == 1.0


def test_confidence_keeps_its_digits_near_one() -> None:
    logits = np.array([[40.0, 0.0], [-3.0, 2.0], [0.0, 0.0]])
    with mpmath.workdps(50):
        slow = []
        for row, label in zip(logits, (0, 0, 1), strict=True):
            p = mpmath.exp(row[label]) / sum(mpmath.exp(z) for z in row)
            slow.append(float(mpmath.log(p) - mpmath.log(1 - p)))
    found = confidence_logit(logits, np.array([0, 0, 1]))
    assert found.tolist() == pytest.approx(slow, rel=1e-12, abs=1e-12)


def test_too_few_shadows_are_refused() -> None:
    members = np.array([[True], [False], [True], [False]])
    with pytest.raises(ConfigError, match="shadow"):
        likelihood_scores(np.zeros((4, 1)), members)
    with pytest.raises(ConfigError, match="one kind"):
        judge("x", np.zeros((2, 3)), np.ones((2, 3), bool))
