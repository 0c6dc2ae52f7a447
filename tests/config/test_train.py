"""Options that can be seen as wrong without records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dither.cli.main import parse
from dither.config import PLACES, RUNNING, TrainConfig
from dither.errors import ConfigError
from dither.train.setup import make_plan

GOOD: dict[str, Any] = {"store": Path("store"), "out": Path("run"), "epsilon": 1.0}


def test_good_options_pass() -> None:
    TrainConfig(**GOOD).check()
    TrainConfig(**GOOD, trust="local", nproc=2).check()
    TrainConfig(**GOOD, trust="distributed(2)", nproc=4, cluster_secret=Path("s")).check()
    TrainConfig(resume=Path("run"), nproc=2, engine="ddp", timeout=5.0, threads=1).check()
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
        ({"trust": "nobody"}, "--trust"),
        ({"trust": "distributed"}, "--trust"),
        ({"trust": "distributed(-1)"}, "--trust"),
        ({"cluster_secret": Path("s"), "trust": "local"}, "--cluster-secret"),
        ({"private": False, "trust": "local"}, "--no-private --trust local"),
        ({"transport": "mpi", "nproc": 2}, "mpiexec -n 2"),
        ({"nproc": 0}, "--nproc"),
        ({"nproc": 257}, "--nproc up to 256"),
        ({"timeout": 0.5}, "--timeout"),
        ({"timeout": float("nan")}, "--timeout"),
        ({"max_restarts": -1}, "--max-restarts"),
        ({"relation": "add_remove"}, "--declared-records"),
        ({"declared_records": 5}, "--declared-records"),
        ({"data": (Path("x.zip"),)}, "--data"),
        ({"store": None}, "--data"),
        ({"out": None}, "--out"),
        ({"resume": Path("run")}, "--resume"),
        ({"out": None, "resume": Path("run")}, "--store"),
        ({"out": None, "store": None, "resume": Path("run"), "timeout": 0.0}, "--timeout"),
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


EVERYTHING = TrainConfig(
    data=(Path("a b.zip"), Path("c.zip")),
    out=Path("run"),
    private=False,
    trust="distributed(1)",
    epsilon=0.1 + 0.2,
    hidden=(3, 4),
    seed=5,
    force=True,
    sensitive=True,
    nproc=2,
    spark="local-cluster[2,1,1024]",
    engine="ddp",
    timeout=7.5,
    track=("tensorboard:x", "mlflow:y"),
    track_private=("tensorboard:z",),
    profile=Path("trace.json"),
    cluster_secret=Path("secret"),
    noise_pool=True,
)


def test_all_options_survive_the_run_file() -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(EVERYTHING.to_json()))) == EVERYTHING


def test_a_run_file_of_before_has_the_defaults_of_now() -> None:
    values = TrainConfig(**GOOD).to_json()
    for name in RUNNING - {"threads"}:
        del values[name]
    assert TrainConfig.from_json(values) == TrainConfig(**GOOD)


def test_options_make_the_command_line_that_makes_them() -> None:
    assert parse(["train", *EVERYTHING.words()]) == EVERYTHING
    assert parse(["train", *TrainConfig(**GOOD).words()]) == TrainConfig(**GOOD)


def test_a_resumed_run_keeps_what_it_is_and_changes_how_it_runs() -> None:
    started = TrainConfig(**GOOD, engine="ddp", timeout=9.0, nproc=3)
    now = started.resumed(TrainConfig(resume=Path("run"), nproc=2, threads=1, steps=5))
    assert now == TrainConfig(**GOOD, engine="ddp", timeout=9.0, nproc=2, threads=1)


def test_a_resumed_run_takes_an_option_at_its_default_where_it_is_given() -> None:
    started = TrainConfig(**GOOD, engine="ddp", algorithm="ring", timeout=9.0)
    words = ["--resume", "run", "--engine", "reduce", "--algorithm=auto"]
    now = started.resumed(parse(["train", *words]))
    assert now == TrainConfig(**GOOD, timeout=9.0)
    # And so do the ranks that --nproc starts.
    again = parse(["train", *parse(["train", *words]).words()])
    assert started.resumed(again) == now
    assert started.resumed(replace(parse(["train", *words]), threads=1)).engine == "reduce"


def test_a_resumed_run_refuses_what_it_is_at_its_default_too() -> None:
    with pytest.raises(ConfigError, match="--steps"):
        parse(["train", "--resume", "run", "--steps", "1000"]).check()
    with pytest.raises(ConfigError, match="--private"):
        parse(["train", "--resume", "run", "--private"]).check()


def test_which_options_were_given_is_no_option_and_not_published() -> None:
    config = parse(["train", *EVERYTHING.words()])
    assert "engine" in config.given
    assert "given" not in config.to_json()
    with pytest.raises(SystemExit):
        parse(["train", "--given", "engine"])


def test_no_place_of_the_operators_is_published() -> None:
    public = EVERYTHING.public()
    assert not PLACES & public.keys()
    assert "secret" not in json.dumps(public)


def test_options_of_how_a_run_runs_are_no_part_of_its_promise() -> None:
    """No option that only changes speed may alter the plan."""
    plain = make_plan(TrainConfig(**GOOD), 10_000)
    for name in RUNNING:
        change: dict[str, Any] = {name: getattr(EVERYTHING, name) or 1}
        changed = replace(TrainConfig(**GOOD), **change)
        assert make_plan(changed, 10_000) == plain, name
    assert make_plan(replace(TrainConfig(**GOOD), trust="local"), 10_000) != plain
