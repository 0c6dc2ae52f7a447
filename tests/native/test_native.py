"""The C core is built, is of this version, and knows this processor."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

import dither
from dither import _native
from dither.errors import ConfigError
from dither.noise import simd

KNOWN = {"aes", "avx2", "avx512", "neon", "vaes"}


def test_version_is_the_packages() -> None:
    assert _native.version() == dither.__version__


def test_features_are_known_sorted_and_stable() -> None:
    features = _native.cpu_features()
    assert features == sorted(set(features))
    assert set(features) <= KNOWN
    assert features == _native.cpu_features()


def test_the_widest_of_the_features_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITHER_SIMD", raising=False)
    features = set(_native.cpu_features())
    widest = next((name for name in ("avx512", "avx2", "neon") if name in features), "portable")
    assert simd.active() == simd.kernels().name == simd.available()[-1] == widest


def test_portable_is_always_there_and_comes_first() -> None:
    assert simd.available()[0] == "portable"
    assert len(set(simd.available())) == len(simd.available())


def test_another_instruction_set_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in simd.available():
        with simd.using(name):
            assert simd.kernels().name == name
        monkeypatch.setenv("DITHER_SIMD", name)
        assert simd.kernels().name == simd.active() == name


def test_an_instruction_set_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = next(name for name in ("neon", "avx2") if name not in simd.available())
    with pytest.raises(ConfigError, match="portable"), simd.using(missing):
        pass
    monkeypatch.setenv("DITHER_SIMD", "sse9")
    with pytest.raises(ConfigError, match="sse9"):
        simd.kernels()


def test_a_feature_that_is_not_here_is_refused() -> None:
    missing = sorted(KNOWN - set(_native.cpu_features()))
    assert missing, "no processor has both AVX and NEON"
    for name in [*missing, "", "sse9"]:
        with pytest.raises(ValueError, match="this processor has no"):
            _native.Kernels([name])


def _kernel_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        pytest.skip("no /proc/cpuinfo here")
    for line in info.read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return set(values.split())
    pytest.skip("/proc/cpuinfo names no features")


def test_features_are_those_the_kernel_reports() -> None:
    flags, features = _kernel_flags(), set(_native.cpu_features())
    expected: set[str] = set()
    if platform.machine() in {"x86_64", "AMD64"}:
        expected |= {name for name in ("aes", "avx2", "vaes") if name in flags}
        if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            expected.add("avx512")
    elif platform.machine() in {"aarch64", "arm64"}:
        expected |= {"neon"} | ({"aes"} & flags)
    assert features == expected
