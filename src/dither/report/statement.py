"""The guarantee of a run in plain words: what is promised to whom, and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from dither.report.documents import Document
from dither.report.ranks import LIMITS, Start, distributed_words, most_ranks
from dither.report.words import anything, count, plain, rounded_up


@dataclass(frozen=True)
class Paragraph:
    """A heading of a few words and a paragraph of text."""

    heading: str
    text: str


@dataclass(frozen=True)
class Statement:
    """What a run promises.

    Attributes:
        alarms: Why this run is NOT private; empty exactly when something is promised.
        promise: The guarantee, part by part.
        limits: What the guarantee does not cover.
    """

    alarms: tuple[str, ...]
    promise: tuple[Paragraph, ...]
    limits: tuple[Paragraph, ...]

    @property
    def private(self) -> bool:
        """Whether the run carries a guarantee."""
        return not self.alarms


def guarantee_statement(
    about: Document,
    summary: Document | None,
    *,
    spent: float | None,
    starts: tuple[Start, ...] = (),
) -> Statement:
    """Put the guarantee of a run into words.

    Args:
        about: ``run.json``.
        summary: ``summary.json``, None while the run has not written one.
        spent: ε charged so far as the run last wrote it, infinite for an unprotected release; None
            while the run has written nothing.
        starts: When it was started, on how many ranks.

    Returns:
        The statement. Any sign that the guarantee does not hold, in either file, is an alarm: a
        contradiction between the two is never settled in favour of privacy.

    Raises:
        DataError: A field has another type than it must have.
    """
    alarms = _alarms(about, summary, spent)
    if alarms:
        return Statement(alarms, (), _limits_of_any_run(about))
    several = most_ranks(summary, starts) > 1
    promise = (
        _bound(about, summary, spent),
        _unit(about),
        _relation(about),
        _trust(about),
        *((_distributed(about, summary, starts),) if several else ()),
        _mechanism(about),
        _accountant(about, summary),
    )
    limits = tuple(Paragraph(*limit) for limit in LIMITS.items()) if several else ()
    rest = (*_limits_of_private_runs(about), *limits, *_limits_of_any_run(about))
    return Statement((), promise, rest)


def _alarms(about: Document, summary: Document | None, spent: float | None) -> tuple[str, ...]:
    sensitive = about.get("store", "sensitive") is not False
    reason = summary.text("privacy", "guarantee") if summary else None
    signs = {
        "The run was seeded: its noise and its samples can be computed by anyone who knows the "
        "seed. Use it for tests only.": about.flag("seeded"),
        "The run trained without noise and without a plan: the model and every figure may reveal "
        "single records.": not about.flag("private") or about.get("plan") is None,
        "The record store is sensitive and its protection was overridden by force.": (
            about.flag("forced") and sensitive
        ),
        "The summary says that the run is not private.": (
            summary is not None and about.flag("private") and not summary.flag("private")
        ),
        f"The summary promises {reason}.": reason is not None and reason.startswith("none"),
    }
    alarms = tuple(text for text, shown in signs.items() if shown)
    if not alarms and spent == inf:
        return ("The ledger holds an unprotected release of this run: ε = ∞.",)
    return alarms


def _bound(about: Document, summary: Document | None, spent: float | None) -> Paragraph:
    delta = about.number("plan", "delta")
    finished = summary is not None and summary.flag("finished")
    if spent is None:
        words = "The run has not written what it spent yet; its plan bounds it."
        return Paragraph("Guarantee", words)
    text = (
        f"{'The run' if finished else 'The run, as far as it has come,'} is (ε, δ)-differentially "
        f"private with ε\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{rounded_up(spent)} and "
        f"δ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{rounded_up(delta)} (ε rounded up; all "
        f"digits: {plain(spent)}). Whether one {_unit_name(about)} takes part or not changes the "
        "probability of any outcome by at most a factor of e^ε, plus δ. An outcome is all that the "
        "training releases: every noisy step, every checkpoint and the final model together. This "
        "holds whatever else an observer knows and whatever is done with the model later."
    )
    if summary is None:
        text += " ε counts steps up to the last checkpoint; the ledger holds what came after it."
    return Paragraph("Guarantee", text)


def _unit_name(about: Document) -> str:
    return (about.text("plan", "unit") or about.text("store", "unit") or "record").lower()


def _unit(about: Document) -> Paragraph:
    name = _unit_name(about)
    meaning = {
        "record": "one row of the record store. Somebody who stands in several rows is protected "
        "row by row, not as a whole",
        "person": "all rows of one person together: those used, at most "
        f"{count(about.number('store', 'rows_per_unit'))} a person, are drawn by one coin and "
        "clipped as one",
        "rank": "the whole contribution of one rank",
    }
    return Paragraph(f"Unit of privacy: {name}", f"What is hidden is {meaning.get(name, name)}.")


def _relation(about: Document) -> Paragraph:
    name = about.text("plan", "relation") or ""
    meaning = {
        "zero_out": "Two data sets are neighbours when they differ in one unit, whose contribution "
        "to every sum is zero in the other. The number of records, row numbers and the split into "
        "training and held-out records stay the same, and may be public.",
        "add_remove": "Two data sets are neighbours when one holds one unit more than the other. "
        "The number of records in the plan is a declared value, and nothing follows row numbers.",
        "replace_one": "Two data sets are neighbours when one unit of the first is replaced by any "
        "other in the second.",
    }
    return Paragraph(f"Neighbouring relation: {name}", meaning.get(name, f"It is {name}."))


def _trust(about: Document) -> Paragraph:
    name = about.text("plan", "trust") or ""
    meaning = {
        "central": "One trusted party sees the records and the exact sums and adds the noise "
        "before anything leaves. Protected against: everyone who sees only what was released. Not "
        "protected against: the machines that train, and whoever operates them.",
        "local": "Every rank adds the full noise before its message leaves. Protected against: the "
        "network and all other ranks together. Not protected against: the rank that holds the "
        "record.",
        "distributed": "Every rank adds a share of the noise under masks. Protected against: the "
        "network and the stated number of colluding ranks, as long as the others are honest.",
    }
    return Paragraph(
        f"Trust: {name}", meaning.get(name.partition("(")[0], f"The trust model is {name}.")
    )


def _distributed(about: Document, summary: Document | None, starts: tuple[Start, ...]) -> Paragraph:
    return Paragraph("Several ranks", distributed_words(about, summary, starts))


def _mechanism(about: Document) -> Paragraph:
    plan = about.table("plan")
    rate = about.number("plan", "sampling_rate")
    style = about.text("config", "clipping") or "flat"
    unit = _unit_name(about)
    if plan.get("sampler") == "full":
        sampler = f"Every training {unit} enters every step."
    else:
        sampler = (
            f"Poisson sampling: at every step each training {unit} enters the batch by its own "
            f"secret coin, with probability {plain(rate, 6)}."
        )
    text = (
        f"{sampler} Each unit's gradient is {_CLIPPED.get(style, 'clipped')} to an L2 norm of at "
        f"most {plain(about.number('plan', 'l2_clip'))}, the clipped gradients are summed, and "
        "rounded Gaussian noise on an integer lattice is added, "
        f"{plain(about.number('plan', 'noise_multiplier'), 6)} times the sensitivity. The "
        "sensitivity includes lattice rounding and the numeric slack of the sum."
    )
    if style == "adaptive":
        text += (
            " The bound follows a quantile of gradient norms: counts on samples of their own, with "
            "noise of their own, which ε includes; the released sum is scaled by the bound."
        )
    return Paragraph("Sampler and noise", text + _probes(about))


def _probes(about: Document) -> str:
    probes = about.table("probes")
    if not probes:
        return ""
    return (
        " Some layers run in low precision. Which ones follows, beside public chance, a probe: the "
        "rise of each unit's loss where one layer alone is rounded, of all layers together clipped "
        f"to an L2 norm of at most {plain(about.number('probes', 'l2_clip'))}, summed over a "
        "sample of its own, with noise of "
        f"{plain(about.number('probes', 'noise_multiplier'), 6)} times its sensitivity, up to "
        f"{count(about.number('probes', 'steps'))} times. ε includes all of them."
    )


_CLIPPED = {
    "automatic": "normalised",
    "per_layer": "clipped layer by layer",
    "adaptive": "clipped to a bound that moves, and scaled",
}


def _accountant(about: Document, summary: Document | None) -> Paragraph:
    name = (summary.text("privacy", "accountant") if summary else None) or "dp-accounting"
    cross = summary.number("privacy", "rdp_epsilon") if summary else None
    checked = (
        f" Cross-check by Rényi accounting (looser): ε = {rounded_up(cross)}." if cross else ""
    )
    versions = ", ".join(
        f"{label} {anything(about.get('environment', key))}"
        for key, label in _VERSIONS.items()
        if about.get("environment", key) is not None
    )
    text = (
        f"ε is computed by {name} from the events in the ledger, which is charged before each "
        f"release.{checked} Versions: {versions or 'not recorded'}."
    )
    return Paragraph("Accountant", text)


_VERSIONS = {
    "dither": "dither",
    "dp_accounting": "dp-accounting",
    "torch": "torch",
    "numpy": "numpy",
    "python": "Python",
}


def _limits_of_private_runs(about: Document) -> tuple[Paragraph, ...]:
    weak = _weak_delta(about)
    return (
        *weak,
        Paragraph(
            "Other releases from the same records",
            "This ε is the run's own. Statistics, tuning runs and other models from the same store "
            "add to it; the ledger of the store holds the total. Settings that were chosen by "
            "looking at the records outside the ledger are not covered.",
        ),
        Paragraph(
            "Timing and resources",
            "How long steps took, and how much memory they needed, was measured without noise and "
            "is not covered.",
        ),
        Paragraph(
            "The operator's view",
            "Whatever the operator watched during the run (training loss, batch sizes, gradient "
            "norms) was not released and must not be published.",
        ),
        Paragraph(
            "Computational assumption",
            "Noise and samples come from the operating system's cryptographic generator. The "
            "guarantee holds against observers who cannot predict it.",
        ),
    )


def _weak_delta(about: Document) -> tuple[Paragraph, ...]:
    delta, records = about.number("plan", "delta"), about.number("plan", "records")
    if delta is None or not records or delta < 1.0 / records:
        return ()
    text = (
        f"δ = {plain(delta)} is not below 1/n = {plain(1.0 / records, 3)}: publishing whole "
        "records at random would satisfy it."
    )
    return (Paragraph("A weak δ", text),)


def _limits_of_any_run(about: Document) -> tuple[Paragraph, ...]:
    held_out = count(about.number("store", "test_records"))
    names = ", ".join(about.table("store", "public_inputs")) or "none"
    return (
        Paragraph(
            "Metrics on held-out records",
            f"AUROC, loss and curves are exact: they are computed from the {held_out} held-out "
            "records without noise. No gradient is taken on those records, yet the published "
            "figures depend on them exactly.",
        ),
        Paragraph(
            "Declared public inputs",
            "The number of records, row numbers, the split, imputation values and class weights "
            f"count as public and are not protected. The store declares: {names}.",
        ),
    )
