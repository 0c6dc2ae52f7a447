"""`dither audit run`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dither.audit.findings import Finding, histogram
from dither.audit.one_run import Audited, OneRun, Told, audit_run, prepare
from dither.audit.power import Power, power_curve
from dither.cli.audit_common import check_outputs, use_threads
from dither.config import AuditRunConfig
from dither.files import write_json
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
    use_threads(config.threads)
    audited = prepare(config)
    check_outputs(config.json, config.out)
    console = Console(stderr=True, highlight=False)
    facts = _power(audited, console) if config.power else _runs(audited, console)
    if config.json == "-":
        json.dump(facts, sys.stdout, indent=1)
        print()
    elif config.json is not None:
        write_json(Path(config.json), facts)
    if config.out is not None:
        _keep(config.out, facts)
        write_audit_figures(config.out)


def _runs(audited: Audited, console: Console) -> dict[str, Any]:
    config, found = audited.config, list[OneRun]()
    with _bar(console, "training with canaries") as told:
        for number in range(config.repeat):
            steps = audited.plan.steps

            def tell(done: int, total: int, before: int = number * steps) -> None:
                told(before + done, total * config.repeat)

            found.append(audit_run(audited, tell))
            if config.out is not None:  # charged: whoever stops the next keeps this one
                _keep(config.out, _results(audited, found))
    if config.json != "-":
        _print(audited, found, Console(highlight=False))
    return _results(audited, found)


def _results(audited: Audited, found: list[OneRun]) -> dict[str, Any]:
    defect = audited.config.defect
    return {**_claim(audited), "runs": [_run_json(one, defect) for one in found]}


def _power(audited: Audited, console: Console) -> dict[str, Any]:
    config = audited.config
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
        f"{_by_chance(len(found), audited.config.confidence)} A bound above the "
        "claim that chance does not explain is a bug; one below the claim proves nothing."
    )
    if audited.config.defect is None:
        return text
    return f"self-test with {audited.config.defect:g} of the noise: NOT PRIVATE. {text}"


def _by_chance(runs: int, confidence: float) -> str:
    """Say how many sound runs alarm all the same, at most, by each of the two bounds."""
    alarm = 1.0 - confidence
    if runs == 1:
        return f"Each is said of a sound run with probability {alarm:.2g} at most."
    return (
        f"Each is said of about {runs * alarm:.2g} of {runs} sound runs at most, and of one "
        f"or more with probability {1.0 - confidence**runs:.2g} at most."
    )


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


def _keep(out: Path, facts: dict[str, Any]) -> None:
    """Write results; runs of the same claim add up, so that none can be picked from them."""
    known = _known(out / FILE, facts)
    if "runs" in facts:
        names = {each["run"] for each in facts["runs"]}
        earlier = [each for each in known.pop("runs", []) if each["run"] not in names]
        facts = {**facts, "runs": [*earlier, *facts["runs"]]}
    write_json(out / FILE, {**known, **facts})


def _known(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the runs or the power that an earlier audit of the same claim left there."""
    try:
        known: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    same = all(known.get(name) == value for name, value in facts.items() if name not in _PARTS)
    found = {name: known[name] for name in _PARTS if same and isinstance(known.get(name), list)}
    if not all(isinstance(each, dict) and "run" in each for each in found.get("runs", ())):
        del found["runs"]
    return found
