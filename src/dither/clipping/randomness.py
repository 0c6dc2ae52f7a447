"""Random draws of a model: from a secret seed, or none, so that alone and together agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def generators(device: torch.device) -> list[torch.Generator]:
    """Return the generators that a model on this device draws from."""
    if device.type == "cuda":
        return [torch.default_generator, torch.cuda.default_generators[device.index or 0]]
    return [torch.default_generator]


@contextmanager
def secret_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators for a while: a user's seed must not decide dropout."""
    drawn = generators(device)
    states = [generator.get_state() for generator in drawn]
    try:
        for generator in drawn:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(drawn, states, strict=True):
            generator.set_state(state)


_HELD: ContextVar[bool] = ContextVar("held", default=False)


def draws_are_held() -> bool:
    """Return whether an example alone is being compared with itself in a batch.

    Functions that draw where no mode sees it, as in a backward pass, or that make much of the last
    bit of their input, as rounding to few numbers does, must then do without both.
    """
    return _HELD.get()


class NoRandomness(TorchFunctionMode):
    """Dropout off and other draws constant, so that a chunk and one example see the same.

    Args:
        level: What uniform draws are.
    """

    def __init__(self, level: float) -> None:
        super().__init__()
        self._level = level
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> NoRandomness:
        """Hold draws, for `draws_are_held` too."""
        self._tokens.append(_HELD.set(True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Let them go."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _HELD.reset(self._tokens.pop())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function without its randomness."""
        options = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0]
        if func in _DRAWS:
            return _DRAWS[func](self._level, *args, **options)
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            options.pop("dropout_p", None)
        if func in _RECURRENT and len(args) > 5:
            args = (*args[:5], 0.0, *args[6:])
        if func is F.multi_head_attention_forward:  # its own dropout happens out of our sight
            if len(args) > 10:
                args = (*args[:10], 0.0, *args[11:])
            else:
                options["dropout_p"] = 0.0
        return func(*args, **options)


_DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.feature_dropout,
    torch.alpha_dropout,
}
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


def _constant(level: float, *args: Any, **kwargs: Any) -> Tensor:
    return torch.full_like(torch.rand(*args, **kwargs), level)


def _like(level: float, like: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return torch.full_like(like, level)


def _fill(_level: float, tensor: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return tensor.fill_(1.0)


_DRAWS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.rand: _constant,
    torch.randn: _constant,
    torch.rand_like: _like,
    torch.randn_like: _like,
    torch.bernoulli: lambda _level, like, *_args, **_kwargs: torch.ones_like(like),
    torch.Tensor.bernoulli: lambda _level, like, *_args, **_kwargs: torch.ones_like(like),
    torch.Tensor.bernoulli_: _fill,
    torch.Tensor.uniform_: lambda level, tensor, *_args, **_kwargs: tensor.fill_(level),
    torch.Tensor.normal_: lambda level, tensor, *_args, **_kwargs: tensor.fill_(level),
}
