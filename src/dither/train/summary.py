"""What a finished run says: ``summary.json`` (released), and the operator's lines (not)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dither.memory import resident
from dither.precision.controller import Controller
from dither.precision.kernels import described
from dither.privacy.accountant import epsilon, method
from dither.train.adaptive import AdaptiveBound
from dither.train.base_step import OperatorMetrics
from dither.train.run import FORMAT, Run, describe_store
from dither.train.setup import Parts

_PARTS = ("sample", "gather", "clip", "release", "optimizer", "evaluate", "checkpoint")


def summarise(
    run: Run,
    parts: Parts,
    *,
    step: int,
    seconds: float,
    timing: Mapping[str, float],
    metrics: Mapping[str, float],
    ranks: int = 1,
) -> dict[str, Any]:
    """Return the released summary; ε is recomputed from the ledger alone."""
    charged = 0 if parts.account is None else parts.account.steps_charged
    known = {name: timing.get(name, 0.0) for name in _PARTS}
    other = max(0.0, seconds - sum(known.values()))
    return {
        "format": FORMAT,
        "finished": True,
        "private": parts.account is not None and parts.account.insecure is None,
        "steps": {
            "planned": run.config.steps,
            "taken": step,
            "charged": charged,
            "lost": max(0, charged - step),
        },
        "metrics": dict(metrics),
        "privacy": privacy_facts(run, parts),
        "ranks": ranks,
        "seconds": seconds,
        "peak_rss_bytes": resident().peak,
        "records": describe_store(parts.store, parts.split, parts.ledger, run.plan)["records"],
        "timing": {**known, "other": other},
        **({} if parts.precision is None else {"precision": precision_facts(parts.precision)}),
    }


def precision_facts(precision: Controller) -> dict[str, Any]:
    """Return how much ran in low precision: means over the periods that were begun."""
    shares = [precision.shares(period.chosen) for period in precision.history]
    return {
        "recipe": precision.dynamic.recipe.name,
        "kernels": described(precision.dynamic.recipe),
        "schedule": precision.dynamic.schedule.kind,
        "periods": len(shares),
        **{
            f"quantized_{of}": math.fsum(share[of] for share in shares) / max(1, len(shares))
            for of in ("compute", "layers")
        },
        "probe_seconds": precision.probe_seconds,
    }


def privacy_facts(run: Run, parts: Parts) -> dict[str, Any]:
    """Return what was promised and spent; ε is None where nothing is promised."""
    plan, account = run.plan, parts.account
    if plan is None or account is None:
        return {"epsilon": None, "delta": None, "guarantee": "none: trained without privacy"}
    spent = parts.ledger.epsilon(plan.delta, run.id)
    rdp = parts.ledger.epsilon_rdp(plan.delta, run.id)
    reason = account.insecure
    return {
        "epsilon": _finite(spent),
        "delta": plan.delta,
        "rdp_epsilon": None if rdp is None else _finite(rdp),
        "relation": str(plan.relation),
        "unit": str(plan.unit),
        "trust": str(plan.trust),
        "sampler": str(plan.sampler),
        "sampling_rate": plan.sampling_rate,
        "noise_multiplier": plan.noise_multiplier,
        "l2_clip": plan.l2_clip,
        "clipping": run.config.clipping,
        **_quantile(parts.adaptive),
        **_probe(parts, spent),
        "accountant": method([(account.plan.event, 1) for account in parts.accounts]),
        "guarantee": "(ε, δ)-DP" if reason is None else f"none: {reason}",
    }


def _probe(parts: Parts, spent: float) -> dict[str, Any]:
    """Return what probes cost: ε of all of them alone, as charged, and its share of the run's."""
    probe = None if parts.precision is None else parts.precision.probe
    if probe is None:
        return {}
    plan, charged = probe.account.plan, probe.account.steps_charged
    alone = epsilon([(plan.event, charged)], plan.delta, plan.relation)
    return {
        "probe": {
            "noise_multiplier": plan.noise_multiplier,
            "l2_clip": plan.l2_clip,
            "planned": plan.steps,
            "charged": charged,
            "epsilon": _finite(alone),
            "share": alone / spent if 0.0 < spent < math.inf else None,
        }
    }


def _quantile(adaptive: AdaptiveBound | None) -> dict[str, Any]:
    if adaptive is None:
        return {}
    plan = adaptive.account.plan
    return {
        "clip_bound": adaptive.bound,
        "quantile": {
            "target": adaptive.clip.quantile,
            "noise_multiplier": plan.noise_multiplier,
            "planned": plan.steps,
            "charged": adaptive.account.steps_charged,
        },
    }


def operator_line(step: int, operator: OperatorMetrics) -> dict[str, Any]:
    """Return one line of ``private/training.jsonl``."""
    found = operator.diagnostics
    size = max(1, found.batch_size - found.non_finite)
    return {
        "step": step,
        "loss": _finite(found.loss),
        "batch_size": found.batch_size,
        "saturated": operator.saturated,
        "non_finite": found.non_finite,
        "clipped_fraction": found.clipped / size,
        "norm_histogram": found.norm_counts.tolist(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
