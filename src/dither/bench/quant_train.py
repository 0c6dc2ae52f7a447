"""One training of `dither bench quant`, through the same path as a user's: plan, ledger, step."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import TensorDataset

from dither.bench.quant_cases import DELTA, MOMENTUM, Case, Training
from dither.bench.quant_data import Parts, example_of, load
from dither.bench.quant_models import build
from dither.clipping.loss import PerExampleLoss, per_example
from dither.errors import DitherError, DitherWarning
from dither.files import write_json
from dither.noise.entropy import OsEntropy
from dither.precision.controller import Controller, make_controller
from dither.precision.options import Dynamic
from dither.precision.recipe import parse_recipe
from dither.precision.schedules import DpQuant, parse_schedule
from dither.privacy.account import Account
from dither.privacy.accountant import epsilon
from dither.privacy.events import Event
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.sampling.loader import PoissonBatch, PoissonLoader
from dither.sampling.poisson import PoissonSampler
from dither.train.plain import PlainStep
from dither.train.step import PrivateStep

_ROWS = 1000  # that are scored at a time
_SUBSETS = 1000  # seeds of choices apart for each seed of weights


@dataclass(frozen=True)
class Promise:
    """What the trainings of a case with one kind of schedule promise: found once, used by all.

    Attributes:
        plan: Of the gradients.
        probes: Of the probes; None for schedules without.
        epsilon: Of all of it.
        probe_epsilon: Of the probes alone.
        extra_epsilon: What the probes add to the gradients' ε.
    """

    plan: Plan
    probes: Plan | None
    epsilon: float
    probe_epsilon: float
    extra_epsilon: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        probes = None if self.probes is None else self.probes.to_json()
        return {**vars(self), "plan": self.plan.to_json(), "probes": probes}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Promise:
        """Rebuild it."""
        probes = None if values["probes"] is None else Plan.from_json(values["probes"])
        return cls(**{**values, "plan": Plan.from_json(values["plan"]), "probes": probes})


def promise(case: Case, *, probes: bool) -> Promise:
    """Return the plans that keep a case within ε, probes included where there are any.

    Args:
        case: The case.
        probes: Whether the schedule probes.
    """
    size: dict[str, Any] = {"records": case.records, "batch_size": case.batch_size}
    budget: dict[str, Any] = {**size, "epsilon": case.epsilon, "delta": DELTA, "steps": case.steps}
    if not probes:
        plan = Plan.calibrate(**budget, l2_clip=case.l2_clip)
        spent = plan.epsilon()
        return Promise(plan, None, spent, 0.0, 0.0)
    dynamic = replace(Dynamic.of("luq-fp4"), schedule=DpQuant(0.9), rotate_every=case.rotate_every)
    beside = dynamic.beside(**budget)
    plan = Plan.calibrate(**budget, l2_clip=case.l2_clip, beside=beside)
    probing = dynamic.probe_plan(plan, case.epsilon)
    gradients: list[tuple[Event, int]] = [(plan.event, plan.steps)]
    alone = epsilon(list(beside), DELTA, plan.relation)
    both = epsilon([*gradients, *beside], DELTA, plan.relation)
    return Promise(plan, probing, both, alone, both - plan.epsilon())


def stored_promise(case: Case, folder: Path, *, probes: bool) -> Path:
    """Write a case's promise, unless it is there; return the file.

    Args:
        case: The case.
        folder: Where it goes.
        probes: Whether the schedule probes.
    """
    kind = "probes" if probes else "plain"
    sizes = (case.epsilon, case.records, case.batch_size, case.steps, case.rotate_every)
    about = "-".join(f"{size:g}" for size in (*sizes, case.l2_clip))
    path = folder / f"promise-{about}-{kind}.json"
    if not path.is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DitherWarning)
            write_json(path, promise(case, probes=probes).to_json())
    return path


@dataclass(frozen=True)
class Job:
    """One training, and where it finds what it needs.

    Attributes:
        training: The settings.
        records: File of `quant_data.prepare`.
        promise: File of `stored_promise`; None without privacy.
        part: What the model is scored on, once, at the end.
    """

    training: Training
    records: Path
    promise: Path | None
    part: Literal["test", "held_out"] = "test"


def run(job: Job) -> dict[str, Any]:
    """Train and score one model on one thread; return a line of results.

    What goes wrong is told in the line, so that a study goes on.
    """
    torch.set_num_threads(1)
    head = {"key": job.training.key, "training": job.training.to_json(), "part": job.part}
    start, cpu = time.perf_counter(), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _train(job, load(job.records, job.training.case.records))
    except (DitherError, ArithmeticError, RuntimeError) as error:
        return {**head, "error": f"{type(error).__name__}: {error}"}
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {**head, **found, **times}


def _train(job: Job, parts: Parts) -> dict[str, Any]:
    training = job.training
    model = build(training.case.model, training.seed)
    if job.promise is None:
        told = _plain(training, model, parts)
    else:
        promised = Promise.from_json(json.loads(job.promise.read_text()))
        told = _private(training, model, parts, promised)
    return {"accuracy": accuracy(model, getattr(parts, job.part)), **told}


def _plain(training: Training, model: nn.Module, parts: Parts) -> dict[str, Any]:
    case = training.case
    controller = _controller(training, model, parts)
    step = PlainStep(
        model,
        _optimizer(training, model),
        loss_fn=_loss() if controller is None else controller.loss,
        expected_batch_size=float(case.batch_size),
    )
    for batch in _batches(training, parts):
        if controller is not None:
            controller.before_step()
        step(batch)
    return _precision(controller)


def _private(
    training: Training, model: nn.Module, parts: Parts, promised: Promise
) -> dict[str, Any]:
    with _account(promised.plan) as account:
        controller = _controller(training, model, parts, account, promised.probes)
        step = PrivateStep(
            model,
            _optimizer(training, model),
            loss_fn=_loss() if controller is None else controller.loss,
            precision=controller,
            account=account,
            entropy=OsEntropy(),
        )
        for batch in _batches(training, parts):
            step(batch)
        probe = None if controller is None else controller.probe
        charged = {
            "gradients": account.steps_charged,
            "probes": 0 if probe is None else probe.account.steps_charged,
        }
        told = _precision(controller)
    budget = {
        "epsilon": promised.epsilon,
        "probe_epsilon": promised.probe_epsilon,
        "extra_epsilon": promised.extra_epsilon,
        "noise_multiplier": promised.plan.noise_multiplier,
    }
    return {"charged": charged, **budget, **told}


@contextmanager
def _account(plan: Plan) -> Iterator[Account]:
    with TemporaryDirectory(prefix="dither-quant-") as name:
        ledger = Ledger.create(Path(name) / "ledger.sqlite", store="quant", sensitive=False)
        account = Account(ledger, "quant", plan)
        try:
            yield account
        finally:
            account.give_back()


def _controller(
    training: Training,
    model: nn.Module,
    parts: Parts,
    account: Account | None = None,
    probes: Plan | None = None,
) -> Controller | None:
    if training.schedule == "none":
        return None
    case = training.case
    dynamic = Dynamic(
        parse_recipe(training.recipe),
        schedule=parse_schedule(training.schedule, training.fraction),
        rotate_every=case.rotate_every,
        seed=training.seed * _SUBSETS + training.subset,
    )
    entropy = OsEntropy()
    rate = case.batch_size / case.records

    def draw() -> PoissonBatch:
        sampler = PoissonSampler(case.records, rate, entropy.stream("probe sampling"))
        return next(iter(PoissonLoader(parts.train, sampler, 1)))

    return make_controller(
        dynamic,
        model,
        _loss(),
        example_of(parts),
        records=case.records,
        batch_size=float(case.batch_size),
        steps=case.steps,
        account=account,
        probe_plan=probes,
        draw=draw,
        entropy=entropy,
    )


def _precision(controller: Controller | None) -> dict[str, Any]:
    """Return what ran in low precision: released and public values."""
    if controller is None:
        return {"compute": 0.0, "precision": None}
    told = controller.to_json()
    shares = [period["compute"] for period in told["periods"]]
    return {
        "compute": sum(shares) / len(shares),
        "precision": told,
        "probe_seconds": controller.probe_seconds,
    }


def _batches(training: Training, parts: Parts) -> PoissonLoader:
    case = training.case
    sampler = PoissonSampler(case.records, case.batch_size / case.records, OsEntropy())
    return PoissonLoader(parts.train, sampler, case.steps)


def _optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    rate = training.case.rates[training.optimizer]
    if training.optimizer == "dp-adam":
        return torch.optim.Adam(model.parameters(), lr=rate)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)


def _loss() -> PerExampleLoss:
    return per_example(nn.CrossEntropyLoss())  # type: ignore[return-value]


def accuracy(model: nn.Module, records: TensorDataset) -> float:
    """Return the share of records that the model is right about, in full precision.

    An output that is not finite is a wrong one.
    """
    right = 0
    x, y = records.tensors
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(y), _ROWS):
            logits = model(x[start : start + _ROWS])
            finite = torch.isfinite(logits).all(1)
            right += int(((logits.argmax(1) == y[start : start + _ROWS]) & finite).sum())
    model.train(was_training)
    return right / len(y)
