"""`dither audit run`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dither.audit.findings import Finding, histogram
from dither.audit.one_run import Audited, OneRun, Told, audit_run, prepare
from dither.audit.power import Power, power_curve
from dither.config import AuditRunConfig
from dither.errors import ConfigError
from dither.files import output_errors, write_json
from dither.report.audit import FILE
from dither.report.audit_page import write_audit_figures

_PARTS = ("runs", "power")
_POWER_CANARIES = (1000, 2000, 5000, 10_000)


def run(config: AuditRunConfig) -> None:
    """Audit as the options say, print a table, and write JSON and figures.

    Raises:
        ConfigError: Options that do not fit.
        OutputError: The JSON cannot be written; said before anything is charged.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    audited = prepare(config)
    _check_outputs(config)
    console = Console(stderr=True, highlight=False)
    facts = _power(audited, console) if config.power else _runs(audited, console)
    if config.json == "-":
        json.dump(facts, sys.stdout, indent=1)
        print()
    elif config.json is not None:
        write_json(Path(config.json), facts)
    if config.out is not None:
        write_json(config.out / FILE, {**_known(config.out / FILE, facts), **facts})
        write_audit_figures(config.out)


def _runs(audited: Audited, console: Console) -> dict[str, Any]:
    config, found = audited.config, list[OneRun]()
    with _bar(console, "training with canaries") as told:
        for number in range(config.repeat):
            steps = audited.plan.steps

            def tell(done: int, total: int, before: int = number * steps) -> None:
                told(before + done, total * config.repeat)

            found.append(audit_run(audited, tell))
    if config.json != "-":
        _print(audited, found, Console(highlight=False))
    return {**_claim(audited), "runs": [_run_json(one, config.defect) for one in found]}


def _power(audited: Audited, console: Console) -> dict[str, Any]:
    config = audited.config
    if config.score != "white-box":
        raise ConfigError(
            expected="--score white-box with --power, whose scores can be simulated",
            got=config.score,
            fix="leave --score out",
        )
    sizes = {size for size in (*_POWER_CANARIES, config.canaries) if size <= audited.dimension}
    with _bar(console, "simulated audits") as told:
        points = list(
            power_curve(
                audited.plan,
                audited.channel,
                sorted(sizes),
                trials=config.trials,
                confidence=config.confidence,
                told=told,
            )
        )
    if config.json != "-":
        Console(highlight=False).print(_power_table(points))
    return {**_claim(audited), "power": [point.to_json() for point in points]}


def _claim(audited: Audited) -> dict[str, Any]:
    """Return what is public about an audit before it is run."""
    config, store = audited.config, audited.store
    rule = audited.rule
    return {
        "format": 1,
        "task": store.task.name,
        "sensitive": store.manifest.sensitive,
        "score": config.score,
        "canaries": config.canaries,
        "guesses": {"highest": rule.highest, "lowest": rule.lowest},
        "confidence": config.confidence,
        "claimed": {"epsilon": audited.plan.epsilon(), "delta": audited.plan.delta},
        "plan": audited.plan.to_json(),
    }


def _run_json(one: OneRun, defect: float | None) -> dict[str, Any]:
    return {
        "run": one.run,
        "defect": defect,
        **one.finding.to_json(),
        "releases": one.releases,
        "charged": one.charged,
        "seconds": one.seconds,
        "scores": histogram(one.scores, one.included),
    }


def _print(audited: Audited, found: list[OneRun], console: Console) -> None:
    config = audited.config
    table = Table(
        "run",
        "guesses right",
        f"ε at least ({config.confidence:.0%})",
        "claimed ε",
        "noise at most",
        "ε at that noise",
        "seconds",
    )
    for one in found:
        table.add_row(one.run[6:14], *_cells(one.finding), f"{one.seconds:.1f}")
    console.print(table)
    console.print(_words(audited, [one.finding for one in found]), soft_wrap=True)


def _cells(found: Finding) -> tuple[str, ...]:
    noise = f"{found.noise:.2f} x" if found.noise < 10.0 else "no bound"
    return (
        f"{found.guesses.correct} of {found.guesses.made}",
        f"{found.epsilon:.2f}",
        f"{found.claimed:.3f}",
        noise,
        f"{found.noise_epsilon:.2f}",
    )


def _words(audited: Audited, found: list[Finding]) -> str:
    above = sum(one.detected for one in found)
    weak = sum(one.noise_detected for one in found)
    text = (
        f"ε above the claim in {above} of {len(found)}; less noise than claimed in {weak}. "
        "A bound above the claim is a bug, but for the chance that the confidence leaves; "
        "a bound below it proves nothing."
    )
    if audited.config.defect is None:
        return text
    return f"self-test with {audited.config.defect:g} of the noise: NOT PRIVATE. {text}"


def _power_table(points: list[Power]) -> Table:
    sizes = sorted({point.canaries for point in points})
    table = Table("noise", *(f"{size} canaries" for size in sizes))
    table.title = "share of simulated audits that see the defect: by ε / by the noise"
    for noise in sorted({point.noise for point in points}):
        row = {p.canaries: p for p in points if p.noise == noise}
        cells = (f"{row[n].detected:.0%} / {row[n].noise_detected:.0%}" for n in sizes)
        table.add_row(f"{noise:g} x", *cells)
    return table


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Told]:
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _check_outputs(config: AuditRunConfig) -> None:
    """Fail before anything is charged where the result could not be kept."""
    if config.json not in {None, "-"}:
        target = Path(str(config.json))
        with output_errors(target):
            target.touch()
    if config.out is not None:
        with output_errors(config.out):
            config.out.mkdir(parents=True, exist_ok=True)


def _known(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the runs or the power that an earlier audit of the same claim left there."""
    try:
        known: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    same = all(known.get(name) == value for name, value in facts.items() if name not in _PARTS)
    return {name: known[name] for name in _PARTS if same and name in known}
