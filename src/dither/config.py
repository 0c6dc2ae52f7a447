"""The options of every command, typed and frozen, shared by command line and Python API."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from dither.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """Train a classifier on a record store, privately unless told otherwise.

    Attributes:
        data: Raw record files (Census zips, CSV or Parquet); their store is built once and reused.
        store: A record store that `dither data build` made, instead of --data.
        task: What to predict: unemployment or employment.
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
        trust: Who must not learn what; one process can only offer central.
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

    def check(self) -> None:
        """Refuse what needs no records to be seen as wrong.

        Raises:
            ConfigError: Names the option, what came and the fix.
        """
        if (self.out is None) == (self.resume is None):
            raise ConfigError(
                expected="either --out for a new run or --resume for an old one",
                got="both" if self.out else "neither",
                fix="give one of them",
            )
        if self.resume is not None:
            self._check_resume()
            return
        if bool(self.data) == (self.store is not None):
            raise ConfigError(
                expected="either --data with raw files or --store with a record store",
                got="both" if self.store else "neither",
                fix="give one of them",
            )
        self._check_promise()
        self._check_ranges()
        if self.trust != "central":
            raise ConfigError(
                expected="trust central: one process sees all records and the result",
                got=repr(self.trust),
                fix="use --trust central; local and distributed need several ranks",
            )
        if (self.relation == "add_remove") != (self.declared_records is not None):
            raise ConfigError(
                expected="--declared-records exactly under --relation add_remove",
                got=f"{self.relation} with declared records {self.declared_records}",
                fix="under add_remove n itself is private: declare a public one; else leave it out",
            )
        self._check_clipping()

    def _check_clipping(self) -> None:
        if self.clip_quantile is not None and self.clipping != "adaptive":
            raise ConfigError(
                expected="--clip-quantile together with --clipping adaptive, which it is for",
                got=f"--clipping {self.clipping}",
                fix="add --clipping adaptive, or leave --clip-quantile out",
            )
        if self.clipping == "adaptive" and self.relation == "add_remove":
            raise ConfigError(
                expected="--clipping flat, automatic or per_layer under --relation add_remove",
                got="adaptive, whose count of gradients could jump by rounding there",
                fix="use one of these, or --relation zero_out",
            )

    def _check_promise(self) -> None:
        budget, noise = self.epsilon, self.noise_multiplier
        if (self.private and budget is None and noise is None) or (budget and noise):
            raise ConfigError(
                expected="either --epsilon, the budget, or --noise-multiplier",
                got="both" if budget else "neither: a budget is never guessed",
                fix="give one of them, for instance --epsilon 1",
            )
        for name, value in (("epsilon", budget), ("noise_multiplier", noise)):
            _require(
                value is None or 0.0 < value < float("inf"), f"a finite --{name} above 0", value
            )
        if self.sensitive is not None and self.store is not None:
            raise ConfigError(
                expected="--sensitive with --data only: a store says by itself whether it is",
                got=f"--sensitive {self.sensitive} with --store",
                fix="build the store again with --sensitive",
            )
        if self.account is not None and self.ledger is None:
            raise ConfigError(
                expected="--account together with the --ledger that holds it",
                got="no --ledger",
                fix="name the ledger file that the stores share",
            )

    def _check_ranges(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "checkpoint_every",
            "lease",
            "threads",
            "microbatch_size",
            "memory_limit",
        ):
            value = getattr(self, name)
            _require(value is None or 1 <= value <= 10**8, f"--{name} in [1, 1e8]", value)
        for name in ("seed", "insecure_seed"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < 2**63, f"a --{name} in [0, 2^63)", value)
        declared = self.declared_records
        _require(declared is None or declared >= 1, "--declared_records of at least 1", declared)
        _require(self.threads is None or self.threads <= 1024, "--threads up to 1024", self.threads)
        for name in ("l2_clip", "learning_rate"):
            value = getattr(self, name)
            _require(0.0 < value < float("inf"), f"a finite --{name} above 0", value)
        _require(0.0 < self.delta < 1.0, "a --delta in (0, 1)", self.delta)
        _require(0.0 <= self.momentum < 1.0, "a --momentum in [0, 1)", self.momentum)
        quantile = self.clip_quantile
        _require(quantile is None or 0.0 < quantile < 1.0, "a --clip-quantile in (0, 1)", quantile)
        _require(0.0 < self.test_fraction < 1.0, "a --test_fraction in (0, 1)", self.test_fraction)
        _require(
            all(1 <= width <= 2**16 for width in self.hidden),
            "layer widths in [1, 65536]",
            self.hidden,
        )

    def _check_resume(self) -> None:
        defaults = TrainConfig(resume=self.resume, threads=self.threads)
        changed = [
            f.name for f in fields(self) if getattr(self, f.name) != getattr(defaults, f.name)
        ]
        if changed:
            raise ConfigError(
                expected="--resume alone: the run keeps its options",
                got=f"also {', '.join('--' + name for name in changed)}",
                fix="leave them out, or start a new run with --out",
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def public(self) -> dict[str, Any]:
        """Return plain JSON values without places on the operator's machine."""
        places = {"data", "store", "out", "resume", "ledger", "account"}
        return {name: value for name, value in self.to_json().items() if name not in places}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuild the options of a run."""
        paths = {name: Path(values[name]) for name in ("store", "out", "ledger") if values[name]}
        return cls(
            **{
                **values,
                **paths,
                "data": tuple(Path(path) for path in values["data"]),
                "hidden": tuple(values["hidden"]),
            }
        )


def _require(holds: bool, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(
            expected=expected.replace("_", "-"), got=repr(value), fix="change the option"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class DataBuildConfig:
    """Build a record store from raw record files.

    Attributes:
        data: Census zips, CSV or Parquet files, or folders of them.
        out: New folder for the store.
        task: What the records are for: unemployment or employment.
        engine: What runs the pipeline.
        on_invalid: Whether rows with unknown codes or missing values are an error or left out.
        sensitive: Override whether unprotected use of the store must be refused.
        json: Print the result as JSON.
    """

    data: tuple[Path, ...]
    out: Path
    task: str = "unemployment"
    engine: str = "duckdb"
    on_invalid: Literal["error", "drop"] = "error"
    sensitive: bool | None = None
    json: bool = False


@dataclass(frozen=True)
class DataFetchConfig:
    """Download person records of some states from the Census site.

    Attributes:
        states: Postal codes, for instance wy vt; or all.
        out: Folder for the zips.
        year: Survey year of the 1-year files.
        checksums: Known digests, in the format of sha256sum; else the first download is trusted.
        base_url: A mirror of the Census files.
        timeout: Seconds without a byte before an attempt counts as failed.
        retries: Further attempts.
    """

    states: tuple[str, ...]
    out: Path
    year: int = 2023
    checksums: Path | None = None
    base_url: str | None = None
    timeout: float = 30.0
    retries: int = 4


@dataclass(frozen=True)
class DataSynthConfig:
    """Write generated records in the layout of the Census: no real person is in them.

    Attributes:
        out: New .csv, .zip or .parquet file.
        rows: Number of persons.
        seed: Of the generator.
        year: Survey year that the records claim.
    """

    out: Path
    rows: int = 100_000
    seed: int = 0
    year: int = 2024


@dataclass(frozen=True)
class PlanConfig:
    """Work out what a budget buys, or what noise costs, without any records.

    Attributes:
        records: Number of training records.
        batch_size: Expected batch size.
        steps: Number of private steps; give this or --epochs.
        epochs: Passes over the records, instead of --steps.
        epsilon: Budget ε; the noise multiplier follows.
        noise_multiplier: Noise over sensitivity; ε follows. Instead of --epsilon.
        delta: δ.
        l2_clip: Bound on the L2 norm of one record's gradient.
        relation: When two data sets count as neighbours.
        json: Print JSON.
    """

    records: int
    batch_size: int = 4096
    steps: int | None = None
    epochs: float | None = None
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-7
    l2_clip: float = 1.0
    relation: Literal["zero_out", "add_remove", "replace_one"] = "zero_out"
    json: bool = False


@dataclass(frozen=True)
class LedgerConfig:
    """Show what was charged: a run's part and the total of its records.

    Attributes:
        where: A run folder, a record store or a ledger file.
        delta: δ at which to state ε; the run's own by default.
        json: Print JSON.
    """

    where: Positional[Path]
    delta: float | None = None
    json: bool = False


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html for a run, and the operator's page into its private/ folder.

    Attributes:
        run: A run folder.
        against: Another run on the same records to compare with, for instance the plain one.
    """

    run: Positional[Path]
    against: Path | None = None


@dataclass(frozen=True)
class BenchConfig:
    """Measure dither against a baseline, interleaved, in one process tree.

    Attributes:
        name: noise, train, clip, allreduce, mpi, or list, which says what they measure.
        json: Write the result here as JSON; - or no name is standard output.
        full: More cases and repeats.
        cases: Only these cases, of a bench that can choose: clip, allreduce, mpi.
        tune: allreduce: measure all algorithms here and write the table that auto reads.
        simulate: allreduce: error and reckoned time for up to this many ranks, at most 8192.
        figure: Draw what --simulate finds: NAME.svg (png, pdf) and its error alone, NAME-error.svg.
        hosts: allreduce: compare algorithms between this many hosts, which are namespaces here.
        mbit: Bandwidth of each of these hosts, in Mbit/s.
    """

    name: Positional[str]
    json: str | None = None
    full: bool = False
    cases: tuple[str, ...] = ()
    tune: bool = False
    simulate: int | None = None
    figure: Path | None = None
    hosts: int | None = None
    mbit: float = 200.0
