"""`make_private`: three lines in an existing PyTorch loop."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset

from dither.clipping.loss import ModelLoss, per_example
from dither.clipping.styles import Style
from dither.clipping.validate import check_model
from dither.data.statistics import require_charged
from dither.data.store import StoreDataset
from dither.errors import ConfigError
from dither.noise.entropy import Entropy, InsecureSeed, OsEntropy
from dither.precision.options import Dynamic
from dither.precision.recipe import Recipe
from dither.privacy.account import Account
from dither.privacy.events import Event, Relation, Unit
from dither.privacy.guard import unprotected
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonLoader, check_loader, poisson_loader
from dither.sampling.poisson import PoissonSampler
from dither.train.adaptive import AdaptiveBound, AdaptiveClip, quantile_samples
from dither.train.precision import controller_over
from dither.train.step import PrivateStep


def make_private(
    model: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    *,
    loss_fn: Callable[[Any, Any], Any] | ModelLoss,
    ledger: str | Path | Ledger,
    epsilon: float | None = None,
    delta: float | None = None,
    epochs: int | None = None,
    l2_clip: float | None = None,
    clipping: Style | AdaptiveClip | None = None,
    precision: str | Recipe | Dynamic | None = None,
    microbatch_size: int | None = None,
    memory_limit: int | None = None,
    plan: Plan | None = None,
    store: str = "unnamed records",
    relation: str | None = None,
    sensitive: bool = True,
    run: str | None = None,
    insecure_seed: int | None = None,
    lease: int | None = None,
    noise_pool: bool = False,
    force: bool = False,
) -> tuple[PrivateStep, PoissonLoader]:
    """Turn a model, its optimizer and a loader into a private step and a Poisson loader.

    Guarantee: the trained model (and every state on the way) is (ε, δ)-differentially private for
    one record under ``relation``, towards whoever sees it (trust ``central``). Charges go to the
    ledger before anything is released. The exact loss, batch sizes and gradient norms in the
    step's ``operator`` metrics are not covered.

    Args:
        model: Any `nn.Module` without layers that mix examples.
        optimizer: Over the model's parameters.
        loader: A `DataLoader` with a map-style data set and ``batch_size``, which becomes the
            expected batch size. One pass of the returned loader has as many batches.
        loss_fn: Criterion with any reduction, a function giving one loss an example, or a
            `ModelLoss`, which calls the model itself.
        ledger: The SQLite account of these records, created when absent. Use one per data set, for
            all runs on it: budgets add up.
        epsilon: Budget ε of all epochs together, with all that adaptive clipping and probes
            release.
        delta: δ, well below 1/len(dataset).
        epochs: Passes over the loader that the budget is for.
        l2_clip: Bound on the L2 norm of one record's gradient, by default 1.
        clipping: How gradients become shorter: `Flat` (the default), `Automatic`, `PerLayer`, a
            style of your own, or `AdaptiveClip`. A sum's sensitivity is ``l2_clip`` in each, so no
            style changes ε; `AdaptiveClip` makes releases of its own, which are charged.
        precision: Run layers in low precision: a recipe, by name or whole, for DPQuant's schedule
            at 75 % of the compute, or `Dynamic` with another. The model stays as it is: outside the
            step it runs in full precision. A schedule that probes makes releases of its own, which
            are charged.
        microbatch_size: Examples that pass through the model at a time. Speed and memory only.
        memory_limit: Bytes that one pass may take, about. Speed and memory only.
        plan: A ready plan, instead of epsilon, delta, epochs, l2_clip and relation. Adaptive
            clipping and probes cost ε on top of it, unless `Plan.calibrate` was told (``beside``).
        store: Name of the records, which the ledger is bound to.
        relation: ``zero_out`` (the default) or ``replace_one``; add_remove needs a plan with a
            declared n.
        sensitive: Whether unprotected use must be forced.
        run: Name of this run in the ledger; name a run of before to go on with its budget.
        insecure_seed: Reproducible noise for debugging. NOT PRIVATE: charged as ε = ∞, and refused
            on sensitive records unless ``force``.
        lease: Releases charged per ledger write; by default 64, fewer for short plans. What is
            left of the last one stays charged when the process ends.
        noise_pool: Make noise ahead on a thread of its own; changes speed only. Worth it for large
            models on machines with an idle core.
        force: See ``insecure_seed``.

    Returns:
        ``(step, loader)``.

    Raises:
        ConfigError: Options are missing, contradict each other or are out of range.
        ModelError: A layer mixes examples, or the optimizer is not the model's.
        SamplingError: The loader cannot be sampled as Poisson.
        LedgerError: The ledger belongs to other records, or is damaged.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(500, 4), torch.randint(0, 2, (500,)))
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> step, loader = make_private(
        ...     model, optimizer, DataLoader(data, batch_size=50),
        ...     loss_fn=torch.nn.CrossEntropyLoss(),
        ...     ledger=Path(tempfile.mkdtemp()) / "ledger.sqlite",
        ...     epsilon=3.0, delta=1e-5, epochs=1,
        ... )
        >>> for batch in loader:
        ...     metrics = step(batch)
        >>> metrics.step
        10
    """
    check_model(model)
    check_loader(loader)
    loss = per_example(loss_fn)
    _check_clipping(clipping)
    beside = _Beside.of(clipping, precision)
    budget = {"epsilon": epsilon, "delta": delta, "l2_clip": l2_clip}
    promise = _promise(plan, loader, budget, epochs=epochs, relation=relation, beside=beside)
    entropy: Entropy = OsEntropy() if insecure_seed is None else InsecureSeed(insecure_seed)
    book = _open(ledger, store, promise, sensitive)
    _check_released(loader.dataset, book)
    reason = None
    if not entropy.secret:
        reason = unprotected(book, f"insecure seed {insecure_seed}", force=force)
    account = Account(book, run or uuid.uuid4().hex, promise, lease=lease, insecure=reason)
    controller = controller_over(
        loader,
        beside.dynamic,
        model=model,
        loss_fn=loss,
        account=account,
        entropy=entropy,
        epsilon=epsilon,
    )
    step = PrivateStep(
        model,
        optimizer,
        loss_fn=loss if controller is None else controller.loss,
        precision=controller,
        account=account,
        entropy=entropy,
        style=None if isinstance(clipping, AdaptiveClip) else clipping,
        adaptive=_adaptive(beside.adaptive, loader, account, entropy),
        microbatch_size=microbatch_size,
        memory_limit=memory_limit,
        noise_pool=noise_pool,
    )
    records = len(loader.dataset)  # type: ignore[arg-type]
    sampler = PoissonSampler(records, promise.sampling_rate, entropy.stream("sampling"))
    return step, poisson_loader(loader, sampler)


@dataclass(frozen=True)
class _Beside:
    """What makes releases of its own."""

    adaptive: AdaptiveClip | None
    dynamic: Dynamic | None

    @classmethod
    def of(cls, clipping: object, precision: object) -> _Beside:
        """Return what was asked for."""
        return cls(
            clipping if isinstance(clipping, AdaptiveClip) else None,
            None if precision is None else Dynamic.of(precision),
        )


def _adaptive(
    clip: AdaptiveClip | None, loader: DataLoader[Any], account: Account, entropy: Entropy
) -> AdaptiveBound | None:
    if clip is None:
        return None
    rate = account.plan.sampling_rate
    draw = quantile_samples(loader.dataset, rate, entropy, collate=loader.collate_fn)
    return AdaptiveBound(clip, account, draw, entropy)


def _promise(
    plan: Plan | None,
    loader: DataLoader[Any],
    budget: Mapping[str, float | None],
    *,
    epochs: int | None,
    relation: str | None,
    beside: _Beside,
) -> Plan:
    """Return the plan that was given, or the one for the budget."""
    _refuse_beside(plan, epochs=epochs, relation=relation, **budget)
    promise = plan or _plan(loader, budget, epochs, _relation(relation or "zero_out"), beside)
    _check_records(promise, len(loader.dataset), _unit(loader.dataset))  # type: ignore[arg-type]
    return promise


def _plan(
    loader: DataLoader[Any],
    budget: Mapping[str, float | None],
    epochs: int | None,
    relation: Relation,
    others: _Beside,
) -> Plan:
    epsilon, delta, l2_clip = budget["epsilon"], budget["delta"], budget["l2_clip"]
    if epsilon is None or delta is None or epochs is None:
        raise ConfigError(
            expected="epsilon, delta and epochs, or a plan",
            got=f"epsilon={epsilon}, delta={delta}, epochs={epochs}",
            fix="say what to promise, for instance epsilon=3.0, delta=1e-6, epochs=5",
        )
    if epochs < 1:
        raise ConfigError(expected="epochs of at least 1", got=str(epochs), fix="raise epochs")
    records = len(loader.dataset)  # type: ignore[arg-type]
    if records < 1:
        raise ConfigError(
            expected="a data set with records", got="an empty one", fix="check the data set"
        )
    batch_size = loader.batch_size or 1
    size: dict[str, int] = {
        "records": records,
        "batch_size": batch_size,
        "steps": epochs * math.ceil(records / batch_size),
    }
    beside: tuple[tuple[Event, int], ...] = ()
    if batch_size <= records and epsilon > 0.0:  # else calibrating says so
        if others.adaptive is not None:
            beside += others.adaptive.beside(**size)
        if others.dynamic is not None:
            beside += others.dynamic.beside(epsilon=epsilon, delta=delta, relation=relation, **size)
    return Plan.calibrate(
        epsilon=epsilon,
        delta=delta,
        l2_clip=1.0 if l2_clip is None else l2_clip,
        relation=relation,
        unit=_unit(loader.dataset),
        beside=beside,
        **size,
    )


def _refuse_beside(plan: Plan | None, **given: float | str | None) -> None:
    named = [name for name, value in given.items() if value is not None]
    if plan is not None and named:
        raise ConfigError(
            expected="either a plan or epsilon, delta, epochs, l2_clip and relation",
            got=f"a plan and {', '.join(named)}",
            fix=f"leave {named[0]} out: the plan says what is promised",
        )


def _check_clipping(clipping: object) -> None:
    """Refuse what is neither a style nor adaptive clipping, such as a name or a class.

    Raises:
        ConfigError: Names what can be passed.
    """
    if clipping is None or isinstance(clipping, AdaptiveClip):
        return
    if isinstance(clipping, type) or not isinstance(clipping, Style):
        name = clipping.__name__ if isinstance(clipping, type) else repr(clipping)
        raise ConfigError(
            expected="a style of clipping: Flat(), Automatic(), PerLayer() or AdaptiveClip()",
            got=f"the class {name}" if isinstance(clipping, type) else name,
            fix="pass an instance, such as clipping=Automatic()",
        )


def _unit(dataset: Any) -> Unit:
    """Return what an item of a data set stands for: a record, unless it says a person."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return Unit.PERSON if getattr(dataset, "unit", "record") == "person" else Unit.RECORD


