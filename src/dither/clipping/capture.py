"""Sees every torch function that takes a trainable parameter during a forward pass.

Nothing is hung on the model: the mode is a context around its call, so that ``state_dict``,
``torch.save``, ``generate`` and adapters work as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dither.clipping.forms import Form
from dither.clipping.layout import Layout, Place
from dither.clipping.lockstep import Lockstep
from dither.clipping.sums import Workspace
from dither.clipping.unsupported import AmbiguousError, UnsupportedError
from dither.errors import ModelError


@dataclass(frozen=True)
class Target:
    """Something trainable: a parameter, or a tensor made of parameters alone.

    Attributes:
        tensor: Its value; an expression's graph leads to its parameters.
        names: Names of the parameters it is made of; one for a parameter itself.
        is_parameter: Whether it is one itself.
        transposed: The parameter's name where this is its matrix transpose.
    """

    tensor: Tensor
    names: tuple[str, ...]
    is_parameter: bool
    transposed: str | None = None


# Makes the form of a target from the output's gradient, examples first.
Maker: TypeAlias = Callable[[Tensor], Form]


@dataclass(frozen=True)
class Tap:
    """An output whose gradient the backward pass shall give.

    Attributes:
        edge: Where autograd finds that gradient, whatever later happens to the output in place.
        layout: Where the examples are in it.
        makers: For each target that the output depends on here, how its form follows.
        signature: What was called and how it was read; a new one is checked anew.
        inputs: Recorded tensors with their versions: changed in place, they are worth nothing.
        beside: Size of the axis that could be taken for the one of examples; 0 without one.
    """

    edge: GradientEdge
    layout: Layout
    makers: tuple[tuple[Target, Maker], ...]
    signature: tuple[object, ...]
    inputs: tuple[tuple[Tensor, int], ...]
    beside: int = 0


@dataclass(frozen=True)
class Call:
    """A function with what it was called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", str(self.function))

    def run(self) -> Any:
        """Make the call."""
        return self.function(*self.args, **self.kwargs)

    def named(self, names: str) -> dict[str, Any]:
        """Return arguments by name, None where absent; ``names`` in order, apart by spaces."""
        listed = names.split()
        return {
            **dict.fromkeys(listed),
            **dict(zip(listed, self.args, strict=False)),
            **self.kwargs,
        }

    def bound(self) -> dict[str, Any]:
        """Return arguments by name, defaults filled in, of a function written in Python."""
        found = _signature(self.function).bind(*self.args, **self.kwargs)
        found.apply_defaults()
        return dict(found.arguments)


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


# Refuses calls that mix examples.
Guard: TypeAlias = Callable[[Call], None]

# Called in place of a function; makes the call, taps its output and returns it.
Rule: TypeAlias = Callable[["Capture", Call], Any]


_T = Tensor
# Nothing of a tensor's values goes into these results,
_OF_SHAPES = frozenset(
    {torch.zeros_like, torch.ones_like, torch.empty_like}
    | {_T.new_zeros, _T.new_ones, _T.new_empty}
)
# and of these nothing but the first argument.
_CONVERSIONS = frozenset({_T.to, _T.type_as, _T.expand_as, _T.view_as, _T.reshape_as})


