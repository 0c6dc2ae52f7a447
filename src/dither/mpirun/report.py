"""What a run did: calls, releases, ε from the accounts, and what was not covered."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dither.mpirun.agent import RankState, named_ranks
from dither.mpirun.options import Mode
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan

MISSING_STATUS = 3
"""Exit status when a program ended with 0, and ranks of it never came to the agent."""

_COUNTS = ("protected", "cleared", "refused", "counted", "bytes")
_WORDS = {"private": "protected", "encrypted": "encrypted", "test": "clipped, without noise"}
_SECONDS = ("clip", "sum", "noise", "wait")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a report is made of.

    Attributes:
        plan: The promise.
        mode: What the library did.
        run: Name in the accounts.
        folder: Of the accounts.
        ranks: As the agent saw them.
        before: Releases of this run charged to each rank before it was started (again).
            Another start of it at the same time may charge more besides.
        status: Exit status of the program.
        seconds: Between start and end.
        library: That was preloaded.
    """

    plan: Plan
    mode: Mode
    run: str
    folder: Path
    ranks: list[RankState]
    before: list[int]
    status: int
    seconds: float
    library: Path

    @property
    def exit_status(self) -> int:
        """That of ``dither mpirun``: the program's, but not 0 where it may have run bare."""
        absent = any(state.ended == "absent" for state in self.ranks)
        return MISSING_STATUS if absent and self.status == 0 else self.status


def report(facts: Facts) -> dict[str, Any]:
    """Return the report as JSON values; ε is null where it is infinite.

    Raises:
        LedgerError: An account cannot be read, or its chain is broken.
    """
    ranks = _ranks(facts)
    spent = [each["epsilon"] for each in ranks]
    total = [each["epsilon_account"] for each in ranks]
    plan = facts.plan
    return {
        "run": facts.run,
        "ledger": str(facts.folder),
        "mode": facts.mode,
        "private": facts.mode == "private",
        "trust": str(facts.plan.trust),
        "clip": facts.plan.l2_clip,
        "delta": facts.plan.delta,
        "noise_multiplier": facts.plan.noise_multiplier,
        "noise_on_sum": plan.noise_multiplier * plan.l2_clip * plan.trust.sum_multiple(len(ranks)),
        "releases": facts.plan.steps,
        "epsilon": None if None in spent else max(spent),
        "epsilon_account": None if None in total else max(total),
        "epsilon_allowed": _finite(facts.plan.epsilon()) if facts.mode == "private" else None,
        "exit_status": facts.status,
        "launcher_status": facts.exit_status,
        "seconds": facts.seconds,
        "ranks": ranks,
        "calls": _calls(facts.ranks),
        **_work(facts.ranks),
        "library": str(facts.library),
    }


def _ranks(facts: Facts) -> list[dict[str, Any]]:
    costs: dict[tuple[Any, ...], float] = {}

    def cost(ledger: Ledger, run: str | None) -> float | None:
        key = tuple(ledger.events(run))
        if key not in costs:
            costs[key] = ledger.epsilon(facts.plan.delta, run)
        return _finite(costs[key])

    found = []
    for rank, state in enumerate(facts.ranks):
        charged = state.ledger.charged(facts.run)
        each: dict[str, Any] = {
            "rank": rank,
            "ended": state.ended if state.ended != "running" else "lost",
            "releases": state.used if state.ended != "lost" else None,
            "charged": state.charged,
            "charged_before": facts.before[rank],
            "left": facts.plan.steps - charged,
            "epsilon": cost(state.ledger, facts.run),
            "epsilon_account": cost(state.ledger, None),
            "told": bool(state.statistics),
        }
        found.append(each | ({"error": state.error} if state.error else {}))
    return found


def _calls(ranks: list[RankState]) -> dict[str, dict[str, int]]:
    """Return the calls of all ranks together, by name."""
    total: dict[str, dict[str, int]] = {}
    for name, counts in _each(ranks, "calls"):
        known = total.setdefault(name, {})
        for key, count in counts.items():
            if key in _COUNTS:
                known[key] = known.get(key, 0) + int(count)
    return dict(sorted(total.items()))


def _work(ranks: list[RankState]) -> dict[str, Any]:
    """Return what the calls cost: draws of all ranks, and seconds of the slowest rank."""
    draws = {"used": 0, "dry": 0}
    for name, count in _each(ranks, "draws"):
        draws[name] = draws.get(name, 0) + int(count)
    seconds = dict.fromkeys(_SECONDS, 0.0)
    for state in ranks:
        own = dict.fromkeys(_SECONDS, 0.0)
        for name, value in _each([state], "seconds"):
            own[name] = own.get(name, 0.0) + float(value)
        seconds = {name: max(seconds.get(name, 0.0), own[name]) for name in own}
    made = draws["used"] + draws["dry"]
    share = draws["dry"] / made if made else None
    return {"draws": {**draws, "dry_share": share}, "time": seconds}


