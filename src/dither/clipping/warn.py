"""What costs more than it need."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from dither.errors import DitherWarning


def warn_of_slow(
    slow: Iterable[tuple[str, tuple[str, ...]]],
    warned: set[tuple[str, tuple[str, ...]]],
    parameters: Mapping[str, Tensor],
) -> None:
    """Tell, once each, of functions without a rule of their own.

    Args:
        slow: Functions with the parameters they took.
        warned: Those told of before; added to.
        parameters: Trainable parameters by name.
    """
    for function, names in sorted(set(slow) - warned):
        warned.add((function, names))
        size = sum(parameters[name].numel() for name in names)
        _warn(
            f"no rule for {function}, used with '{', '.join(names)}': torch.func computes it "
            f"again and writes out {size} numbers an example; dither.register_rule gives it a "
            "rule of its own"
        )


def warn_of_reference(model: nn.Module, why: str, size: int) -> None:
    """Tell that all per-example gradients are written out.

    Args:
        model: What book-keeping cannot take.
        why: The reason.
        size: Numbers an example.
    """
    _warn(
        f"book-keeping cannot take {type(model).__name__}: {why}. All its per-example "
        f"gradients come from torch.func instead: {size} numbers an example are written out, "
        "and a step takes several to many times as long"
    )


def _warn(text: str) -> None:
    warnings.warn(text, DitherWarning, stacklevel=2)
