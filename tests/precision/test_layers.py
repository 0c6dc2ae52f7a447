"""Which layers low precision knows, how they are chosen, and that the model stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.clipping import models_zoo, oracle
from tests.clipping.zoo import Composed
from tests.precision import quantized
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.clipping import Clipping
from dither.clipping.loss import ModelLoss, losses_of, per_example
from dither.clipping.randomness import secret_generators
from dither.errors import ConfigError, ModelError
from dither.precision.layers import Layer, find_layers, measure_flops
from dither.precision.loss import QuantizedLoss
from dither.precision.mode import precision_mode
from dither.precision.recipe import parse_recipe

INT8 = parse_recipe("int8")
LUQ = parse_recipe("luq-fp4")
CROSS_ENTROPY = per_example(nn.CrossEntropyLoss())
COMPILER_LOADS = pytest.mark.filterwarnings(  # torch's own, when it loads its compiler
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def batch(rows: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 3, (rows,), generator=generator)


def named(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.kind for layer in find_layers(model)}


def test_layers_have_the_names_of_modules_or_of_parameters() -> None:
    assert named(net()) == {"0": "convolution", "3": "linear", "5": "linear"}
    assert named(nn.Linear(2, 3)) == {"weight": "linear"}
    assert named(nn.MultiheadAttention(4, 2)) == {
        "in_proj_weight": "attention",
        "out_proj": "attention",
    }
    separate = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2, kdim=3, vdim=5)})
    assert list(named(separate)) == [
        "a.q_proj_weight",
        "a.k_proj_weight",
        "a.v_proj_weight",
        "a.out_proj",
    ]
    tables = nn.ModuleList([nn.Embedding(3, 2), nn.EmbeddingBag(3, 2), nn.ConvTranspose1d(2, 3, 2)])
    assert list(named(tables).values()) == ["embedding", "embedding", "convolution"]


def test_what_is_not_multiplied_by_is_no_layer() -> None:
    model = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.LSTM(4, 3), nn.PReLU()])
    assert find_layers(model) == ()
    with pytest.raises(ModelError, match="without any"):
        QuantizedLoss(CROSS_ENTROPY, model, INT8)


def test_tied_weights_are_one_layer_and_frozen_ones_are_layers() -> None:
    model: Any = Composed(
        lambda m, x: x, table=nn.Embedding(7, 3), head=nn.Linear(3, 7, bias=False)
    )
    model.head.weight = model.table.weight
    assert named(model) == {"table": "embedding"}
    model.table.weight.requires_grad_(False)
    assert named(model) == {"table": "embedding"}


def test_transformers_own_layers_are_known() -> None:
    gpt2 = models_zoo.gpt2().model
    kinds = named(gpt2)
    assert kinds["transformer.h.0.attn.c_attn"] == "linear"
    assert kinds["transformer.wte"] == "embedding"
    assert {"lm_head"}.isdisjoint(kinds)  # tied


@COMPILER_LOADS
def test_wrapped_models_keep_their_names() -> None:
    model = net()
    compiled: Any = torch.compile(model, backend="eager")
    assert find_layers(compiled) == find_layers(model)


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"lazy layer with '0\.weight'"):
        find_layers(nn.Sequential(nn.LazyLinear(3)))


def test_weights_spread_over_ranks_are_refused() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed: Any = dist
    dist.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = net()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ModelError, match=r"DTensor at '0\.weight'"):
            find_layers(model)
    finally:
        dist.destroy_process_group()


def test_flops_are_counted_by_hand() -> None:
    model = net()
    flops = measure_flops(model, CROSS_ENTROPY, batch(3))
    assert flops == {
        "0": 2.0 * 9 * 1 * 4 * 4 * 4,  # 3x3 on one channel, at 4x4 places, 4 channels out
        "3": 2.0 * 64 * 16,
        "5": 2.0 * 16 * 3,
    }
    assert all(module.training for module in model.modules())


def test_flops_of_attention_tables_and_transposed_convolutions() -> None:
    attention = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model: Any = Composed(
        lambda m, x: m.head(m.layer(m.table(x)).mean(1)),
        table=nn.Embedding(9, 8),
        layer=attention,
        head=nn.Linear(8, 3),
        unused=nn.Linear(2, 2),
    )
    tokens = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    assert measure_flops(model, CROSS_ENTROPY, tokens) == {
        "table": 0.0,
        "layer.self_attn.in_proj_weight": 2.0 * 5 * 8 * 24,
        "layer.self_attn.out_proj": 2.0 * 5 * 8 * 8,
        "layer.linear1": 2.0 * 5 * 8 * 12,
        "layer.linear2": 2.0 * 5 * 12 * 8,
        "head": 2.0 * 8 * 3,
        "unused": 0.0,
    }
    turned = nn.ConvTranspose2d(3, 4, 2, stride=2, groups=1)
    loss = ModelLoss(lambda m, b: m(b[0]).sum((1, 2, 3)))
    assert measure_flops(turned, loss, (torch.zeros(2, 3, 5, 5),)) == {
        "weight": 2.0 * 3 * 25 * 4 * 4  # each of 25 places on 3 channels goes into 4 x 2x2 outputs
    }


def test_flops_need_an_example() -> None:
    with pytest.raises(ModelError, match="at least one example"):
        measure_flops(net(), CROSS_ENTROPY, batch(0))


def test_nothing_is_chosen_at_first_and_choices_hold_from_the_next_call() -> None:
    model, data = net(), batch()
    loss = QuantizedLoss(CROSS_ENTROPY, model, INT8)
    plain = losses_of(model, CROSS_ENTROPY, data)
    assert loss.chosen == frozenset()
    assert torch.equal(losses_of(model, loss, data), plain)
    loss.choose(["3"])
    one = losses_of(model, loss, data)
    assert not torch.equal(one, plain)
    with loss.choosing(["0", "5"]):
        assert loss.chosen == {"0", "5"}
        assert not torch.equal(losses_of(model, loss, data), one)
    assert loss.chosen == {"3"}
    assert torch.equal(losses_of(model, loss, data), one)
    loss.choose(())
    assert torch.equal(losses_of(model, loss, data), plain)
    assert torch.equal(losses_of(model, loss.plain, data), plain)
    assert "int8, 0 of 3 layers" in repr(loss)


def test_only_chosen_layers_are_rounded() -> None:
    """Layer by layer, against the formula written out."""
    model, (x, _) = net(), batch()
    first: Any = model[3]
    last = model[5]
    with precision_mode(model, ["3"], INT8):
        found = model(x)
    hidden = model[2](model[1](model[0](x)))
    given, by = INT8.activation(hidden).values(), INT8.weight(first.weight).values()
    wanted = last(F.relu(given @ by.t() + first.bias))
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, model(x), atol=1e-6)


@pytest.mark.parametrize("names", [["7"], ["0", "nine"], "0"])
def test_unknown_names_are_refused_and_nothing_changes(names: Any) -> None:
    loss = QuantizedLoss(CROSS_ENTROPY, net(), INT8)
    loss.choose(["5"])
    with pytest.raises(ConfigError, match="names of layers: 0, 3, 5"):
        loss.choose(names)
    assert loss.chosen == {"5"}


def test_another_model_is_refused() -> None:
    loss = quantized.all_chosen(CROSS_ENTROPY, net(), INT8)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"'0\.weight'"):
        losses_of(nn.Linear(64, 3), loss, batch())
    assert torch.equal(
        losses_of(copy.deepcopy(net()), loss, batch()), losses_of(net(), loss, batch())
    )


@pytest.mark.parametrize("recipe", ["bf16", "int8", "mxfp4", "luq-fp4"])
def test_the_model_stays_as_it_was(recipe: str) -> None:
    model, data = net(), batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {name: id(p) for name, p in model.named_parameters()}
    loss = quantized.all_chosen(CROSS_ENTROPY, model, parse_recipe(recipe))  # type: ignore[arg-type]
    engine = oracle.engine(model, loss, Clipping(1.0))
    engine(data, oracle.ticket())
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())
    assert not [hooks for m in model.modules() for hooks in m._forward_hooks]


def test_draws_are_fresh_from_step_to_step() -> None:
    from dither.noise.entropy import OsEntropy

    model, data = net(), batch()
    loss = quantized.all_chosen(CROSS_ENTROPY, model, LUQ)  # type: ignore[arg-type]
    engine = oracle.engine(model, loss, Clipping(1.0), OsEntropy())
    torch.manual_seed(0)  # a user's seed, which must not decide
    one = oracle.as_vector(engine(data, oracle.ticket())).clone()
    torch.manual_seed(0)
    assert not torch.equal(one, oracle.as_vector(engine(data, oracle.ticket())))


def test_views_of_a_weight_are_the_weight() -> None:
    """Transposes and parts, as models with bare parameters use them."""
    torch.manual_seed(0)
    model: Any = Composed(
        lambda m, x: torch.cat([x @ m.layer.weight.T, F.linear(x, m.layer.weight[:2])], 1),
        layer=nn.Linear(6, 4, bias=False),
    )
    x = torch.randn(3, 6)
    recipe = parse_recipe("weights=int4,activations=int4")
    with precision_mode(model, None, recipe):
        found = model(x)
    given, by = recipe.activation(x).values(), recipe.weight(model.layer.weight).values()
    torch.testing.assert_close(found, torch.cat([given @ by.t(), given @ by[:2].t()], 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_is_rounded_in_training_and_out_of_it(*, training: bool, grad: bool) -> None:
    """torch's fused encoder would pass the layers by."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(3, 5, 8)
    with torch.set_grad_enabled(grad):
        plain = model(x)
        for layer in find_layers(model):
            with precision_mode(model, [layer.name], parse_recipe("int4:nearest")):
                assert not torch.allclose(model(x), plain, atol=1e-4)