def _each(ranks: Iterable[RankState], part: str) -> Iterable[tuple[str, Any]]:
    for state in ranks:
        for statistics in state.statistics:
            values = statistics.get(part, {})
            if isinstance(values, dict):
                yield from values.items()


def text(facts: dict[str, Any]) -> str:
    """Return the report for people."""
    first, *promise = _promise(facts)
    lines = [first, *warnings(facts), *promise, *_covered(facts), *_uncovered(facts)]
    return "\n".join([*lines, *_costs(facts)]) + "\n"


def _promise(facts: dict[str, Any]) -> list[str]:
    charged = [each["charged"] for each in facts["ranks"]]
    lines = [
        (
            f"dither: run {facts['run']}, exit status {facts['exit_status']}, "
            f"{facts['seconds']:.2f} s, {len(charged)} ranks"
        )
    ]
    if facts["private"]:
        spent = "∞" if facts["epsilon"] is None else f"{facts['epsilon']:.4g}"
        lines.append(
            f"  spent: (ε, δ) = ({spent}, {facts['delta']:g}) of ε = {facts['epsilon_allowed']:.4g}"
            f" for one rank's contributions, trust {facts['trust']}"
        )
    else:
        lines.append(f"  NOT PRIVATE: mode {facts['mode']}; the accounts say ε = ∞")
    if facts["private"]:
        size = "z·C·√R" if facts["trust"] == "local" else "z·C"
        lines.append(
            f"  noise on each number of a sum over all ranks: standard deviation {size} = "
            f"{facts['noise_on_sum']:.4g} (z = {facts['noise_multiplier']:.4g}, C = "
            f"{facts['clip']:g})"
        )
        total = facts["epsilon_account"]
        lines.append(
            f"  the accounts' ε over all their runs: {'∞' if total is None else f'{total:.4g}'}"
        )
    lines.append(
        f"  releases charged: {_span(charged)} a rank, {_span([r['left'] for r in facts['ranks']])}"
        f" of {facts['releases']} left; accounts: {facts['ledger']}"
    )
    return lines


def _covered(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, counts in facts["calls"].items():
        told = [
            f"{counts[key]} {word}"
            for key, word in (
                ("protected", _WORDS[facts["mode"]]),
                ("cleared", "IN CLEAR, as allowed"),
                ("refused", "refused"),
            )
            if counts.get(key)
        ]
        if told:
            size = f", {_bytes(counts['bytes'])}" if counts.get("bytes") else ""
            lines.append(f"  {name}: {', '.join(told)}{size}")
    return lines


def _uncovered(facts: dict[str, Any]) -> list[str]:
    names = [
        f"{name} {counts['counted']}"
        for name, counts in facts["calls"].items()
        if counts.get("counted")
    ]
    if not names:
        known = all(each["ended"] == "well" for each in facts["ranks"])
        return ["  no other call that moves data was seen"] if known else []
    return [f"  NOT COVERED, passed as they are: {', '.join(names)}"]


def _costs(facts: dict[str, Any]) -> list[str]:
    share, time = facts["draws"]["dry_share"], facts["time"]
    if not any(each["told"] for each in facts["ranks"]):
        return []
    lines = [
        (
            f"  slowest rank: clipping {time['clip']:.3f} s; private sums {time['sum']:.3f} s (in "
            f"them noise made at the call {time['noise']:.3f} s); apart from these, waiting for "
            f"other ranks {time['wait']:.3f} s"
        )
    ]
    if share is not None and facts["private"]:
        lines.append(f"  noise: {share:.1%} of the draws were not ready in the pool")
    return lines


def warnings(facts: dict[str, Any]) -> list[str]:
    """Return what nobody may miss, a line each."""
    ranks = facts["ranks"]
    silent = [each["rank"] for each in ranks if each["ended"] == "lost" and not each["told"]]
    lines = [
        f"  rank {each['rank']} did not end well: what it had leased stays charged"
        for each in ranks
        if each["ended"] == "lost"
    ]
    if silent:
        lines.append(
            f"  the calls of {named_ranks(silent)} are not known, nor what of them was not "
            "covered: no figures came before the end"
        )
    absent = [each["rank"] for each in ranks if each["ended"] == "absent"]
    if absent:
        lines.append(
            f"  {named_ranks(absent)} never reached MPI_Init through dither. If the program did "
            "use MPI, NOTHING OF IT WAS PROTECTED THERE: it may be linked statically, or with "
            "another MPI than this mpiexec's"
        )
    if facts["launcher_status"] != facts["exit_status"]:
        lines.append(
            f"  so dither mpirun ends with {facts['launcher_status']}, though the program ended "
            f"with {facts['exit_status']}"
        )
    lines += [f"  rank {r['rank']}: {r['error']}" for r in ranks if r.get("error")]
    return lines


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _bytes(size: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.4g} TiB"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
