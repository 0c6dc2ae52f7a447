"""Models that people train, with a batch and a loss for each, small or at full width."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is looked up, so nothing is fetched

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from dither.clipping.loss import ModelLoss

VOCABULARY = 100
CLASSES = 3

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """What is trained, and on what.

    Attributes:
        model: In training mode, without dropout.
        loss: One loss an example, or several.
        batch: Makes a batch of so many examples.
        adapted: Names of the layers that LoRA may adapt.
    """

    model: nn.Module
    loss: ModelLoss
    batch: Callable[[int], Batch]
    adapted: tuple[str, ...]


def configured(kind: Callable[..., Any], **options: Any) -> Any:
    """Return a configuration; types know few of its options."""
    return kind(**options)


def restored(model: nn.Module, folder: Path) -> nn.Module:
    """Put saved adapters on a model as it was before."""
    found: nn.Module = peft.PeftModel.from_pretrained(model, str(folder))
    return found


def with_lora(case: Case) -> Case:
    """Freeze all but low-rank adapters; both of their factors get a gradient."""
    config = peft.LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=list(case.adapted),
        fan_in_fan_out="c_attn" in case.adapted,
        init_lora_weights=False,  # else B = 0, and A gets no gradient
    )
    torch.manual_seed(7)
    model: nn.Module = peft.get_peft_model(case.model, config)
    return Case(model.train(), case.loss, case.batch, case.adapted)


# Language


def texts(rows: int, time: int = 9) -> Batch:
    """Token ids with padding behind them, and a class for each text."""
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(1, VOCABULARY, (rows, time), generator=generator)
    lengths = torch.randint(3, time + 1, (rows, 1), generator=generator)
    mask = torch.arange(time) < lengths
    kinds = (torch.arange(time) > lengths // 2).long() * mask
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    return {"ids": ids * mask, "mask": mask.long(), "kinds": kinds, "labels": labels}


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    """Losses of every real token but the first."""
    logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
    targets = batch["ids"].masked_fill(batch["mask"] == 0, -100)[:, 1:]
    return F.cross_entropy(
        logits[:, :-1].transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )


def text_class(model: nn.Module, batch: Batch) -> Tensor:
    """Losses of BERT's classes."""
    output = model(
        input_ids=batch["ids"], attention_mask=batch["mask"], token_type_ids=batch["kinds"]
    )
    return F.cross_entropy(output.logits, batch["labels"], reduction="none")


