"""The options of `dither train`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from dither.config.options import RUNNING, check_options

# On the operator's machines: not published, and each host may have its own.
PLACES = frozenset(
    {
        *("data", "store", "out", "resume", "ledger", "account"),
        *("cluster_secret", "profile", "track", "track_private", "spark"),
    }
)


@dataclass(frozen=True)
class TrainConfig:
    """Train a classifier on a record store, privately unless told otherwise.

    Attributes:
        data: Raw record files (Census zips, CSV or Parquet); their store is built once and reused.
        store: A record store that `dither data build` made, instead of --data.
        task: What to predict: unemployment or employment, or the description of a table of your
            own (a .toml file).
        out: New folder for the run: report, summary, model, checkpoints. This or --resume is
            required.
        resume: A run folder to go on with; all other options then come from the run.
        private: Train with differential privacy. --no-private is the unprotected baseline.
        epsilon: Privacy budget ε of the whole run; the noise multiplier follows from it. This or
            --noise-multiplier is required.
        delta: δ, well below one over the number of records.
        steps: Number of private steps.
        batch_size: Expected batch size; every record joins a batch independently.
        l2_clip: Bound on the L2 norm of one record's gradient.
        clipping: How gradients become shorter: flat cuts at the bound, automatic normalises, and
            per_layer gives every layer a part of the bound. adaptive moves the bound after a noisy
            quantile of the norms, which --epsilon covers too. The others change no ε.
        clip_quantile: Share of gradients that adaptive clipping leaves whole; by default a half.
        microbatch_size: Records that pass through the model at a time. Changes speed only.
        memory_limit: MiB that one such pass may take, about. Changes speed only.
        noise_multiplier: Noise over sensitivity, instead of --epsilon, which then follows.
        relation: When two data sets count as neighbours.
        declared_records: Public number of training records; needed under add_remove.
        trust: Who must not learn what: central, whoever sees the result only; local, the network
            and whoever gets messages too; distributed(t), the network and any t ranks, behind
            masks. Each rank of this command holds all records: against operators of ranks use the
            Python API, each rank with its own. One process can only offer central.
        cluster_secret: File of 16 random bytes or more that all ranks know and the network does
            not; under distributed(t) it keeps strangers out of the agreement on masks.
        nproc: Start so many processes on this host and train on all of them. Speed only.
        spark: With --nproc: let the executors of this Spark master be the processes, for instance
            spark://host:7077 or local-cluster[2,1,1024]; submit is what spark-submit gives.
        engine: How several processes train: reduce sums through dither's own AllReduce, ddp through
            DistributedDataParallel. Changes speed only.
        transport: What carries messages between hosts: gloo or mpi; auto is mpi under mpiexec.
            Changes speed only.
        algorithm: AllReduce algorithm; auto measures. Changes speed only.
        timeout: Seconds that a process waits for the others before it names who is late.
        max_restarts: How often --nproc starts all processes again when one has died; they go on
            from the last checkpoint.
        profile: Write a trace of the first steps here, for chrome://tracing or Perfetto.
        track: Where released values go too: tensorboard:DIR or mlflow:URI.
        track_private: The same for what is not released. Name only trackers that are as private
            as the records.
        precision: Run layers in low precision: bf16, fp8, int8, int4, mxfp4, luq-fp4 and others;
            `dither bench precision --host` says what this processor runs faster.
        schedule: Which layers, and when: dpquant moves from period to period and avoids layers that
            a private probe finds sensitive, whose cost --epsilon covers; random moves only; static
            keeps one random set; ramp moves and grows; all and none are what they say.
        quantized: Share that a schedule runs in low precision; at least that much.
        quantized_by: Share of what: the multiply-adds of the forward pass, or the layers.
        rotate_every: Steps between two choices; an epoch by default.
        probe_every: Steps between two probes, a multiple of the former; every choice by default.
        probe_share: Largest part of --epsilon that all probes alone may take.
        probe_clip: Bound on the L2 norm of one record's loss differences in a probe.
        schedule_seed: Seed of the schedule's public draws; a fresh one by default.
        hidden: Widths of the hidden layers.
        optimizer: sgd or adam, applied to the noisy gradient.
        learning_rate: Step size.
        momentum: Momentum of sgd.
        checkpoint_every: Steps between checkpoints and held-out evaluations; a tenth of --steps
            by default.
        test_fraction: Share of records held out.
        seed: Seed of the initial weights only; noise and sampling never follow a seed.
        insecure_seed: Make noise and sampling reproducible too. NOT PRIVATE, and marked so.
        sensitive: Override whether the records are sensitive (with --data).
        force: Allow an unprotected run on sensitive records; it is charged as ε = ∞.
        on_invalid: Whether rows of --data with unknown codes are an error or left out.
        ledger: Ledger file, instead of the one beside the store.
        account: Name of an account that several stores of the same people share; with --ledger.
        lease: Steps charged per ledger write; 64 by default, fewer for short plans.
        noise_pool: Make noise ahead, on a thread of its own. Changes speed only.
        threads: CPU threads; all by default.
        given: Names of options that the command line gave, at their defaults or not.
    """

    data: tuple[Path, ...] = ()
    store: Path | None = None
    task: str = "unemployment"
    out: Path | None = None
    resume: Path | None = None
    private: bool = True
    epsilon: float | None = None
    delta: float = 1e-7
    steps: int = 1000
    batch_size: int = 4096
    l2_clip: float = 1.0
    clipping: Literal["flat", "automatic", "per_layer", "adaptive"] = "flat"
    clip_quantile: float | None = None
    microbatch_size: int | None = None
    memory_limit: int | None = None
    noise_multiplier: float | None = None
    relation: Literal["zero_out", "add_remove", "replace_one"] = "zero_out"
    declared_records: int | None = None
    trust: str = "central"
    cluster_secret: Path | None = None
    nproc: int | None = None
    spark: str | None = None
    engine: Literal["reduce", "ddp"] = "reduce"
    transport: Literal["auto", "gloo", "mpi"] = "auto"
    algorithm: str = "auto"
    timeout: float = 300.0
    max_restarts: int = 3
    profile: Path | None = None
    track: tuple[str, ...] = ()
    track_private: tuple[str, ...] = ()
    precision: str | None = None
    schedule: Literal["dpquant", "random", "static", "ramp", "all", "none"] = "dpquant"
    quantized: float = 0.75
    quantized_by: Literal["compute", "layers"] = "compute"
    rotate_every: int | None = None
    probe_every: int | None = None
    probe_share: float = 0.02
    probe_clip: float = 0.01
    schedule_seed: int | None = None
    hidden: tuple[int, ...] = (128, 64)
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.5
    momentum: float = 0.9
    checkpoint_every: int | None = None
    test_fraction: float = 0.2
    seed: int | None = None
    insecure_seed: int | None = None
    sensitive: bool | None = None
    force: bool = False
    on_invalid: Literal["error", "drop"] = "error"
    ledger: Path | None = None
    account: str | None = None
    lease: int | None = None
    noise_pool: bool = False
    threads: int | None = None
    given: tyro.conf.Suppress[tuple[str, ...]] = field(default=(), compare=False)

    def check(self) -> None:
        """Refuse what needs no records to be seen as wrong.

        Raises:
            ConfigError: Names the option, what came and the fix.
        """
        check_options(self)

    def told(self) -> list[str]:
        """Return the names of the options that were given, or are not at their defaults."""
        defaults = TrainConfig()
        return [
            f.name
            for f in fields(self)
            if f.name != "given"
            and (f.name in self.given or getattr(self, f.name) != getattr(defaults, f.name))
        ]

    def words(self) -> list[str]:
        """Return the command line that says what these options say."""
        words: list[str] = []
        for name in self.told():
            option, value = name.replace("_", "-"), getattr(self, name)
            if isinstance(getattr(TrainConfig, name), bool):  # else True is a word, too
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{option}", *map(str, values)]
        return words

    def resumed(self, by: TrainConfig) -> TrainConfig:
        """Return this run's options with those of how it runs that ``by``, with --resume, gives."""
        return replace(self, **{n: getattr(by, n) for n in by.told() if n in RUNNING})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: _plain(value) for name, value in asdict(self).items() if name != "given"}

    def public(self) -> dict[str, Any]:
        """Return plain JSON values without places on the operator's machine."""
        return {name: value for name, value in self.to_json().items() if name not in PLACES}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuild the options of a run."""
        names = ("store", "out", "ledger", "cluster_secret", "profile")
        paths = {name: Path(values[name]) for name in names if values.get(name)}
        return cls(
            **{
                **values,
                **paths,
                "data": tuple(Path(path) for path in values["data"]),
                "hidden": tuple(values["hidden"]),
                "track": tuple(values.get("track", ())),
                "track_private": tuple(values.get("track_private", ())),
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
