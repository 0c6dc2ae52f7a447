"""`dither plan`."""

from __future__ import annotations

import json
import math

from dither.config import PlanConfig
from dither.errors import ConfigError
from dither.privacy.events import Relation
from dither.privacy.plan import Plan


def run(config: PlanConfig) -> None:
    """Print the plan: noise for a budget, or the budget that noise costs."""
    plan = make_plan(config)
    epsilon, rdp = plan.epsilon(), plan.epsilon_rdp()
    if config.json:
        facts = {
            "plan": plan.to_json(),
            "epsilon": epsilon,
            "epsilon_rdp": rdp,
            "digest": plan.digest(),
        }
        print(json.dumps(facts, indent=1))
        return
    print(f"(ε, δ)            ({epsilon:.4f}, {plan.delta:g})  RDP cross-check: {_number(rdp)}")
    print(f"noise multiplier  {plan.noise_multiplier:.4f} on sums clipped to {plan.l2_clip:g}")
    print(f"sampling          Poisson, rate {plan.sampling_rate:.6g}")
    print(f"steps             {plan.steps} ({plan.steps * plan.sampling_rate:.2f} epochs)")
    print(f"unit, relation    {plan.unit}, {plan.relation}; trust {plan.trust}")
    print("\nsteps      ε")
    for tenth in range(1, 11):
        steps = max(1, plan.steps * tenth // 10)
        print(f"{steps:<8} {plan.epsilon(steps):8.4f}")


def make_plan(config: PlanConfig) -> Plan:
    """Return the plan of these options.

    Raises:
        ConfigError: Options are missing, contradict each other, or are out of range.
    """
    _one_of("--epsilon", config.epsilon, "--noise-multiplier", config.noise_multiplier)
    _one_of("--steps", config.steps, "--epochs", config.epochs)
    if not 1 <= config.batch_size <= config.records:
        raise ConfigError(
            expected=f"a --batch-size in [1, {config.records}], so a sampling rate up to 1",
            got=str(config.batch_size),
            fix="lower it, or correct --records",
        )
    if config.epochs is not None and not 0.0 < config.epochs < 1e9:
        raise ConfigError(
            expected="--epochs above 0", got=repr(config.epochs), fix="choose for instance 3"
        )
    rate = config.batch_size / config.records
    steps = config.steps if config.steps is not None else math.ceil((config.epochs or 0) / rate)
    relation = Relation(config.relation)
    if config.epsilon is not None:
        return Plan.calibrate(
            epsilon=config.epsilon,
            records=config.records,
            batch_size=config.batch_size,
            steps=steps,
            delta=config.delta,
            l2_clip=config.l2_clip,
            relation=relation,
        )
    return Plan(
        records=config.records,
        sampling_rate=rate,
        steps=steps,
        l2_clip=config.l2_clip,
        noise_multiplier=config.noise_multiplier or 0.0,
        delta=config.delta,
        relation=relation,
    )


def _one_of(first: str, one: object, second: str, other: object) -> None:
    if (one is None) == (other is None):
        raise ConfigError(
            expected=f"either {first} or {second}",
            got="neither" if one is None else "both",
            fix="give one of them",
        )


def _number(value: float | None) -> str:
    return "does not apply" if value is None else f"{value:.4f}"
