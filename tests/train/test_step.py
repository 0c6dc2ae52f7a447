"""From released tensors to the optimizer: no copies, the parameters' own types, nothing left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from dither.train.applying import apply_gradient, gradient_dtype


class Seeing(SGD):
    """SGD that keeps what stood in the gradients when it stepped."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=1.0)
        self.seen: list[Tensor | None] = []

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.seen = [p.grad for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def released(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Views of one memory, as `release_sum` gives them."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = torch.arange(1.0, 1 + sum(p.numel() for p in trained.values()), dtype=dtype)
    parts = torch.split(total, [p.numel() for p in trained.values()])
    return {n: part.view(p.shape) for (n, p), part in zip(trained.items(), parts, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_released_tensors_are_the_gradients(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    model[1].bias.requires_grad_(False)
    model[0].weight.grad = torch.full((4, 3), 7.0, dtype=dtype)  # someone else's
    before = [p.detach().clone() for p in model.parameters()]
    optimizer, gradients = Seeing(model), released(model, gradient_dtype(model))
    apply_gradient(model, optimizer, gradients)
    places = [seen.data_ptr() for seen in optimizer.seen if seen is not None]
    assert places == [tensor.data_ptr() for tensor in gradients.values()]
    for (name, p), old in zip(model.named_parameters(), before, strict=True):
        assert p.grad is None
        assert torch.equal(p, old - gradients[name] if p.requires_grad else old)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((torch.float32, torch.float32), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.bfloat16), torch.float32),
    ],
    ids=str,
)
def test_each_parameter_gets_its_own_type(
    types: tuple[torch.dtype, torch.dtype], expected: torch.dtype
) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False, dtype=dtype) for dtype in types))
    assert gradient_dtype(model) == expected
    optimizer = Seeing(model)
    apply_gradient(model, optimizer, released(model, expected))
    assert [seen.dtype for seen in optimizer.seen if seen is not None] == list(types)


def test_a_frozen_float64_layer_makes_no_wide_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double().requires_grad_(False))
    assert gradient_dtype(model) == torch.float32
