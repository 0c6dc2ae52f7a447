"""What the pages say of a run on several processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dither.errors import ConfigError
from dither.privacy.trust import parse_trust
from dither.report.documents import Document
from dither.report.words import plain


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        step: Where it began.
        ranks: R, how many processes trained.
        engine: How they did.
    """

    step: int
    ranks: int
    engine: str | None


def ranks_of(summary: Document | None, starts: tuple[Start, ...]) -> int:
    """Return on how many processes a run trained at last; 1 where nothing says."""
    if starts:
        return starts[-1].ranks
    ranks = summary.number("ranks") if summary else None
    return max(1, int(ranks or 1))


def most_ranks(summary: Document | None, starts: tuple[Start, ...]) -> int:
    """Return the most processes that any start of a run had."""
    return max([ranks_of(summary, starts), *(start.ranks for start in starts)])


def distributed_words(about: Document, summary: Document | None, starts: tuple[Start, ...]) -> str:
    """Say on how many ranks a run trained, what noise its sums carry, and who kept accounts."""
    last, trust = ranks_of(summary, starts), about.text("plan", "trust") or "central"
    text = _begun(about, last, starts)
    text += (
        " Every rank samples its own fixed part of the records, so a step is the same event as on "
        "one rank, and ε does not depend on their number."
    )
    multiple = _multiple(trust, last)
    noise = about.number("plan", "noise_multiplier")
    if multiple > 1.0 and noise is not None:
        text += (
            f" Under trust {trust} the sum over {last} ranks carries {plain(multiple, 4)} times "
            f"the noise that ε is computed from: {plain(multiple * noise, 6)} in place of "
            f"{plain(noise, 6)} times the sensitivity."
        )
    if trust == "central":
        return f"{text} Rank 0 kept the ledger and charged it for all."
    return (
        f"{text} Every rank kept a ledger of what left it: rank 0 the record store's own, rank r "
        "ledger.rank-r.sqlite beside the store on its own host, with as many charges."
    )


def _multiple(trust: str, ranks: int) -> float:
    try:
        return parse_trust(trust).sum_multiple(ranks)
    except ConfigError:  # an edited file: the statement of trust shows what it says
        return 1.0


def _begun(about: Document, last: int, starts: tuple[Start, ...]) -> str:
    engine = (starts[-1].engine if starts else None) or about.text("config", "engine")
    by = f" by engine {engine}" if engine else ""
    if len(starts) < 2:
        return f"The run trained on {last} processes (ranks){by}."
    each = ", ".join(f"from step {start.step} on {start.ranks}" for start in starts)
    return f"The run was started {len(starts)} times: {each} processes (ranks), at last{by}."


LIMITS: Mapping[str, str] = MappingProxyType(
    {
        "Messages between ranks": "When a rank sends depends on how many records it drew; messages "
        "are not padded. That ranks take part, how many, and which row numbers each has is public. "
        "Sockets between hosts are not authenticated: noise and masks protect what is read, not "
        "against tampering.",
        "Ranks that do not keep to the protocol": "A rank that sends garbage spoils the model; one "
        "that lies about its ledger spends its own records' budget unseen. Ranks of one user on "
        "one host are not kept apart by the operating system, whatever the trust.",
        "Who holds the records": "dither train opens the whole record store on every rank, and "
        "each samples its part: trust local and distributed protect against the network and "
        "whoever gets the messages, not against an operator who has the store. Held-out records "
        "are rank 0's.",
    }
)
