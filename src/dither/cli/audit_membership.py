"""`dither audit membership`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from dither.audit.likelihood import FALSE_POSITIVE_RATES
from dither.audit.membership import Attacked, attack_membership, ratio_at
from dither.audit.trainings import Pool, Recipe, check_models, check_pool, draw_rows
from dither.cli.audit_common import bar, charge, hand_out, records, use_threads
from dither.config import AuditMembershipConfig
from dither.report.attacks import write_membership_figure


def run(config: AuditMembershipConfig) -> None:
    """Attack plain and private models of the same records, and print what each lets through.

    Raises:
        ConfigError: Options out of range, or a sensitive store without --force.
        OutputError: Results cannot be written; said before anything is trained.
    """
    plain, private = _recipes(config)
    check_models(config.models)
    check_pool(config.records)
    use_threads(config.threads)
    console = Console(stderr=True, highlight=False)
    generator = np.random.default_rng(config.seed)
    start = time.perf_counter()
    with records(config.store) as (store, name):
        pool = Pool.of(store, draw_rows(store, config.records, generator))
        charge(config, store)
    found = []
    for recipe in (plain, private):
        with bar(console, f"models, {recipe.name}") as tell:
            found.append(
                attack_membership(pool, recipe, config.models, generator=generator, tell=tell)
            )
    ratio = ratio_at(found[0], found[1])
    facts = {
        "records": name,
        "pool": config.records,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "hidden": list(config.hidden),
        "learning_rate": config.learning_rate,
        "models": [one.to_json() for one in found],
        "tpr_ratio_at_1_percent": ratio if np.isfinite(ratio) else None,
        "seconds": round(time.perf_counter() - start, 1),
    }
    hand_out(
        facts,
        name=config.json,
        out=config.out,
        stem="audit-membership",
        figure=write_membership_figure,
    )
    if config.json != "-":
        Console(highlight=False).print(_table(found))
        print(f"Plain over private at 1 % FPR, by likelihood ratio: {ratio:.1f} times the TPR.")


def _recipes(config: AuditMembershipConfig) -> tuple[Recipe, Recipe]:
    epsilons = (None, config.epsilon)
    plain, private = (
        Recipe(
            hidden=config.hidden,
            batch_size=config.batch_size,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            epsilon=epsilon,
            delta=config.delta,
            l2_clip=config.l2_clip,
        )
        for epsilon in epsilons
    )
    return plain, private


def _table(found: Sequence[Attacked]) -> Table:
    rates = [
        Column(f"TPR at {100 * rate:g} % FPR", justify="right") for rate in FALSE_POSITIVE_RATES
    ]
    table = Table(
        "models",
        "attack",
        *rates,
        Column("may be", justify="right"),
        Column("AUC", justify="right"),
        Column("accuracy in/out", justify="right"),
        title="Membership inference",
        caption="In %, with 95 % intervals over models. May be: the largest TPR that (ε, δ) "
        "allows at the same rates.",
    )
    for one in found:
        allowed = " / ".join(f"{100 * ceiling:.2f}" for ceiling in one.ceilings)
        for roc in one.attacks:
            table.add_row(
                one.name,
                roc.attack,
                *(f"{100 * r.tpr:.2f} ({100 * r.low:.2f}-{100 * r.high:.2f})" for r in roc.rates),
                allowed,
                f"{roc.auc:.3f}",
                f"{one.accuracy:.3f}/{one.accuracy_outside:.3f}",
            )
    return table
