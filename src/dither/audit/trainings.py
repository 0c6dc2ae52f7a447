"""Small trainings by dither's own steps, many of them on halves of one pool, for attacks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dither.audit.likelihood import confidence_logit
from dither.clipping.loss import per_example
from dither.data.store import RecordStore
from dither.errors import ConfigError
from dither.noise.entropy import OsEntropy
from dither.privacy.accountant import check_delta
from dither.privacy.events import Relation, Unit
from dither.privacy.guard import unprotected
from dither.privacy.ledger import Ledger
from dither.privacy.plan import check_clip
from dither.sampling.loader import poisson_loader
from dither.sampling.poisson import PoissonSampler
from dither.train.door import make_private
from dither.train.models import mlp
from dither.train.plain import PlainStep

_FEWEST = 32

# Told how many models of how many are trained.
Tell: TypeAlias = Callable[[int, int], object]


def quiet(*_: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How each model is trained; plain and private ones alike but for the noise and the clipping.

    Attributes:
        hidden: Widths of the hidden layers.
        batch_size: Expected batch size.
        epochs: Passes over a model's records.
        learning_rate: Of SGD with momentum 0.9.
        epsilon: ε of a private training, None for a plain one.
        delta: δ of it.
        l2_clip: Bound on one record's gradient in it.
    """

    hidden: tuple[int, ...] = (128,)
    batch_size: int = 50
    epochs: int = 40
    learning_rate: float = 0.5
    epsilon: float | None = None
    delta: float = 1e-5
    l2_clip: float = 1.0

    def __post_init__(self) -> None:
        check_delta(self.delta)
        numbers = (*self.hidden, self.batch_size, self.epochs)
        if min(numbers) < 1 or not self.learning_rate > 0.0:
            raise ConfigError(
                expected="widths, batch size and epochs of at least 1, and a learning rate above 0",
                got=f"{self.hidden}, {self.batch_size}, {self.epochs}, {self.learning_rate!r}",
                fix="leave them out",
            )
        check_clip(self.l2_clip)
        if self.epsilon is not None and not 0.0 < self.epsilon < math.inf:
            raise ConfigError(
                expected="a finite ε above 0 of the private trainings",
                got=repr(self.epsilon),
                fix="choose 1 or 8, for instance",
            )

    @property
    def name(self) -> str:
        """``plain``, or ``epsilon`` and its value."""
        return "plain" if self.epsilon is None else f"epsilon {self.epsilon:g}"


@dataclass(frozen=True)
class Pool:
    """The records that models are trained on halves of.

    Attributes:
        features: Of all.
        labels: Of all.
        names: Of the features.
    """

    features: Float[Tensor, "records features"]
    labels: Int64[Tensor, " records"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, store: RecordStore, rows: Int64[np.ndarray, " rows"]) -> Pool:
        """Gather rows of a store."""
        features, labels = store.gather(rows)
        return cls(features, labels, store.feature_names)

    def __len__(self) -> int:
        return len(self.labels)


def draw_rows(
    store: RecordStore, count: int, generator: np.random.Generator
) -> Int64[np.ndarray, " count"]:
    """Return the numbers of some rows, without repeats, in random order.

    Raises:
        ConfigError: The store has fewer, or its unit is a person with several rows.
    """
    if store.rows_per_unit != 1:
        raise ConfigError(
            expected="a store whose unit is a record",
            got=f"one of persons with up to {store.rows_per_unit} rows",
            fix="audit a store of single records",
        )
    if not 1 <= count <= len(store):
        raise ConfigError(
            expected=f"between 1 and {len(store)} records, as many as the store has",
            got=str(count),
            fix="take fewer --records, or a larger store",
        )
    return generator.choice(len(store), count, replace=False)


def check_pool(records: int) -> None:
    """Refuse a pool so small that half of it may be nobody.

    Raises:
        ConfigError: Fewer than 32 records: more, and a model without any is rarer than 1e-7.
    """
    if records < _FEWEST:
        raise ConfigError(
            expected=f"at least {_FEWEST} --records, so that half of them are some",
            got=str(records),
            fix="leave it out",
        )


def check_models(models: int) -> None:
    """Refuse numbers of models that give no halves, or too few shadows.

    Raises:
        ConfigError: Fewer than 8, or an odd number.
    """
    if models < 8 or models % 2:
        raise ConfigError(
            expected="an even number of models, at least 8",
            got=str(models),
            fix="choose 16 or 32",
        )


