"""Train a small classifier privately in a PyTorch loop, and ask the ledger what it cost.

    python examples/pytorch_loop.py

The records are made up, so that the script needs no data. It leaves a ledger in the folder that it
runs in; run it twice and the second run adds to the account of the first.
"""

# ruff: noqa: T201 - an example may print

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dither


def made_up_records(count: int) -> tuple[Tensor, Tensor]:
    """Return features [count, 16] and labels [count]: the side of a bent surface."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 16, generator=generator)
    labels = (features[:, 0] + 0.5 * features[:, 1] * features[:, 2] > 0).long()
    return features, labels


def accuracy(model: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Return the share of right answers."""
    with torch.inference_mode():
        return float((model(features).argmax(dim=1) == labels).double().mean())


def main(records: int, epochs: int, epsilon: float, ledger: Path) -> float:
    """Train, print what was reached and spent, and return the run's ε."""
    # Held-out records are never trained on. Their metrics below are exact: the guarantee does not
    # cover them.
    held_out = max(1, records // 5)
    features, labels = made_up_records(records + held_out)
    training = TensorDataset(features[:records], labels[:records])

    # GroupNorm, not BatchNorm: every example must be treated by itself.
    model = nn.Sequential(
        nn.Linear(16, 64), nn.GroupNorm(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(training, batch_size=max(1, records // 20))

    # The three lines. `batch_size` becomes the expected batch size: a record joins each batch by a
    # coin of its own. A δ well below one over the number of records is part of the promise.
    step, private_loader = dither.make_private(
        model,
        optimizer,
        loader,
        loss_fn=nn.CrossEntropyLoss(),
        ledger=ledger,
        store="made-up points",
        sensitive=False,
        epsilon=epsilon,
        delta=0.1 / records,
        epochs=epochs,
    )
    print(f"noise multiplier {step.plan.noise_multiplier:.3f} for {step.plan.steps} steps")

    for epoch in range(epochs):
        for batch in private_loader:
            # The result holds the exact loss and gradient norms in `operator`: for your eyes only.
            step(batch)
        reached = accuracy(model, features[records:], labels[records:])
        print(f"epoch {epoch + 1}: held-out accuracy {reached:.3f}")

    # ε is recomputed from the ledger: this run's part, and that of all runs on these records.
    spent, delta = step.epsilon(), step.plan.delta
    total = step.account.ledger.epsilon(delta)
    print(f"spent: epsilon = {spent:.3f} at delta = {delta:g}; all runs so far: {total:.3f}")
    return spent


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Private training in a PyTorch loop.")
    options.add_argument("--records", type=int, default=8_000, help="training records")
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--epsilon", type=float, default=3.0, help="budget of this run")
    options.add_argument("--ledger", type=Path, default=Path("pytorch_loop.sqlite"))
    main(**vars(options.parse_args()))