def test_attention_without_a_batch_is_that_of_a_batch_of_one() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2)
    x = torch.randn(5, 8)
    padding = torch.tensor([False, False, False, False, True])
    with precision_mode(model, None, INT8):
        output, weights = model(x, x, x, key_padding_mask=padding)
        batched, whole = model(x[:, None], x[:, None], x[:, None], key_padding_mask=padding[None])
    torch.testing.assert_close(output, batched[:, 0])
    torch.testing.assert_close(weights, whole[0])


def test_autocast_stays_outside_of_chosen_layers() -> None:
    model, (x, _) = net(), batch()
    with torch.autocast("cpu", torch.bfloat16), precision_mode(model, ["5"], INT8):
        found = model(x)
    assert found.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model[:5](x)
    last: Any = model[5]
    wanted = INT8.activation(hidden).values() @ INT8.weight(last.weight).values().t() + last.bias
    torch.testing.assert_close(found, wanted)


@COMPILER_LOADS
def test_compiled_models_run_as_they_were_written() -> None:
    model, data = net(), batch()
    loss = quantized.all_chosen(CROSS_ENTROPY, model, INT8)  # type: ignore[arg-type]
    compiled: Any = torch.compile(model, backend="eager")
    assert torch.equal(losses_of(compiled, loss, data), losses_of(model, loss, data))


