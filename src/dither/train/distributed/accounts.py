"""Who pays for a distributed run: charges that all ranks make together, before any message leaves.

Under ``central`` rank 0 keeps the account, the record store's own ledger: it charges a lease and
tells the others its size, so none of them can take a step that is not charged. Under ``local`` and
``distributed(t)`` every rank keeps one, beside it, and its own is charged before its message
leaves. Either way a lease is taken by all ranks at the same step, and is good only once every
ledger has it on disk: if one rank cannot charge (no budget, a full disk, a locked file), all refuse
at that step, and none releases (PRIVACY-REVIEW A6).

**What each ledger says.** Rank 0's is the account of the records: every run charges it. One step is
one event for every training record, whichever rank holds it, so it is right for all of them. The
others' are each rank's own proof of what its messages cost in the runs that it took part in.

**After a crash, and on another world size.** A rank may have died between its charge and that of
the next, a rank's ledger may be new, or on another host, and with another world size records move
to other ranks. A record's cost is the number of releases of the run, on whatever rank it was: each
of them was charged on every ledger kept then, before it was made, so each such ledger says at
least that number, and so does the checkpoint for those before it. Hence all ranks first bring their
account of the run up to the largest count of all, then to the checkpoint's (`Account.catch_up`): no
ledger then says less than was spent on any record. Steps left are what the plan has beyond that.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import final

from dither.errors import BudgetExhaustedError, DitherWarning, LedgerError, MismatchError
from dither.privacy.account import Account
from dither.privacy.events import Event, Relation, Unit
from dither.privacy.leases import Leases, OwnLeases
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.trust import Trust
from dither.train.distributed.ranks import Ranks, on_all


def rank_ledger_path(path: Path, rank: int) -> Path:
    """Return where a rank keeps its ledger: rank 0 the store's own, others beside it."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank-{rank}{path.suffix}")


def open_rank_ledger(
    ranks: Ranks | None,
    path: Path,
    trust: Trust,
    *,
    store: str,
    unit: Unit,
    relation: Relation,
    sensitive: bool,
    create: bool = True,
) -> Ledger | None:
    """Open this rank's ledger; not collective.

    Args:
        ranks: The group; None for one process.
        path: The record store's own ledger.
        trust: Under ``central`` ranks above 0 keep none.
        store: Whose account it is.
        unit: Unit of privacy.
        relation: Neighbouring relation.
        sensitive: Whether unprotected runs must be forced.
        create: Whether rank 0's may be new. Others' always may: ranks and hosts change.

    Returns:
        The ledger; None where this rank keeps none.

    Raises:
        LedgerError: It belongs to other records, counts otherwise, or is not there.
    """
    rank = 0 if ranks is None else ranks.rank
    if rank == 0 and not create:
        return Ledger.open(path, store=store)
    if rank > 0 and trust.name == "central":
        return None
    return Ledger.create(
        rank_ledger_path(path, rank), store=store, unit=unit, relation=relation, sensitive=sensitive
    )


def open_rank_account(
    ranks: Ranks | None,
    ledger: Ledger | None,
    run: str,
    plan: Plan,
    *,
    lease: int | None = None,
    records: str | None = None,
    insecure: str | None = None,
) -> Account:
    """Open a run's account on all ranks; collective.

    When it returns, all ranks' accounts of the run say the same, see above. On one rank it is a
    plain `Account`.

    Args:
        ranks: The group; None for one process.
        ledger: This rank's, from `open_rank_ledger`.
        run: Name of the run, the same on all ranks.
        plan: Its promise, the same on all ranks.
        lease: As for `Account`; rank 0's counts.
        records: Content hash of the records.
        insecure: Why the run is not private.

    Raises:
        LedgerError: A rank's ledger refuses the run, or one that must keep one has none; on all
            ranks.
        MismatchError: Ranks came with different runs or plans; on all ranks.
    """
    if ranks is not None and ranks.world_size > 1:
        keeps = ranks.rank == 0 or plan.trust.name != "central"
        leases: Leases = SharedLeases(ranks, ledger, keeps=keeps)
    elif ledger is not None:
        leases = OwnLeases(ledger)
    else:
        raise _no_ledger(0)
    return Account(leases, run, plan, lease=lease, records=records, insecure=insecure)


