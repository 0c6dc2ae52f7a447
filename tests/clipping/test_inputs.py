"""What a user may pass by mistake: each names itself and its mending, before records are seen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from dither.clipping.batches import as_batch
from dither.clipping.clipping import Clipping
from dither.clipping.loss import ModelLoss, losses_of
from dither.clipping.rules.registry import RULES, overridable, register_rule
from dither.errors import ConfigError, DitherError, ModelError

X = torch.ones(3, 4, 2)


def _named(_: nn.Module, batch: Any) -> Any:
    return batch["labels"]


@pytest.mark.parametrize(
    ("act", "kind", "tells"),
    [
        (
            lambda: as_batch({"x": X, "name": ["u", "v", "w"]}),
            ModelError,
            r"str at batch\['name'\]",
        ),
        (
            lambda: as_batch((pack_padded_sequence(X, [4, 3, 1], batch_first=True), X)),
            ModelError,
            "PackedSequence",
        ),
        (lambda: as_batch((X, torch.zeros(4))), ModelError, r"rows \[3, 4\]"),
        (
            lambda: losses_of(nn.Identity(), ModelLoss(_named), {"x": X, "y": X}),
            ModelError,
            "'labels'.*got one of x, y",
        ),
        (lambda: Clipping(1.0, microbatch_size=0), ConfigError, "examples.*got 0"),
    ],
)
def test_a_mistake_is_named(act: Callable[[], object], kind: type[DitherError], tells: str) -> None:
    with pytest.raises(kind, match=tells):
        act()


# Values of another type than annotated: the suite's type checks would answer first.
_ILL_TYPED = """
import json
import torch, dither
from torch.utils.data import DataLoader, TensorDataset
model = torch.nn.Linear(4, 2)
data = DataLoader(TensorDataset(torch.randn(50, 4), torch.zeros(50)), batch_size=5)
options = dict(ledger="unused.sqlite", epsilon=3.0, delta=1e-5, epochs=1)
def door(**more):
    chosen = {"loss_fn": torch.nn.CrossEntropyLoss(), **options, **more}
    return dither.make_private(model, torch.optim.SGD(model.parameters()), data, **chosen)
acts = {
    "got 3": lambda: door(loss_fn=3),
    "got 'x'": lambda: door(loss_fn=dither.ModelLoss("x")),
    "got 'automatic'": lambda: door(clipping="automatic"),
    "got the class Automatic": lambda: door(clipping=dither.Automatic),
    "bytes, at least 1, got '64MiB'": lambda: dither.Clipping(1.0, memory_limit="64MiB"),
    "turn it around": lambda: dither.PerLayer(groups={"early": ["a", "b"]}),
}
for tells, act in acts.items():
    try:
        act()
        print(json.dumps([tells, "no error"]))
    except dither.DitherError as error:
        print(json.dumps([tells, str(error)]))
"""


def test_values_of_another_type_are_named_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ILL_TYPED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 6
    assert [tells for tells, said in answers if tells not in said] == []
    assert list(tmp_path.iterdir()) == []  # nothing half-written, such as an empty ledger


def test_a_rule_needs_a_function_whose_calls_can_be_seen() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x

    with pytest.raises(ConfigError, match="overridable"):
        register_rule(scaled)
    visible = overridable(scaled)
    register_rule(visible)(lambda _, call: call.run())
    try:
        assert visible in RULES
    finally:
        del RULES[visible]
