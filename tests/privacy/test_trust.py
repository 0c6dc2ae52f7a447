"""The table of trust models in DESIGN.md."""

from __future__ import annotations

import math

import pytest

from dither.errors import ConfigError
from dither.privacy.trust import CENTRAL, LOCAL, Trust, parse_trust


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64, 1000])
def test_central_and_local_follow_the_table(ranks: int) -> None:
    assert CENTRAL.rank_share(ranks) == pytest.approx(1 / math.sqrt(ranks), rel=1e-15)
    assert CENTRAL.sum_multiple(ranks) == pytest.approx(1.0, rel=1e-15)
    assert LOCAL.rank_share(ranks) == 1.0
    assert LOCAL.sum_multiple(ranks) == pytest.approx(math.sqrt(ranks), rel=1e-15)


@pytest.mark.parametrize(("ranks", "t"), [(2, 0), (2, 1), (8, 2), (64, 63)])
def test_distributed_follows_the_table(ranks: int, t: int) -> None:
    trust = Trust("distributed", t)
    assert trust.rank_share(ranks) == pytest.approx((ranks - t) ** -0.5, rel=1e-15)
    assert trust.sum_multiple(ranks) == pytest.approx(math.sqrt(ranks / (ranks - t)), rel=1e-14)
    # What the honest ranks alone add is the whole noise.
    assert trust.rank_share(ranks) * math.sqrt(ranks - t) == pytest.approx(1.0, rel=1e-15)


@pytest.mark.parametrize("text", ["central", "local", "distributed(0)", "distributed(12)"])
def test_names_read_back(text: str) -> None:
    assert str(parse_trust(text)) == text
    assert parse_trust(f"  {text.upper()} ") == parse_trust(text)


@pytest.mark.parametrize(
    "text", ["", "none", "distributed", "distributed()", "distributed(-1)", "central(1)", "local x"]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a trust of central, local"):
        parse_trust(text)


@pytest.mark.parametrize(
    ("name", "t"), [("central", 1), ("local", 2), ("distributed", -1), ("p2p", 0)]
)
def test_impossible_trust_is_refused(name: str, t: int) -> None:
    with pytest.raises(ConfigError):
        Trust(name, t)


@pytest.mark.parametrize(("trust", "ranks"), [(Trust("distributed", 2), 2), (CENTRAL, 0)])
def test_too_few_ranks_are_refused(trust: Trust, ranks: int) -> None:
    with pytest.raises(ConfigError, match="a world size above"):
        trust.rank_share(ranks)
