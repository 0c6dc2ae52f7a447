"""Book-keeping: one forward, one backward without parameter gradients (Bu et al. 2210.00038)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from dither.clipping.arithmetic import as_float
from dither.clipping.arrivals import Arrivals
from dither.clipping.capture import Capture, Tap, Target, check_unchanged, version_of
from dither.clipping.forms import Bags, Dense, Form, Rows, combined
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
from dither.clipping.later import Later
from dither.clipping.loss import by_rows, losses_of
from dither.clipping.reference import explain_backward
from dither.clipping.rules import (  # noqa: F401 - they register themselves
    attention,
    broadcast,
    convolution,
    embedding,
    linear,
    normalization,
    recurrent,
)
from dither.clipping.rules.generic import by_vmap
from dither.clipping.rules.registry import EXPANDERS, GUARDS, RULES
from dither.clipping.unsupported import UnsupportedError
from dither.errors import ModelError


def differentiate(
    model: nn.Module,
    loss_fn: Loss,
    chunk: Chunk,
    inventory: Inventory,
    arrivals: Arrivals | None = None,
) -> Gradients:
    """Return the per-example gradients of a chunk, written out only where that is cheapest.

    Each use of a parameter is seen as a function call with examples (`Capture`); the backward pass
    gives the gradients of the outputs of those calls and of nothing else; rules tell how the
    parameter's per-example gradients follow. Nothing is left on the parameters.

    Args:
        model: Its trainable parameters are differentiated.
        loss_fn: Per-example loss.
        chunk: The examples.
        inventory: Of the model.
        arrivals: Takes groups of parameters while the backward pass goes on, if it wants to: those
            are not in what is returned.

    Raises:
        UnsupportedError: A parameter is used in a way that cannot be split by example.
        AmbiguousError: This number of rows hides where the examples are.
        ModelError: Examples mix, or the loss gives no loss an example.
    """
    capture = Capture(
        inventory.parameters,
        inventory.constants,
        chunk.rows,
        workspace=None if inventory.lockstep else chunk.workspace,
        rules=RULES,
        guards=GUARDS,
        expanders=EXPANDERS,
        default=by_vmap,
        watch=None if arrivals is None else arrivals.watch,
        lockstep=inventory.lockstep,
    )
    try:
        with inventory.one_pass():
            return _differentiate(
                model, loss_fn, chunk, inventory, capture=capture, arrivals=arrivals
            )
    finally:
        capture.forget()
        if arrivals is not None:
            arrivals.forget()


def _differentiate(
    model: nn.Module,
    loss_fn: Loss,
    chunk: Chunk,
    inventory: Inventory,
    *,
    capture: Capture,
    arrivals: Arrivals | None,
) -> Gradients:
    watched = [*inventory.constants, *inventory.parameters.values()]
    versions = [version_of(tensor) for tensor in watched]
    with torch.enable_grad(), inventory.eagerly():
        with capture:
            found = losses_of(model, loss_fn, chunk.data)
        losses = by_rows(found, chunk.rows)
    if [version_of(tensor) for tensor in watched] != versions:
        _refuse_updates(model, watched, versions)
    if capture.strangers:
        _refuse_strangers(model, capture.strangers)
    if arrivals is not None and arrivals.start(capture.taps, losses):
        _backward(losses, capture.taps)
        arrivals.finish()
        return Gradients(forms={}, losses=losses.detach().double())
    gradients = _backward(losses, capture.taps)
    if capture.put_off is not None:
        raise capture.put_off
    check_unchanged(capture.taps)
    if inventory.lockstep is not None:
        _require_freed(capture)
    with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
        later = None if inventory.lockstep is None else losses.device
        forms = _forms(capture.taps, gradients, inventory.parameters, later=later)
    return Gradients(
        forms=forms,
        losses=losses.detach().double(),
        signature=tuple(tap.signature for tap in capture.taps),
        slow=tuple(capture.slow),
        bytes=_memory(forms, capture.taps),
        constants=capture.constants(),
        axes=frozenset((tap.layout.place, tap.beside) for tap in capture.taps),
    )


def _backward(losses: Tensor, taps: list[Tap]) -> list[Tensor | None]:
    if not taps or not losses.requires_grad:
        return [None] * len(taps)
    edges = [tap.edge for tap in taps]
    try:
        return list(torch.autograd.grad(losses.sum(), edges, allow_unused=True))
    except RuntimeError as error:
        raise explain_backward(error) from error


def _forms(
    taps: Iterable[Tap],
    gradients: list[Tensor | None],
    parameters: Mapping[str, Tensor],
    *,
    later: torch.device | None,
) -> dict[str, Form]:
    found: defaultdict[str, list[Form]] = defaultdict(list)
    for index, tap in enumerate(taps):
        gradient, gradients[index] = gradients[index], None
        if gradient is None:  # the loss does not depend on this use
            continue
        split = as_float(tap.layout.by_example(gradient))
        for target, make in tap.makers:
            made = Later(partial(make, split), later, split.nbytes) if later else make(split)
            for name, form in _by_parameter(target, made, parameters):
                found[name].append(form)
    return {name: _combined(forms, later) for name, forms in found.items()}


def _combined(forms: list[Form], later: torch.device | None) -> Form:
    if later is None or len(forms) == 1:
        return combined(forms)
    return Later(partial(combined, forms), later, sum(form.bytes for form in forms))


def _require_freed(capture: Capture) -> None:
    """Refuse what would read parameters after the backward pass, when they are not whole any more.

    Raises:
        UnsupportedError: It would.
    """
    if capture.slow:
        raise UnsupportedError(f"{capture.slow[0][0]} has no rule of its own")
    for tap in capture.taps:
        for target, _ in tap.makers:
            if not target.is_parameter and _reads_freed(target.tensor):
                raise UnsupportedError(
                    f"{tap.signature[0]} takes {' and '.join(target.names)} through a function "
                    "whose derivative reads them"
                )


def _reads_freed(made: Tensor) -> bool:
    """Return whether the graph of a tensor made of parameters holds one that is not whole now."""
    waiting, seen = [made.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        leaves = tree_leaves([*saved, *getattr(node, "saved_tensors", ())])
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel()]
        if any(tensor.untyped_storage().size() == 0 for tensor in tensors):
            return True
        waiting += [before for before, _ in node.next_functions]
    return False


def _by_parameter(
    target: Target, form: Form, parameters: Mapping[str, Tensor]
) -> Iterable[tuple[str, Form]]:
    """Carry the gradients of a tensor made of parameters back to them."""
    if target.is_parameter:
        return [(target.names[0], form)]
    shape = target.tensor.shape
    written = form.dense().view(-1, *shape).to(target.tensor.dtype)
    found = _pulled_back(target.tensor, [parameters[name] for name in target.names], written)
    return [
        (name, Dense(as_float(gradient).flatten(1)))
        for name, gradient in zip(target.names, found, strict=True)
        if gradient is not None
    ]


def _pulled_back(
    tensor: Tensor, parameters: list[Tensor], gradients: Tensor
) -> list[Tensor | None]:
    """Return what gradients ``[rows, ...]`` of a tensor are for its parameters, row by row."""

    def pull(gradient: Tensor, *, batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            tensor,
            parameters,
            gradient,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )

    if not _is_written_in_python(tensor):
        return list(pull(gradients, batched=True))
    each = zip(*(pull(gradient, batched=False) for gradient in gradients), strict=True)
    return [
        None if rows[0] is None else torch.stack([row.to_dense() for row in rows]) for rows in each
    ]


def _is_written_in_python(tensor: Tensor) -> bool:
    """Return whether a `torch.autograd.Function` made it: those may draw, or know no batches."""
    waiting: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction):
            return True
        seen.add(node)
        waiting.extend(below for below, _ in node.next_functions)
    return False


def _memory(forms: Mapping[str, Form], taps: list[Tap]) -> int:
    """Return about how much is held: gradients, inputs, and as much again between them.

    Factors of products count twice: they are copied once more when they are weighted.

    It decides the size of chunks, so it follows shapes alone: how many rows of a table are touched
    depends on examples and does not count.
    """
    inputs = 2 * sum(tensor.nbytes for tap in taps for tensor, _ in tap.inputs)
    written = [
        form.bytes if isinstance(form, Dense) else 2 * form.bytes
        for form in forms.values()
        if not isinstance(form, Rows | Bags)
    ]
    return sum(written) + inputs


def _refuse_strangers(model: nn.Module, strangers: list[Tensor]) -> None:
    """Refuse parameters that came after the model was listed; others' parameters may pass."""
    foreign = {id(parameter) for parameter in strangers}
    names = [n for n, p in model.named_parameters() if p.requires_grad and id(p) in foreign]
    if names:
        raise ModelError(
            expected="the parameters that the model had when its engine was made",
            got=f"others at {', '.join(names[:3])}",
            fix="make the step anew after changing the model",
        )


def _refuse_updates(model: nn.Module, watched: list[Tensor], versions: list[int]) -> None:
    changed = {
        id(tensor)
        for tensor, version in zip(watched, versions, strict=True)
        if version_of(tensor) != version
    }
    named = [*model.named_buffers(), *model.named_parameters()]
    names = [name for name, tensor in named if id(tensor) in changed]
    raise ModelError(
        expected="no buffers or parameters that records update",
        got=f"a forward pass that changes {', '.join(names[:3])}",
        fix="update them outside of forward, from released or public values",
    )