def halves(
    models: int, records: int, generator: np.random.Generator
) -> Bool[np.ndarray, "models records"]:
    """Return which records each model is trained on: every record in exactly half of them.

    Raises:
        ConfigError: Fewer than 8 models, or an odd number.
    """
    check_models(models)
    chosen = np.arange(models)[:, None] < models // 2
    return generator.permuted(np.repeat(chosen, records, axis=1), axis=0)


@contextmanager
def scratch_ledger() -> Iterator[Ledger]:
    """Open an account for private trainings of an attack; it vanishes with them.

    The account of a store's own records is the caller's to charge: see `charge_unprotected`.
    """
    with tempfile.TemporaryDirectory(prefix="dither-audit-") as folder:
        yield Ledger.create(
            Path(folder) / "ledger.sqlite",
            store="copies for an attack",
            unit=Unit.RECORD,
            relation=Relation.ZERO_OUT,
            sensitive=False,
        )


def charge_unprotected(store: RecordStore, what: str, *, force: bool) -> None:
    """Write into a store's account that its records are trained on without protection.

    Call it after all that can be refused was, and before anything is trained: an entry of ε = ∞
    stays. It goes into the account that is there, whatever its relation.

    Args:
        store: The records.
        what: What is unprotected, for the auditor.
        force: The operator takes the responsibility, on records that are sensitive.

    Raises:
        ConfigError: The store is sensitive, and nobody forced it.
        LedgerError: The account beside the store is of other records.
    """
    path, manifest = Path(store.ledger_path), store.manifest
    if path.exists():
        ledger = Ledger.open(path, store=store.id)
        ledger.require_kind(
            Unit(manifest.unit), ledger.header.relation, sensitive=manifest.sensitive
        )
    else:
        ledger = Ledger.create(
            path, store=store.id, unit=Unit(manifest.unit), sensitive=manifest.sensitive
        )
    reason = unprotected(ledger, what, force=force)
    ledger.record_non_private(f"audit-{np.random.default_rng().bytes(8).hex()}", reason, {})


def trained(pool: Pool, members: Bool[np.ndarray, " records"], recipe: Recipe) -> nn.Module:
    """Return a fresh model after training on the members by `PlainStep` or `make_private`.

    Args:
        pool: All records.
        members: Which of them.
        recipe: How.
    """
    chosen = torch.from_numpy(np.flatnonzero(members))
    data = TensorDataset(pool.features[chosen], pool.labels[chosen])
    batch_size = min(recipe.batch_size, len(data))
    loader = DataLoader(data, batch_size=batch_size)
    model = mlp(pool.features.shape[1], recipe.hidden, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate, momentum=0.9)
    if recipe.epsilon is None:
        _train_plain(model, optimizer, loader, recipe.epochs)
    else:
        _train_private(model, optimizer, loader, recipe)
    return model.eval()


def _train_plain(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[object], epochs: int
) -> None:
    records, batch_size = len(loader.dataset), loader.batch_size or 1  # type: ignore[arg-type]
    step = PlainStep(
        model,
        optimizer,
        loss_fn=per_example(nn.CrossEntropyLoss()),
        expected_batch_size=float(batch_size),
    )
    sampler = PoissonSampler(records, batch_size / records, OsEntropy().stream("sampling"))
    batches = poisson_loader(loader, sampler)
    for _ in range(epochs):
        for batch in batches:
            step(batch)


def _train_private(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[object], recipe: Recipe
) -> None:
    with scratch_ledger() as ledger:
        step, batches = make_private(
            model,
            optimizer,
            loader,
            loss_fn=nn.CrossEntropyLoss(),
            ledger=ledger,
            epsilon=recipe.epsilon,
            delta=recipe.delta,
            epochs=recipe.epochs,
            l2_clip=recipe.l2_clip,
            sensitive=False,
            lease=recipe.epochs * len(loader),  # it need not survive a crash
        )
        for _ in range(recipe.epochs):
            for batch in batches:
                step(batch)
        step.close()


def confidences(model: nn.Module, pool: Pool) -> Float[np.ndarray, " records"]:
    """Return the logit-scaled confidence of a model in each record's label."""
    with torch.inference_mode():
        logits = model(pool.features).double().numpy()
    return np.asarray(confidence_logit(logits, pool.labels.numpy()))
