"""The C core as it is here, and what DITHER_SIMD makes of it."""

from __future__ import annotations

import pytest

from dither import __version__, _native
from dither.doctor.core import checks
from dither.noise import simd


def test_the_core_is_good_and_its_widest_set_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITHER_SIMD", raising=False)
    core, chosen = checks()
    assert (core.name, core.state) == ("C core", "good")
    assert __version__ in core.found
    assert chosen.state == "good"
    assert chosen.found.startswith(f"{simd.available()[-1]} of")
    assert all(feature in chosen.found for feature in _native.cpu_features())
    assert "faster" not in chosen.means


def test_a_narrower_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITHER_SIMD", "portable")
    _, chosen = checks()
    assert chosen.state == "good"
    assert chosen.found.startswith("portable of")
    wider = len(simd.available()) > 1
    assert (f"{simd.available()[-1]} would be faster" in chosen.means) is wider


def test_a_wrong_name_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITHER_SIMD", "sse9")
    _, chosen = checks()
    assert chosen.stops
    assert "sse9" in chosen.found
    assert "DITHER_SIMD" in str(chosen.fix)
