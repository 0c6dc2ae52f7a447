"""`dither ledger`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dither.config import LedgerConfig
from dither.errors import LedgerError
from dither.privacy.events import ApproximateDP, event_to_json
from dither.privacy.ledger import Ledger
from dither.privacy.ledger_entries import Entry, releases


def run(config: LedgerConfig) -> None:
    """Recompute ε from the ledger's events and print them."""
    facts = describe(config)
    if config.json:
        print(json.dumps(facts, indent=1))
    else:
        _print(facts, Console(highlight=False))


def describe(config: LedgerConfig) -> dict[str, Any]:
    """Return a ledger's header, events and ε: the run's part, and the total of the records.

    ε is null where it is infinite.
    """
    path, run_id = find_ledger(config.where)
    ledger = Ledger.open(path)
    delta = config.delta or _delta(ledger, config.where, run_id)
    parts = {"total": _part(ledger, None, delta)}
    if run_id is not None:
        parts = {"run": {"id": run_id, **_part(ledger, run_id, delta)}, **parts}
    header, head = ledger.header, ledger.head()
    return {
        "ledger": str(path),
        "store": header.store,
        "unit": str(header.unit),
        "relation": str(header.relation),
        "sensitive": header.sensitive,
        "delta": delta,
        "entries": head.sequence,
        "head": head.hash,
        "other_ranks": _others(path),
        **parts,
        "runs": _runs(ledger, delta),
    }


def _runs(ledger: Ledger, delta: float) -> list[dict[str, Any]]:
    by_name: dict[str, list[Entry]] = {}
    for entry in ledger.entries():
        by_name.setdefault(entry.run, []).append(entry)
    return [
        {
            "id": name,
            "started": entries[0].time,
            "releases": releases(entries),
            "epsilon": _finite(ledger.epsilon(delta, name)),
        }
        for name, entries in by_name.items()
    ]


def _others(path: Path) -> list[str]:
    """Return the ledgers of other ranks that lie beside this one, on this host."""
    return [str(found) for found in sorted(path.parent.glob(f"{path.stem}.rank-*{path.suffix}"))]


def find_ledger(where: Path) -> tuple[Path, str | None]:
    """Return the ledger of a run folder, a store or a file, and the run's name in it.

    Raises:
        LedgerError: Nothing of the kind is there.
    """
    if (where / "run.json").is_file():
        run_id = json.loads((where / "run.json").read_bytes())["id"]
        private = json.loads((where / "private" / "run.json").read_bytes())
        given = private["config"]["ledger"]
        return Path(given or f"{private['store']}/ledger.sqlite"), run_id
    if (where / "ledger.sqlite").is_file():
        return where / "ledger.sqlite", None
    if (where / "manifest.json").is_file():
        raise LedgerError(
            expected=f"charges against the records in {where}",
            got="none: nothing was trained on them, or their ledger is elsewhere",
            fix="name the --ledger file that the runs were given, if any",
        )
    if where.is_file():
        return where, None
    ranks = sorted(path.name for path in where.glob("rank-*.sqlite"))
    if ranks:
        raise LedgerError(
            expected="the account of one rank",
            got=f"a folder of {len(ranks)}: every rank's contributions are charged to its own",
            fix=f"name one, for instance {where / ranks[0]}",
        )
    raise LedgerError(
        expected="a run folder, a record store or a ledger file",
        got=f"{where}, which is {'none of them' if where.exists() else 'not there'}",
        fix="name one, for instance runs/acs",
    )


def _part(ledger: Ledger, run_id: str | None, delta: float) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for event, count in ledger.events(run_id):
        text = json.dumps(event_to_json(event), sort_keys=True)
        counts[text] = counts.get(text, 0) + count
    return {
        "epsilon": _finite(ledger.epsilon(delta, run_id)),
        "epsilon_rdp": _finite(ledger.epsilon_rdp(delta, run_id)),
        "runs": len({entry.run for entry in ledger.entries(run_id)}),
        "events": [{**json.loads(text), "count": count} for text, count in counts.items()],
    }


def _delta(ledger: Ledger, where: Path, run_id: str | None) -> float:
    if run_id is not None:
        return float(json.loads((where / "run.json").read_bytes())["config"]["delta"])
    plans = [entry.detail["plan"] for entry in ledger.entries() if entry.kind == "plan"]
    deltas = [plan["delta"] for plan in plans if "delta" in plan]  # statistics have none
    if deltas:
        return float(min(deltas))
    taken = math.fsum(n * e.delta for e, n in ledger.events() if isinstance(e, ApproximateDP))
    return max(1e-7, 2.0 * taken)


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _print(facts: dict[str, Any], console: Console) -> None:
    console.print(f"ledger   {facts['ledger']}", soft_wrap=True)
    console.print(f"store    {facts['store']}", soft_wrap=True)
    console.print(f"account  one per {facts['unit']}, {facts['relation']}")
    console.print(f"chain    {facts['entries']} entries, unbroken, head {facts['head'][:16]}")
    for other in facts["other_ranks"]:
        console.print(
            f"other    {other}: of a rank on this host, with its own charges", soft_wrap=True
        )
    table = Table("part", "runs", "event", "count", f"ε at δ = {facts['delta']:g}")
    for name in ("run", "total"):
        if name not in facts:
            continue
        part = facts[name]
        epsilon = "∞ (not private)" if part["epsilon"] is None else f"{part['epsilon']:.6f}"
        for index, event in enumerate(part["events"]):
            rest = [f"{k} {_short(v)}" for k, v in event.items() if k not in {"kind", "count"}]
            text = f"{event['kind'].replace('_', ' ')}: {', '.join(rest)}"
            table.add_row(
                name if index == 0 else "",
                str(part["runs"]) if index == 0 else "",
                text,
                str(event["count"]),
                epsilon if index == 0 else "",
            )
    console.print(table)
    runs = Table("run", "started", "releases charged", f"ε at δ = {facts['delta']:g}")
    for each in facts["runs"]:
        epsilon = "∞" if each["epsilon"] is None else f"{each['epsilon']:.6f}"
        name, _, part = each["id"].partition("/")
        runs.add_row(
            f"{name[:16]}/{part}".rstrip("/"), each["started"][:19], str(each["releases"]), epsilon
        )
    console.print(runs)
