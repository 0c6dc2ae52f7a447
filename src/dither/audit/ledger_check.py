"""Whether a ledger is complete, and says what its runs did."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dither.data.store.manifest import read_manifest
from dither.errors import CheckpointError, ConfigError, LedgerError
from dither.privacy.events import NonPrivate, event_to_json
from dither.privacy.ledger import Ledger
from dither.privacy.ledger_entries import Entry, Head, releases
from dither.privacy.plan import Plan
from dither.train.checkpoint import latest_checkpoint
from dither.train.distributed.reading import open_verified
from dither.train.preflight import read_run

_SAME = 1e-9


@dataclass(frozen=True)
class Found:
    """One thing that is not as it must be.

    Attributes:
        rule: Which rule it breaks.
        run: Which run it is about; empty for the ledger itself.
        text: What is wrong, in one line.
    """

    rule: str
    run: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {f'run {self.run}: ' if self.run else ''}{self.text}"

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values."""
        return asdict(self)


RULES = {
    "chain": "every entry continues the hash chain, from the header on",
    "records": "the account is of these records",
    "promise": "every charge follows a plan of its run",
    "event": "what was charged is the plan's event: its sampler, rate and noise",
    "budget": "no run charged more than its plan, or returned what it never leased",
    "releases": "every release that the run recorded has a charge",
    "plan": "the run folder's plan is the ledger's",
    "code": "the run folder's version of dither is the one that wrote the plan",
    "private": "what is not private is written down, and what claims to be private is not",
    "epsilon": "ε that the run claims is at least ε recomputed from its charges",
    "rolled back": "entries that a checkpoint has seen are there still",
}


def check_ledger(path: Path, run: Path | None = None, store: Path | None = None) -> list[Found]:
    """Return everything that is wrong with a ledger, nothing where all is well.

    What it cannot see: a release that went around dither's own release function and left no trace
    in the run folder. That none does is what the tests and privacy mutants are for.

    Args:
        path: The ledger.
        run: A run folder that is charged there, to compare with.
        store: The record store that it should be the account of.

    Raises:
        LedgerLockedError: Another process holds it.
        CheckpointError: The run folder is none, or damaged.
    """
    try:
        ledger = Ledger.open(path)
        entries = ledger.entries()
    except LedgerError as error:
        return [Found("chain", "", f"expected {error.expected}, got {error.got}")]
    found = list(_records(ledger, store))
    for name, own in _by_run(entries).items():
        found += _entries(name, own)
    if run is not None:
        found += _run(ledger, entries, run)
    return found


def _records(ledger: Ledger, store: Path | None) -> Iterator[Found]:
    if store is None or not (store / "manifest.json").is_file():
        return
    named = ledger.header.store
    content = read_manifest(store).content_hash
    if named != content and not named.startswith("account "):
        yield Found(
            "records", "", f"the account is of {named[:16]}, the store in {store} is {content[:16]}"
        )


def _by_run(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.run, []).append(entry)
    return found


def _entries(run: str, entries: Sequence[Entry]) -> Iterator[Found]:
    """Check what one run (or a part of one) wrote, in the order in which it did."""
    plan: Plan | None = None
    promised = False
    leased: dict[str, int] = {}
    for entry in entries:
        where = f"entry {entry.sequence}"
        if entry.kind == "plan":
            promised, plan = True, _plan(entry)
            continue
        if entry.kind == "non_private":
            if not isinstance(entry.event, NonPrivate):
                yield Found("private", run, f"{where} is non_private and charges no ε = ∞")
            continue
        if not promised:
            yield Found("promise", run, f"{where} charges {entry.count} before any plan")
        if plan is not None and entry.event != plan.event:
            yield Found("event", run, f"{where} charges {_words(entry)}; the plan's {plan.event}")
        event = repr(entry.event)
        sign = {"lease": 1, "returned": -1}.get(entry.kind, 0)
        if sign == 0 or entry.count < 1:
            yield Found("budget", run, f"{where} is a {entry.kind} of {entry.count} releases")
        leased[event] = leased.get(event, 0) + sign * entry.count
        if leased[event] < 0:
            yield Found("budget", run, f"{where} returns {entry.count}, more than was leased")
    charged = releases(entries)
    if plan is not None and charged > plan.steps:
        yield Found("budget", run, f"charged {charged} releases of the {plan.steps} planned")


def _plan(entry: Entry) -> Plan | None:
    """Return the plan of an entry; None of a statistic's, which says its mechanism in words."""
    try:
        return Plan.from_json(entry.detail["plan"])
    except (ConfigError, KeyError, TypeError):
        return None


def _words(entry: Entry) -> str:
    return "nothing" if entry.event is None else json.dumps(event_to_json(entry.event))


