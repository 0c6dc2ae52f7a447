"""Clipping styles: what they bound, for any norms, and what comes out of the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.clipping import oracle
from tests.clipping.zoo import CASES
from torch import Tensor, nn

from dither.clipping.clipping import Clipping
from dither.clipping.styles import Automatic, Flat, PerLayer, Style
from dither.errors import ConfigError

calm = settings(deadline=None)  # a busy machine is no failure

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias", "free"]
GROUPS = {"0.weight": "a", "0.bias": "a", "2.weight": "b", "2.bias": "c", "free": "c"}
WEIGHTS = {"a": 0.2, "b": 3.0, "c": 1.0}

norm = st.one_of(
    st.just(0.0), st.floats(1e-150, 1e30), st.floats(0.5, 2.0), st.sampled_from([1e-20, 1.0])
)
squares = st.lists(st.lists(norm, min_size=5, max_size=5), min_size=1, max_size=4)
clips = st.floats(1e-4, 1e4)
styles = st.one_of(
    st.just(Flat()),
    st.builds(Flat, bound=st.floats(1e-3, 1e3)),
    st.builds(Automatic, gamma=st.floats(1e-6, 10.0)),
    st.just(PerLayer()),
    st.builds(PerLayer, groups=st.just(GROUPS), weights=st.one_of(st.none(), st.just(WEIGHTS))),
)


def by_name(norms: list[list[float]]) -> dict[str, Tensor]:
    table = torch.tensor(norms, dtype=torch.float64).square()
    return {name: table[:, index] for index, name in enumerate(NAMES)}


def contribution(style: Style, found: Mapping[str, Tensor], clip: float) -> Tensor:
    """Return the norm of what each example adds."""
    factors = style.factors(found, clip)
    assert list(factors) == list(found)
    parts = [factors[name].square() * found[name] for name in found]
    return torch.stack(parts).sum(0).sqrt()


@calm
@given(styles, squares, clips)
def test_no_contribution_is_longer_than_the_clip_bound(
    style: Style, norms: list[list[float]], clip: float
) -> None:
    assert float(contribution(style, by_name(norms), clip).max()) <= clip * (1.0 + 1e-12)


@calm
@given(squares, clips)
def test_flat_leaves_short_gradients_and_shortens_long_ones(
    norms: list[list[float]], clip: float
) -> None:
    found = by_name(norms)
    lengths = torch.stack(list(found.values())).sum(0).sqrt()
    wanted = lengths.clamp(max=clip)
    torch.testing.assert_close(contribution(Flat(), found, clip), wanted, rtol=1e-12, atol=0.0)


@calm
@given(squares, clips, st.floats(1e-3, 1e3))
def test_a_moved_bound_clips_there_and_scales_to_the_clip_bound(
    norms: list[list[float]], clip: float, bound: float
) -> None:
    found = by_name(norms)
    lengths = torch.stack(list(found.values())).sum(0).sqrt()
    wanted = lengths.clamp(max=bound) * (clip / bound)
    moved = contribution(Flat(bound=bound), found, clip)
    torch.testing.assert_close(moved, wanted, rtol=1e-12, atol=0.0)


@calm
@given(squares, clips, st.floats(1e-6, 10.0))
def test_automatic_keeps_the_order_of_lengths_and_never_reaches_the_bound(
    norms: list[list[float]], clip: float, gamma: float
) -> None:
    found = by_name(norms)
    lengths = torch.stack(list(found.values())).sum(0).sqrt()
    given_back = contribution(Automatic(gamma=gamma), found, clip)
    near = lengths < 1e6 * gamma  # beyond it, γ is lost in rounding
    assert bool((given_back[near] < clip).all())
    order = given_back[lengths.argsort()]
    assert bool((order.diff() >= -1e-12 * clip).all())


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_shares_of_the_groups_make_up_the_whole_bound(weights: dict[str, float] | None) -> None:
    """Every group far too long: each is cut to C_l, and Σ C_l² = C²."""
    style = PerLayer(groups=GROUPS, weights=weights)
    found = by_name([[1e6] * 5])
    factors = style.factors(found, 0.7)
    shares: dict[str, float] = {}
    for name, square in found.items():
        part = float(factors[name].square() * square)
        shares[GROUPS[name]] = shares.get(GROUPS[name], 0.0) + part
    assert sum(shares.values()) == pytest.approx(0.7**2, rel=1e-9)
    given_weights = weights or dict.fromkeys("abc", 1.0)
    whole = sum(w * w for w in given_weights.values())
    for group, part in shares.items():
        assert part == pytest.approx(0.49 * given_weights[group] ** 2 / whole, rel=1e-9)


def test_one_long_group_leaves_the_others_alone() -> None:
    factors = PerLayer().factors(by_name([[1e6, 0.0, 1e-3, 1e-3, 1e-3]]), 1.0)
    assert float(factors["0.weight"]) < 1e-5
    assert float(factors["0.weight"]) == float(factors["0.bias"])
    assert {float(factors[name]) for name in ("2.weight", "2.bias", "free")} == {1.0}


def test_modules_are_the_groups_by_default() -> None:
    """Σ over two layers and a bare parameter, each cut to C/√3."""
    factors = PerLayer().factors(by_name([[3.0, 4.0, 5.0, 0.0, 5.0]]), 1.0)
    share = 1.0 / math.sqrt(3.0)
    assert [float(f) for f in factors.values()] == pytest.approx([share / 5.0] * 5)


@pytest.mark.parametrize("clip", [1e-3, 1.0])
@pytest.mark.parametrize("style", [Flat(), Flat(bound=1e-4), PerLayer()], ids=repr)
def test_a_long_gradient_alone_ends_at_the_clip_bound(style: Style, clip: float) -> None:
    case = CASES["cnn"]
    model, batch = case.model(), case.batch(1)
    with torch.no_grad():  # one example whose every layer has a long gradient
        model.get_parameter("6.weight").mul_(100.0)
    result = oracle.clip_sum(model, case.loss, batch, Clipping(clip, style=style))
    assert float(oracle.as_vector(result).norm()) == pytest.approx(clip, rel=1e-6)
    assert result.bounded.l2_clip == clip


@pytest.mark.parametrize("style", [Flat(), Flat(bound=50.0), Automatic(), PerLayer()], ids=repr)
def test_a_sum_is_no_longer_than_its_examples_allow(style: Style) -> None:
    case = CASES["cnn"]
    result = oracle.clip_sum(case.model(), case.loss, case.batch(7), Clipping(0.1, style=style))
    assert 0.0 < float(oracle.as_vector(result).norm()) <= 7 * 0.1 * (1.0 + 1e-9)


def test_groups_cut_where_they_are_told() -> None:
    case = CASES["mlp"]
    model, batch = case.model(), case.batch(1)
    groups = {name: "first" if name.startswith("0") else "rest" for name, _ in _named(model)}
    style = PerLayer(groups=groups, weights={"first": 3.0, "rest": 4.0})
    found = oracle.as_named(oracle.clip_sum(model, case.loss, batch, Clipping(1e-3, style=style)))
    first = oracle.length({name: part for name, part in found.items() if name.startswith("0")})
    assert first == pytest.approx(0.6e-3, rel=1e-6)
    assert oracle.length(found) == pytest.approx(1e-3, rel=1e-6)


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())


@pytest.mark.parametrize(
    ("style", "said"),
    [
        (PerLayer(groups={"0.weight": "a"}), "PerLayer"),
        (PerLayer(groups=GROUPS, weights={"a": 1.0}), "weight for group"),
        (PerLayer(groups=GROUPS, weights={**WEIGHTS, "c": 0.0}), "weight for group 'c'"),
        (PerLayer(groups=GROUPS, weights={**WEIGHTS, "c": math.inf}), "weight for group 'c'"),
    ],
)
def test_groups_and_weights_must_be_complete(style: PerLayer, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        style.factors(by_name([[1.0] * 5]), 1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bounds_and_gamma_are_positive_and_finite(bad: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Flat(bound=bad)
    with pytest.raises(ConfigError, match="above 0"):
        Automatic(gamma=bad)
