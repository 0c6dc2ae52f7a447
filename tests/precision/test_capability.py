"""What a processor has, by the operating system's flags."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dither.errors import ConfigError
from dither.precision.capability import cpu, processor

SAPPHIRE_RAPIDS = "avx2 avx512f avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8"


@pytest.mark.parametrize(
    ("flags", "matrix_units", "bf16", "int8"),
    [
        (SAPPHIRE_RAPIDS, True, True, True),
        ("avx2 avx512f avx512_bf16 avx512_vnni", False, True, True),
        ("avx2 avx512f avx512_vnni", False, False, True),
        ("avx2 avx_vnni", False, False, True),
        ("avx2 avx512f", False, False, False),  # 8-bit products would saturate in 16 bits
        ("sse4_2", False, False, False),
        ("asimd bf16 i8mm", True, True, False),
        ("", False, False, False),
    ],
)
def test_units_by_flags(flags: str, matrix_units: bool, bf16: bool, int8: bool) -> None:
    found = cpu("some processor", frozenset(flags.split()), library=True)
    assert (found.matrix_units, found.bf16, found.int8, found.fp8) == (
        matrix_units,
        bf16,
        int8,
        False,
    )
    assert {*found.units} <= {*flags.split()}
    assert found.described().startswith("some processor: ")
    assert ("no matrix units" in found.described()) != matrix_units


def test_without_onednn_nothing_is_real() -> None:
    found = cpu("some processor", frozenset(SAPPHIRE_RAPIDS.split()), library=False)
    assert found.matrix_units
    assert not found.bf16
    assert not found.int8


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="not a Linux system")
def test_this_processor_is_as_pytorch_knows_it() -> None:
    known = {
        "avx2": torch.cpu._is_avx2_supported(),
        "avx512_vnni": torch.cpu._is_vnni_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
    }
    units = {*processor().units}
    assert {name for name, there in known.items() if there} <= units
    assert processor().name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card here")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="choose cpu"):
        processor("cuda")
