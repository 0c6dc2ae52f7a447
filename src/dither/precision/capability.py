"""What this machine multiplies fast: the units of its processors."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dither.errors import ConfigError

# Units by the operating system's names for them.
_UNITS = {
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "amx_fp16": "AMX fp16",
    "amx_fp8": "AMX fp8",
    "avx512_bf16": "AVX-512 bf16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_fp16": "AVX-512 fp16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sme": "SME",
    "i8mm": "Arm i8mm",
    "bf16": "Arm bf16",
    "asimd": "Neon",
}
_MATRIX = frozenset({"amx_bf16", "amx_int8", "sme", "i8mm"})
_BF16 = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
# Without these, 8-bit products on x86 may saturate in 16 bits, or run slower than float32.
_INT8 = frozenset({"amx_int8", "avx512_vnni", "avx_vnni"})
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """A processor or a graphics card.

    Attributes:
        device: "cpu" or "cuda".
        name: As it calls itself.
        units: What it multiplies with, by the operating system's names.
        matrix_units: Whether it has units that multiply matrices, not only vectors.
        bf16: Whether bfloat16 products run on units of their own.
        int8: Whether int8 products do.
        fp8: Whether 8-bit floating-point products do.
    """

    device: str
    name: str
    units: tuple[str, ...]
    matrix_units: bool
    bf16: bool
    int8: bool
    fp8: bool

    def described(self) -> str:
        """Return name and units, as people read them."""
        units = ", ".join(_UNITS.get(unit, unit) for unit in self.units) or "none known"
        kind = "matrix units" if self.matrix_units else "no matrix units"
        return f"{self.name}: {units} ({kind})"


@cache
def processor(device: str = "cpu") -> Processor:
    """Return what a device has.

    Raises:
        ConfigError: A device that is not there.
    """
    if device == "cpu":
        name, flags = _cpu_flags()
        return cpu(name, flags, library=bool(torch._C._has_mkldnn))  # noqa: SLF001
    if device == "cuda" and torch.cuda.is_available():
        found = torch.cuda.get_device_capability()
        units = (f"sm_{found[0]}{found[1]}",)
        return Processor(
            device,
            torch.cuda.get_device_name(),
            units,
            matrix_units=found >= (7, 0),
            bf16=found >= (8, 0),
            int8=found >= (7, 5),
            fp8=found >= (8, 9),
        )
    raise ConfigError(expected="a device that is here, cpu or cuda", got=device, fix="choose cpu")


def cpu(name: str, flags: frozenset[str], *, library: bool) -> Processor:
    """Return a processor by its flags.

    Args:
        name: Of the model.
        flags: As the operating system lists them.
        library: Whether PyTorch has oneDNN, whose kernels use the units.
    """
    return Processor(
        "cpu",
        name,
        tuple(unit for unit in _UNITS if unit in flags),
        matrix_units=bool(flags & _MATRIX),
        bf16=library and bool(flags & _BF16),
        int8=library and bool(flags & _INT8),
        fp8=False,
    )


def _cpu_flags() -> tuple[str, frozenset[str]]:
    name = platform.processor() or platform.machine()
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # another operating system: what PyTorch knows
        known = {
            "avx2": torch.cpu._is_avx2_supported(),  # noqa: SLF001
            "avx512_vnni": torch.cpu._is_vnni_supported(),  # noqa: SLF001
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),  # noqa: SLF001
        }
        return name, frozenset(flag for flag, there in known.items() if there)
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", name), frozenset(flags.split())