def test_a_choice_among_layers_of_ones_own() -> None:
    model: Any = Composed(
        lambda m, x: F.linear(x, m.a) + m.b(x), a=nn.Parameter(torch.randn(3, 4)), b=nn.Linear(4, 3)
    )
    layers = [Layer("a", "linear", "a", (3, 4)), *find_layers(model)]
    loss = QuantizedLoss(CROSS_ENTROPY, model, INT8, layers)
    x = torch.randn(2, 4), torch.tensor([0, 2])
    plain = losses_of(model, loss, x)
    loss.choose(["a"])
    assert not torch.equal(losses_of(model, loss, x), plain)


def test_stochastic_rounding_is_unbiased_through_a_layer() -> None:
    """Forward and input gradient, averaged over many draws, are those in full precision.

    The mean of 4000 stays within six of its own standard errors: false alarms below 1e-6.
    """
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x = torch.randn(1, 16)
    g = torch.randn(8)
    with secret_generators(torch.device("cpu"), 3):
        each, back = [], []
        for _ in range(100):
            leaf = x.repeat(40, 1).requires_grad_()
            with precision_mode(layer, None, LUQ):
                output = layer(leaf)
            (found,) = torch.autograd.grad(output, leaf, g.expand_as(output))
            each.append(output.detach().mean(0))
            back.append(found.mean(0))
    for tried, wanted in (
        (torch.stack(each), layer(x)[0]),
        (torch.stack(back), g @ layer.weight),
    ):
        spread = tried.std(0) / tried.shape[0] ** 0.5
        assert bool(((tried.mean(0) - wanted).abs() < 6.0 * spread + 1e-6).all())
        assert bool((spread > 1e-4).any())
