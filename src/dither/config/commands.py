"""The options of all other commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class DataBuildConfig:
    """Build a record store from raw record files.

    Attributes:
        data: Census zips, CSV or Parquet files, or folders of them.
        out: New folder for the store.
        task: What the records are for: unemployment or employment.
        engine: What runs the pipeline: duckdb (one machine), spark (cores or a cluster), or, to
            compare with, rows (plain Python) and streaming (mapper, sort and reducer).
        master: spark: where it runs: local[N], spark://HOST:PORT, yarn; by default what
            spark-submit gives, else all cores of this machine.
        on_invalid: Whether rows with unknown codes or missing values are an error or left out.
        sensitive: Override whether unprotected use of the store must be refused.
        json: Print the result as JSON.
    """

    data: tuple[Path, ...]
    out: Path
    task: str = "unemployment"
    engine: str = "duckdb"
    master: str | None = None
    on_invalid: Literal["error", "drop"] = "error"
    sensitive: bool | None = None
    json: bool = False


@dataclass(frozen=True)
class DataDescribeConfig:
    """Say what is public about a table, what was released, and what is still open.

    Attributes:
        task: A task, or the description of a table of your own (a .toml file).
        data: Instead: print a first description of this CSV or Parquet table, from its header.
        json: Print JSON.
    """

    task: str | None = None
    data: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class DataStatisticsConfig:
    """Release the constants that a description asks for, privately, and charge them first.

    Attributes:
        data: All records of the account: zips, CSV or Parquet files, or folders of them.
        task: The description (a .toml file); releases are written beside it.
        ledger: Account to charge; by default beside the description. Train with the same one.
        relation: Neighbouring relation of the account.
        sensitive: Whether the account's records are sensitive.
        json: Print JSON.
    """

    data: tuple[Path, ...]
    task: Path
    ledger: Path | None = None
    relation: Literal["zero_out", "add_remove", "replace_one"] = "zero_out"
    sensitive: bool = True
    json: bool = False


@dataclass(frozen=True)
class DataReportConfig:
    """Show what became of the rows of a store: to its operator, or released and charged.

    Attributes:
        store: A record store.
        epsilon: Release the counts with this ε, instead of showing the exact ones.
        ledger: Account to charge, instead of the one beside the store.
        relation: Neighbouring relation of the account, where it is new.
        json: Print JSON.
    """

    store: Positional[Path]
    epsilon: float | None = None
    ledger: Path | None = None
    relation: Literal["zero_out", "add_remove", "replace_one"] = "zero_out"
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
        name: noise, train, clip, allreduce, mpi, scaling, data, precision, quant, or list, which
            says what they measure.
        json: Write the result here as JSON; - or no name is standard output.
        full: More cases and repeats.
        cases: Only these cases, of a bench that can choose: clip, allreduce, mpi, data, precision,
            quant.
        tune: allreduce: measure all algorithms here and write the table that auto reads.
        simulate: allreduce: error and reckoned time for up to this many ranks, at most 8192.
        figure: Draw what --simulate, scaling or quant finds: NAME.svg (png, pdf), and of --simulate
            its error alone, NAME-error.svg; data --full: time and memory by rows.
        hosts: allreduce: compare algorithms between this many hosts, which are namespaces here.
        mbit: Bandwidth of each of these hosts, in Mbit/s.
        data: scaling, data: census records, a folder or a Parquet file, generated ones by default;
            quant: a folder with images/ and acs/.
        price: scaling: price of a core hour, for the column of costs.
        host: precision: say what this processor has, and what a product costs in each format.
        out: quant: folder of finished trainings (JSON lines); a study that was stopped goes on from
            it.
        seeds: quant: seeds of each comparison.
        processes: quant: trainings at a time, one thread each; by default the number of cores.
        hours: quant: stop starting trainings after this long; run again to go on.
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
    data: Path | None = None
    price: float | None = None
    host: bool = False
    out: Path | None = None
    seeds: int | None = None
    processes: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class DoctorConfig:
    """Say what is installed here, what it means for dither, and what to do about each gap.

    Attributes:
        json: Write the result here as JSON; - or no name is standard output.
    """

    json: str | None = None
