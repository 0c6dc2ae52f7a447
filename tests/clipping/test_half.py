"""Arithmetic that would let examples touch each other is refused, whatever the processor has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tests.clipping import neighbours, oracle
from torch import nn

from dither.clipping import half
from dither.clipping.clipping import Clipping
from dither.clipping.half import check_arithmetic
from dither.errors import ModelError

# Without the suite's limit on instruction sets: what this processor does by itself.
NEIGHBOURS = """
import torch
from tests.clipping import neighbours, oracle
from dither.clipping.clipping import Clipping
from dither.errors import ModelError
model, whole = neighbours.made("mlp"), neighbours.MODELS["mlp"].batch(64)
tried = oracle.engine(model, neighbours.LOSS, Clipping(neighbours.CLIP, expected_rows=64))
try:
    with torch.autocast("cpu", torch.bfloat16):
        others = [neighbours.poisoned(whole, row) for row in range(64)]
        print(max(neighbours.distance(tried, whole, other) for other in others))
except ModelError as error:
    print(error.got)
"""


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose kernels do not keep rows apart."""
    monkeypatch.setattr(half, "rows_stay_apart", lambda: False)


def test_a_record_without_a_number_takes_no_other_with_it_on_this_processor() -> None:
    """It moves the sum by C, or the model is refused; on AMX it would move it by 2C."""
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", NEIGHBOURS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.strip()
    assert "3 at '3.weight'" in said or float(said) <= 1.0 + neighbours.CHARGED_SLACK


@pytest.mark.usefixtures("apart")
def test_odd_lengths_are_refused_in_bfloat16_only() -> None:
    odd, even = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 2))
    check_arithmetic(odd)
    with torch.autocast("cpu", torch.bfloat16):
        check_arithmetic(even)
        with pytest.raises(ModelError, match=r"3 at '0.weight'") as caught:
            check_arithmetic(odd)
    assert "ONEDNN_MAX_CPU_ISA" in caught.value.fix
    with torch.autocast("cpu", torch.float16):
        check_arithmetic(odd)
    with pytest.raises(ModelError, match="3 at"):
        check_arithmetic(odd.to(torch.bfloat16))


@pytest.mark.usefixtures("apart")
def test_tables_are_looked_up_and_one_output_is_no_row() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 1))
    with torch.autocast("cpu", torch.bfloat16):
        check_arithmetic(model)
        model[1].weight = nn.Parameter(torch.randn(9, 4))
        with pytest.raises(ModelError, match=r"9 at '1.weight'"):
            check_arithmetic(model)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_products_in_fewer_bits_are_refused(precision: str) -> None:
    model, batch = neighbours.made("mlp"), neighbours.MODELS["mlp"].batch(8)
    tried = oracle.engine(model, neighbours.LOSS, Clipping(neighbours.CLIP, expected_rows=8))
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(ModelError, match="set_float32_matmul_precision"):
            tried(batch, oracle.ticket())
        with pytest.raises(ModelError, match=precision):
            tried.norms(batch)
    finally:
        torch.set_float32_matmul_precision("highest")
    tried(batch, oracle.ticket())
