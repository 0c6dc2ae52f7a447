"""What PyTorch says of itself and the machine: a program of its own, which may die of it.

Prints one line of JSON last on standard output.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any


def facts() -> dict[str, Any]:
    """Return version, threads, processor and graphics card."""
    import torch  # noqa: PLC0415 - what is tried here

    from dither.precision.capability import processor  # noqa: PLC0415 - loads PyTorch

    found = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "sum": float(torch.ones(256).sum()),
        "onednn": bool(torch._C._has_mkldnn),  # noqa: SLF001
        "cuda_build": torch.version.cuda,
        "processor": _said(processor("cpu")),
        "cuda": None,
    }
    if torch.cuda.is_available():
        found["cuda"] = {**_said(processor("cuda")), "bytes": torch.cuda.mem_get_info()[1]}
    return found


def _said(found: Any) -> dict[str, Any]:
    return {**asdict(found), "described": found.described()}


if __name__ == "__main__":
    print(json.dumps(facts()))  # noqa: T201 - its one answer
