"""What every way of differentiating gives for one chunk of examples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from dither.clipping.arithmetic import LARGEST_NORM, TINY
from dither.clipping.forms import Form
from dither.clipping.layout import Place
from dither.clipping.leaks import held_tensors
from dither.clipping.lockstep import Lockstep
from dither.clipping.loss import ModelLoss, PerExampleLoss
from dither.clipping.sums import Workspace

Loss: TypeAlias = PerExampleLoss | ModelLoss


@dataclass(frozen=True)
class Chunk:
    """Examples that pass through the model together.

    Attributes:
        data: Batch structure with ``rows`` rows; those after ``real`` are padding.
        rows: Number of rows, the same for neighbouring data sets.
        real: Number of examples.
        workspace: Memory for gradients that are written out, until the next chunk; fresh memory
            without one.
    """

    data: Any
    rows: int
    real: int
    workspace: Workspace | None = None


@dataclass(frozen=True)
class Gradients:
    """Per-example gradients of a chunk.

    Attributes:
        forms: By name of trainable parameter; absent where no gradient reaches it.
        losses: One an example.
        signature: Which functions met which parameters, and where examples were found there.
        slow: Functions without a rule of their own, with the parameters they took.
        bytes: Memory held by the forms.
        constants: Identities of tensors seen on the way that no example touched.
        axes: Where examples were in outputs, with the size of the axis beside theirs.
    """

    forms: dict[str, Form]
    losses: Float64[Tensor, " rows"]
    signature: tuple[object, ...] = ()
    slow: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bytes: int = 0
    constants: frozenset[int] = frozenset()
    axes: frozenset[tuple[Place, int]] = frozenset()


@dataclass(frozen=True)
class Inventory:
    """What a model is made of; listing it takes longer than a small layer.

    Attributes:
        parameters: Trainable parameters by name; tied ones once.
        constants: Buffers and frozen parameters.
        flags: Which parameters are trained: the list is old when these change.
        compiled: Whether parts of it are compiled.
        modules: All of its modules.
        lockstep: Makes layers whole while they compute, where they are not always.
    """

    parameters: dict[str, nn.Parameter]
    constants: tuple[Tensor, ...]
    flags: tuple[tuple[Tensor, bool], ...]
    compiled: bool
    modules: tuple[nn.Module, ...]
    lockstep: Lockstep | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Inventory:
        """List a model."""
        frozen = [p for p in model.parameters() if not p.requires_grad]
        return cls(
            parameters=trainable(model),
            constants=(*model.buffers(), *frozen, *held_tensors(model)),
            flags=tuple((p, p.requires_grad) for p in model.parameters()),
            compiled=is_compiled(model),
            modules=tuple(model.modules()),
        )

    @property
    def current(self) -> bool:
        """Whether the same parameters are trained as then."""
        return all(p.requires_grad is flag for p, flag in self.flags)

    @property
    def modes(self) -> tuple[bool, ...]:
        """Which modules are in training mode."""
        return tuple(module.training for module in self.modules)

    def one_pass(self) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass."""
        return nullcontext() if self.lockstep is None else self.lockstep.one_pass()

    def eagerly(self) -> AbstractContextManager[Any]:
        """Return a context in which compiled models run as they were written.

        Compiled code hides the functions that parameters go through (docs/decisions/0017).
        """
        return as_written(compiled=self.compiled)


def is_compiled(model: nn.Module) -> bool:
    """Return whether parts of a model are compiled."""
    return any(
        getattr(module, "_compiled_call_impl", None) or hasattr(module, "_orig_mod")
        for module in model.modules()
    )


def as_written(*, compiled: bool) -> AbstractContextManager[Any]:
    """Return a context in which compiled code runs as it was written, if there is any.

    Args:
        compiled: Whether there is; the compiler takes seconds to load.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return trainable parameters by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def squared_norms(
    gradients: Gradients, parameters: Mapping[str, Tensor], real: int | None = None
) -> tuple[dict[str, Float64[Tensor, " rows"]], Float64[Tensor, " rows"]]:
    """Return squared norms by parameter, zeros where no gradient reaches one, and their sum.

    Rows with a factor beyond float32's safe range are infinite.

    Args:
        gradients: Of a chunk.
        parameters: Trainable parameters.
        real: Number of examples; zeros behind them are not worth a second look.
    """
    zeros = torch.zeros_like(gradients.losses)
    squares = dict.fromkeys(parameters, zeros)
    if not gradients.forms:
        return squares, zeros
    lengths = _lengths(gradients.forms, wide=False)
    tiny = lengths < TINY
    if bool(tiny[..., :real].any()):
        # For these rows alone: one example must not change another's norm.
        lengths = torch.where(tiny, _lengths(gradients.forms, wide=True), lengths)
    # False for NaN: what is not known to be safe is left out.
    safe = torch.where(lengths <= LARGEST_NORM, lengths, torch.inf)
    products = (safe[0] * safe[1]).square_()
    squares.update(zip(gradients.forms, products.unbind(), strict=True))
    return squares, products.sum(0)


def _lengths(forms: Mapping[str, Form], *, wide: bool) -> Float64[Tensor, "2 forms rows"]:
    """Return two factors of each norm, the second one 1 where there is none."""
    pairs = [form.lengths(wide=wide) for form in forms.values()]
    ones = torch.ones_like(pairs[0][0])
    second = [pair[1] if len(pair) == 2 else ones for pair in pairs]
    return torch.stack([torch.stack([pair[0] for pair in pairs]), torch.stack(second)]).double()
