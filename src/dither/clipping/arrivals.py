"""Group-wise clipping in one pass: groups are weighted while the backward pass goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float64
from torch import Tensor

from dither.clipping.arithmetic import as_float, countable
from dither.clipping.capture import Tap, check_unchanged
from dither.clipping.emission import Weighted
from dither.clipping.forms import Form, combined
from dither.clipping.gradients import Gradients, squared_norms
from dither.clipping.styles import PerLayer, Style
from dither.clipping.unsupported import UnsupportedError
from dither.errors import ModelError
from dither.release.bounded_sum import BoundedSum


class Receiver(ABC):
    """Takes parts of a sum before all of it can be computed."""

    @abstractmethod
    def begin(self, bounded: BoundedSum) -> None:
        """Pay for the sum: its parts are about to be ready."""

    @abstractmethod
    def ready(self, names: tuple[str, ...]) -> None:
        """Take the totals of these parameters, which can be computed now."""


@dataclass(frozen=True)
class Offer:
    """What a sum needs to be taken in parts.

    Attributes:
        style: Bounds of groups.
        l2_clip: C.
        real: Examples of the chunk; rows behind them are padding.
        names: Trainable parameters.
        believed: Whether examples were shown to stay apart in a forward pass of this signature.
        begin: Called once, before the first part.
        take: Called with each group's parts.
    """

    style: PerLayer
    l2_clip: float
    real: int
    names: tuple[str, ...]
    believed: Callable[[tuple[object, ...]], bool]
    begin: Callable[[], None]
    take: Callable[[dict[str, Weighted]], None]


# Makes the offer of a batch's last chunk, with so many examples.
Offered: TypeAlias = Callable[[int], "Arrivals"]


def offers(
    style: Style,
    l2_clip: float,
    *,
    names: tuple[str, ...],
    believed: Callable[[tuple[object, ...]], bool],
    bounded: BoundedSum,
    weighted: dict[str, Weighted],
    receiver: Receiver,
) -> Offered | None:
    """Return what makes the offer of a batch's last chunk; None for styles that need all norms.

    Args:
        style: Of clipping.
        l2_clip: C.
        names: Trainable parameters.
        believed: As for `Offer`.
        bounded: The sum that the receiver pays for.
        weighted: Where its emission finds what remains to be multiplied.
        receiver: Who takes it.
    """
    if type(style) is not PerLayer:
        return None
    groups: PerLayer = style

    def take(found: dict[str, Weighted]) -> None:
        weighted.update(found)
        receiver.ready(tuple(found))

    def offer(real: int) -> Arrivals:
        begin = partial(receiver.begin, bounded)
        return Arrivals(Offer(groups, l2_clip, real, names, believed, begin, take))

    return offer


@final
class Arrivals:
    """Weighs each group of parameters when the last of its output gradients has arrived.

    Sensitivity: as in two passes, an example's part in group l has norm at most C_l whatever the
    other groups hold, and Σ C_l² = C². An example whose gradient is not finite in one group counts
    as zero in that group only: what others hold of it may have left by then.

    It takes only what the forward pass shows to be sound before the backward pass begins: the
    signature is one that was checked before, and parameters are used as they are.

    Args:
        offer: What to weigh, and who takes it.
    """

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._handles: list[Any] = []
        self._taps: list[Tap] = []
        self._groups = offer.style.bounds(offer.names, offer.l2_clip)
        self._group_of = {n: g for g, (names, _) in enumerate(self._groups) for n in names}
        self._waiting: list[int] = []
        self._forms: defaultdict[str, list[Form]] = defaultdict(list)
        self._losses: Tensor | None = None
        self._squares: list[Tensor] = []

    def watch(self, output: Tensor, tap: int) -> None:
        """Listen for the gradient of a tapped output."""
        listen: Any = output.register_hook
        self._handles.append(listen(partial(self._arrived, tap)))

    def start(self, taps: list[Tap], losses: Tensor) -> bool:
        """Decide, after the forward pass, whether to take this chunk.

        Args:
            taps: In the order in which they were watched.
            losses: One an example.
        """
        as_they_are = all(target.is_parameter for tap in taps for target, _ in tap.makers)
        if not as_they_are or not self._offer.believed(tuple(tap.signature for tap in taps)):
            return False
        self._taps = list(taps)
        self._losses = losses.detach().double()
        self._waiting = [0] * len(self._groups)
        for tap in taps:
            for group in self._groups_of(tap):
                self._waiting[group] += 1
        self._offer.begin()
        return True

    def finish(self) -> None:
        """Take the groups that wait for gradients which never came: of outputs without use."""
        for group, left in enumerate(self._waiting):
            if left:
                self._weigh(group)

    @property
    def norms(self) -> Float64[Tensor, " rows"] | None:
        """Gradient norms over all groups, infinite where some are; None if nothing was taken."""
        if self._losses is None:
            return None
        total = sum(self._squares, torch.zeros_like(self._losses))
        return torch.where(torch.isfinite(total), total.sqrt(), torch.inf)[: self._offer.real]

    def forget(self) -> None:
        """Let go of the graph."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._taps.clear()
        self._forms.clear()

    def _groups_of(self, tap: Tap) -> set[int]:
        return {self._group_of[target.names[0]] for target, _ in tap.makers}

    def _arrived(self, number: int, gradient: Tensor) -> None:
        if self._losses is None or not self._taps:
            return
        tap = self._taps[number]
        try:
            check_unchanged([tap])
        except UnsupportedError as why:
            raise ModelError(
                expected="inputs of layers that stay as they are until the backward pass",
                got=str(why),
                fix="leave in-place operations out, or clip flat: that takes two passes",
            ) from why
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            split = as_float(tap.layout.by_example(gradient))
            for target, make in tap.makers:
                self._forms[target.names[0]].append(make(split))
        for group in self._groups_of(tap):
            self._waiting[group] -= 1
            if self._waiting[group] == 0:
                self._weigh(group)

    def _weigh(self, group: int) -> None:
        names, bound = self._groups[group]
        losses = self._losses
        if losses is None:
            return
        with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
            forms = {n: combined(self._forms.pop(n)) for n in names if n in self._forms}
            like = dict.fromkeys(names, losses)
            squares, total = squared_norms(Gradients(forms, losses), like, self._offer.real)
            finite = countable(total, losses)
            rows = torch.arange(losses.shape[0], device=losses.device)
            factor = self._offer.style.factor(squares, bound)
            kept = torch.where(finite & (rows < self._offer.real), factor, 0.0)
            mask = None if bool(finite.all()) else finite
        self._squares.append(torch.where(finite, total, torch.inf))
        self._offer.take({name: Weighted(form, kept, mask) for name, form in forms.items()})
