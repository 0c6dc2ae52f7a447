"""Every layer family × style × way of running it, against one backward an example."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests.clipping import oracle
from tests.clipping.zoo import CASES
from torch import Tensor
from torch.utils._pytree import tree_map

from dither.clipping.clipping import Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.styles import Automatic, Flat, PerLayer, Style
from dither.noise.entropy import InsecureSeed
from dither.privacy.events import Relation

pytestmark = pytest.mark.filterwarnings(  # torch's own, of its own copy
    "ignore:Using padding='same' with even kernel lengths"
)

ROWS = 7
STYLES: dict[str, Style] = {
    "flat": Flat(),
    "moved": Flat(bound=0.35),
    "automatic": Automatic(gamma=0.02),
    "per_layer": PerLayer(),
}
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "empty": {},
    "one": {},
    "parts": {"microbatch_size": 3},
    "exact": {"microbatch_size": 4, "relation": Relation.ADD_REMOVE},
}


@cache
def gradients(name: str) -> list[oracle.Named]:
    case = CASES[name]
    return oracle.by_loop(case.model(), case.loss, case.batch(ROWS))


@cache
def clip_of(name: str) -> float:
    """Return the median norm, so that some are clipped and some are not."""
    lengths = sorted(oracle.length(gradient) for gradient in gradients(name))
    return lengths[ROWS // 2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_sums_equal_one_backward_an_example(name: str, mode: str) -> None:
    """In every style; one engine after the other styles, as a run with a moving bound has it."""
    case = CASES[name]
    rows = {"empty": 0, "one": 1}.get(mode, ROWS)
    model, clip = case.model(), clip_of(name)
    engine = oracle.engine(model, case.loss, Clipping(clip, **MODES[mode]))
    with oracle.warnings_of(case)() if rows else contextlib.nullcontext():
        found_by = {}
        for key, style in STYLES.items():
            engine.clipping = replace(engine.clipping, style=style)
            found_by[key] = oracle.as_named(engine(case.batch(rows), oracle.ticket()))
    for key, style in STYLES.items():
        found = found_by[key]
        wanted = oracle.summed(gradients(name)[:rows], style, clip, model)
        assert list(found) == list(wanted)
        for part, value in wanted.items():
            assert found[part].dtype == torch.float64
            torch.testing.assert_close(
                found[part], value, rtol=1e-8, atol=1e-9 * clip, msg=f"{part}, {key}"
            )
    assert all(p.grad is None for p in model.parameters())
    lengths = [oracle.length(gradient) for gradient in gradients(name)[:rows]]
    wanted_lengths = torch.tensor(lengths, dtype=torch.float64)
    torch.testing.assert_close(engine.norms(case.batch(rows)), wanted_lengths, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.vmaps])
def test_the_reference_agrees(name: str) -> None:
    """The oracle that users have, and the way out for what book-keeping cannot split."""
    case, clip = CASES[name], clip_of(name)
    model = case.model()
    engine = ClippingEngine(model, case.loss, Clipping(clip), InsecureSeed(1), method="reference")
    found = oracle.as_named(engine(case.batch(ROWS), oracle.ticket()))
    for key, value in oracle.summed(gradients(name), Flat(), clip, model).items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-9 * clip, msg=key)


def relative(found: oracle.Named, wanted: oracle.Named) -> float:
    off = {key: found[key] - value for key, value in wanted.items()}
    return oracle.length(off) / oracle.length(wanted)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.bf16])
def test_autocast_rounds_activations_and_nothing_else(name: str) -> None:
    """Against one backward an example under the same autocast; sums are never bf16."""
    case = CASES[name]
    model = case.model(torch.float32)
    batch = _in_float32(case.batch(ROWS))
    with torch.autocast("cpu", torch.bfloat16), oracle.warnings_of(case)():
        each = oracle.by_loop(model, case.loss, batch)
        lengths = sorted(oracle.length(gradient) for gradient in each)
        clip = lengths[ROWS // 2]
        engine = oracle.engine(model, case.loss, Clipping(clip, microbatch_size=4))
        for style in STYLES.values():
            engine.clipping = replace(engine.clipping, style=style)
            found = oracle.as_named(engine(batch, oracle.ticket()))
            assert {value.dtype for value in found.values()} <= {torch.float32, torch.float64}
            assert relative(found, oracle.summed(each, style, clip, model)) < 0.03


def _in_float32(batch: Any) -> Any:
    def narrow(leaf: Tensor) -> Tensor:
        return leaf.float() if leaf.is_floating_point() else leaf

    return tree_map(narrow, batch)