@final
class Capture(TorchFunctionMode):
    """Records the uses of parameters; rules say how.

    Args:
        parameters: Trainable parameters by name.
        constants: Tensors of the model that no example touches: buffers, frozen parameters.
        rows: Number of examples in the chunk.
        workspace: Memory for what makers write out.
        rules: Rule by function.
        guards: What to refuse of a function, whatever it meets.
        expanders: Rule by function that repeats a parameter, for each example perhaps.
        default: Rule for functions without one.
        watch: Told of each output whose gradient is wanted, with the number of its tap.
        lockstep: Other ranks wait for this pass: what cannot be recorded is `put_off` to its end.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        constants: Iterable[Tensor],
        rows: int,
        *,
        workspace: Workspace | None = None,
        rules: Mapping[Callable[..., Any], Rule],
        guards: Mapping[Callable[..., Any], Guard] | None = None,
        expanders: Mapping[Callable[..., Any], Rule],
        default: Rule,
        watch: Callable[[Tensor, int], None] | None = None,
        lockstep: Lockstep | None = None,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.taps: list[Tap] = []
        self.strangers: list[Tensor] = []
        self.slow: list[tuple[str, tuple[str, ...]]] = []
        self._targets = {id(p): Target(p, (name,), True) for name, p in parameters.items()}
        self._constants = {id(tensor): tensor for tensor in constants}
        self._workspace = workspace
        self._watch = watch
        self._lockstep = lockstep
        self.put_off: Exception | None = None
        self._rooms = 0
        self._rules = rules
        self._guards = guards or {}
        self._expanders = expanders
        self._default = default

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function, through a rule where a parameter meets examples."""
        options = kwargs or {}
        if self._lockstep is not None and self._lockstep.aside:
            return func(*args, **options)
        call = Call(func, args, options)
        self._refuse(call)
        trainable = touched = False
        constants: list[Tensor] = []
        for tensor in _tensors(args, options):
            key = id(tensor)
            if key in self._targets:
                trainable = True
            elif key in self._constants:
                constants.append(tensor)
            else:
                touched = True  # by examples, or by what is not known
                if type(tensor) is Parameter:
                    self.strangers.append(tensor)
        if not touched:
            return self._without_examples(call, trainable=trainable)
        if trainable:
            return self._ruled(self._rules.get(func, self._default), call)
        return self._without_parameters(call, constants)

    def _ruled(self, rule: Rule, call: Call) -> Any:
        try:
            return rule(self, call)
        except (AmbiguousError, UnsupportedError) as why:
            if self._lockstep is None:
                raise
            self.put_off = self.put_off or why
            return call.run()

    def _refuse(self, call: Call) -> None:
        """Refuse what mixes examples, or ties their randomness together."""
        if call.function in self._guards:
            self._guards[call.function](call)
        if call.kwargs and call.kwargs.get("generator") is not None:
            raise ModelError(
                expected="random draws from torch's own generators, which dither seeds in secret",
                got=f"{call.name} with a generator of its own",
                fix="leave generator= out: a public seed would tie one record's draws to others'",
            )

    def _without_parameters(self, call: Call, constants: list[Tensor]) -> Any:
        versions = [version_of(tensor) for tensor in constants]
        result = call.run()
        for tensor, version in zip(constants, versions, strict=True):
            if version_of(tensor) != version:  # examples were written into it
                self._forget(tensor)
        func = call.function
        if func in _OF_SHAPES or (func in _CONVERSIONS and id(call.args[0]) in self._constants):
            self._keep(result)
        return result

    def _forget(self, written: Tensor) -> None:
        """Take a tensor, and all that share its memory, from the constants."""
        memory = written.untyped_storage().data_ptr()
        for key, tensor in list(self._constants.items()):
            if tensor.untyped_storage().data_ptr() == memory:
                del self._constants[key]

    def _keep(self, result: Any) -> None:
        for tensor in _results(result):
            if not tensor.requires_grad:
                self._constants[id(tensor)] = tensor

    def room(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return memory for what a maker writes out, its own until the next chunk."""
        self._rooms += 1
        if self._workspace is None:
            return like.new_empty(shape)
        return self._workspace.take(f"form {self._rooms}", shape, like)

    def target(self, value: object) -> Target | None:
        """Return what is trainable in a value; None for anything else."""
        return self._targets.get(id(value)) if isinstance(value, Tensor) else None

    def is_shared(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one for all examples."""
        return id(tensor) in self._targets or id(tensor) in self._constants

    def constants(self) -> frozenset[int]:
        """Return the identities of tensors that no example touched."""
        return frozenset(self._constants)

    def forget(self) -> None:
        """Let go of all that was recorded.

        Makers know the capture and the capture its makers: activations would live on in this
        circle until a garbage collector comes by, and new ones need fresh memory meanwhile.
        """
        self.taps.clear()
        self.strangers.clear()
        self._targets.clear()
        self._constants.clear()

    def report(self, function: str, target: Target) -> None:
        """Note that a function has no rule of its own."""
        self.slow.append((function, target.names))

    def tap(
        self,
        call: Call,
        output: Tensor,
        layout: Layout,
        makers: Iterable[tuple[Target | None, Maker]],
        *,
        inputs: Iterable[Tensor] = (),
    ) -> Tensor:
        """Ask for the gradient of an output, and say what follows from it.

        Args:
            call: The call that gave it.
            output: Its result.
            layout: Where its examples are.
            makers: Targets with makers; None targets (frozen, absent) are left out.
            inputs: Tensors that makers read when the backward pass is over.
        """
        wanted = tuple((target, make) for target, make in makers if target is not None)
        # Without a gradient, as under no_grad, plain autograd gives the parameter none either.
        if not wanted or not output.requires_grad:
            return output
        names = tuple(name for target, _ in wanted for name in target.names)
        parts = output.shape[0] // layout.rows if layout.place is Place.FOLDED else 0
        self.taps.append(
            Tap(
                edge=get_gradient_edge(output),
                layout=layout,
                makers=wanted,
                signature=(call.name, names, layout.place, parts),
                inputs=tuple((tensor, version_of(tensor)) for tensor in inputs),
                beside=_beside(output, layout),
            )
        )
        if self._watch is not None:
            self._watch(output, len(self.taps) - 1)
        return output

    def record(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function inside a rule so that its uses of parameters are recorded too."""
        with self:
            return func(*args, **kwargs)

    def _without_examples(self, call: Call, *, trainable: bool) -> Any:
        """Note what is made of parameters and constants alone."""
        if trainable and call.function in self._expanders:
            expanded = self._expanders[call.function](self, call)
            if expanded is not None:
                return expanded
        given = _tensors(call.args, call.kwargs)
        sources = [found for tensor in given if (found := self.target(tensor)) is not None]
        result = call.run()
        self._keep(result)
        for tensor in _results(result):
            if tensor.requires_grad and trainable and self.target(tensor) is None:
                names = tuple(dict.fromkeys(name for source in sources for name in source.names))
                transposed = _transposed(tensor, sources)
                self._targets[id(tensor)] = Target(tensor, names, False, transposed)
        return result


def _beside(output: Tensor, layout: Layout) -> int:
    axis = 0 if layout.place is Place.SECOND else 1
    return output.shape[axis] if output.ndim > axis else 0


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


def _results(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return []


def _transposed(result: Tensor, sources: list[Target]) -> str | None:
    """Return the parameter's name where a tensor is nothing but its matrix transpose."""
    if len(sources) != 1 or not sources[0].is_parameter:
        return None
    matrix = sources[0].tensor
    flipped = (
        matrix.ndim == 2
        and result.shape == matrix.shape[::-1]
        and result.stride() == matrix.stride()[::-1]
        and result.data_ptr() == matrix.data_ptr()
        and matrix.stride(0) != matrix.stride(1)
    )
    return sources[0].names[0] if flipped else None


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place: autograd's own count."""
    return tensor._version  # noqa: SLF001


def check_unchanged(taps: Iterable[Tap]) -> None:
    """Refuse recorded inputs that were changed in place after their use.

    Raises:
        UnsupportedError: Autograd would have refused its own saved tensors likewise.
    """
    for tap in taps:
        for tensor, version in tap.inputs:
            if version_of(tensor) != version:
                raise UnsupportedError(
                    f"the input of {tap.signature[0]} was changed in place afterwards"
                )
