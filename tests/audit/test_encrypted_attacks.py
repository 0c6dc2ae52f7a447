"""Each defect of HEAR's code reads every value, and none is in the baseline as it ships."""

from __future__ import annotations

import numpy as np

from dither.audit.encrypted_attacks import attack_encrypted


def test_defects_read_all_and_safeguards_hide_all() -> None:
    """A false alarm has probability 5e-7 a game."""
    found = attack_encrypted(2048, np.random.default_rng(0))
    assert {one.defect for one in found} == {"clear fallback", "repeated pads", "unseeded keys"}
    assert len(found) == 6
    for one in found:
        if one.safeguard:
            assert not one.reproduced
            assert abs(one.advantage) < 0.12  # five and a half deviations
        else:
            assert one.reproduced
            assert one.advantage == 1.0
