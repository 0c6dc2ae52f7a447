"""Book-keeping: one forward, one backward without parameter gradients (Bu et al. 2210.00038)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dither.clipping.arithmetic import as_float
from dither.clipping.capture import Capture, Tap, Target, check_unchanged, version_of
from dither.clipping.forms import Bags, Dense, Form, Rows, combined
from dither.clipping.gradients import Chunk, Gradients, Inventory, Loss
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
from dither.errors import ModelError


def differentiate(model: nn.Module, loss_fn: Loss, chunk: Chunk, inventory: Inventory) -> Gradients:
    """Return the per-example gradients of a chunk, written out only where that is cheapest.

    Each use of a parameter is seen as a function call with examples (`Capture`); the backward pass
    gives the gradients of the outputs of those calls and of nothing else; rules tell how the
    parameter's per-example gradients follow. Nothing is left on the parameters.

    Args:
        model: Its trainable parameters are differentiated.
        loss_fn: Per-example loss.
        chunk: The examples.
        inventory: Of the model.

    Raises:
        UnsupportedError: A parameter is used in a way that cannot be split by example.
        AmbiguousError: This number of rows hides where the examples are.
        ModelError: Examples mix, or the loss gives no loss an example.
    """
    capture = Capture(
        inventory.parameters,
        inventory.constants,
        chunk.rows,
        workspace=chunk.workspace,
        rules=RULES,
        guards=GUARDS,
        expanders=EXPANDERS,
        default=by_vmap,
    )
    try:
        return _differentiate(model, loss_fn, chunk, inventory, capture)
    finally:
        capture.forget()


def _differentiate(
    model: nn.Module, loss_fn: Loss, chunk: Chunk, inventory: Inventory, capture: Capture
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
    gradients = _backward(losses, capture.taps)
    check_unchanged(capture.taps)
    with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
        forms = _forms(capture.taps, gradients, inventory.parameters)
    return Gradients(
        forms=forms,
        losses=losses.detach().double(),
        signature=tuple(tap.signature for tap in capture.taps),
        slow=tuple(capture.slow),
        bytes=_memory(forms, capture.taps),
        constants=capture.constants(),
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
    taps: Iterable[Tap], gradients: list[Tensor | None], parameters: Mapping[str, Tensor]
) -> dict[str, Form]:
    found: defaultdict[str, list[Form]] = defaultdict(list)
    for index, tap in enumerate(taps):
        gradient, gradients[index] = gradients[index], None
        if gradient is None:  # the loss does not depend on this use
            continue
        split = as_float(tap.layout.by_example(gradient))
        for target, make in tap.makers:
            for name, form in _by_parameter(target, make(split), parameters):
                found[name].append(form)
    return {name: combined(forms) for name, forms in found.items()}


def _by_parameter(
    target: Target, form: Form, parameters: Mapping[str, Tensor]
) -> Iterable[tuple[str, Form]]:
    """Carry the gradients of a tensor made of parameters back to them."""
    if target.is_parameter:
        return [(target.names[0], form)]
    written = form.dense()
    found = torch.autograd.grad(
        target.tensor,
        [parameters[name] for name in target.names],
        written.view(-1, *target.tensor.shape).to(target.tensor.dtype),
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    return [
        (name, Dense(as_float(gradient).flatten(1)))
        for name, gradient in zip(target.names, found, strict=True)
        if gradient is not None
    ]


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