def _run(ledger: Ledger, entries: Sequence[Entry], folder: Path) -> Iterator[Found]:
    facts, _ = read_run(folder)
    run = str(facts["id"])
    own = [entry for entry in entries if entry.run == run]
    charged = releases(own)
    yield from _promised(run, facts, entries)
    yield from _protected(run, facts, own)
    for what, recorded in _recorded(folder):
        if facts["plan"] is not None and recorded > charged:
            yield Found("releases", run, f"{what} has {recorded} releases, the ledger {charged}")
    yield from _claimed(ledger, run, facts, folder)
    yield from _seen(ledger, run, folder)


def _promised(run: str, facts: dict[str, Any], entries: Sequence[Entry]) -> Iterator[Found]:
    for name, plan in ((run, facts["plan"]), (f"{run}/probe", facts.get("probes"))):
        if plan is None:
            continue
        written = [e for e in entries if e.run == name and e.kind == "plan"]
        if not written:
            yield Found("plan", name, "the run folder has a plan, the ledger has none")
            continue
        theirs = written[0].detail.get("plan", {})
        for field in sorted({*plan, *theirs}):
            if plan.get(field) != theirs.get(field):
                text = f"{field} is {plan.get(field)!r} in run.json, {theirs.get(field)!r} charged"
                yield Found("plan", name, text)
        version, wrote = facts["environment"].get("dither"), written[0].detail.get("code")
        if wrote is not None and wrote != version:
            yield Found("code", name, f"run.json names dither {version}, the ledger {wrote}")


def _protected(run: str, facts: dict[str, Any], own: Sequence[Entry]) -> Iterator[Found]:
    open_ones = [entry for entry in own if entry.kind == "non_private"]
    if facts["private"] and open_ones:
        reason = open_ones[0].detail or open_ones[0].event
        yield Found("private", run, f"run.json says private; the ledger says not: {reason}")
    if not facts["private"] and not open_ones:
        yield Found("private", run, "a run that is not private, and no entry of ε = ∞ for it")


def _recorded(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield what recorded releases: the operator's lines (one a release), summary, checkpoint."""
    lines = folder / "private" / "training.jsonl"
    if lines.is_file():
        yield "private/training.jsonl", len(_lines(lines))
    summary = _summary(folder)
    if summary is not None:
        yield "summary.json (steps taken)", int(summary["steps"]["taken"])
        yield "summary.json (steps charged)", int(summary["steps"]["charged"])


def _lines(path: Path) -> set[int]:
    """Return the steps that have a line; a kill or a full disk may have cut the last one short."""
    *whole, last = path.read_bytes().split(b"\n")
    if last:
        with contextlib.suppress(ValueError):
            json.loads(last)
            whole.append(last)
    try:
        return {int(json.loads(line)["step"]) for line in whole if line.strip()}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        for part, name in (("steps", "taken"), ("steps", "charged"), ("privacy", "epsilon")):
            number = found[part][name]
            if number is not None:
                float(number)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return found


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        expected=f"what dither train wrote in {path}",
        got=f"a damaged file ({type(error).__name__}: {error})",
        fix="restore the run folder",
    )


def _claimed(ledger: Ledger, run: str, facts: dict[str, Any], folder: Path) -> Iterator[Found]:
    """Compare ε that the run claims with ε recomputed, two ways, from what it charged."""
    summary = _summary(folder)
    if facts["plan"] is None or summary is None:
        return
    delta = float(facts["plan"]["delta"])
    claimed, found = summary["privacy"]["epsilon"], ledger.epsilon(delta, run)
    if claimed is not None and found > claimed * (1.0 + _SAME) + _SAME:
        yield Found("epsilon", run, f"the summary claims ε = {claimed}, the charges make {found}")
    if claimed is None and math.isfinite(found):
        yield Found("epsilon", run, f"the summary claims no ε, the charges make {found}")
    looser = ledger.epsilon_rdp(delta, run)
    if looser is not None and found > looser * 1.01 + 1e-3:
        yield Found("epsilon", run, f"ε by PLD, {found}, is above ε by RDP, {looser}")


def _seen(ledger: Ledger, run: str, folder: Path) -> Iterator[Found]:
    path = latest_checkpoint(folder / "checkpoints")
    if path is None:
        return
    facts, _ = open_verified(path)
    if facts["run"] != run:
        yield Found("plan", run, f"{path.name} is of run {facts['run']}")
    if facts["head"] is not None:
        try:
            ledger.require(Head(*facts["head"]))
        except LedgerError as error:
            yield Found("rolled back", run, f"{path.name} has seen {error.expected}")
    charged = ledger.charged(run)
    if facts["spent"] > charged:
        text = f"{path.name} was made of {facts['spent']} releases, the ledger has {charged}"
        yield Found("releases", run, text)
