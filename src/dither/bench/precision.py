"""`dither bench precision`: private steps on low-precision kernels against float32 private steps.

Both steps are the same but for the products of their layers; the weighted sums over examples stay
in float32. Low precision takes the layers that gain by it: each is measured alone first. Both
steps have a noise pool, and each is timed right after two steps of its own, which empty what its
pool had ahead, while the other's pool is full and rests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from dither.bench.clip import THREADS, threads
from dither.bench.clip_models import CASES, ClipCase
from dither.bench.clip_steps import PrivateRun, private_run
from dither.bench.harness import Case, Row, measure
from dither.precision.capability import Processor, processor
from dither.precision.cost import (
    PROJECTED_RATES,
    PUBLISHED_SPEEDUP,
    LayerTime,
    Rate,
    Shape,
    gaining,
    measure_layer,
    measure_rates,
    projected_speedup,
    shapes_of,
    share_of,
    speedup,
)
from dither.precision.kernels import described
from dither.precision.layers import measure_flops
from dither.precision.loss import QuantizedLoss
from dither.precision.recipe import RECIPES, Recipe, parse_recipe

TARGETS = {"transformer": 0.77, "mlp/4096": 0.65}
NAMES = ("mlp/4096", "transformer", "cnn")
RECIPE_NAMES = ("bf16", "int8")
FRACTION = 0.9

_PAIRS = (10, 30)  # quick, full
_SPENT = 2  # releases that a pool holds ahead


@dataclass(frozen=True)
class Projection:
    """A speed-up that hardware with a faster format would give, over the bf16 rate.

    Attributes:
        case: Model whose layers were counted.
        format: Which.
        rate: Its rate over bf16's; promised, not measured.
        fraction: Share of forward compute in low precision.
        speedup: Of all products of a private step; weighted sums stay as they are.
        all_products: The same if weighted sums ran in low precision too, as ours do not.
    """

    case: str
    format: str
    rate: float
    fraction: float
    speedup: float
    all_products: float


@dataclass(frozen=True)
class Reckoning:
    """What the cost model says of a step in which the layers that gain are chosen.

    Attributes:
        case: The model.
        recipe: What its layers run in.
        kernel: On what.
        step: Seconds of a float32 private step.
        layers: Measured one by one.
        chosen: Names of those in low precision: where products are faster, rounding included.
        reckoned: Speed-up by the cost model.
        measured: Speed-up of whole steps.
    """

    case: str
    recipe: str
    kernel: str
    step: float
    layers: tuple[LayerTime, ...]
    chosen: tuple[str, ...]
    reckoned: float
    measured: float


@dataclass
class PrecisionBench:
    """The steps, and what was found besides.

    Attributes:
        full: More pairs.
        reckonings: Of the layers of each case and recipe.
        projections: Of each case.
    """

    full: bool = False
    reckonings: list[Reckoning] = field(default_factory=list)
    projections: list[Projection] = field(default_factory=list)

    def rows(self, cases: Collection[str] = ()) -> Iterator[Row]:
        """Yield a row for each case and recipe, and one for the best recipe of each case.

        Args:
            cases: Names; all when empty.
        """
        with threads(THREADS):
            for case in CASES:
                if case.name in (cases or NAMES):
                    yield from self._of_case(case)

    def _of_case(self, case: ClipCase) -> Iterator[Row]:
        data = case.batch(case.batch_size)
        shapes = layer_shapes(case, data)
        found = []
        for recipe in map(parse_recipe, RECIPE_NAMES):
            layers = () if _convolutional(case) else tuple(_measured(shapes, recipe))
            chosen = gaining(layers) if layers else tuple(shape.name for shape in shapes)
            row = _steps(case, recipe, data, chosen, pairs=_PAIRS[self.full])
            share = (
                f"{len(chosen)} of {len(shapes)} layers, {share_of(shapes, chosen):.0%} of compute"
            )
            row = replace(row, detail=f"{row.detail}; {share}")
            if layers and row.baseline is not None and row.ratio is not None:
                step, ratio = row.baseline, row.ratio
                reckoned = speedup(layers, chosen, step=step)
                self.reckonings.append(
                    Reckoning(
                        case.name,
                        recipe.name,
                        described(recipe),
                        step,
                        layers,
                        chosen,
                        reckoned,
                        1.0 / ratio,
                    )
                )
            yield row
            found.append(row)
        yield best(case.name, found)
        self.projections += projections(case.name, shapes)

    def to_json(self) -> dict[str, Any]:
        """Return the processor, layer times and projections, with their inputs."""
        return {
            "processor": asdict(processor()),
            "layers": [asdict(reckoning) for reckoning in self.reckonings],
            "projected": {
                "formula": "(F + G + W) / ((F + G)(1 - f + f/r) + W), times at the bf16 rate",
                "rates_over_bf16": PROJECTED_RATES,
                "published": PUBLISHED_SPEEDUP,
                "rows": [asdict(projection) for projection in self.projections],
            },
        }


def _measured(shapes: Iterable[Shape], recipe: Recipe) -> Iterator[LayerTime]:
    """Yield the times of layers, those of one shape measured once."""
    known: dict[Shape, LayerTime] = {}
    for shape in shapes:
        key = replace(shape, name="")
        known[key] = known.get(key) or measure_layer(key, recipe)
        yield replace(known[key], shape=shape)


def _steps(case: ClipCase, recipe: Recipe, data: Any, chosen: Sequence[str], *, pairs: int) -> Row:
    model = case.build()
    loss = QuantizedLoss(case.loss_fn, model, recipe)
    loss.choose(chosen)
    with ExitStack() as stack:
        ours = stack.enter_context(private_run(case, model, data, loss_fn=loss))
        plain = stack.enter_context(private_run(case, case.build(), data))
        row = measure(
            Case(
                case.name,
                "float32 private",
                ours.step,
                plain.step,
                prepare=lambda: _ready(ours, plain),
                prepare_baseline=lambda: _ready(plain, ours),
                detail=f"{recipe.name}, {described(recipe)}; batch {case.batch_size}, "
                f"{ours.parameters} parameters, {THREADS} threads, {processor().described()}",
            ),
            pairs=pairs,
        )
    return replace(row, metric=recipe.name)


def _ready(run: PrivateRun, other: PrivateRun) -> None:
    other.rest()
    for _ in range(_SPENT):
        run.step()


def best(case: str, measured: Sequence[Row], here: Processor | None = None) -> Row:
    """Return the row of the fastest recipe, with a target where the processor has matrix units.

    Args:
        case: Its name.
        measured: Rows of the recipes.
        here: The processor; this one by default.
    """
    here = here or processor()
    row = min(measured, key=lambda row: row.ratio or float("inf"))
    target = TARGETS.get(case) if here.matrix_units else None
    why = "" if here.matrix_units else "; no matrix units here, so the target does not apply"
    return replace(row, metric="time", target=target, detail=row.detail + why)


def layer_shapes(case: ClipCase, data: Any) -> tuple[Shape, ...]:
    """Return the products of a case's layers; the first layer's input needs no gradient."""
    model = case.build()
    loss = QuantizedLoss(case.loss_fn, model, RECIPES["bf16"])
    one = tuple(part[:1] for part in data)
    flops = measure_flops(model, loss, one)
    weights = {layer.name: layer.shape for layer in loss.layers if flops[layer.name]}
    # An embedding's output asks for a gradient, a batch of features does not.
    first = next(iter(weights)) if torch.is_floating_point(data[0]) else None
    without = [] if first is None else [first]
    return shapes_of(weights, flops, case.batch_size, without_gradient=without)


def _convolutional(case: ClipCase) -> bool:
    return any(p.ndim > 2 for p in case.build().parameters())


def projections(case: str, shapes: Iterable[Shape]) -> Iterator[Projection]:
    """Yield what faster formats would give this model at 90 % of compute; projected."""
    listed = tuple(shapes)
    forward = sum(shape.operations for shape in listed)
    times = {
        "forward": 1.0,
        "back": sum(shape.operations for shape in listed if shape.input_gradient) / forward,
        "weighted": 1.0,
    }
    for name, rate in PROJECTED_RATES.items():
        ours, every = (
            projected_speedup(fraction=FRACTION, rate=rate, low_weighted=low, **times)
            for low in (False, True)
        )
        yield Projection(case, name, rate, FRACTION, ours, every)


def rates(device: str = "cpu") -> tuple[Rate, ...]:
    """Return what one product costs in every recipe here: rows of the capability report."""
    with threads(THREADS):
        return measure_rates([*RECIPES.values()], device=device)


def rate_rows(found: Sequence[Rate]) -> Iterator[Row]:
    """Yield rates as rows of a bench, product and rounding together over float32's product."""
    for rate in found:
        yield Row(
            rate.recipe,
            "product",
            "s",
            rate.seconds + rate.rounding,
            rate.float32,
            "float32",
            rate.ratio,
            rate.ratio,
            rate.ratio,
            1,
            f"{rate.kernel}; 4096 x 512 by 512 x 512, {THREADS} threads",
        )
