"""Whole models as people have them: book-keeping takes them as they are, without the slow way."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clipping import models_zoo as zoo
from tests.clipping.models_zoo import Batch, Case
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

import dither
from dither.clipping.clipping import ClippedSum, Clipping
from dither.clipping.engine import ClippingEngine
from dither.clipping.loss import ModelLoss
from dither.errors import ModelError
from dither.noise.entropy import InsecureSeed, OsEntropy
from dither.privacy.events import SamplerKind
from dither.privacy.ticket import SampleTicket

ROWS = 11  # with padding: chunks have a multiple of eight rows
DEEP = ("resnet50", "densenet121")  # slow to differentiate one example at a time
NORMS_IN_BLOCKS = ("h.0.ln_1", "layer.0.attention.output.LayerNorm", "layers.0.input_layernorm")

Make = Callable[[], Case]


def row(batch: Batch, index: int) -> Batch:
    return {name: leaf[index : index + 1] for name, leaf in batch.items()}


def precise(batch: Batch) -> Batch:
    return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}


def each_alone(case: Case, batch: Batch) -> list[dict[str, Tensor]]:
    """Gradients by plain autograd in float64, one example at a time."""
    model = copy.deepcopy(case.model).double()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    wide = precise(batch)
    found = []
    for index in range(next(iter(batch.values())).shape[0]):
        loss = case.loss.function(model, row(wide, index)).sum()
        gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        found.append(
            {
                name: torch.zeros_like(parameters[name]) if gradient is None else gradient
                for name, gradient in zip(parameters, gradients, strict=True)
            }
        )
    return found


def length(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt())


def clipped(examples: list[dict[str, Tensor]], clip: float) -> dict[str, Tensor]:
    factors = [min(1.0, clip / length(example)) for example in examples]
    return {
        name: torch.stack(
            [f * e[name] for f, e in zip(factors, examples, strict=True)]
        ).sum(0)
        for name in examples[0]
    }  # fmt: skip


def sums(result: ClippedSum) -> dict[str, Tensor]:
    (chunk,) = result.bounded.chunks
    return {n: t.to_dense() if t.is_sparse else t for n, t in chunk.items()}


def ticket() -> SampleTicket:
    return SampleTicket(SamplerKind.POISSON, 0.1, secret=True)


def check(case: Case, rows: int = ROWS) -> None:
    """Compare clipped sums with the oracle's, parameter by parameter; half are clipped.

    In float64 to many digits; in float32 as near as ReLUs allow that round to the other side.
    """
    batch = case.batch(rows)
    examples = each_alone(case, batch)
    norms = torch.tensor([length(example) for example in examples], dtype=torch.float64)
    clip = float(norms.median())
    expected = clipped(examples, clip)
    wide = Case(copy.deepcopy(case.model).double(), case.loss, case.batch, case.adapted)
    for one, data, digits in ((case, batch, 1e-2), (wide, precise(batch), 1e-6)):
        engine = ClippingEngine(one.model, one.loss, Clipping(clip), OsEntropy())
        torch.testing.assert_close(engine.norms(data), norms, rtol=digits, atol=0.0)
        result = engine(data, ticket())
        assert engine.method == "bookkeeping"
        assert 0 < result.diagnostics.clipped < rows
        assert_same(sums(result), expected, digits)


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 3e-3
) -> None:
    assert set(found) == set(expected)
    scale = length(expected)
    for name, truth in expected.items():
        off = float((found[name] - truth).norm())
        assert off <= tolerance * (float(truth.norm()) + 0.01 * scale), name


def _small() -> Iterator[Any]:
    """Every model, whole and with adapters; the deepest ones in the full run."""
    for name, make in zoo.SMALL.items():
        marks = pytest.mark.full if name in DEEP else ()
        yield pytest.param(make, False, id=f"{name}-whole", marks=marks)
        yield pytest.param(make, True, id=f"{name}-lora", marks=marks)


@pytest.mark.parametrize(("make", "lora"), list(_small()))
def test_equals_plain_autograd_one_example_at_a_time(
    make: Make, lora: bool, request: pytest.FixtureRequest
) -> None:
    """Warnings are errors: nothing falls back to `torch.func`, not one function of the model."""
    case = make()
    deep = any(name in request.node.name for name in DEEP)
    check(zoo.with_lora(case) if lora else case, 3 if deep else ROWS)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("make", zoo.WIDE.values(), ids=zoo.WIDE.keys())
def test_equals_plain_autograd_at_full_width(make: Make, lora: bool) -> None:
    case = make()
    check(zoo.with_lora(case) if lora else case, 7)


def test_adapters_written_as_an_expression_of_the_weight() -> None:
    """W + BA by `torch.nn.utils.parametrize`: the product of parameters meets no example."""

    class LowRank(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.down = nn.Parameter(0.1 * torch.randn(2, weight.shape[1]))
            self.up = nn.Parameter(0.1 * torch.randn(weight.shape[0], 2))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.up @ self.down

    case = zoo.bert()
    case.model.requires_grad_(False)
    for name, module in case.model.named_modules():
        if name.endswith(("query", "value")) and isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight))
    assert sum(p.requires_grad for p in case.model.parameters()) == 8
    check(case)


def test_frozen_embeddings_and_first_layers() -> None:
    case = zoo.gpt2()
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_(".h.1." in name or "ln_f" in name)
    check(case)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is depr:FutureWarning")
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("make", [zoo.gpt2, zoo.bert, zoo.llama])
def test_recomputed_activations_give_the_same(make: Make, lora: bool) -> None:
    case = zoo.with_lora(make()) if lora else make()
    batch = case.batch(ROWS)
    engine = ClippingEngine(case.model, case.loss, Clipping(0.5), OsEntropy())
    plain = sums(engine(batch, ticket()))
    calls = count_calls(case.model)
    case.model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    again = ClippingEngine(case.model, case.loss, Clipping(0.5), OsEntropy())
    assert_same(sums(again(batch, ticket())), plain)
    again(batch, ticket())  # checked anew, as calls 2, 4, 8, ... are
    once = calls[0]
    again(batch, ticket())
    assert calls[0] - once == 2  # forward and recomputation
    assert again.method == "bookkeeping"


def count_calls(model: nn.Module) -> list[int]:
    """Count the calls of one layer norm in a block."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    norms = [m for n, m in model.named_modules() if n.endswith(NORMS_IN_BLOCKS)]
    norms[0].register_forward_hook(count)
    return calls


