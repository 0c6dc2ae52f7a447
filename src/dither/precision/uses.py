"""Sees where a model multiplies by some of its weights, or looks them up.

As `clipping.capture`, a mode around the model's call: nothing is hung on the model, no module is
exchanged, and a layer that is left out costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dither.clipping.capture import Call
from dither.clipping.rules.attention import attend
from dither.errors import ModelError
from dither.precision.products import Images, Matrix, Product, TurnedImages, padded_by_name

Look: TypeAlias = Literal["product", "table", "bag"]


@dataclass(frozen=True)
class Use:
    """One call in which a weight meets a layer's input.

    Attributes:
        look: Whether the weight is multiplied by, looked up, or looked up and added up.
        call: As the model made it.
        x: The input; indices for tables.
        weight: The weight, or a view of it such as its transpose.
        bias: What is added, if anything.
        weight_id: Identity of the weight itself.
        product: How the two are multiplied; None for tables.
    """

    look: Look
    call: Call
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    weight_id: int
    product: Product | None = None

    def flops(self, output: Tensor) -> float:
        """Return the operations of the call, two for a multiplication and an addition."""
        if isinstance(self.product, Matrix):
            return 2.0 * output.numel() * self.x.shape[-1]
        if isinstance(self.product, Images):
            return 2.0 * output.numel() * math.prod(self.weight.shape[1:])
        if isinstance(self.product, TurnedImages):
            return 2.0 * self.x.numel() * math.prod(self.weight.shape[1:])
        return 0.0


# What to do instead of a call; the second argument makes the call as it was.
Act: TypeAlias = Callable[[Use, Callable[[], Any]], Any]


@final
class Uses(TorchFunctionMode):
    """Hands each use of some weights to a function.

    Args:
        weights: Weights by identity; the caller keeps them alive.
        act: Called for each use; its result is the call's.
    """

    def __init__(self, weights: Iterable[int], act: Act) -> None:
        super().__init__()
        self._weights = {weight: weight for weight in weights}
        self._views: list[Tensor] = []  # kept alive, or their identities would be given anew
        self._act = act

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function, or what stands for it where a weight is used."""
        call = Call(func, args, kwargs or {})
        if func in _READERS:
            use = _READERS[func](call, self._weights)
            return call.run() if use is None else self._act(use, call.run)
        if func is F.multi_head_attention_forward:
            return self._attention(call)
        result = call.run()
        if func in _VIEWS and args and id(args[0]) in self._weights:
            self._follow(args[0], result)
        return result

    def _follow(self, weight: Tensor, result: Any) -> None:
        """Know views of a weight as the weight itself."""
        for view in result if isinstance(result, list | tuple) else [result]:
            if isinstance(view, Tensor) and view.ndim == weight.ndim:
                self._weights[id(view)] = self._weights[id(weight)]
                self._views.append(view)

    def _attention(self, call: Call) -> Any:
        """Say attention again with linear layers, where one of its projections is a use."""
        given = call.bound()
        if not any(id(given[name]) in self._weights for name in _PROJECTIONS):
            return call.run()
        if given["static_k"] is not None or given["static_v"] is not None:
            raise ModelError(
                expected="attention that projects its own keys and values",
                got="static_k or static_v",
                fix="leave the layer out of low precision, or them out of the call",
            )
        alone = given["query"].ndim == 2
        if alone:
            given |= {name: given[name].unsqueeze(1) for name in ("query", "key", "value")}
            if given["key_padding_mask"] is not None:
                given["key_padding_mask"] = given["key_padding_mask"].unsqueeze(0)
        with self:
            output, weights = attend(given)
        if not alone:
            return output, weights
        return output.squeeze(1), None if weights is None else weights.squeeze(0)


_PROJECTIONS = (
    "in_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "out_proj_weight",
)

