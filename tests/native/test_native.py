"""The C core is built, is of this version, and knows this processor."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

import dither
from dither import _native

KNOWN = {"aes", "avx2", "avx512", "neon", "vaes"}


def test_version_is_the_packages() -> None:
    assert _native.version() == dither.__version__


def test_features_are_known_sorted_and_stable() -> None:
    features = _native.cpu_features()
    assert features == sorted(set(features))
    assert set(features) <= KNOWN
    assert features == _native.cpu_features()


def test_simd_is_the_widest_of_the_features() -> None:
    features = set(_native.cpu_features())
    widest = next((name for name in ("avx512", "avx2", "neon") if name in features), "portable")
    assert _native.simd() == widest


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