def test_the_length_of_texts_may_change_from_batch_to_batch() -> None:
    case = zoo.llama()
    engine = ClippingEngine(case.model, case.loss, Clipping(1.0), OsEntropy())
    for rows, time in ((11, 9), (3, 5), (8, 8), (11, 14), (1, 9), (2, 4)):
        batch = zoo.texts(rows, time)
        assert_same(sums(engine(batch, ticket())), clipped(each_alone(case, batch), 1.0))
    assert engine.method == "bookkeeping"


@pytest.mark.parametrize("make", [zoo.gpt2, zoo.bert, zoo.llama])
def test_what_is_masked_counts_for_nothing(make: Make) -> None:
    case = make()
    batch = case.batch(ROWS)
    hidden = {**batch, "ids": torch.where(batch["mask"] == 1, batch["ids"], 42)}
    assert not torch.equal(hidden["ids"], batch["ids"])
    hidden["kinds"] = torch.where(batch["mask"] == 1, batch["kinds"], 1)
    engine = ClippingEngine(case.model, case.loss, Clipping(1.0), OsEntropy())
    assert_same(sums(engine(hidden, ticket())), sums(engine(batch, ticket())))


@pytest.mark.parametrize("make", [zoo.gpt2, zoo.bert])
def test_dropout_is_on_and_its_masks_are_those_of_the_secret_seed(make: Any) -> None:
    """Nothing clipped, the sum is plain autograd's gradient under the same masks."""
    case: Case = make(dropout=0.3)
    batch = case.batch(8)
    huge = Clipping(1e6)
    found = sums(ClippingEngine(case.model, case.loss, huge, InsecureSeed(5))(batch, ticket()))
    with torch.random.fork_rng():
        torch.manual_seed(InsecureSeed(5).seed())
        loss = case.loss.function(case.model, batch).sum()
        names, parameters = zip(*case.model.named_parameters(), strict=True)
        truth = torch.autograd.grad(loss, parameters)
    assert_same(found, dict(zip(names, truth, strict=True)))
    other = ClippingEngine(case.model, case.loss, huge, OsEntropy())(batch, ticket())
    assert length({n: t - found[n] for n, t in sums(other).items()}) > 0.1 * length(found)


