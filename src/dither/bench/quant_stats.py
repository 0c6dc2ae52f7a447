"""What the trainings of `dither bench quant` show: points lost, paired tests, and the claims.

A point is a percent of accuracy on test records. Trainings are paired by seed: equal weights at the
start, and for ``static`` the mean over its fixed sets of that seed.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from dither.bench.quant_cases import PAIRED_SEEDS, Group, Training

POINTS = 2.0  # that the schedule may lose
TIMES = 3.0  # as much is lost under DP as without, where the problem is real
PROBE_SHARE = 0.02
_CONFIDENCE = 0.95
_DRAWS = 10_000

Figures = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Finding:
    """One group of trainings.

    Attributes:
        group: What they share.
        accuracy: Percent by seed, mean over fixed sets.
        compute: Share of the forward's multiply-adds in low precision, mean.
        trainings: Their number.
        epsilon: Of each; None without privacy.
        probe_share: Part of ε that the probes alone would cost.
        seconds: One core's, a training, median.
    """

    group: Group
    accuracy: Figures
    compute: float
    trainings: int
    epsilon: float | None
    probe_share: float | None
    seconds: float

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return statistics.fmean(self.accuracy.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = sorted(self.accuracy.items())
        return {
            **asdict(self.group),
            "accuracy": self.mean,
            "deviation": _deviation(list(self.accuracy.values())),
            "by_seed": [value for _, value in values],
            "seeds": [seed for seed, _ in values],
            "compute": self.compute,
            "trainings": self.trainings,
            "epsilon": self.epsilon,
            "probe_share": self.probe_share,
            "cpu_seconds": self.seconds,
        }


Findings = dict[Group, Finding]


def findings(results: Iterable[tuple[Training, Mapping[str, Any]]]) -> Findings:
    """Return the groups of these trainings; those that failed are left out.

    Args:
        results: Trainings and their lines of results.
    """
    groups: dict[Group, list[tuple[Training, Mapping[str, Any]]]] = defaultdict(list)
    for training, line in results:
        if "error" not in line:
            groups[training.group].append((training, line))
    return {group: _finding(group, found) for group, found in groups.items()}


def _finding(group: Group, found: Sequence[tuple[Training, Mapping[str, Any]]]) -> Finding:
    by_seed: dict[int, list[float]] = defaultdict(list)
    for training, line in found:
        by_seed[training.seed].append(100.0 * line["accuracy"])
    first = found[0][1]
    private = "epsilon" in first
    return Finding(
        group=group,
        accuracy={seed: statistics.fmean(values) for seed, values in sorted(by_seed.items())},
        compute=statistics.fmean(line["compute"] for _, line in found),
        trainings=len(found),
        epsilon=first["epsilon"] if private else None,
        probe_share=first["probe_epsilon"] / first["epsilon"] if private else None,
        seconds=statistics.median(line["cpu_seconds"] for _, line in found),
    )


@dataclass(frozen=True)
class Paired:
    """Differences of two groups, seed by seed.

    Attributes:
        mean: Of ours less theirs, in points of accuracy.
        low: Lower end of the 95 % interval by Student's t.
        high: Upper end.
        seeds: Number of pairs.
        p_t: Two-sided, of the paired t-test; None below `PAIRED_SEEDS`, or where all are
            equal.
        p_wilcoxon: Two-sided, of the signed-rank test; None likewise.
    """

    mean: float
    low: float
    high: float
    seeds: int
    p_t: float | None
    p_wilcoxon: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            key: value if value is None or math.isfinite(value) else None
            for key, value in vars(self).items()
        }


def paired(ours: Figures, theirs: Figures) -> Paired | None:
    """Compare by seeds that both have; None where there is none.

    Args:
        ours: Accuracy by seed.
        theirs: Likewise.
    """
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    gaps = np.array([ours[seed] - theirs[seed] for seed in common])
    mean = float(gaps.mean())
    if len(gaps) < 2:
        return Paired(mean, -math.inf, math.inf, len(gaps), None, None)
    error = standard_error(gaps.tolist())
    reach = error * float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(gaps) - 1))
    tested = len(gaps) >= PAIRED_SEEDS and error > 0.0
    return Paired(
        mean=mean,
        low=mean - reach,
        high=mean + reach,
        seeds=len(gaps),
        p_t=float(stats.ttest_1samp(gaps, 0.0).pvalue) if tested else None,
        p_wilcoxon=float(stats.wilcoxon(gaps).pvalue) if tested else None,
    )


@dataclass(frozen=True)
class Amplification:
    """How much worse low precision of all layers is under DP than without.

    Attributes:
        case: Records and model.
        optimizer: The private one.
        recipe: Formats.
        private: Points that DP training loses.
        plain: Points that plain SGD loses.
        times: The former over the latter; None where plain training loses nothing.
        low: Lower end of the 95 % interval of ``times`` (bootstrap over seeds), None likewise.
        high: Upper end; None also where it has none.
    """

    case: str
    optimizer: str
    recipe: str
    private: Paired
    plain: Paired
    times: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "private": self.private.to_json(), "plain": self.plain.to_json()}


def amplifications(found: Findings) -> list[Amplification]:
    """Return what low precision of all layers costs, by case and formats."""
    made = []
    for group, finding in found.items():
        if group.schedule != "all" or group.optimizer == "sgd":
            continue
        plain = found.get(_of(group, "sgd"))
        ends = [found.get(_of(group, name).beside("none")) for name in (group.optimizer, "sgd")]
        if plain is None or ends[0] is None or ends[1] is None:
            continue
        lost = paired(ends[0].accuracy, finding.accuracy)
        lost_plain = paired(ends[1].accuracy, plain.accuracy)
        if lost is None or lost_plain is None:
            continue
        pairs = _gaps(ends[0].accuracy, finding.accuracy), _gaps(ends[1].accuracy, plain.accuracy)
        times, low, high = ratio(*pairs)
        made.append(
            Amplification(
                group.case, group.optimizer, group.recipe, lost, lost_plain, times, low, high
            )
        )
    return made


def _of(group: Group, optimizer: str) -> Group:
    return Group(group.case, optimizer, group.recipe, group.schedule, group.fraction)


def _gaps(above: Figures, below: Figures) -> list[float]:
    return [above[seed] - below[seed] for seed in sorted(above.keys() & below.keys())]


def ratio(
    above: Sequence[float], below: Sequence[float]
) -> tuple[float | None, float | None, float | None]:
    """Return the ratio of two means with its interval (percentile bootstrap, fixed draws).

    Args:
        above: Points lost, private.
        below: Points lost without privacy.
    """
    if statistics.fmean(below) <= 0.0:
        return None, None, None
    draw = np.random.default_rng(0)
    means = [
        np.asarray(values)[draw.integers(0, len(values), (_DRAWS, len(values)))].mean(1)
        for values in (above, below)
    ]
    # Where plain training may lose nothing, there is no upper end.
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(means[1] > 0.0, means[0] / means[1], np.inf)
    low, high = np.quantile(times, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2], method="nearest")
    middle = statistics.fmean(above) / statistics.fmean(below)
    return middle, _finite(float(low)), _finite(float(high))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Comparison:
    """A schedule against full precision and against other schedules, at one fraction.

    Attributes:
        group: Of the schedule.
        lost: Points of accuracy that full precision has more.
        against: By the name of another schedule, points that this one has more.
    """

    group: Group
    lost: Paired
    against: Mapping[str, Paired]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        others = {name: pair.to_json() for name, pair in self.against.items()}
        return {**asdict(self.group), "lost": self.lost.to_json(), "against": others}


def comparisons(found: Findings) -> list[Comparison]:
    """Return every schedule against full precision, and `dpquant` against the others."""
    made = []
    for group, finding in found.items():
        whole = found.get(group.beside("none"))
        if group.schedule == "none" or whole is None:
            continue
        lost = paired(whole.accuracy, finding.accuracy)
        if lost is None:
            continue
        others = ("static", "random", "all") if group.schedule == "dpquant" else ()
        against = {}
        for name in others:
            other = found.get(group.beside(name))
            pair = None if other is None else paired(finding.accuracy, other.accuracy)
            if pair is not None:
                against[name] = pair
        made.append(Comparison(group, lost, against))
    return made


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean; 0 of a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