def _check_released(dataset: Any, ledger: Ledger) -> None:
    """Refuse a store whose constants were released at another account's cost, or at none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, StoreDataset):
        require_charged(dataset.store.task, ledger)


def _check_records(plan: Plan, records: int, unit: Unit) -> None:
    if plan.unit is not unit:
        raise ConfigError(
            expected=f"a plan with unit {unit}, which an item of the data set stands for",
            got=f"unit {plan.unit}",
            fix="plan with unit record; or give a data set whose items are persons and that says "
            'so by an attribute unit = "person", as the StoreDataset of a table with persons does',
        )
    if plan.relation is not Relation.ADD_REMOVE and plan.records != records:
        raise ConfigError(
            expected=f"a plan for this data set's {records} records",
            got=f"one for {plan.records}",
            fix="plan with records=len(dataset), the training part alone",
        )


def _relation(name: str) -> Relation:
    if name not in {"zero_out", "replace_one"}:
        raise ConfigError(
            expected="relation zero_out or replace_one",
            got=repr(name),
            fix="name one of them; add_remove needs a plan with a declared number of records",
        )
    return Relation(name)


def _open(ledger: str | Path | Ledger, store: str, plan: Plan, sensitive: bool) -> Ledger:
    if isinstance(ledger, Ledger):
        ledger.require_kind(plan.unit, plan.relation, sensitive=sensitive)
        return ledger
    return Ledger.create(
        Path(ledger), store=store, unit=plan.unit, relation=plan.relation, sensitive=sensitive
    )