_T = torch.Tensor
_VIEWS: frozenset[Any] = frozenset[Any](
    [torch.t, torch.transpose, torch.chunk, torch.split, torch.permute]
    + [_T.t, _T.transpose, _T.chunk, _T.split, _T.permute, _T.__getitem__]
    + [getattr(turned, "__get__") for turned in (_T.T, _T.mT)]  # noqa: B009 - mypy knows none
)

_Reader: TypeAlias = Callable[[Call, Mapping[int, int]], Use | None]


def _linear(call: Call, weights: Mapping[int, int]) -> Use | None:
    given = call.named("input weight bias")
    return _matrix(call, weights, given["input"], given["weight"], given["bias"], turned=False)


def _matmul(call: Call, weights: Mapping[int, int]) -> Use | None:
    if call.kwargs or len(call.args) != 2:
        return None
    return _matrix(call, weights, call.args[0], call.args[1], None, turned=True)


def _addmm(call: Call, weights: Mapping[int, int]) -> Use | None:
    if call.kwargs or len(call.args) != 3 or call.args[0].ndim != 1:
        return None
    bias, x, weight = call.args
    return _matrix(call, weights, x, weight, bias, turned=True)


def _matrix(
    call: Call,
    weights: Mapping[int, int],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    turned: bool,
) -> Use | None:
    if id(weight) not in weights or weight.ndim != 2 or not x.is_floating_point():
        return None
    return Use("product", call, x, weight, bias, weights[id(weight)], Matrix(turned))


def _images(call: Call, weights: Mapping[int, int]) -> Use | None:
    given = call.named("input weight bias stride padding dilation groups")
    x, weight = given["input"], given["weight"]
    dims = weight.ndim - 2
    # An image without an axis of examples stays as it is: its scale would be a channel's.
    if id(weight) not in weights or x.ndim != weight.ndim or not x.is_floating_point():
        return None
    dilation = _numbers(given["dilation"], dims, 1)
    padding = given["padding"]
    if isinstance(padding, str):
        x, padding = padded_by_name(x, weight, dilation, padding), 0
    product = Images(
        stride=_numbers(given["stride"], dims, 1),
        padding=_numbers(padding, dims, 0),
        dilation=dilation,
        groups=given["groups"] or 1,
    )
    return Use("product", call, x, weight, given["bias"], weights[id(weight)], product)


def _turned_images(call: Call, weights: Mapping[int, int]) -> Use | None:
    given = call.named("input weight bias stride padding output_padding groups dilation")
    x, weight = given["input"], given["weight"]
    dims = weight.ndim - 2
    # An image without an axis of examples stays as it is: its scale would be a channel's.
    if id(weight) not in weights or x.ndim != weight.ndim or not x.is_floating_point():
        return None
    product = TurnedImages(
        stride=_numbers(given["stride"], dims, 1),
        padding=_numbers(given["padding"], dims, 0),
        dilation=_numbers(given["dilation"], dims, 1),
        groups=given["groups"] or 1,
        output_padding=_numbers(given["output_padding"], dims, 0),
    )
    return Use("product", call, x, weight, given["bias"], weights[id(weight)], product)


def _table(call: Call, weights: Mapping[int, int]) -> Use | None:
    given = call.bound()
    weight = given["weight"]
    if id(weight) not in weights:
        return None
    look: Look = "table" if call.function is F.embedding else "bag"
    if look == "bag" and (given["input"].ndim != 2 or given["mode"] == "max"):
        return None
    return Use(look, call, given["input"], weight, None, weights[id(weight)])


def _numbers(value: Any, dims: int, default: int) -> tuple[int, ...]:
    if value is None:
        return (default,) * dims
    if isinstance(value, int):
        return (value,) * dims
    listed = tuple(value)
    return listed * dims if len(listed) == 1 else listed


_READERS: dict[Callable[..., Any], _Reader] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, _T.matmul, _T.mm, _T.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, _T.addmm), _addmm),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _images),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _turned_images
    ),
    **dict.fromkeys((F.embedding, F.embedding_bag), _table),
}
