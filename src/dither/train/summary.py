"""What a finished run says: ``summary.json`` (released), and the operator's lines (not)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dither.privacy.accountant import method
from dither.privacy.events import Event
from dither.train.adaptive import AdaptiveBound
from dither.train.run import FORMAT, Run, describe_store, peak_rss_bytes
from dither.train.setup import Parts
from dither.train.step import OperatorMetrics

_PARTS = ("sample", "gather", "clip", "release", "optimizer", "evaluate", "checkpoint")


def summarise(
    run: Run,
    parts: Parts,
    *,
    step: int,
    seconds: float,
    timing: Mapping[str, float],
    metrics: Mapping[str, float],
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
        "seconds": seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "records": describe_store(parts.store, parts.split, parts.ledger, run.plan)["records"],
        "timing": {**known, "other": other},
    }


def privacy_facts(run: Run, parts: Parts) -> dict[str, Any]:
    """Return what was promised and spent; ε is None where nothing is promised."""
    plan, account = run.plan, parts.account
    if plan is None or account is None:
        return {"epsilon": None, "delta": None, "guarantee": "none: trained without privacy"}
    epsilon = parts.ledger.epsilon(plan.delta, run.id)
    rdp = parts.ledger.epsilon_rdp(plan.delta, run.id)
    reason = account.insecure
    return {
        "epsilon": _finite(epsilon),
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
        "accountant": method([(plan.event, 1), *_beside(parts.adaptive)]),
        "guarantee": "(ε, δ)-DP" if reason is None else f"none: {reason}",
    }


def _beside(adaptive: AdaptiveBound | None) -> list[tuple[Event, int]]:
    return [] if adaptive is None else [(adaptive.account.plan.event, 1)]


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
