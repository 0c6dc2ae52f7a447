"""Train a fraud classifier on a table of one's own, private for every card with all its payments.

    pip install 'dither[opendp]'
    python examples/card_fraud.py --folder fraud

The payments are made up: skewed amounts, a long tail of countries, 0.2 % of them fraud. The table's
description is `card_fraud.toml` beside this file. It leaves the payments, the released constants,
one ledger for statistics and training, a record store and a run with its report in the folder.
"""

# ruff: noqa: T201 - an example may print

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

import dither
from dither.data.statistics import default_ledger

SHOPS = ("food", "fuel", "travel", "clothes", "electronics", "cash")


def payments(cards: int, seed: int) -> pd.DataFrame:
    """Return payments by card: most have a few, some have hundreds."""
    draw = np.random.default_rng(seed)
    each = draw.geometric(0.05, cards)
    card = np.repeat(np.arange(cards), each)
    rows = card.size
    # Fraud comes in bursts on stolen cards: large amounts at night, without the card, from abroad.
    stolen = draw.random(cards)[card] < 0.01
    fraud = stolen & (draw.random(rows) < 0.2)
    amount = np.where(fraud, draw.lognormal(4.6, 1.1, rows), draw.lognormal(3.2, 1.1, rows))
    anytime = draw.random(rows) < np.where(fraud, 0.7, 0.2)
    hour = np.where(anytime, draw.integers(0, 24, rows), draw.binomial(23, 0.6, rows))
    usual = draw.choice(len(SHOPS), rows, p=(0.45, 0.2, 0.05, 0.15, 0.05, 0.1))
    shop = np.where(fraud, draw.choice(len(SHOPS), rows, p=(0.15, 0.1, 0.2, 0.1, 0.35, 0.1)), usual)
    abroad = draw.random(rows) < np.where(fraud, 0.5, 0.08)
    country = np.where(abroad, 1 + np.minimum(draw.zipf(1.6, rows), 120), 1)
    return pd.DataFrame(
        {
            "CARD": [f"C{number:07d}" for number in card],
            "NUMBER": np.arange(rows) - np.repeat(np.cumsum(each) - each, each) + 1,
            "AMOUNT": amount.round(2),
            "HOUR": hour,
            "SHOP": np.array(SHOPS)[shop],
            "PRESENT": (draw.random(rows) < np.where(fraud, 0.4, 0.8)).astype(int),
            "COUNTRY": [f"K{number:03d}" for number in country],
            "FRAUD": fraud.astype(int),
        }
    )


def main(*, folder: Path, cards: int, epsilon: float, steps: int, seed: int) -> dict[str, float]:
    """Release constants, build the store, train, and say what it cost in all."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    table, about = folder / "payments.csv", folder / "card_fraud.toml"
    payments(cards, seed).to_csv(table, index=False)
    shutil.copy(Path(__file__).with_suffix(".toml"), about)

    statement = dither.release_statistics(about, table)
    for constant in statement.constants:
        print(f"released: {constant.name} = {constant.value} (epsilon {constant.epsilon:.3g})")

    store = dither.build_store(table, str(about), folder / "store")
    print(f"{store.units} cards with {len(store)} payments, {store.feature_dim} features")

    run = dither.run_training(
        dither.TrainConfig(
            store=store.path,
            out=folder / "run",
            ledger=default_ledger(about),
            epsilon=epsilon,
            delta=0.1 / cards,
            steps=steps,
            batch_size=max(1, cards // 20),
            hidden=(32,),
            learning_rate=0.25,
            checkpoint_every=steps,
        )
    )
    dither.write_report(run)
    summary = json.loads((run / "summary.json").read_text())
    ledger = dither.Ledger.open(default_ledger(about))
    found = {
        "auroc": summary["metrics"]["auroc"],
        "epsilon_of_training": summary["privacy"]["epsilon"],
        "epsilon_in_all": ledger.epsilon(0.1 / cards),
    }
    print(f"per {summary['privacy']['unit']}: {found}; report in {run / 'report.html'}")
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Private fraud detection, by card.")
    options.add_argument("--folder", type=Path, default=Path("fraud"))
    options.add_argument("--cards", type=int, default=20_000)
    options.add_argument("--epsilon", type=float, default=2.0, help="budget of the training")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--seed", type=int, default=0, help="of the made-up payments")
    main(**vars(options.parse_args()))
