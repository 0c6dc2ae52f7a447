"""What can be seen as wrong before a process starts or a file is written, and without PyTorch.

`dither train` looks here first, in the process that was typed, so that a wrong option is said once
and at once; every rank looks again for what is its host's own.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from dither.config import TrainConfig
from dither.errors import CheckpointError, ConfigError, DataError, DitherWarning, OutputError
from dither.privacy.trust import parse_trust
from dither.reduce.protections.graph import mask_degree
from dither.train.targets import check_targets


def check_command(config: TrainConfig, ranks: int) -> None:
    """Refuse a command that cannot train, before anything is started. Not for a restarted one.

    Args:
        config: Its options, checked by themselves.
        ranks: How many processes will train.

    Raises:
        DitherError: Names the option and the fix.
    """
    if config.resume is not None:
        check_start(resumed(config), ranks)
        return
    if config.out is not None:
        check_free(config.out)
    _require_records(config)
    check_start(config, ranks)
    if ranks == 1 and config.engine == "ddp":
        warnings.warn(
            "--engine ddp shares a batch among processes, and there is one: it trains as --engine "
            "reduce does, with more work. Add --nproc 2, or leave --engine out",
            DitherWarning,
            stacklevel=2,
        )


def check_start(config: TrainConfig, ranks: int) -> None:
    """Refuse options that cannot work on this host, or among so many ranks.

    Args:
        config: Options of a run. With ``resume``, those of the command alone.
        ranks: How many there are.

    Raises:
        ConfigError: A trust between too few ranks, no such algorithm or tracker, a secret that
            cannot be used, a folder that is not there.
    """
    check_trust_among(config.trust if config.private else "central", ranks)
    if config.algorithm != "auto":
        from dither.reduce.algorithms.registry import find_algorithm  # noqa: PLC0415 - loads NumPy

        find_algorithm(config.algorithm)
    if config.cluster_secret is not None:
        from dither.train.distributed.secret import cluster_secret  # noqa: PLC0415 - loads NumPy

        cluster_secret(config.cluster_secret)
    check_targets(config.track, config.track_private)
    for option, path in (("--profile", config.profile), ("--ledger", config.ledger)):
        _require_folder(option, path)


def check_trust_among(trust: str, ranks: int) -> None:
    """Refuse a trust between ranks where there are too few of them.

    Raises:
        ConfigError: One rank and another trust than central, or all of them may collude.
    """
    chosen = parse_trust(trust)
    if trust != "central" and ranks == 1:
        least = max(2, chosen.colluders + 1)
        raise ConfigError(
            expected="several ranks for trust local and distributed(t); one process sees all "
            "records and the result, which is trust central",
            got=f"--trust {trust} in one process",
            fix=f"add --nproc {least}, start with torchrun, or use --trust central",
        )
    if chosen.name == "distributed":
        mask_degree(ranks, chosen.colluders)  # refuses t of R or more


def check_free(folder: Path) -> None:
    """Refuse a folder for a new run that exists and is not empty.

    Raises:
        OutputError: It is not empty or not a folder.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    run = (folder / "run.json").is_file()
    finished = run and (folder / "summary.json").is_file()
    raise OutputError(
        expected=f"a new or empty folder at {folder}",
        got="a finished run" if finished else "an earlier run" if run else "something else there",
        fix=f"use --resume {folder} to go on with it, or choose another --out"
        if run and not finished
        else "choose another --out",
    )


def resumed(config: TrainConfig) -> TrainConfig:
    """Return the options of the run that ``--resume`` names, with those that it may change.

    Raises:
        CheckpointError: That is no run folder.
    """
    assert config.resume is not None  # noqa: S101 - asked where it is called
    _, where = read_run(config.resume)
    return TrainConfig.from_json(where["config"]).resumed(config)


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's public facts and the operator's own, unread.

    Raises:
        CheckpointError: Not a run folder, or damaged.
    """
    try:
        facts = json.loads((folder / "run.json").read_bytes())
        where = json.loads((folder / "private" / "run.json").read_bytes())
        TrainConfig.from_json(where["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_run(folder, error) from error
    return facts, where


def no_run(folder: Path, error: Exception) -> CheckpointError:
    """Return the error for a folder that holds no run, or a damaged one."""
    got = "no run there" if folder.is_dir() else "no such folder"
    if (folder / "run.json").exists():
        got = f"a damaged one ({type(error).__name__}: {error})"
    return CheckpointError(
        expected=f"a run folder at {folder}",
        got=got,
        fix="name the --out folder of an earlier dither train",
    )


def _require_folder(option: str, path: Path | None) -> None:
    if path is None:
        return
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ConfigError(
            expected=f"a folder for {option} {path}",
            got=f"no folder {parent}",
            fix=f"make it first (mkdir -p {parent}), or name another place",
        )
    if path.is_dir():
        raise ConfigError(
            expected=f"a file for {option}", got=f"the folder {path}", fix="name a file in it"
        )


def _require_records(config: TrainConfig) -> None:
    store = [] if config.store is None else [("--store", config.store)]
    for option, path in [*store, *(("--data", path) for path in config.data)]:
        if not path.exists():
            raise DataError(
                expected=f"records at {option} {path}",
                got="nothing there",
                fix="check the path; dither data synth, fetch and build make records",
            )
