"""Fine-tune LoRA adapters of a GPT-2 privately, and save them.

    pip install transformers peft
    python examples/lora_gpt2.py

Nothing is downloaded: the base model is a tiny one, taught here on public made-up sentences; give
--model a folder with a GPT-2 of your own instead. The private sentences are made up too. It leaves
a ledger and a folder of adapters where it runs.
"""

# ruff: noqa: T201, S311 - an example may print, and its records may be predictable

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import dither

LENGTH = 32
NAMES = ("anna", "ben", "carla", "dan", "eva", "finn")
PUBLIC = ("reads", "sings", "walks"), ("today", "at home", "alone")
PRIVATE = ("fears", "misses", "owes"), ("the bank", "her son", "a friend")


def sentences(words: tuple[tuple[str, ...], ...], count: int, seed: int) -> list[dict[str, Tensor]]:
    """Return records: bytes of a sentence, padded to one length, and a mask."""
    draw = random.Random(seed)
    records = []
    for _ in range(count):
        text = " ".join(draw.choice(part) for part in (NAMES, *words)).encode()[:LENGTH]
        ids = torch.zeros(LENGTH, dtype=torch.long)
        ids[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        records.append({"input_ids": ids, "attention_mask": (ids > 0).long()})
    return records


def next_token(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the losses of a record's bytes, over its own number of bytes."""
    logits = model(**batch).logits[:, :-1]
    mask = batch["attention_mask"][:, 1:]
    targets = batch["input_ids"][:, 1:].masked_fill(mask == 0, -100)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    # Its own count, never the batch's: no record may change the weight of another.
    return losses.sum(1) / mask.sum(1).clamp(min=1)


def held_out_loss(model: nn.Module, records: list[dict[str, Tensor]]) -> float:
    """Return the mean loss."""
    model.eval()
    with torch.inference_mode():
        whole: Any = records
        batch = next(iter(DataLoader(whole, batch_size=len(records))))
        loss = float(next_token(model, batch).mean())
    model.train()
    return loss


def base_model(folder: Path | None, steps: int) -> nn.Module:
    """Return a GPT-2: the user's, or a tiny one taught on public sentences, without privacy."""
    if folder is not None:
        return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
                   bos_token_id=0, eos_token_id=0)
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    public: Any = sentences(PUBLIC, 32 * steps, seed=0)
    for batch in DataLoader(public, batch_size=32):
        optimizer.zero_grad()
        next_token(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model  # type: ignore[no-any-return]


def main(
    *,
    records: int,
    epochs: int,
    epsilon: float,
    model: Path | None,
    ledger: Path,
    adapters: Path,
) -> float:
    """Train, print what was reached and spent, and return the run's ε."""
    # The base model stays as it is; only the adapters are trained, and only they get noise.
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True
    )
    adapted: Any = peft.get_peft_model(base_model(model, steps=100), config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in trained)} of {adapted.num_parameters()} parameters are trained")

    private: Any = sentences(PRIVATE, records, seed=1)
    unseen = sentences(PRIVATE, 200, seed=2)
    step, loader = dither.make_private(
        adapted,
        torch.optim.AdamW(trained, lr=5e-3),
        DataLoader(private, batch_size=max(1, records // 10)),
        loss_fn=dither.ModelLoss(next_token),
        ledger=ledger,
        store="made-up sentences",
        sensitive=False,
        epsilon=epsilon,
        delta=0.1 / records,
        epochs=epochs,
    )
    print(f"held-out loss before: {held_out_loss(adapted, unseen):.3f}")
    for epoch in range(epochs):
        for batch in loader:
            step(batch)
        print(f"held-out loss after epoch {epoch + 1}: {held_out_loss(adapted, unseen):.3f}")
    adapted.save_pretrained(adapters)
    spent: float = step.epsilon()
    print(f"spent: epsilon = {spent:.3f} at delta = {step.plan.delta:g}; adapters in {adapters}")
    return spent


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Private LoRA fine-tuning of a GPT-2.")
    options.add_argument("--records", type=int, default=4_000, help="private sentences")
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--epsilon", type=float, default=3.0, help="budget of this run")
    options.add_argument("--model", type=Path, default=None, help="folder of a GPT-2")
    options.add_argument("--ledger", type=Path, default=Path("lora_gpt2.sqlite"))
    options.add_argument("--adapters", type=Path, default=Path("adapters"))
    main(**vars(options.parse_args()))
