"""What `dither bench quant` trains: cases, schedules, formats, fractions and seeds.

Every number here was chosen on records held out of the training part. Test accuracies of one seed
of an earlier, shallower main model had been seen before this one took its place.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Optimizer = Literal["dp-sgd", "dp-adam", "sgd"]

EPSILON = 8.0
DELTA = 1e-5
MOMENTUM = 0.9
FRACTIONS = (0.75, 0.9)
SUBSETS = 3  # random fixed sets that `static` is the mean of
SEEDS = 3
PAIRED_SEEDS = 8  # where a p-value is given
MAIN_RECIPE = "luq-fp4"
RECIPES = ("mxfp4", "int4", "int8")
MORE_RECIPES = ("luq", "fp8", "bf16")  # in the full study only
NOISY = ("luq-fp4", "mxfp4")  # formats that are trained with more noise too


@dataclass(frozen=True)
class Case:
    """Records, a model, and how it is trained.

    Attributes:
        name: Records and model.
        data: Name for `quant_data.prepare`.
        model: Name for `quant_models.build`.
        records: n, trained on.
        batch_size: Expected.
        steps: Gradient steps.
        rotate_every: Steps between two choices of layers.
        l2_clip: C.
        rates: Learning rate by optimizer; those without one are not trained with.
        epsilon: ε of all private releases together.
        paired: Whether it has as many seeds as a p-value needs; in the full study all have.
        ends: Whether only full precision and all layers in low precision are compared.
        full: Whether only the full study trains it.
    """

    name: str
    data: str
    model: str
    records: int
    batch_size: int
    steps: int
    rotate_every: int
    l2_clip: float
    rates: dict[str, float] = field(hash=False)
    epsilon: float = EPSILON
    paired: bool = False
    ends: bool = False
    full: bool = False


CASES: tuple[Case, ...] = (
    Case(
        name="cifar10/resnet",
        data="cifar10/16",
        model="cifar-resnet",
        records=45_000,
        batch_size=256,
        steps=120,
        rotate_every=12,
        l2_clip=1.0,
        rates={"dp-sgd": 2.0, "dp-adam": 0.008, "sgd": 0.03},
        paired=True,
    ),
    Case(
        name="cifar10/resnet-eps1",
        data="cifar10/16",
        model="cifar-resnet",
        records=45_000,
        batch_size=256,
        steps=120,
        rotate_every=12,
        l2_clip=1.0,
        rates={"dp-sgd": 1.0, "sgd": 0.03},
        epsilon=1.0,
        ends=True,
        full=True,
    ),
    Case(
        name="cifar10/cnn",
        data="cifar10/16",
        model="cifar-cnn",
        records=45_000,
        batch_size=512,
        steps=60,
        rotate_every=6,
        l2_clip=1.0,
        rates={"dp-sgd": 0.7, "sgd": 0.1},
        full=True,
    ),
    Case(
        name="mnist/cnn",
        data="mnist",
        model="mnist-cnn",
        records=50_000,
        batch_size=256,
        steps=80,
        rotate_every=8,
        l2_clip=1.0,
        rates={"dp-sgd": 0.4, "sgd": 0.01},
    ),
    Case(
        name="acs/mlp",
        data="acs",
        model="acs-mlp",
        records=50_000,
        batch_size=512,
        steps=150,
        rotate_every=15,
        l2_clip=1.0,
        rates={"dp-sgd": 0.7, "sgd": 0.03},
    ),
    Case(
        name="cifar10-32/resnet20",
        data="cifar10/32",
        model="resnet20",
        records=45_000,
        batch_size=512,
        steps=440,
        rotate_every=88,
        l2_clip=1.0,
        rates={"dp-sgd": 1.0, "sgd": 0.1},
        full=True,
    ),
)
_STUDY = ("paired", "ends", "full")
NAMES = tuple(case.name for case in CASES)
MAIN = CASES[0]


@dataclass(frozen=True)
class Training:
    """One model to train.

    Attributes:
        case: Records and model.
        optimizer: dp-sgd, dp-adam, or sgd, which is not private.
        recipe: Formats; none without low precision.
        schedule: none, all, static, random or dpquant.
        fraction: Share of the compute in low precision that the schedule aims at.
        seed: Of weights and choices.
        subset: Which of the fixed sets of ``static``.
    """

    case: Case
    optimizer: Optimizer
    recipe: str
    schedule: str
    fraction: float
    seed: int
    subset: int = 0

    @property
    def private(self) -> bool:
        """Whether it is DP training."""
        return self.optimizer != "sgd"

    @property
    def group(self) -> Group:
        """What it is compared as."""
        return Group(self.case.name, self.optimizer, self.recipe, self.schedule, self.fraction)

    def to_json(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return {**asdict(self), "delta": DELTA, "momentum": MOMENTUM}

    @property
    def key(self) -> str:
        """One text for these settings: any change of them is another training.

        Which studies a case belongs to, and how often it is trained there, is none of them.
        """
        settings = self.to_json()
        settings["case"] = {k: v for k, v in settings["case"].items() if k not in _STUDY}
        return json.dumps(settings, sort_keys=True)


@dataclass(frozen=True, order=True)
class Group:
    """Trainings that differ in seed and subset alone."""

    case: str
    optimizer: str
    recipe: str
    schedule: str
    fraction: float

    @property
    def name(self) -> str:
        """For instance cifar10/cnn/dp-sgd/luq-fp4/random/0.9."""
        head = f"{self.case}/{self.optimizer}"
        if self.schedule == "none":
            return f"{head}/none"
        share = "" if self.schedule == "all" else f"/{self.fraction:g}"
        return f"{head}/{self.recipe}/{self.schedule}{share}"

    def beside(self, schedule: str) -> Group:
        """Return the group of another schedule to compare with."""
        fixed = {"none": ("none", 0.0), "all": (self.recipe, 1.0)}
        recipe, fraction = fixed.get(schedule, (self.recipe, self.fraction))
        return replace(self, schedule=schedule, recipe=recipe, fraction=fraction)


def trainings(
    *, full: bool = False, cases: Collection[str] = (), seeds: int | None = None
) -> tuple[Training, ...]:
    """Return what is to be trained, what the claims need first.

    Args:
        full: Larger images and models too, every format at every schedule, more seeds.
        cases: Names; all when empty.
        seeds: Of every comparison, in place of `SEEDS` and `PAIRED_SEEDS`.
    """
    chosen = [case for case in CASES if (case.name in cases if cases else full or not case.full)]
    found: list[Training] = []
    for case in chosen:
        count = seeds or (PAIRED_SEEDS if case.paired or full else SEEDS) * (1 + case.paired * full)
        few = min(count, 2 * SEEDS if full else SEEDS)
        if case.ends:
            for recipe in NOISY:
                found += [*_ends(case, "dp-sgd", recipe, count), *_ends(case, "sgd", recipe, count)]
            continue
        found += _schedules(case, "dp-sgd", MAIN_RECIPE, count)
        found += _ends(case, "sgd", MAIN_RECIPE, count)
        if "dp-adam" in case.rates:
            found += _schedules(case, "dp-adam", MAIN_RECIPE, few, whole=full)
        recipes = RECIPES if case is MAIN or full else ()
        for recipe in (*recipes, *(MORE_RECIPES if full else ())):
            found += _format(case, recipe, few, whole=full)
    return tuple(in_order(tuple(dict.fromkeys(found))))


def _schedules(
    case: Case, optimizer: Optimizer, recipe: str, seeds: int, *, whole: bool = True
) -> Iterator[Training]:
    """Yield every schedule at every fraction; else what probes and what rotates, at the largest."""
    yield from _ends(case, optimizer, recipe, seeds)
    for fraction, seed in itertools.product(FRACTIONS if whole else FRACTIONS[-1:], range(seeds)):
        one = Training(case, optimizer, recipe, "dpquant", fraction, seed)
        yield from (one, replace(one, schedule="random"))
        for subset in range(SUBSETS if whole else 0):
            yield replace(one, schedule="static", subset=subset)


def _ends(case: Case, optimizer: Optimizer, recipe: str, seeds: int) -> Iterator[Training]:
    """Yield full precision, and all layers in low precision."""
    for seed in range(seeds):
        yield Training(case, optimizer, "none", "none", 0.0, seed)
        yield Training(case, optimizer, recipe, "all", 1.0, seed)


def _format(case: Case, recipe: str, seeds: int, *, whole: bool) -> Iterator[Training]:
    """Yield what shows one format: all layers, private or not; and every schedule."""
    yield from _ends(case, "dp-sgd", recipe, seeds)
    yield from _ends(case, "sgd", recipe, seeds)
    if whole:
        yield from _schedules(case, "dp-sgd", recipe, seeds)


def in_order(chosen: Sequence[Training]) -> list[Training]:
    """Return them seed by seed: what a stopped study has done can then be compared."""
    place = {each: index for index, each in enumerate(chosen)}
    return sorted(chosen, key=lambda each: (each.seed, place[each]))