def gpt2(attention: str = "sdpa", dropout: float = 0.0, width: int = 32) -> Case:
    """GPT-2: Conv1D, learned positions, output tied to the embedding."""
    torch.manual_seed(0)
    config = configured(
        transformers.GPT2Config,
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=width,
        n_layer=2,
        n_head=4,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    model = transformers.GPT2LMHeadModel(config).train()
    return Case(model, ModelLoss(next_token), texts, ("c_attn", "c_proj"))


def bert(attention: str = "sdpa", dropout: float = 0.0) -> Case:
    """BERT with token types, a pooler and a classifier."""
    torch.manual_seed(0)
    config = configured(
        transformers.BertConfig,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    model = transformers.BertForSequenceClassification(config).train()
    return Case(model, ModelLoss(text_class), texts, ("query", "value"))


def llama(attention: str = "sdpa", *, tied: bool = False) -> Case:
    """A Llama: RMSNorm, rotary positions, two heads of keys for four of queries, SwiGLU."""
    torch.manual_seed(0)
    config = configured(
        transformers.LlamaConfig,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation=attention,
    )
    model = transformers.LlamaForCausalLM(config).train()
    return Case(model, ModelLoss(next_token), texts, ("q_proj", "v_proj", "down_proj"))


def t5(attention: str = "sdpa") -> Case:
    """T5, encoder and decoder: relative positions are trained biases in every attention."""
    torch.manual_seed(0)
    config = configured(
        transformers.T5Config,
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
        attn_implementation=attention,
    )
    model = transformers.T5ForConditionalGeneration(config).train()
    return Case(model, ModelLoss(repetition), texts, ("q", "v"))


def repetition(model: nn.Module, batch: Batch) -> Tensor:
    """Losses of saying again what was read."""
    logits = model(
        input_ids=batch["ids"], attention_mask=batch["mask"], decoder_input_ids=batch["ids"]
    ).logits
    targets = batch["ids"].masked_fill(batch["mask"] == 0, -100)
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")


def deberta() -> Case:
    """DeBERTa: keys of positions are projected once and repeated for every example."""
    torch.manual_seed(0)
    config = configured(
        transformers.DebertaV2Config,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pooler_hidden_size=32,
        num_labels=CLASSES,
    )
    model = transformers.DebertaV2ForSequenceClassification(config).train()
    return Case(model, ModelLoss(text_class), texts, ("query_proj", "value_proj"))


# Images


def images(rows: int, size: int = 16) -> Batch:
    """Noise, and a class for each picture."""
    generator = torch.Generator().manual_seed(rows)
    pixels = torch.randn(rows, 3, size, size, generator=generator)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    return {"pixels": pixels, "labels": labels}


def image_class(model: nn.Module, batch: Batch) -> Tensor:
    """Losses of classes."""
    output: Any = model(batch["pixels"])
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits, batch["labels"], reduction="none")


def vit() -> Case:
    """A vision transformer: patches, a class token, learned positions."""
    torch.manual_seed(0)
    config = configured(
        transformers.ViTConfig,
        image_size=16,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
    )
    model = transformers.ViTForImageClassification(config).train()
    return Case(model, ModelLoss(image_class), images, ("q_proj", "v_proj"))


def convnext() -> Case:
    """ConvNeXt as transformers has it: LayerNorm over channels first and last, layer scale."""
    torch.manual_seed(0)
    config = configured(
        transformers.ConvNextConfig,
        hidden_sizes=[16, 32],
        depths=[2, 2],
        num_stages=2,
        patch_size=4,
        image_size=16,
        layer_scale_init_value=0.5,
        num_labels=CLASSES,
    )
    model = transformers.ConvNextForImageClassification(config).train()
    return Case(model, ModelLoss(image_class), images, ("pwconv1", "pwconv2"))


def swin() -> Case:
    """Swin: windows of all examples on one axis, a trained bias for places in a window."""
    torch.manual_seed(0)
    config = configured(
        transformers.SwinConfig,
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        drop_path_rate=0.0,
        num_labels=CLASSES,
    )
    model = transformers.SwinForImageClassification(config).train()
    batch = functools.partial(images, size=32)
    return Case(model, ModelLoss(image_class), batch, ("q_proj", "v_proj"))


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over channels last, two linear layers, layer scale (2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.norm(self.spread(x).permute(0, 2, 3, 1))
        inner = self.scale * self.narrow(F.gelu(self.wide(inner)))
        return x + inner.permute(0, 3, 1, 2)


def convnext_block(width: int = 8) -> Case:
    """A stem, one block and a head."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, width, 4, stride=4)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))
    model = nn.Sequential(stem, ConvNextBlock(width), pool)
    return Case(model, ModelLoss(image_class), images, ("wide", "narrow"))


class Residual(nn.Module):
    """ResNet's basic or bottleneck block (1512.03385), with torchvision's places of strides."""

    def __init__(self, channels: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outer = 4 * width if bottleneck else width
        kernels = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        sizes = [channels, width, width, outer] if bottleneck else [channels, width, outer]
        self.convs = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], k, s, padding=k // 2, bias=False)
            for i, (k, s) in enumerate(kernels)
        )
        self.norms = nn.ModuleList(group_norm(size) for size in sizes[1:])
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != outer:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, outer, 1, stride, bias=False), group_norm(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if index + 1 < len(self.convs):
                out = self.relu(out)
        out += self.shortcut(x)
        return self.relu(out)  # type: ignore[no-any-return]


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of at least four channels: two would be normalised to their signs."""
    return nn.GroupNorm(min(32, channels // 4), channels)


def resnet(depth: int, width: int = 4, size: int = 32) -> Case:
    """ResNet-18 or -50 with GroupNorm; its own width is 64."""
    torch.manual_seed(0)
    bottleneck = depth == 50
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, padding=3, bias=False),
        group_norm(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    channels = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(Residual(channels, inner, stride, bottleneck=bottleneck))
            channels = inner * (4 if bottleneck else 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    batch = functools.partial(images, size=size)
    names = ("convs.0", "convs.1", "convs.2")
    return Case(nn.Sequential(*layers), ModelLoss(image_class), batch, names)


class Dense(nn.Module):
    """DenseNet's layer (1608.06993): its output goes behind its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            group_norm(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return torch.cat([x, found], 1)


def densenet121(growth: int = 4, size: int = 32) -> Case:
    """DenseNet-121 with GroupNorm; its own growth is 32."""
    torch.manual_seed(0)
    channels = 2 * growth
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, 2, padding=3, bias=False),
        group_norm(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            half = channels // 2
            layers += [
                group_norm(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, half, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels = half
        for _ in range(count):
            layers.append(Dense(channels, growth))
            channels += growth
    layers += [group_norm(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers.append(nn.Linear(channels, CLASSES))
    batch = functools.partial(images, size=size)
    return Case(nn.Sequential(*layers), ModelLoss(image_class), batch, ("body.2", "body.5"))


SMALL: dict[str, Callable[[], Case]] = {
    "gpt2": gpt2,
    "gpt2-eager": functools.partial(gpt2, "eager"),
    "bert": bert,
    "bert-eager": functools.partial(bert, "eager"),
    "llama": llama,
    "llama-eager-tied": functools.partial(llama, "eager", tied=True),
    "t5": t5,
    "t5-eager": functools.partial(t5, "eager"),
    "deberta": deberta,
    "vit": vit,
    "swin": swin,
    "convnext": convnext,
    "convnext-block": convnext_block,
    "resnet18": functools.partial(resnet, 18),
    "resnet50": functools.partial(resnet, 50),
    "densenet121": densenet121,
}
WIDE: dict[str, Callable[[], Case]] = {
    "gpt2": functools.partial(gpt2, width=256),
    "resnet18": functools.partial(resnet, 18, 64, 64),
    "resnet50": functools.partial(resnet, 50, 64, 64),
    "densenet121": functools.partial(densenet121, 32, 64),
}
