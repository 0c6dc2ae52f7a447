"""`dither audit inversion`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from dither.audit.inversion import Attribute, Inverted, attack_inversion
from dither.audit.trainings import Pool, Recipe, check_models, check_pool, draw_rows
from dither.cli.audit_common import bar, charge, hand_out, records, use_threads
from dither.config import AuditInversionConfig
from dither.errors import ConfigError
from dither.report.attacks import write_inversion_figure

# Harvard CS205 2020, plain and private: another attribute and model, so only the drop compares.
FASTDP = {"plain": 0.74, "private": 0.61}


def run(config: AuditInversionConfig) -> None:
    """Attack plain and private models, and say how much of the attack is the model's leak.

    Raises:
        ConfigError: Options out of range, or a sensitive store without --force.
        OutputError: Results cannot be written; said before anything is trained.
    """
    recipes = [_recipe(config, epsilon) for epsilon in (None, *config.epsilons)]
    check_models(config.models)
    check_pool(config.records)
    _check_attacker(config)
    use_threads(config.threads)
    console = Console(stderr=True, highlight=False)
    generator = np.random.default_rng(config.seed)
    start = time.perf_counter()
    with records(config.store) as (store, name):
        rows = draw_rows(store, config.records + config.known, generator)
        pool, known = Pool.of(store, rows[: config.records]), Pool.of(store, rows[config.records :])
        for attribute in config.attributes:
            Attribute.of(attribute, known)
        charge(config, store)
    found: list[Inverted] = []
    for recipe in recipes:
        with bar(console, f"models, {recipe.name}") as tell:
            found += attack_inversion(
                pool,
                known,
                recipe,
                config.attributes,
                config.models,
                generator=generator,
                tell=tell,
            )
    found.sort(key=lambda one: config.attributes.index(one.attribute))
    seconds = round(time.perf_counter() - start, 1)
    facts = {"records": name, **_settings(config), "fastdp": FASTDP, "seconds": seconds}
    facts["rows"] = [one.to_json() for one in found]
    hand_out(
        facts,
        name=config.json,
        out=config.out,
        stem="audit-inversion",
        figure=write_inversion_figure,
    )
    if config.json != "-":
        Console(highlight=False).print(_table(found))


def _check_attacker(config: AuditInversionConfig) -> None:
    names = config.attributes
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            expected="one or more --attributes, each once",
            got=", ".join(names) or "none",
            fix="leave it out for DIS, SEX and MAR",
        )
    if config.known < 1:
        raise ConfigError(
            expected="at least one of --known people", got=str(config.known), fix="leave it out"
        )


def _settings(config: AuditInversionConfig) -> dict[str, Any]:
    return {
        "pool": config.records,
        "known": config.known,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "hidden": list(config.hidden),
        "learning_rate": config.learning_rate,
    }


def _recipe(config: AuditInversionConfig, epsilon: float | None) -> Recipe:
    return Recipe(
        hidden=config.hidden,
        batch_size=config.batch_size,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        epsilon=epsilon,
        delta=config.delta,
        l2_clip=config.l2_clip,
    )


def _table(found: Sequence[Inverted]) -> Table:
    numbers = ("in the model", "not in it", "leak", "may be", "majority", "no model", "model")
    table = Table(
        "attribute",
        "models",
        *(Column(name, justify="right") for name in numbers),
        title="Model inversion",
        caption="Accuracy of the attack on people in the training data and on others; the leak is "
        "the difference, with its 95 % interval, and the most that (ε, δ) allows. Beside it the "
        "most common value, a guess without any model, and the model's own accuracy. "
        f"fastDP's attack: {FASTDP['plain']} plain, {FASTDP['private']} private.",
    )
    for one in found:
        table.add_row(
            one.attribute,
            one.name,
            f"{one.accuracy:.3f}",
            f"{one.control:.3f}",
            f"{one.leak:+.3f} ({one.leak_low:+.3f} to {one.leak_high:+.3f})",
            f"{one.leak_ceiling:.3f}",
            f"{one.majority:.3f}",
            f"{one.imputation:.3f}",
            f"{one.label_accuracy:.3f}",
        )
    return table
