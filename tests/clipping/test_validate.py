"""Models that mix examples are refused, with the fix named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dither.clipping.validate import check_model
from dither.errors import ModelError


@pytest.mark.parametrize(
    ("layer", "fix"),
    [
        (nn.BatchNorm1d(4), "GroupNorm"),
        (nn.BatchNorm2d(4), "GroupNorm"),
        (nn.SyncBatchNorm(4), "GroupNorm"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "track_running_stats=False"),
        (nn.LazyLinear(3), "made-up data"),
    ],
)
def test_a_layer_that_mixes_examples_is_refused(layer: nn.Module, fix: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer))
    with pytest.raises(ModelError, match=fix) as caught:
        check_model(model)
    assert "'1.0'" in str(caught.value)  # where it stands


def test_a_frozen_batch_norm_in_eval_mode_is_allowed() -> None:
    norm = nn.BatchNorm1d(4).eval()
    for parameter in norm.parameters():
        parameter.requires_grad_(False)
    check_model(nn.Sequential(nn.Linear(4, 4), norm))


def test_layers_that_treat_examples_alone_are_allowed() -> None:
    check_model(
        nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm1d(4))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_few_bits_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match="float32"):
        check_model(nn.Linear(2, 2).to(dtype))


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="trainable"):
        check_model(model)
