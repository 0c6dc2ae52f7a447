"""Training on a Spark cluster: its executors become the ranks, through pyspark's TorchDistributor.

Spark starts one task a rank, all at once (a barrier stage), and each task starts one process with
torchrun's variables, so that a rank finds its place as under any other launcher. Records travel by
no DataFrame: every rank opens the record store itself, on storage that all hosts reach, for only
random access to fixed shards can be Poisson. What the driver gets back is the run folder's name.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dither import errors
from dither.config import TrainConfig
from dither.data.engines.spark_session import MEMORY, spark_session
from dither.errors import ConfigError, DitherError


def train_on_spark(
    config: TrainConfig, *, ranks: int, master: str | None = None, memory: str = MEMORY
) -> Path:
    """Train on the executors of a Spark cluster and return the run folder.

    Guarantee: that of `run_training` on as many ranks. Spark runs a stage whose executor died once
    more; the run then goes on from its last checkpoint.

    Args:
        config: Options with ``store`` and ``out`` (or ``resume``) on storage that driver and
            executors reach by the same path.
        ranks: R, one task each; the cluster must have so many slots free at the same time.
        master: ``local-cluster[N,CORES,MB]``, ``spark://HOST:PORT``, ``yarn``, ``k8s://URL``; by
            default what spark-submit gives, or the Spark that runs in this process.
        memory: Of the driver, where a Spark is started.

    Raises:
        ConfigError: Spark is missing, too few slots, or options that cannot be.
        DitherError: What a rank was refused, as there.
    """
    _check(config, ranks)
    wanted = replace(config, nproc=None, spark=None)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # what this driver has, they need
    with (
        tempfile.TemporaryDirectory(prefix="dither-spark-") as folder,
        spark_session(Path(folder) / "session", master=master, memory=memory) as session,
    ):
        _check_slots(session, ranks)
        found = _distributed(ranks, wanted.to_json())
    if found is None or "folder" not in found:
        raise _refused(found or {})
    return Path(found["folder"])


def _distributed(ranks: int, values: dict[str, Any]) -> Mapping[str, Any] | None:
    from pyspark.ml.torch.distributor import TorchDistributor  # noqa: PLC0415 - an extra

    try:
        distributor = TorchDistributor(num_processes=ranks, local_mode=False, use_gpu=False)
        found: Mapping[str, Any] | None = distributor.run(run_rank, values)
    except Exception as error:  # Spark's own words name Java, not what happened
        raise ConfigError(
            expected=f"{ranks} ranks that run to their end on the Spark cluster",
            got=f"{type(error).__name__} from Spark",
            fix="see the executors' logs; a run that has begun goes on with the same options",
        ) from error
    return found


def run_rank(values: dict[str, Any]) -> dict[str, Any]:
    """Be one rank, in a process that a Spark task has started.

    A named error is returned, not raised: Spark would only try the same again.

    Args:
        values: The options, as plain JSON values.
    """
    from dither.train.loop import run_training  # noqa: PLC0415 - the driver needs no PyTorch

    config = TrainConfig.from_json(values)
    if config.threads is None:
        config = replace(config, threads=1)  # one core a task is Spark's own default
    try:
        return {"folder": str(run_training(config))}
    except DitherError as error:
        parts = {"expected": error.expected, "got": error.got, "fix": error.fix}
        return {"error": type(error).__name__, **parts}


def _check(config: TrainConfig, ranks: int) -> None:
    config.check()
    if ranks < 1:
        raise ConfigError(
            expected="at least 1 rank", got=str(ranks), fix="say how many with --nproc"
        )
    if config.store is None and config.resume is None:
        raise ConfigError(
            expected="a record store that all executors reach",
            got="raw files, of which each host would build its own store",
            fix="build one with `dither data build` on shared storage, and give --store",
        )
    for path in (config.store, config.out, config.resume, config.ledger):
        if path is not None and not path.is_absolute():
            raise ConfigError(
                expected="absolute paths, which mean the same on all hosts",
                got=str(path),
                fix="write the whole path, on storage that driver and executors share",
            )


def _check_slots(session: Any, ranks: int) -> None:
    """Refuse what a barrier stage would wait for in vain."""
    master = session.sparkContext.master
    cluster = re.fullmatch(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*\d+\s*\]", master)
    # Executors of a cluster may still be on their way, so what it has now says nothing.
    near = session.sparkContext.defaultParallelism
    slots = int(cluster[1]) * int(cluster[2]) if cluster else near
    if master.startswith("local") and slots < ranks:
        raise ConfigError(
            expected=f"a Spark master with {ranks} slots for {ranks} ranks",
            got=f"{slots} in {master}",
            fix=f"use local-cluster[{ranks},1,1024], or fewer ranks",
        )


def _refused(found: Mapping[str, Any]) -> DitherError:
    kind = getattr(errors, str(found.get("error")), None)
    known = isinstance(kind, type) and issubclass(kind, DitherError)
    name = kind if known and kind is not None else ConfigError
    refusal: DitherError = name(
        expected=found.get("expected", "a run folder from rank 0"),
        got=found.get("got", "nothing"),
        fix=found.get("fix", "see the executors' logs"),
    )
    return refusal
