"""dither: train on sensitive records, private by proof, distributed, and fast.

All public names are listed here and load on first use, so that ``dither --help`` need not wait for
PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    # Promises and their account
    "Plan": "dither.privacy.plan",
    "Ledger": "dither.privacy.ledger",
    "Account": "dither.privacy.account",
    "Relation": "dither.privacy.events",
    "Unit": "dither.privacy.events",
    "Trust": "dither.privacy.trust",
    # The PyTorch user's door
    "make_private": "dither.train.door",
    "PrivateStep": "dither.train.step",
    "PoissonLoader": "dither.sampling.loader",
    # The pieces of a step
    "Clipping": "dither.clipping.clipping",
    "Flat": "dither.clipping.styles",
    "PerLayer": "dither.clipping.styles",
    "Automatic": "dither.clipping.styles",
    "AdaptiveClip": "dither.train.adaptive",
    "ModelLoss": "dither.clipping.loss",
    "clipped_sum": "dither.clipping.engine",
    "ClippingEngine": "dither.clipping.engine",
    "register_rule": "dither.clipping.rules.registry",
    "overridable": "dither.clipping.rules.registry",
    # Low precision
    "Dynamic": "dither.precision.options",
    "ProbeOptions": "dither.precision.probe",
    "DpQuant": "dither.precision.schedules",
    "Rotating": "dither.precision.schedules",
    "Static": "dither.precision.schedules",
    "Ramp": "dither.precision.schedules",
    "AllLayers": "dither.precision.schedules",
    "NoLayers": "dither.precision.schedules",
    "Recipe": "dither.precision.recipe",
    "parse_recipe": "dither.precision.recipe",
    "QuantizedLoss": "dither.precision.loss",
    "Layer": "dither.precision.layers",
    "find_layers": "dither.precision.layers",
    "measure_flops": "dither.precision.layers",
    "precision_mode": "dither.precision.mode",
    "make_controller": "dither.precision.controller",
    "Controller": "dither.precision.controller",
    # For writers of clipping rules
    "Capture": "dither.clipping.capture",
    "Call": "dither.clipping.capture",
    "find_layout": "dither.clipping.layout",
    "Form": "dither.clipping.forms",
    "Dense": "dither.clipping.forms",
    "Outer": "dither.clipping.forms",
    "over_time": "dither.clipping.forms",
    "BoundedSum": "dither.release.bounded_sum",
    "release_sum": "dither.release.release",
    # Sums over ranks
    "all_reduce": "dither.reduce.all_reduce",
    "close_all_reduce": "dither.reduce.all_reduce",
    "PrivateComm": "dither.reduce.private_comm",
    "PrivateReduce": "dither.reduce.private_reduce",
    "Promise": "dither.reduce.private_reduce",
    "Identity": "dither.reduce.protections.keys",
    "ClusterSecret": "dither.reduce.protections.keys",
    "Endpoint": "dither.reduce.endpoint",
    "SharedMemory": "dither.reduce.transports.shared_memory",
    "Mpi": "dither.reduce.transports.mpi",
    "TorchDistributed": "dither.reduce.transports.torch_distributed",
    "sum_over": "dither.reduce.algorithms.registry",
    "Masks": "dither.reduce.protections.masked",
    "Encryption": "dither.reduce.protections.encrypted",
    "clear_sum": "dither.reduce.unprotected",
    "encrypted_sum": "dither.reduce.unprotected",
    # Noise
    "rounded_gaussian": "dither.noise.rounded",
    "fill_rounded_gaussian": "dither.noise.rounded",
    "discrete_gaussian": "dither.noise.discrete",
    "OsEntropy": "dither.noise.entropy",
    "Key": "dither.noise.key",
    "FreshNoise": "dither.noise.pool",
    "NoisePool": "dither.noise.pool",
    "add_mask": "dither.noise.stream",
    "subtract_mask": "dither.noise.stream",
    "fill_gaussian": "dither.noise.gaussian",
    # Records
    "RecordStore": "dither.data.store",
    "StoreStream": "dither.data.store.stream",
    "build_store": "dither.data.build",
    "read_description": "dither.data.describe",
    "release_statistics": "dither.data.statistics",
    "load_task": "dither.data.statistics",
    # Whole runs, as the command line starts them
    "TrainConfig": "dither.config",
    "run_training": "dither.train.loop",
    "train_on_spark": "dither.train.distributed.spark",
    "write_report": "dither.report",
    # Errors
    "DitherError": "dither.errors",
    "DitherWarning": "dither.errors",
}

__version__ = "0.1.0"
__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604 - strings, all of them


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dither' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