@pytest.mark.parametrize("make", [zoo.gpt2, zoo.llama, zoo.bert, zoo.vit])
def test_autocast_stays_near_float32(make: Make) -> None:
    case = make()
    batch = case.batch(ROWS)
    engine = ClippingEngine(case.model, case.loss, Clipping(1.0), OsEntropy())
    norms = engine.norms(batch)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = ClippingEngine(case.model, case.loss, Clipping(1.0), OsEntropy())
        rough = narrow.norms(batch)
    assert narrow.method == "bookkeeping"
    assert not torch.equal(rough, norms)
    torch.testing.assert_close(rough, norms, rtol=0.1, atol=0.0)


def train(case: Case, folder: Path, steps: int = 3) -> None:
    """Make private steps as a user does."""
    records = case.batch(40)
    items = [{name: leaf[i] for name, leaf in records.items()} for i in range(40)]
    loader: DataLoader[Any] = DataLoader(items, batch_size=10)  # type: ignore[arg-type]
    step, private = dither.make_private(
        case.model,
        torch.optim.AdamW([p for p in case.model.parameters() if p.requires_grad], 1e-3),
        loader,
        loss_fn=case.loss,
        ledger=folder / "ledger.sqlite",
        epsilon=8.0,
        delta=1e-3,
        epochs=1,
    )
    for _, batch in zip(range(steps), private, strict=False):
        step(batch)


@pytest.mark.parametrize("make", [zoo.gpt2, zoo.llama])
def test_a_trained_model_saves_loads_and_generates(make: Make, tmp_path: Path) -> None:
    case = make()
    before = {name: t.clone() for name, t in case.model.state_dict().items()}
    attributes = {name: set(vars(m)) for name, m in case.model.named_modules()}
    train(case, tmp_path)
    model: Any = case.model.eval()
    after = model.state_dict()
    assert list(after) == list(before)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert all(p.grad is None for p in model.parameters())
    prompt = case.batch(2)["ids"][:, :3]
    said = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    torch.save(after, tmp_path / "model.pt")
    other: Any = make().model.eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    again = other.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(said, again)
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(prompt).logits, model(prompt).logits)


def test_trained_adapters_save_load_and_merge(tmp_path: Path) -> None:
    case = zoo.with_lora(zoo.llama())
    frozen = {n: p.clone() for n, p in case.model.named_parameters() if not p.requires_grad}
    untrained = case.model(case.batch(2)["ids"]).logits
    train(case, tmp_path)
    model: Any = case.model.eval()
    ids = case.batch(2)["ids"]
    logits = model(ids).logits
    assert not torch.allclose(logits, untrained)
    assert all(torch.equal(model.get_parameter(name), t) for name, t in frozen.items())
    model.save_pretrained(tmp_path / "adapter")
    fresh = zoo.restored(zoo.llama().model, tmp_path / "adapter").eval()
    torch.testing.assert_close(fresh(ids).logits, logits)
    merged = model.merge_and_unload()
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(merged(ids).logits, logits)


def test_a_loss_that_the_model_averages_itself_is_refused() -> None:
    case = zoo.gpt2()
    loss = ModelLoss(lambda model, batch: model(batch["ids"], labels=batch["ids"]).loss)
    engine = ClippingEngine(case.model, loss, Clipping(1.0), OsEntropy())
    with pytest.raises(ModelError, match="reduction='none'"):
        engine(case.batch(4), ticket())


def test_the_example_learns_and_saves_its_adapters(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "examples" / "lora_gpt2.py"
    done = subprocess.run(
        [sys.executable, script, "--records", "400", "--epochs", "1", "--epsilon", "8"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line.split(": ")[1]) for line in done.stdout.splitlines() if "loss" in line]
    assert len(losses) == 2
    assert losses[1] < losses[0] - 0.5
    assert (tmp_path / "adapters" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "lora_gpt2.sqlite").is_file()
