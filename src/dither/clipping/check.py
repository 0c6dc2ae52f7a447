"""Book-keeping against each example alone: rules and layouts are believed only once shown right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dither.clipping.batches import Batch
from dither.clipping.forms import Form
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
from dither.clipping.randomness import NoRandomness
from dither.clipping.reference import Look, look_alone
from dither.clipping.sums import Sum, Workspace
from dither.clipping.unsupported import UnsupportedError
from dither.errors import ModelError

EXAMPLES = 2
_SAME = 1e-4
# Of a parameter's gradient, and of the whole one; more where the model computes in bf16.
_TOLERANCE = (0.02, 1e-4)
_COARSE = (0.2, 0.02)
_NOTHING = 1e-12  # norms below count as zero: their squares underflow, and show nothing
_LEVELS = (0.01, 0.99)  # of random draws, in the one trial and in the other
_STARTS = 8  # places in a batch where examples with a gradient are looked for

Run: TypeAlias = Callable[[Chunk], Gradients]


@dataclass(frozen=True)
class Shown:
    """What a check has shown.

    Attributes:
        signatures: The ways in which parameters met examples.
        row_bytes: Memory that an example takes.
        slow: Functions without a rule, with their parameters.
    """

    signatures: frozenset[tuple[object, ...]]
    row_bytes: int
    slow: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Alone:
    """What a check remembers of one example by itself, by plain autograd.

    Attributes:
        size: Norm of the whole gradient.
        loss: Its loss.
    """

    size: float
    loss: float


# Shows the gradients of one example by itself; returns its loss.
Single: TypeAlias = Callable[[int, Look], Tensor]


@dataclass(frozen=True)
class Sight:
    """How an example's gradient of one parameter compares with plain autograd's.

    Attributes:
        measured: Norm by book-keeping.
        size: Norm by plain autograd.
        apart: Norm of the difference, or where one of both is not there, of the other.
    """

    measured: float
    size: float
    apart: float

    @classmethod
    def of(cls, form: Form | None, index: int, truth: Tensor | None) -> Sight:
        """Compare, for one example of a chunk."""
        measured = 0.0 if form is None else float(_norms(form)[index])
        truth = None if truth is None else truth.double()
        size = 0.0 if truth is None else float(truth.norm())
        if form is None or truth is None or not _finite(measured, size):
            return cls(measured, size, max(measured, size))
        total = Sum(truth, Workspace(), exact=True)
        pick = torch.zeros(_norms(form).shape[0], dtype=torch.float64, device=truth.device)
        pick[index] = 1.0
        form.masked(pick > 0).add_to(total, pick)
        found = total.result()
        found = found.to_dense() if found.is_sparse else found
        return cls(measured, size, max(float((found - truth).norm()), abs(measured - size)))

    def wrong(self, scale: float) -> bool:
        """Return whether they differ, beside a whole gradient of this norm."""
        own, whole = _COARSE if torch.is_autocast_enabled("cpu") else _TOLERANCE
        finite = _finite(self.measured, self.size)
        return finite and self.apart > own * self.size + whole * scale + _NOTHING


@dataclass(frozen=True)
class Marks:
    """What a check remembers of a chunk's gradients, which take far more memory.

    Attributes:
        losses: One an example.
        norms: By parameter, one an example.
        signature: The ways in which parameters met examples.
        slow: Functions without a rule, with their parameters.
        row_bytes: Memory that an example takes.
    """

    losses: Tensor
    norms: dict[str, Tensor]
    signature: tuple[object, ...]
    slow: tuple[tuple[str, tuple[str, ...]], ...]
    row_bytes: int

    @classmethod
    def of(cls, gradients: Gradients) -> Marks:
        """Take the marks of gradients."""
        return cls(
            losses=gradients.losses,
            norms={name: _norms(form) for name, form in gradients.forms.items()},
            signature=gradients.signature,
            slow=gradients.slow,
            row_bytes=max(1, gradients.bytes // gradients.losses.shape[0]),
        )


def show(
    run: Run,
    model: nn.Module,
    loss_fn: Loss,
    batch: Batch,
    *,
    inventory: Inventory,
    rows: int,
) -> Shown | None:
    """Compare book-keeping on a few examples with each of them alone.

    Twice, with another number of rows (what is not counted by examples cannot follow) and with
    random draws constant at another value.

    Args:
        run: Book-keeping.
        model: The model.
        loss_fn: Its loss.
        batch: Where the examples are taken from.
        inventory: Of the model.
        rows: Rows of the first trial.

    Returns:
        What was shown; None where no example tried has a finite gradient that is not zero, so that
        nothing could be.

    Raises:
        ModelError: Examples mix.
        UnsupportedError: Gradients differ.
    """
    failed: UnsupportedError | None = None
    for start in range(0, batch.rows, max(EXAMPLES, -(-batch.rows // _STARTS))):
        # Saturated examples have gradients of rounding noise; a wrong rule is wrong everywhere.
        try:
            shown = show_at(run, model, loss_fn, batch, inventory=inventory, rows=rows, start=start)
        except UnsupportedError as error:
            failed = failed or error
            continue
        if shown is not None:
            return shown
    if failed is not None:
        raise failed
    return None


def show_at(
    run: Run,
    model: nn.Module,
    loss_fn: Loss,
    batch: Batch,
    *,
    inventory: Inventory,
    rows: int,
    start: int,
) -> Shown | None:
    """Do what `show` does with the examples from ``start`` on, in at most eight passes."""

    def single(index: int, look: Look) -> Tensor:
        return look_alone(model, loss_fn, batch.chunk(index, index + 1, 1), inventory, look)

    trials = []
    seen = False
    for more, level in enumerate(_LEVELS):
        with NoRandomness(level):
            marks, known = _trial(run, single, batch, start, rows + more)
        trials.append(marks)
        seen = seen or _seen(marks, known)
    if not seen:
        return None
    first, second = trials
    return Shown(
        signatures=frozenset({first.signature, second.signature}),
        row_bytes=first.row_bytes,
        slow=first.slow,
    )


def _seen(marks: Marks, alone: list[Alone]) -> bool:
    """Return whether there was a gradient to compare."""
    sizes = [one.size for one in alone]
    sizes += [float(norms[: len(alone)].max()) for norms in marks.norms.values()]
    return any(_NOTHING < size < float("inf") for size in sizes)


def _trial(
    run: Run, single: Single, batch: Batch, start: int, rows: int
) -> tuple[Marks, list[Alone]]:
    chunk = batch.chunk(start, start + rows, rows)
    marks, known, wrong = _compared(run(chunk), single, start, min(EXAMPLES, chunk.real))
    others = Marks.of(run(exchanged(chunk, slice(EXAMPLES, None))))
    _compare(marks, others, range(len(known)))
    _check_losses(marks, known)
    if wrong is not None:
        raise UnsupportedError(f"book-keeping and plain autograd disagree at '{wrong}'")
    return marks, known


def _compared(
    gradients: Gradients, single: Single, start: int, count: int
) -> tuple[Marks, list[Alone], str | None]:
    """Compare with examples alone, one after the other; the gradients themselves end here."""
    known = []
    wrong = None
    for index in range(count):
        sights: dict[str, Sight] = {}

        def look(name: str, truth: Tensor, index: int = index, to: Any = sights) -> None:
            to[name] = Sight.of(gradients.forms.get(name), index, truth)

        loss = single(start + index, look)
        size = math.hypot(*(sight.size for sight in sights.values()))
        for name in gradients.forms.keys() - sights.keys():
            sights[name] = Sight.of(gradients.forms[name], index, None)
        known.append(Alone(size, float(loss)))
        wrong = wrong or disagreement(sights, size)
    return Marks.of(gradients), known, wrong


def _check_losses(gradients: Marks, alone: list[Alone]) -> None:
    for index, example in enumerate(alone):
        together, apart = float(gradients.losses[index]), example.loss
        if _finite(together, apart) and abs(together - apart) > 1e-6 + 0.05 * (
            abs(together) + abs(apart)
        ):
            raise ModelError(
                expected="losses that depend neither on the rest nor on the size of the batch",
                got=f"{apart:.4g} for an example alone and {together:.4g} in "
                f"{gradients.losses.shape[0]} rows",
                fix="do not divide by the number of examples (the step divides by the expected "
                "one), and take out what looks across the batch",
            )


def check_whole(run: Run, chunk: Chunk) -> None:
    """Exchange each half of a whole chunk and see that the other half stays as it was.

    Some models mix examples only in larger batches, or only forward.

    Args:
        run: Book-keeping.
        chunk: As it is.

    Raises:
        ModelError: Losses change.
        UnsupportedError: Gradients do.
    """
    if chunk.real < 2:
        return
    half = chunk.real // 2
    with NoRandomness(0.01):
        marks = Marks.of(run(chunk))
        for changed, same in (
            (slice(half, None), range(half)),
            (slice(0, half), range(half, chunk.real)),
        ):
            _compare(marks, Marks.of(run(exchanged(chunk, changed))), same)


def check_losses(losses: Callable[[Chunk], Tensor], chunk: Chunk) -> None:
    """Exchange each half of a chunk and see that the losses of the other half stay as they were.

    Args:
        losses: Gives one an example, without gradients.
        chunk: As it is.

    Raises:
        ModelError: They do not.
    """
    half = chunk.real // 2
    if not half:
        return
    with NoRandomness(_LEVELS[0]):
        found = losses(chunk)
        for changed, same in (
            (slice(half, None), slice(0, half)),
            (slice(0, half), slice(half, chunk.real)),
        ):
            if _differ(found[same], losses(exchanged(chunk, changed))[same]):
                raise _mixing()


def exchanged(chunk: Chunk, rows: slice) -> Chunk:
    """Return the chunk with copies of another example in place of some rows."""
    source = 0 if rows.start else min(chunk.real, chunk.rows) - 1

    def changed(leaf: Tensor) -> Tensor:
        copy = leaf.clone()
        copy[rows] = leaf[source]
        return copy

    return replace(chunk, data=tree_map(changed, chunk.data))


def _compare(gradients: Marks, others: Marks, examples: range) -> None:
    """Refuse a model whose results for these examples change with the rest of the chunk.

    Shapes are the same, so results must be too, to the last bit where kernels treat rows alike; a
    little room is left for those that do not.

    Raises:
        ModelError: Losses change.
        UnsupportedError: Only gradients do, perhaps because examples were looked for on a wrong
            axis.
    """
    picked = torch.tensor(list(examples), device=gradients.losses.device)
    if not picked.numel():
        return
    if _differ(gradients.losses[picked], others.losses[picked]):
        raise _mixing()
    for name in gradients.norms.keys() & others.norms.keys():
        if _differ(gradients.norms[name][picked], others.norms[name][picked]):
            raise UnsupportedError(
                f"an example's gradient at '{name}' changes with the rest of its batch"
            )


def _mixing() -> ModelError:
    return ModelError(
        expected="a model and a loss that treat every example by itself",
        got="another loss for an example when the rest of its batch changes",
        fix="take out what looks across the batch: statistics, a mean over it, routing "
        "by capacity, contrastive terms",
    )


def _differ(one: Tensor, other: Tensor) -> bool:
    finite = torch.isfinite(one) & torch.isfinite(other)
    apart = (one - other).abs()[finite]
    # Gradients that are rounding noise may differ.
    allowed = _SAME * (one.abs() + other.abs())[finite]
    scale = torch.cat([one[finite].abs(), one.new_zeros(1)]).max()
    return bool((apart > allowed + _SAME * 0.1 * scale).any())


def _norms(form: Form) -> Tensor:
    return torch.stack([length.double() for length in form.lengths()]).prod(0)


def disagreement(sights: Mapping[str, Sight], size: float) -> str | None:
    """Return where book-keeping differs from an example alone, None where it does not.

    Args:
        sights: By parameter.
        size: The norm of the whole gradient.
    """
    return next((name for name in sorted(sights) if sights[name].wrong(size)), None)


def _finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)
