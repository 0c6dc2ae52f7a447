"""A run's low precision: moves it from layer to layer before steps, and remembers where it was."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dither.clipping.gradients import Loss
from dither.errors import CheckpointError, ConfigError
from dither.noise.entropy import Entropy
from dither.precision.impacts import Impacts
from dither.precision.kernels import described
from dither.precision.layers import measure_flops
from dither.precision.loss import QuantizedLoss
from dither.precision.options import Dynamic
from dither.precision.probe import Probe
from dither.precision.relation import check_relation
from dither.precision.schedules import Candidates
from dither.privacy.account import Account
from dither.privacy.plan import Plan
from dither.release.transport import Transport
from dither.sampling.loader import PoissonBatch

_DIGITS = 6  # of what a report shows


@final
@dataclass(frozen=True)
class Period:
    """One choice of layers; all of it is released or public.

    Attributes:
        step: Steps made before it.
        chosen: Layers in low precision, in the model's order.
        impacts: The average that the choice followed, one a layer; None without a new probe.
    """

    step: int
    chosen: tuple[str, ...]
    impacts: tuple[float, ...] | None = None


@final
class Controller:
    """Chooses a run's quantised layers, period by period. `make_controller` builds it.

    Guarantee: choices follow public seeds and what the probe released, so beside the probe's own
    events (``probe.account``) they cost nothing; and all ranks, which see the same released values,
    choose alike. Pass ``loss`` as the step's loss and the controller as its ``precision``.

    Args:
        dynamic: The options.
        loss: The run's loss with the layers that may be quantised.
        candidates: Those layers, with what they cost by ``dynamic.by``.
        compute: Forward multiply-adds of each layer per example, for reports.
        records: n, public.
        batch_size: Expected batch size.
        steps: Gradient steps of the whole run.
        seed: Of the choices; public, the same on all ranks.
        probe: For a schedule that follows the loss.
        gradients: The account of the gradients: without a step left no probe is made either.

    Raises:
        ConfigError: The schedule needs a probe and there is none.
    """

    def __init__(
        self,
        dynamic: Dynamic,
        loss: QuantizedLoss,
        candidates: Candidates,
        *,
        compute: Mapping[str, float],
        records: int,
        batch_size: float,
        steps: int,
        seed: int,
        probe: Probe | None = None,
        gradients: Account | None = None,
    ) -> None:
        if dynamic.schedule.probes and probe is None:
            raise ConfigError(
                expected="a charged probe for schedule dpquant, which follows the loss",
                got="none: nothing is promised here, and no loss is looked at without",
                fix="train privately, or use schedule random",
            )
        self.dynamic = dynamic
        self.loss = loss
        self.candidates = candidates
        self.seed = seed
        self.probe = probe if dynamic.schedule.probes else None
        self.probe_seconds = 0.0
        self.history: tuple[Period, ...] = ()
        self._compute = dict(compute)
        self._gradients = gradients
        self._period = dynamic.period(records=records, batch_size=batch_size)
        self._probe_every = dynamic.probe_period(records=records, batch_size=batch_size)
        self._periods = -(-steps // self._period)
        self._step = 0
        loss.choose(())

    @property
    def chosen(self) -> tuple[str, ...]:
        """Layers in low precision now, in the model's order; none before the first step."""
        return self.history[-1].chosen if self.history else ()

    @property
    def impacts(self) -> Impacts | None:
        """What probes released so far."""
        return None if self.probe is None else self.probe.impacts

    def before_step(self, transport: Transport | None = None) -> None:
        """Begin another period, if it is time: probe, choose. All ranks call it together.

        Once the plan's probes are used up, which happens early only where a crash lost some, the
        last average stays.

        Args:
            transport: Carries messages between ranks.

        Raises:
            ReduceError: There is no sum.
        """
        if self._step % self._period == 0:
            self._begin(transport)
        self._step += 1

    def _begin(self, transport: Transport | None) -> None:
        found = self._measure(transport)
        average = self.impacts
        chosen = self.dynamic.schedule.choose(
            self._step // self._period,
            self.candidates,
            seed=self.seed,
            periods=self._periods,
            impacts=average if average is not None and average.probes else None,
        )
        self.loss.choose(chosen)
        self.history += (Period(self._step, chosen, found),)

    def _measure(self, transport: Transport | None) -> tuple[float, ...] | None:
        """Probe if it is time; return the new average."""
        probe, paying = self.probe, self._gradients
        if probe is None or self._step % self._probe_every or probe.steps_left < 1:
            return None
        if paying is not None and paying.steps_left < 1:
            return None
        start = time.perf_counter()
        values = probe.release(transport).values
        self.probe_seconds += time.perf_counter() - start
        return values

    def shares(self, names: tuple[str, ...]) -> dict[str, float]:
        """Return the part of all layers and of all compute that these layers are."""
        whole = sum(self._compute.values())
        part = sum(self._compute[name] for name in names)
        return {
            "layers": len(names) / len(self.candidates.names),
            "compute": part / whole if whole else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """Return plain JSON values for a checkpoint: released and public ones."""
        index = {name: number for number, name in enumerate(self.candidates.names)}
        return {
            "step": self._step,
            "seed": self.seed,
            "layers": list(self.candidates.names),
            "impacts": None if self.impacts is None else self.impacts.to_json(),
            "history": [
                [period.step, [index[name] for name in period.chosen], _rounded(period.impacts)]
                for period in self.history
            ],
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: with its seed, average and choice.

        Raises:
            CheckpointError: It is of another model, or damaged.
        """
        names = self.candidates.names
        try:
            known = tuple(state["layers"]) == names
            history = tuple(
                Period(int(step), tuple(names[i] for i in chosen), None if v is None else tuple(v))
                for step, chosen, v in (state["history"] if known else ())
            )
            step, seed = int(state["step"]), int(state["seed"])
            impacts = None if state["impacts"] is None else Impacts.from_json(state["impacts"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                expected="the schedule of this run's layers",
                got=f"{type(error).__name__}: {error}",
                fix="resume with the options that the run was started with",
            ) from error
        if not known:
            raise CheckpointError(
                expected=f"the schedule of this model's {len(names)} layers",
                got=f"that of {len(state['layers'])} others",
                fix="resume with the options that the run was started with",
            )
        self._step, self.seed, self.history = step, seed, history
        if self.probe is not None and impacts is not None:
            self.probe.impacts = impacts
        self.loss.choose(self.chosen)

    def to_json(self) -> dict[str, Any]:
        """Return the run's choices as a report shows them: released and public values."""
        state = self.state()
        return {
            "recipe": self.dynamic.recipe.name,
            "kernels": described(self.dynamic.recipe),
            "schedule": self.dynamic.schedule.kind,
            "by": self.dynamic.by,
            "rotate_every": self._period,
            "probe_every": self._probe_every if self.probe is not None else None,
            "layers": state["layers"],
            "costs": [self._compute[name] for name in self.candidates.names],
            "periods": [
                {
                    "step": period.step,
                    "chosen": chosen,
                    "impacts": impacts,
                    **self.shares(period.chosen),
                }
                for period, (_, chosen, impacts) in zip(self.history, state["history"], strict=True)
            ],
        }


def make_controller(
    dynamic: Dynamic,
    model: nn.Module,
    loss_fn: Loss,
    example: Any,
    *,
    records: int,
    batch_size: float,
    steps: int,
    account: Account | None = None,
    probe_plan: Plan | None = None,
    draw: Callable[[], PoissonBatch] | None = None,
    entropy: Entropy | None = None,
    seed: int | None = None,
    store: str | None = None,
) -> Controller:
    """Build a run's low precision.

    Args:
        dynamic: The options.
        model: Its layers may be quantised; it is not changed.
        loss_fn: Per-example loss.
        example: A batch, of which only types and the shape of one row are used: none will do.
        records: n, public.
        batch_size: Expected batch size.
        steps: Gradient steps of the whole run.
        account: The run that pays; None without privacy.
        probe_plan: ``dynamic.probe_plan(...)``.
        draw: Gives a fresh Poisson sample of this rank's records, at the plan's rate: with a
            sampler of its own.
        entropy: Source of the probe's noise and rounding.
        seed: Of the choices, the same on all ranks; ``dynamic.seed`` or a fresh one by default.
        store: Content hash of the records, as for `Account`.

    Raises:
        ConfigError: Under ``add_remove``; no layer can be quantised; or a probe without a plan.
        LedgerError: The run's probes are in the ledger with another plan.
    """
    loss = QuantizedLoss(loss_fn, model, dynamic.recipe)
    compute = measure_flops(model, loss_fn, _blank(example))
    names = tuple(layer.name for layer in loss.layers)
    even = dynamic.by == "layers"
    probe = None
    if account is not None:
        check_relation(account.plan.relation)
    if dynamic.schedule.probes and account is not None:
        if probe_plan is None or draw is None or entropy is None:
            raise ConfigError(
                expected="probe_plan, draw and entropy for a schedule that probes",
                got="not all of them",
                fix="pass probe_plan=dynamic.probe_plan(account.plan)",
            )
        part = account.part("probe", probe_plan, records=store)
        probe = Probe(model, loss, part, draw, entropy, options=dynamic.probe)
    return Controller(
        dynamic,
        loss,
        Candidates(names, tuple(1.0 if even else compute[name] for name in names)),
        compute=compute,
        records=records,
        batch_size=batch_size,
        steps=steps,
        seed=fresh_seed(dynamic) if seed is None else seed,
        probe=probe,
        gradients=account,
    )


def fresh_seed(dynamic: Dynamic) -> int:
    """Return the seed of a run's choices: the one that was given, or a fresh one."""
    return secrets.randbits(63) if dynamic.seed is None else dynamic.seed


def _blank(example: Any) -> Any:
    """Return a batch of one row, shaped as the example's, and none of its values."""

    def row(leaf: Any) -> Any:
        return leaf.new_zeros((1, *leaf.shape[1:])) if isinstance(leaf, Tensor) else leaf

    return tree_map(row, example)


def _rounded(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else [float(f"{value:.{_DIGITS}g}") for value in values]
