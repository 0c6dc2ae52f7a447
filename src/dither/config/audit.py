"""The options of `dither audit`: attacks on a run, a model, an AllReduce, a ledger, the code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class AuditRunConfig:
    """Train once with canaries among the records, and bound ε from below by telling them apart.

    Attributes:
        store: A record store, as `dither data build` makes it. The run is charged to its ledger.
        epsilon: The claim: ε of the audited run; the noise multiplier follows. This or
            --noise-multiplier is required.
        noise_multiplier: Noise over sensitivity, instead of --epsilon, which then follows.
        delta: δ of the claim.
        steps: Number of private steps.
        batch_size: Expected batch size.
        l2_clip: Bound on the L2 norm of one record's gradient.
        canaries: m. Each is in by a fair coin.
        score: white-box: canaries are gradients, scored by every released sum; black-box: canaries
            are records, scored by the final model.
        confidence: Of the bound.
        defect: Self-test: use only this share of the noise. Not private, written into the ledger
            as ε = ∞, and refused on sensitive records.
        repeat: Audit so many runs, each by itself and each charged.
        power: Instead of training: simulate which defects such an audit sees, and charge nothing.
        trials: power: simulated audits for each defect.
        hidden: Widths of the hidden layers.
        optimizer: sgd or adam.
        learning_rate: Step size.
        momentum: Momentum of sgd.
        relation: Neighbouring relation of the account.
        declared_records: Public number of training records; needed under add_remove.
        test_fraction: Share of records held out.
        seed: Seed of the initial weights only.
        ledger: Ledger file, instead of the one beside the store.
        account: Name of an account that several stores share; with --ledger.
        threads: CPU threads; all by default.
        json: Write the result here as JSON; - or no name is standard output.
        out: Folder for audit.json and the figures. The folder of a run puts the audit into the
            report of that run.
    """

    store: Positional[Path]
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-7
    steps: int = 1000
    batch_size: int = 4096
    l2_clip: float = 1.0
    canaries: int = 5000
    score: Literal["white-box", "black-box"] = "white-box"
    confidence: float = 0.95
    defect: float | None = None
    repeat: int = 1
    power: bool = False
    trials: int = 20
    hidden: tuple[int, ...] = (128, 64)
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.5
    momentum: float = 0.9
    relation: Literal["zero_out", "add_remove", "replace_one"] = "zero_out"
    declared_records: int | None = None
    test_fraction: float = 0.2
    seed: int | None = None
    ledger: Path | None = None
    account: str | None = None
    threads: int | None = None
    json: str | None = None
    out: Path | None = None


@dataclass(frozen=True)
class AuditMembershipConfig:
    """Guess which records a model was trained on, by loss and by likelihood ratio.

    Trains plain and private models, each on a random half of some records, and attacks each with
    all others as shadows. Plain trainings are charged to the store's account as ε = ∞.

    Attributes:
        store: A record store; generated census records by default.
        records: How many of its records, drawn at random; few, so that models overfit.
        models: Of each kind: an even number, at least 8.
        epochs: Passes of each training over its half.
        batch_size: Expected batch size.
        hidden: Widths of the hidden layers.
        learning_rate: Of SGD with momentum 0.9.
        epsilon: ε of the private trainings.
        delta: δ of the private trainings.
        l2_clip: Bound on the L2 norm of one record's gradient in them.
        force: Allow plain trainings on sensitive records; they are charged as ε = ∞ for good.
        seed: Of the choice of records and halves; trainings draw fresh entropy.
        threads: CPU threads; all by default.
        json: Write the result here as JSON; - or no name is standard output.
        out: Folder for the figure and the JSON.
    """

    store: Positional[Path | None] = None
    records: int = 400
    models: int = 32
    epochs: int = 60
    batch_size: int = 50
    hidden: tuple[int, ...] = (128,)
    learning_rate: float = 0.5
    epsilon: float = 1.0
    delta: float = 1e-5
    l2_clip: float = 1.0
    force: bool = False
    seed: int | None = None
    threads: int | None = None
    json: str | None = None
    out: Path | None = None


@dataclass(frozen=True)
class AuditInversionConfig:
    """Infer an attribute of people from a model and their other attributes.

    Trains plain and private models, each on a random half of some records, and attacks everybody
    in all: who was in a model, and who was not. Plain trainings are charged to the store's account
    as ε = ∞.

    Attributes:
        store: A record store; generated census records by default.
        attributes: Columns with codes, inferred one after the other.
        records: How many people are attacked, drawn at random.
        known: How many others the attacker knows wholly.
        models: Of each kind: an even number, at least 8.
        epochs: Passes of each training over its half.
        batch_size: Expected batch size.
        hidden: Widths of the hidden layers.
        learning_rate: Of SGD with momentum 0.9.
        epsilons: ε of the private trainings, one kind each.
        delta: δ of the private trainings.
        l2_clip: Bound on the L2 norm of one record's gradient in them.
        force: Allow plain trainings on sensitive records; they are charged as ε = ∞ for good.
        seed: Of the choice of records and halves; trainings draw fresh entropy.
        threads: CPU threads; all by default.
        json: Write the result here as JSON; - or no name is standard output.
        out: Folder for the figure and the JSON.
    """

    store: Positional[Path | None] = None
    attributes: tuple[str, ...] = ("DIS", "SEX", "MAR")
    records: int = 2000
    known: int = 4000
    models: int = 16
    epochs: int = 30
    batch_size: int = 100
    hidden: tuple[int, ...] = (128,)
    learning_rate: float = 0.3
    epsilons: tuple[float, ...] = (8.0, 1.0)
    delta: float = 1e-5
    l2_clip: float = 1.0
    force: bool = False
    seed: int | None = None
    threads: int | None = None
    json: str | None = None
    out: Path | None = None


@dataclass(frozen=True)
class AuditAllreduceConfig:
    """Attack private and encrypted sums: from the wire, the result, and by colluding ranks.

    Needs no records. Exits with 1 where a promise is broken, or an attack misses a defect that was
    put in.

    Attributes:
        ranks: Sizes of the groups; up to 8 ranks send their messages, more are simulated.
        games: Independent games of each inference against each sum.
        seed: Of coins and contributions; noise and keys are always fresh.
        json: Write the result here as JSON; - or no name is standard output.
        out: Folder for the figure and the JSON.
    """

    ranks: tuple[int, ...] = (2, 8, 64, 1024)
    games: int = 4096
    seed: int | None = None
    json: str | None = None
    out: Path | None = None


@dataclass(frozen=True)
class AuditLedgerConfig:
    """Check a ledger: every release charged as planned, the chain whole, ε as recomputed.

    Attributes:
        where: A run folder, a record store or a ledger file.
        json: Write the findings here as JSON; - or no name is standard output.
    """

    where: Positional[Path]
    json: str | None = None


@dataclass(frozen=True)
class AuditMutantsConfig:
    """Put known privacy bugs into this code, one at a time, and see each caught by its test.

    Needs a checkout of dither with its tests; the copies that run are changed in memory only. The
    C core is copied and built for those in it.

    Attributes:
        names: Only these mutants; all by default.
        entry: Only those of this entry, 1 to 44, of the list of pitfalls.
        fast: Only the quickest of each entry, those that the default test suite runs.
        json: Write the result here as JSON; - or no name is standard output.
    """

    names: Positional[tuple[str, ...]] = ()
    entry: int | None = None
    fast: bool = False
    json: str | None = None
