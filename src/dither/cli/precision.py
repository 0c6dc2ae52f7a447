"""The options of `dither bench precision`, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from dither.bench.harness import Row
from dither.cli.allreduce import Mode
from dither.cli.words import amount
from dither.config import BenchConfig
from dither.errors import ConfigError


def mode(
    config: BenchConfig,
    cases: Sequence[str],
    rows_table: Callable[[list[Row]], RenderableType],
) -> Mode:
    """Return what these options ask for.

    Args:
        config: With the name precision.
        cases: Names that were chosen; all when empty.
        rows_table: The usual table of a bench.

    Raises:
        ConfigError: Options that contradict each other.
    """
    from dither.bench.precision import PrecisionBench  # noqa: PLC0415 - loads PyTorch

    if config.host:
        return _host(config)
    bench = PrecisionBench(full=config.full)

    def table(rows: list[Row]) -> RenderableType:
        parts = [rows_table(rows), Text(_said(rows))]
        if bench.reckonings:
            parts.append(_reckoned(bench.reckonings))
        if bench.projections:
            parts.append(_projected(bench.projections))
        return Group(*parts)

    return Mode(bench.rows(cases), more=bench.to_json, table=table)


def _host(config: BenchConfig) -> Mode:
    """Return the capability report."""
    import torch  # noqa: PLC0415

    from dither.bench import precision  # noqa: PLC0415 - loads PyTorch
    from dither.precision.capability import processor  # noqa: PLC0415

    if config.cases:
        raise ConfigError(
            expected="--host or --cases",
            got="both",
            fix="leave one of them out",
        )
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = {device: precision.rates(device) for device in devices}
    rows = [
        row if device == "cpu" else _on(row, device)
        for device, rates in found.items()
        for row in precision.rate_rows(rates)
    ]

    def more() -> dict[str, Any]:
        return {
            "devices": {
                device: {
                    "processor": asdict(processor(device)),
                    "rates": [{**asdict(rate), "ratio": rate.ratio} for rate in rates],
                }
                for device, rates in found.items()
            }
        }

    def table(_: list[Row]) -> RenderableType:
        return Group(
            *(_rates(processor(device).described(), rates) for device, rates in found.items())
        )

    return Mode(rows, more=more, table=table)


def _on(row: Row, device: str) -> Row:
    return replace(row, case=f"{device}/{row.case}")


def _rates(title: str, rates: Sequence[Any]) -> Table:
    heads = ("product", "rounding", "float32", "both to float32")
    table = Table(
        "recipe",
        "runs on",
        *(Column(head, justify="right") for head in heads),
        title=title,
        caption="A linear layer forward: product of 4096 x 512 by 512 x 512, and the rounding of "
        "its activations. Below 1 is faster than float32. Emulated formats take float32's time "
        "and more, int4 that of 8-bit kernels: they serve to study accuracy.",
    )
    for rate in rates:
        times = (rate.seconds, rate.rounding, rate.float32)
        figures = (amount(seconds, "s") for seconds in times)
        table.add_row(rate.recipe, rate.kernel, *figures, f"{rate.ratio:.2f}")
    return table


def _said(rows: Sequence[Row]) -> str:
    """Return what each best row says of its kernels."""
    return "\n".join(f"{row.case}: {row.detail}" for row in rows if row.metric == "time")


def _reckoned(reckonings: Sequence[Any]) -> Table:
    table = Table(
        "case",
        "recipe",
        "runs on",
        *(Column(head, justify="right") for head in ("float32 step", "products", "reckoned")),
        Column("measured", justify="right"),
        title="Speed-up, low precision where it gains: by the cost model and as measured",
        caption="Products: forward, input gradients and weighted sums of all layers, in float32. "
        "Reckoned: the step less what its layers save one by one.",
    )
    for one in reckonings:
        products = sum(layer.full for layer in one.layers)
        table.add_row(
            one.case,
            one.recipe,
            one.kernel,
            amount(one.step, "s"),
            amount(products, "s"),
            f"{one.reckoned:.2f} x",
            f"{one.measured:.2f} x",
        )
    return table


def _projected(projections: Sequence[Any]) -> Table:
    from dither.precision.cost import PUBLISHED_SPEEDUP  # noqa: PLC0415 - loads PyTorch

    table = Table(
        "case",
        "format",
        *(Column(head, justify="right") for head in ("rate over bf16", "of compute")),
        *(Column(head, justify="right") for head in ("projected", "all products")),
        title="Projected, on hardware that is not here",
        caption="(F + G + W) / ((F + G)(1 - f + f/r) + W) over bf16: forward F, input gradients G, "
        "weighted sums W, share f at rate r. All products: were W in low precision too. DPQuant "
        f"published {PUBLISHED_SPEEDUP} x, theoretical, by a model of its own.",
    )
    for one in projections:
        table.add_row(
            one.case,
            one.format,
            f"{one.rate:.0f}",
            f"{one.fraction:.0%}",
            f"{one.speedup:.2f} x",
            f"{one.all_products:.2f} x",
        )
    return table
