"""Which instruction set is used: the widest, or the one that was asked for, and never another."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from dither import _native
from dither.errors import ConfigError
from dither.noise.codec import encode
from dither.noise.key import Key
from dither.noise.rounded import rounded_gaussian
from dither.noise.simd import active, available, kernels, using
from dither.noise.stream import add_mask, fresh_words
from dither.privacy.lattice import Lattice

MATERIAL = hashlib.sha256(b"test_simd").digest()
NAMES = ("portable", "neon", "avx2", "avx512")


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITHER_SIMD", raising=False)


def test_portable_is_always_there_and_the_widest_is_last() -> None:
    names = available()
    assert names[0] == "portable"
    assert list(names) == [name for name in NAMES if name in names]
    features = set(_native.cpu_features())
    assert set(names) - {"portable"} <= features  # a build without one of them is a build all right
    assert active() == names[-1]
    assert kernels().name == names[-1]


def test_a_whole_build_has_all_that_the_processor_has() -> None:
    """What pip builds: if this fails, an instruction-set file was left out."""
    assert set(available()) == {"portable"} | (set(NAMES) & set(_native.cpu_features()))


@pytest.mark.parametrize("name", available())
def test_the_one_asked_for_is_the_one_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with using(name):
        assert active() == kernels().name == name
    assert active() == available()[-1]
    monkeypatch.setenv("DITHER_SIMD", name)
    assert active() == kernels().name == name


def test_asking_in_the_code_beats_the_variable_and_nests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITHER_SIMD", "portable")
    widest = available()[-1]
    with using(widest):
        with using("portable"):
            assert kernels().name == "portable"
        assert kernels().name == widest
        with pytest.raises(ZeroDivisionError), using("portable"):
            _ = 1 / 0
        assert kernels().name == widest
    assert kernels().name == "portable"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITHER_SIMD", "")
    assert active() == available()[-1]


def unavailable() -> list[str]:
    return [name for name in NAMES if name not in available()]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "portable ", "avx2,portable", *unavailable()])
def test_an_unknown_one_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In particular one that this processor lacks: its code would end the process."""
    with pytest.raises(ConfigError, match="an instruction set of portable"), using(name):
        pytest.fail("the body must not run")
    assert active() == available()[-1]
    monkeypatch.setenv("DITHER_SIMD", name)
    for use in (kernels, Key, lambda: fresh_words(Key.agreed(MATERIAL), 1)):
        with pytest.raises(ConfigError, match="leave DITHER_SIMD unset"):
            use()


def test_the_core_refuses_features_that_are_not_here() -> None:
    for name in set(NAMES[1:]) - set(_native.cpu_features()) | {"sse9"}:
        with pytest.raises(ValueError, match=f"this processor has no {name}"):
            _native.Kernels([name])


@pytest.mark.parametrize(
    ("value", "expected"), [(name, name) for name in available()] + [(None, available()[-1])]
)
def test_a_process_follows_its_environment(value: str | None, expected: str) -> None:
    code = "from dither.noise.simd import kernels; print(kernels().name)"
    environment = {name: text for name, text in os.environ.items() if name != "DITHER_SIMD"}
    if value is not None:
        environment["DITHER_SIMD"] = value
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == expected


def test_other_threads_are_not_asked() -> None:
    """`using` is for one thread: others keep theirs, and each its own."""
    names = [available()[index % len(available())] for index in range(4)]
    barrier = threading.Barrier(4)

    def choose(name: str) -> str:
        with using(name):
            barrier.wait(30)
            mine = str(kernels().name)
            barrier.wait(30)
        return mine

    with ThreadPoolExecutor(4) as pool, using("portable"):
        assert list(pool.map(choose, names)) == names
        assert pool.submit(lambda: str(kernels().name)).result(30) == available()[-1]


def results(cipher: str) -> list[np.ndarray[Any, Any]]:
    key = Key.agreed(MATERIAL, cipher=cipher)
    masked = np.arange(999, dtype=np.int64)
    add_mask(masked, key)
    values = np.linspace(-5, 5, 1003)
    message = encode(values, Lattice(-10, 777.7, 4000, 2, 16, 1), key).message
    return [masked, message, rounded_gaussian(2.0**20, 1003, key), fresh_words(key, 1003)]


@pytest.mark.parametrize("cipher", ["chacha12", "chacha20", "aes256"])
@pytest.mark.parametrize("name", available())
def test_results_do_not_depend_on_the_choice(name: str, cipher: str) -> None:
    expected = results(cipher)
    with using(name):
        assert all((one == two).all() for one, two in zip(results(cipher), expected, strict=True))