@final
class SharedLeases(Leases):
    """Leases that all ranks take together; every call but `charged` is collective.

    Args:
        ranks: The group.
        ledger: This rank's own; None where it keeps none.
        keeps: Whether it must keep one.
    """

    def __init__(self, ranks: Ranks, ledger: Ledger | None, *, keeps: bool) -> None:
        self._ranks = ranks
        self._own = None if ledger is None else OwnLeases(ledger)
        self._keeps = keeps
        self._charged: dict[str, int] = {}
        self._owner = os.getpid()

    @property
    def ledger(self) -> Ledger:
        """This rank's ledger.

        Raises:
            LedgerError: It keeps none.
        """
        if self._own is None:
            raise _no_ledger(self._ranks.rank)
        return self._own.ledger

    def promise(self, run: str, plan: Plan, records: str | None, insecure: str | None) -> None:
        """Write the promise down on all ranks, and bring all accounts of the run to one count.

        Raises:
            MismatchError: Ranks differ in run or plan.
            LedgerError: One refuses.
        """
        self._agree_on(run, plan)
        counts = self._together(
            lambda own: _promised(own, run, plan, records, insecure), plan.steps
        )
        top = max(counts)
        if self._ranks.rank == 0 and top > 0:
            _warn_of_empty(counts, top)

        def bring_up(own: OwnLeases) -> int:
            missing = top - own.charged(run)
            return own.take(run, plan.event, missing, max(plan.steps, top)) if missing > 0 else 0

        self._together(bring_up, plan.steps)
        self._charged[run] = top

    def charged(self, run: str) -> int:
        """Return what the ranks have agreed that the run has charged."""
        return self._charged[run]

    def take(self, run: str, event: Event, count: int, limit: int) -> int:
        """Charge a lease on every ledger; rank 0 says how large.

        What some had charged of a lease that not all could have is returned: nobody can have used
        it, for all know of the refusal.

        Raises:
            BudgetExhaustedError: On all ranks: one has charged the limit.
            LedgerError: On all ranks: one cannot charge.
        """
        self._check_process()
        wanted = int.from_bytes(self._ranks.broadcast(count.to_bytes(8, "big")), "big")
        mine = 0

        def charge(own: OwnLeases) -> int:
            nonlocal mine
            mine = own.take(run, event, wanted, limit)
            return mine

        try:
            granted = min(self._together(charge, limit))
        except LedgerError:  # all know; after a PeerError some may not, and go on: stays charged
            self._return(run, event, mine)
            raise
        self._return(run, event, mine - granted)
        self._charged[run] += granted
        return granted

    def give_back(self, run: str, event: Event, count: int) -> None:
        """Return what the rank that released most has left; nothing if a rank is not there."""
        self._check_process()
        left = min(
            int.from_bytes(text, "big") for text in self._ranks.gather(count.to_bytes(8, "big"))
        )
        self._charged[run] -= left
        self._return(run, event, left)

    def total(self, count: int) -> int:
        """Return the sum of all ranks' numbers, which must be public. Collective."""
        self._check_process()
        told = self._ranks.gather(count.to_bytes(8, "big"))
        return sum(int.from_bytes(text, "big") for text in told)

    def _return(self, run: str, event: Event, count: int) -> None:
        if self._own is not None and count > 0:
            self._own.give_back(run, event, count)

    def _agree_on(self, run: str, plan: Plan) -> None:
        self._check_process()
        facts = f"{run} {plan.digest()}".encode()
        if len(set(self._ranks.gather(facts))) > 1:
            raise MismatchError(
                expected="one run and one plan on all ranks",
                got="different ones",
                fix="start all ranks with the same options, records and version of dither",
            )

    def _together(self, act: Callable[[OwnLeases], int], limit: int) -> list[int]:
        """Act on every ledger; return the numbers of those that have one, or raise on all."""

        def mine() -> int | None:
            if self._own is not None:
                return act(self._own)
            if self._keeps:
                raise _no_ledger(self._ranks.rank)
            return None

        found = on_all(self._ranks, mine, lambda rank, kind: _refusal(rank, kind, limit))
        return [number for number in found if number is not None]

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise LedgerError(
                expected="a rank's account in the process that opened it",
                got="a forked child, which is no rank",
                fix="release in the parent, or open an account of the child's own",
            )


def _warn_of_empty(counts: list[int], charged: int) -> None:
    """Tell of ledgers that know nothing of a run that was charged; rank 0's is never new then."""
    empty = [str(rank) for rank, count in enumerate(counts) if rank > 0 and count == 0]
    if empty:
        warnings.warn(
            f"the ledger of rank {', '.join(empty)} has none of the {charged} steps that this run "
            "has charged: the rank is new or changed hosts, or its ledger was lost. It is charged "
            "all of them now; what other runs charged on a lost one, only a copy of it can tell",
            DitherWarning,
            stacklevel=2,
        )


def _promised(
    own: OwnLeases, run: str, plan: Plan, records: str | None, insecure: str | None
) -> int:
    own.promise(run, plan, records, insecure)
    return own.charged(run)


def _refusal(rank: int, kind: str, limit: int) -> LedgerError:
    if kind == BudgetExhaustedError.__name__:
        return BudgetExhaustedError(
            expected=f"a step left of the {limit} that the plan allows",
            got=f"all charged on the ledger of rank {rank}",
            fix="stop here, or make a new plan with more budget",
        )
    return LedgerError(
        expected="every rank's charge on its ledger before a message leaves",
        got=f"{kind} on rank {rank}",
        fix="see that rank's own message, mend it, then resume on all",
    )


def _no_ledger(rank: int) -> LedgerError:
    return LedgerError(
        expected="a ledger on this rank",
        got=f"none on rank {rank}; under trust central only rank 0 keeps one",
        fix="open it with open_rank_ledger, or ask rank 0",
    )
