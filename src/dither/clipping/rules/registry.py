"""The rules, by function, and how to add one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any

from torch.overrides import (
    get_testing_overrides,
    handle_torch_function,
    has_torch_function,
    is_tensor_method_or_property,
)

from dither.clipping.capture import Guard, Rule
from dither.errors import ConfigError

RULES: dict[Callable[..., Any], Rule] = {}
# Functions that may mix examples, trained or not.
GUARDS: dict[Callable[..., Any], Guard] = {}
# Functions that repeat a parameter, perhaps once for each example; None where they do not.
EXPANDERS: dict[Callable[..., Any], Rule] = {}
_OVERRIDABLE: set[Callable[..., Any]] = set()


def register_rule(*functions: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for functions that torch lets be overridden.

    The rule is called as ``rule(capture, call)`` in place of the function,
    whenever a trainable parameter (or a tensor made of parameters alone) meets examples in it. It
    calls the function, tells `Capture.tap` how each parameter's per-example gradients follow from
    the output's gradient, and returns the output.

    A function of your own (around a `torch.autograd.Function`, say) is seen once it is made
    `overridable`.

    Args:
        functions: Such as `torch.bilinear`.

    Returns:
        A decorator.

    Raises:
        ConfigError: No functions, or something that is none.

    Example:
        >>> import torch
        >>> from dither.clipping.forms import Dense
        >>> from dither.clipping.layout import find_layout
        >>> @overridable
        ... def scaled(x, scale):
        ...     return x * scale
        >>> @register_rule(scaled)
        ... def scaled_rule(capture, call):
        ...     x, scale = call.args
        ...     output = call.run()
        ...     layout = find_layout(output.shape[:1], capture.rows)
        ...     makers = [(capture.target(scale), lambda b: Dense(b * layout.by_example(x)))]
        ...     return capture.tap(call, output, layout, makers, inputs=[x])
    """
    if not functions or not all(callable(function) for function in functions):
        raise ConfigError(
            expected="the functions that the rule is for",
            got=", ".join(type(function).__name__ for function in functions) or "none",
            fix="write @register_rule(function)",
        )
    for function in functions:
        _require_visible(function)

    def register(rule: Rule) -> Rule:
        for function in functions:
            RULES[function] = rule
        return rule

    return register


def _require_visible(function: Callable[..., Any]) -> None:
    """Refuse functions whose calls never reach a rule: written in Python, and not overridable."""
    plain = isinstance(function, FunctionType) and not is_tensor_method_or_property(function)
    if plain and function not in _OVERRIDABLE and function not in get_testing_overrides():
        raise ConfigError(
            expected="a function that torch lets be overridden",
            got=f"{function.__module__}.{function.__qualname__}, which hides its calls from rules",
            fix="decorate it with @dither.overridable and call that everywhere",
        )


def register_guard(*functions: Callable[..., Any]) -> Callable[[Guard], Guard]:
    """Register what to refuse of functions, whether or not a parameter goes into them."""

    def register(guard: Guard) -> Guard:
        for function in functions:
            GUARDS[function] = guard
        return guard

    return register


def register_expander(*functions: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register what to do where a parameter alone may be repeated for each example."""

    def register(rule: Rule) -> Rule:
        for function in functions:
            EXPANDERS[function] = rule
        return rule

    return register


def overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function visible to rules, as torch's own functions are.

    Args:
        function: Takes tensors as positional arguments.
    """

    @wraps(function)
    def visible(*args: Any, **kwargs: Any) -> Any:
        if has_torch_function(args):
            return handle_torch_function(visible, args, *args, **kwargs)
        return function(*args, **kwargs)

    _OVERRIDABLE.add(visible)
    return visible
