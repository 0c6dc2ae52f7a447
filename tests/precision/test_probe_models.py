"""Models that behave otherwise without gradients, or in evaluation mode, as a probe runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dither.clipping.loss import losses_of, per_example
from dither.errors import ConfigError, ModelError
from dither.noise.entropy import OsEntropy
from dither.precision.loss import QuantizedLoss
from dither.precision.mode import precision_mode
from dither.precision.options import Dynamic
from dither.precision.probe import Probe, ProbeOptions
from dither.precision.recipe import parse_recipe
from dither.precision.schedules import Candidates
from dither.privacy.account import Account
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket
from dither.sampling.loader import PoissonBatch

CLIP, ROWS, TOKENS = 0.01, 12, 9
CROSS_ENTROPY = per_example(nn.CrossEntropyLoss())


def plan_of(records: int = 100) -> Plan:
    return Plan(
        records=records,
        sampling_rate=0.25,
        steps=4,
        l2_clip=CLIP,
        noise_multiplier=4.0,
        delta=1e-9,
        numeric_slack=0.5,
    )


def probe_of(tmp_path: Path, model: nn.Module, *data: Tensor, plan: Plan | None = None) -> Probe:
    promise = plan or plan_of()
    ticket = SampleTicket(promise.sampler, promise.sampling_rate, secret=True)
    return Probe(
        model,
        QuantizedLoss(CROSS_ENTROPY, model, parse_recipe("int8")),
        Account(Ledger.create(tmp_path / "l.sqlite", store="x"), "run/probe", promise),
        lambda: PoissonBatch(list(data), data[0].shape[0], ticket),
        OsEntropy(),
        options=ProbeOptions(clip=CLIP),
    )


class Encoder(nn.Module):
    """Means over all places, padded ones too: PyTorch's fused layers leave zeros there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 1)
        self.outer = nn.Linear(16, 3)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        found: Tensor = self.outer(self.inner(x, src_key_padding_mask=padded).mean(1))
        return found


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # what is avoided
def test_fused_layers_do_not_pass_for_rounding(tmp_path: Path) -> None:
    """The difference is between the losses that training has, on one way through the model."""
    model = Encoder().eval()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(ROWS, TOKENS, 16, generator=generator)
    padded = torch.arange(TOKENS) >= torch.arange(1, ROWS + 1)[:, None]
    data = [x, padded, torch.randint(0, 3, (ROWS,), generator=generator)]
    probe = probe_of(tmp_path, model, *data)
    found = torch.cat(list(probe._differences(data)))
    losses: dict[str, Tensor] = {}
    for name in ("", *probe.names):  # with gradients, where nothing is fused
        with probe.loss.choosing([name] if name else []):
            losses[name] = losses_of(model, probe.loss, data).detach().double()
    wanted = torch.stack([losses[name] - losses[""] for name in probe.names], 1)
    assert float(wanted.abs().max()) > 1e-4
    assert torch.allclose(found, wanted, atol=1e-6)
    with torch.no_grad():  # what it would have been taken for
        fused = losses_of(model, CROSS_ENTROPY, data).double() - losses[""]
    assert float(fused.abs().max()) > 10.0 * float(wanted.abs().max())


class Keeps(nn.Module):
    """Adds records up in a buffer, in evaluation mode alone, where no step looks."""

    def __init__(self, *, anew: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.anew = anew
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("table", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        held: Any = self
        if self.table.shape != (TOKENS,):  # constants, which may grow
            held.table = torch.arange(float(TOKENS))
        if not self.training and self.anew:
            held.seen = held.seen + x.sum(0)
        elif not self.training:
            held.seen += x.sum(0)
        found: Tensor = self.layer(x)
        return found


@pytest.mark.parametrize("anew", [False, True])
def test_a_model_that_keeps_records_in_evaluation_mode_is_refused_uncharged(
    tmp_path: Path, anew: bool
) -> None:
    model = Keeps(anew=anew)
    probe = probe_of(tmp_path, model, torch.ones(ROWS, 3), torch.zeros(ROWS, dtype=torch.int64))
    with pytest.raises(ModelError, match="changes seen"):
        probe.release()
    assert probe.account.steps_charged == 0


def test_samples_whose_sum_64_bits_might_not_hold_are_refused(tmp_path: Path) -> None:
    """A drawn sample is at most twice the expected one: 2²³ vectors of 2⁴⁰ steps fit."""
    model = nn.Linear(3, 2)
    data = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match="schedule random"):
        probe_of(tmp_path, model, *data, plan=plan_of(1 << 25))
    (tmp_path / "l.sqlite").unlink()
    assert probe_of(tmp_path, model, *data, plan=plan_of(1 << 24)).steps_left == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["int8", "bf16", "mxfp4"])
def test_a_frozen_model_in_half_precision_goes_on_in_it(dtype: torch.dtype, name: str) -> None:
    """The layer after a chosen one takes its own type and no other."""
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)).to(dtype)
    x = torch.randn(5, 4).to(dtype)
    plain = frozen(x)
    with precision_mode(frozen, ["1"], parse_recipe(name)):
        found = frozen(x)
    assert found.dtype is dtype
    assert not torch.equal(found, plain)
    assert torch.allclose(found, plain, atol=0.3)


def test_options_of_another_type_are_named() -> None:
    wrong: Any = "int8"
    with pytest.raises(Exception, match=r"a Recipe such as parse_recipe|Type-check"):
        Dynamic(wrong)
    wrong = {"share": 0.1}
    with pytest.raises(Exception, match=r"ProbeOptions\(...\)|Type-check"):
        Dynamic(parse_recipe("int8"), probe=wrong)


def test_a_model_that_only_looks_up_counts_layers() -> None:
    with pytest.raises(ConfigError, match="by='layers'"):
        Candidates(("table",), (0.0,))
    assert Candidates(("table",), (1.0,)).share(["table"]) == 1.0
