"""Options that can be seen as wrong without records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dither.config import TrainConfig
from dither.errors import ConfigError

GOOD: dict[str, Any] = {"store": Path("store"), "out": Path("run"), "epsilon": 1.0}


def test_good_options_pass() -> None:
    TrainConfig(**GOOD).check()
    TrainConfig(resume=Path("run")).check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 0.0}, "--epsilon"),
        ({"epsilon": -1.0}, "--epsilon"),
        ({"epsilon": float("nan")}, "--epsilon"),
        ({"epsilon": float("inf")}, "--epsilon"),
        ({"delta": 0.0}, "--delta"),
        ({"delta": 1.0}, "--delta"),
        ({"steps": 0}, "--steps"),
        ({"steps": 10**19}, "--steps"),
        ({"seed": -1}, "--seed"),
        ({"insecure_seed": 2**63}, "--insecure-seed"),
        ({"declared_records": 0, "relation": "add_remove"}, "--declared-records"),
        ({"hidden": (10**11,)}, "layer widths"),
        ({"threads": 10**5}, "--threads"),
        ({"batch_size": 0}, "--batch-size"),
        ({"checkpoint_every": 0}, "--checkpoint-every"),
        ({"lease": 0}, "--lease"),
        ({"microbatch_size": 0}, "--microbatch-size"),
        ({"memory_limit": 0}, "--memory-limit"),
        ({"clipping": "adaptive", "clip_quantile": 0.0}, "--clip-quantile"),
        ({"clipping": "adaptive", "clip_quantile": 1.0}, "--clip-quantile"),
        ({"clip_quantile": 0.4}, "--clipping adaptive"),
        (
            {"clipping": "adaptive", "relation": "add_remove", "declared_records": 5},
            "--relation zero_out",
        ),
        ({"l2_clip": 0.0}, "--l2-clip"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"momentum": 1.0}, "--momentum"),
        ({"test_fraction": 1.0}, "--test-fraction"),
        ({"hidden": (0,)}, "layer widths"),
        ({"threads": 0}, "--threads"),
        ({"epsilon": None, "noise_multiplier": 0.0}, "--noise-multiplier"),
        ({"noise_multiplier": 1.0}, "both"),
        ({"epsilon": None}, "never guessed"),
        ({"sensitive": True}, "--sensitive"),
        ({"account": "people"}, "--ledger"),
        ({"trust": "local"}, "trust central"),
        ({"trust": "nobody"}, "trust"),
        ({"relation": "add_remove"}, "--declared-records"),
        ({"declared_records": 5}, "--declared-records"),
        ({"data": (Path("x.zip"),)}, "--data"),
        ({"store": None}, "--data"),
        ({"out": None}, "--out"),
        ({"resume": Path("run")}, "--resume"),
        ({"out": None, "resume": Path("run")}, "--store"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**{**GOOD, **changes}).check()


def test_options_survive_the_run_file() -> None:
    config = TrainConfig(
        data=(Path("a.zip"), Path("b.zip")), out=Path("run"), hidden=(3, 4), ledger=Path("l")
    )
    assert TrainConfig.from_json(config.to_json()) == config
