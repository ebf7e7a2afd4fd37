"""Training rows per second of a backbone that reads words: the stock path, and the gain of each change.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/token_speed.py path/to/goemotions/train.tsv

A step is 32 texts of the file (16 from the setting with rank 64 on) and the optimizer's step, on the bundled backbone
with LoRA on all seven matrices of each layer, in the precision that the trainer would use on this CPU. The first
setting is plain transformers and PEFT. Each later setting adds one change, up to the recipe ``goemotions_tokens`` and
its compiled layers. Prints one JSON line per setting: the median of five alternating rounds over two steps, in rows
and in tokens per second (without padding), and the share of the machine's matrix rate in that precision. Batches of
similar length are the two quartiles of those that the trainer's sampler makes from 1,600 texts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from timing import alternate, emit, matrix_product
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from modeling.adapters import HEAD_PARTS, attach_lora
from modeling.backbones import compile_layers, hold_bfloat16, read_tokenizer
from modeling.infer import BUNDLED_BACKBONE, EmotionConfig, EmotionModel, Features, load_backbone, to_tensors, tokenize
from modeling.recipe import ALL_LINEAR, Recipe
from training.fit.build import fit_precision

LABELS = [str(number) for number in range(28)]
STEPS, WINDOW_LENGTH, SORTED_TEXTS, EMBED_DIM = 2, 64, 1600, 512


@dataclass(frozen=True)
class Setting:
    """One way to train."""

    by_length: bool = False
    attention: str = "sdpa"
    fused_lora: bool = False
    fused_optimizer: bool = False
    layers: int = 30
    rank: int = 16
    rows: int = 32
    direction: str = "causal"
    reads: str = "tokens"
    compiled: bool = False


STOCK = Setting()
SETTINGS = {
    "transformers and PEFT, texts at random": STOCK,
    "+ batches of like length": (by_length := replace(STOCK, by_length=True)),
    "+ attention by plain products": (eager := replace(by_length, attention="eager")),
    "+ LoRA in one function": (lora := replace(eager, fused_lora=True)),
    "+ fused AdamW": (fused := replace(lora, fused_optimizer=True)),
    "+ 20 layers of 30": (short := replace(fused, layers=20)),
    "+ rank 64, 16 texts": (wide := replace(short, rank=64, rows=16)),
    "+ attention in both directions": (both := replace(wide, direction="bidirectional")),
    "+ the embedding before the words: the recipe": (recipe := replace(both, reads="hybrid")),
    "+ compiled layers": replace(recipe, compiled=True),
}


def build(setting: Setting, dtype: torch.dtype) -> nn.Module:
    """The model of a setting."""
    torch.manual_seed(0)
    config = EmotionConfig(
        hidden_size=576,
        embed_dim=EMBED_DIM if setting.reads == "hybrid" else 0,
        emotion_labels=list(LABELS),
        input=setting.reads,
        attention=setting.direction,
        pooling="mean",
    )
    backbone = load_backbone(BUNDLED_BACKBONE, num_hidden_layers=setting.layers)
    backbone.config._attn_implementation = setting.attention
    if dtype == torch.bfloat16:
        hold_bfloat16(backbone)
    model = EmotionModel(config, backbone)
    if setting.fused_lora:
        with_lora = attach_lora(model, setting.rank, 2 * setting.rank, 0.0).train()
        if setting.compiled:
            compile_layers(backbone)
        return with_lora
    heads = [part for part in HEAD_PARTS if hasattr(model, part)]
    return get_peft_model(
        model,
        LoraConfig(r=setting.rank, lora_alpha=2 * setting.rank, target_modules=list(ALL_LINEAR), modules_to_save=heads),
    ).train()


def batches(setting: Setting, tokens: list[np.ndarray]) -> list[Features]:
    """The model's input in each step, in batches of similar length or in the order of the file."""
    embeddings = np.random.default_rng(0).normal(size=(len(tokens), EMBED_DIM)) if setting.reads == "hybrid" else None
    features = Features(embeddings, tokens)
    places = np.arange(SORTED_TEXTS).reshape(-1, setting.rows)
    if not setting.by_length:
        return [features.take(places[step]) for step in range(STEPS)]
    places = np.argsort([len(row) for row in tokens], kind="stable").reshape(-1, setting.rows)
    return [features.take(places[len(places) * quartile // 4]) for quartile in (1, 3)]


def build_steps(setting: Setting, tokens: list[np.ndarray], dtype: torch.dtype) -> Callable[[], None]:
    """All steps, one after the other."""
    model = build(setting, dtype)
    parts = [to_tensors(batch) for batch in batches(setting, tokens)]
    targets = (torch.rand(setting.rows, len(LABELS), generator=torch.Generator().manual_seed(1)) < 0.05).float()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=setting.fused_optimizer)

    def steps() -> None:
        for batch in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = model(**batch).logits
            binary_cross_entropy_with_logits(logits.float(), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def operations(setting: Setting, tokens: int) -> float:
    """Operations of the frozen matrices in the forward pass and in the backward pass to their inputs."""
    hidden, inner, values = 576, 1536, 192
    weights = setting.layers * (2 * hidden * hidden + 2 * hidden * values + 3 * hidden * inner)
    return 2.0 * 2.0 * weights * tokens


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()[:SORTED_TEXTS]
    tokens = tokenize(read_tokenizer(BUNDLED_BACKBONE), [line.split("\t")[0] for line in lines], 1)
    tokens = [row[:WINDOW_LENGTH] for row in tokens]
    dtype = torch.bfloat16 if fit_precision(Recipe(bf16=True)).bf16 else torch.float32
    product, product_operations = matrix_product(dtype=dtype)
    settings = {name: build_steps(setting, tokens, dtype) for name, setting in SETTINGS.items()}
    seconds = alternate({**settings, "matrix product": product})
    rate = product_operations / seconds["matrix product"]
    for name, setting in SETTINGS.items():
        parts = batches(setting, tokens)
        number = sum(len(row) for part in parts for row in part.tokens or [])
        padded = sum(to_tensors(part)["input_ids"].numel() for part in parts)
        emit(
            "token_training",
            setting=name,
            rows_per_second=round(setting.rows * STEPS / seconds[name], 1),
            tokens_per_second=round(number / seconds[name]),
            padding=round(1 - number / padded, 3),
            share_of_matrix_rate=round(operations(setting, number) / seconds[name] / rate, 3),
        )
    emit("matrix_rate", gflops=round(rate / 1e9), precision=str(dtype))


if __name__ == "__main__":
    main()
