"""The units that `fully_shard` gathers and cuts again, one after the other in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dither.clipping.gradients import Inventory
from dither.clipping.leaks import held_tensors
from dither.clipping.lockstep import Lockstep
from dither.errors import ConfigError, DitherError, ModelError, PeerError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@final
class Units(Lockstep):
    """Lets FSDP gather each unit for its own forward and backward pass, and no longer.

    FSDP's own reduction of gradients is off: no parameter ever gets a gradient that was not
    released.

    Args:
        model: `fully_shard` took it and perhaps layers inside.

    Raises:
        ConfigError: It did not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._units = _units(model)
        self._aside = 0
        self._passes = 0
        self._order: tuple[str, ...] | None = None
        self._entered: list[str] | None = None
        for unit in self._units:
            unit.set_requires_gradient_sync(False, recurse=False)
            unit.set_reshard_after_backward(True, recurse=False)

    @property
    def aside(self) -> bool:
        """Whether FSDP's own code runs."""
        return self._aside > 0

    @property
    def passes(self) -> int:
        """Passes that this rank has begun."""
        return self._passes

    def inventory(self) -> Inventory:
        """List the model with the parameters that its layers compute with; collective.

        Units are gathered one after the other. What FSDP gathers stays the same object; only its
        memory comes and goes.
        """
        whole: dict[str, nn.Parameter] = {}
        for unit in self._units:
            unit.unshard()
            found = self._model.named_parameters()
            whole.update((name, p) for name, p in found if not isinstance(p, DTensor))
            unit.reshard()
        listed = [name for name, _ in self._model.named_parameters()]
        _require_whole([name for name in listed if name not in whole])
        frozen = [whole[name] for name in listed if not whole[name].requires_grad]
        return replace(
            Inventory.of(self._model),
            parameters={name: whole[name] for name in listed if whole[name].requires_grad},
            constants=(*self._model.buffers(), *frozen, *held_tensors(self._model)),
            flags=(),
            lockstep=self,
        )

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Follow FSDP through one forward and backward pass; afterwards all units are cut.

        Raises:
            ModelError: Units came in another order than in the first pass, or share parameters.
            PeerError: Another rank did not come.
        """
        self._passes += 1
        self._entered = []
        try:
            with self._followed():
                yield
            self._left()
        except DitherError:
            raise
        except (ValueError, RuntimeError) as error:
            told = _explained(error)
            if told is None:
                raise
            raise told from error
        finally:
            self._entered = None
            self.reshard()

    def _left(self) -> None:
        """Refuse, after a pass, one in which not all units were gathered, and note the first."""
        entered = self._entered
        if not entered:
            raise ModelError(
                expected="fully_shard as PyTorch 2.9 to 2.13 have it",
                got=f"none of its hooks in PyTorch {torch.__version__}",
                fix="install one of these",
            )
        if self._order is None:
            self._order = tuple(entered)
        if len(entered) != len(self._order):
            raise _other_order(self._order[len(entered)])

    def reshard(self) -> None:
        """Let go of what may be whole."""
        for unit in self._units:
            unit.reshard()

    @contextmanager
    def _followed(self) -> Iterator[None]:
        """Put a note around FSDP's hooks: what they call is none of the model's functions."""
        kept: list[tuple[dict[int, Any], int, Any]] = []
        try:
            for name, module in self._model.named_modules():
                for kind in _HOOKS:
                    hooks: dict[int, Any] = getattr(module, kind)
                    for key, hook in list(hooks.items()):
                        if _is_fsdp(hook):
                            kept.append((hooks, key, hook))
                            hooks[key] = self._noted(hook, name if kind == _HOOKS[0] else None)
            yield
        finally:
            for hooks, key, hook in kept:
                hooks[key] = hook

    def _noted(self, hook: Callable[..., Any], enters: str | None) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if enters is not None:
                self._enter(enters)
            self._aside += 1
            try:
                return hook(*args, **kwargs)
            finally:
                self._aside -= 1

        return run

    def _enter(self, name: str) -> None:
        """Refuse, before it gathers, a unit that other ranks will not gather now."""
        entered = self._entered
        if entered is None:
            return
        order = self._order
        if order is not None and (len(entered) >= len(order) or order[len(entered)] != name):
            raise _other_order(name)
        entered.append(name)


def _is_fsdp(hook: Callable[..., Any]) -> bool:
    owner = getattr(hook, "__self__", None)
    while owner is None and hasattr(hook, "__wrapped__"):
        hook = hook.__wrapped__
        owner = getattr(hook, "__self__", None)
    return type(owner).__module__.startswith("torch.distributed.fsdp")


def _units(model: nn.Module) -> list[FSDPModule]:
    """Return the modules that FSDP gathers, in their order.

    Raises:
        ConfigError: None.
    """
    found: list[FSDPModule] = [m for m in model.modules() if isinstance(m, FSDPModule)]
    if not isinstance(model, FSDPModule):
        raise ConfigError(
            expected="a model that torch.distributed.fsdp.fully_shard took",
            got=f"a {type(model).__name__} with {len(found)} sharded modules inside",
            fix="call fully_shard on its larger layers, then on the model itself, before the "
            "optimizer is made",
        )
    return found


def _require_whole(missing: list[str]) -> None:
    if missing:
        raise ModelError(
            expected="parameters that a gather makes whole",
            got=f"'{missing[0]}', which is tensor-parallel besides",
            fix="use fully_shard alone",
        )


def _other_order(name: str) -> ModelError:
    return ModelError(
        expected="a model that runs the same layers in the same order, whatever its input is: "
        "all ranks gather them together",
        got=f"another course at '{name or 'the model itself'}'",
        fix="run all layers always and mask what does not count, or put layers that are used "
        "now and then into one unit of fully_shard with those around them",
    )


def _explained(error: Exception) -> DitherError | None:
    """Return what to say of an error of FSDP's; None of any other."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, ValueError) and "shared" in said:
        return ModelError(
            expected="tied parameters within one unit of fully_shard",
            got=said,
            fix="shard the modules that share them together: fully_shard([embedding, head])",
        )
    if isinstance(error, dist.DistError) or "gloo" in said.lower():
        return PeerError(
            expected="all ranks in the same pass",
            got=said,
            fix="look at the other ranks' own errors; end all processes, then start anew",
        )
    return None
