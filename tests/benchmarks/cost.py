"""Seconds of classifying and of training against rows, layers and width: is the cost linear?

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/cost.py

Random Mistrals in float32 read one token per row, from embeddings. Prints one JSON line per size (median of five
alternating rounds), with the seconds per unit of what should be linear: a thousand rows, a layer, a million weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from timing import alternate, emit
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import MistralConfig

from modeling.adapters import attach_lora
from modeling.infer import EmotionConfig, EmotionModel, Features, FusedOneTokenMistral, OneTokenMistral, predict_logits

EMBED_DIM = 512
BATCH = 512
ROWS = (1_000, 10_000, 100_000)
LAYERS = (4, 8, 16, 32)
WIDTHS = (128, 256, 512, 1_024)


def build(layers: int, width: int) -> EmotionModel:
    """A random model whose shapes grow with its width."""
    backbone = MistralConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
    )
    labels = [str(number) for number in range(28)]
    config = EmotionConfig(hidden_size=width, embed_dim=EMBED_DIM, emotion_labels=labels)
    return EmotionModel(config, OneTokenMistral(backbone))


def classifier(model: EmotionModel, embeddings: np.ndarray) -> Callable[[], np.ndarray]:
    """Embeddings → logits, as ``EmotionClassifier`` computes them."""
    if isinstance(model.backbone, OneTokenMistral):
        model.backbone = FusedOneTokenMistral(model.backbone)
    return partial(predict_logits, model, Features(embeddings), BATCH)


def trainer(model: EmotionModel, rows: int) -> Callable[[], None]:
    """A function that trains one epoch over ``rows`` random rows."""
    shell = attach_lora(model, 16, 32, 0.0).train()
    optimizer = torch.optim.AdamW([p for p in shell.parameters() if p.requires_grad], lr=1e-4)
    embeddings, targets = torch.randn(rows, EMBED_DIM), torch.zeros(rows, 28)

    def epoch() -> None:
        for part, labels in zip(embeddings.split(BATCH), targets.split(BATCH), strict=True):
            binary_cross_entropy_with_logits(shell(embeddings=part).logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def report(what: str, unit: str, sizes: dict[int, float], functions: dict[int, Callable[[], object]]) -> None:
    """Time the function of each size, and divide by its number of units."""
    seconds = alternate({str(size): function for size, function in functions.items()})
    for size, units in sizes.items():
        spent = seconds[str(size)]
        emit(
            "cost", work=what, against=unit, size=size, seconds=round(spent, 4), seconds_a_unit=round(spent / units, 5)
        )


def main() -> None:
    torch.manual_seed(0)
    rows = {number: np.random.default_rng(0).normal(size=(number, EMBED_DIM)).astype(np.float32) for number in ROWS}
    small, thousands = build(4, 128), {number: number / 1_000 for number in ROWS}
    report("classify", "thousand rows", thousands, {number: classifier(small, rows[number]) for number in ROWS})
    report("train", "thousand rows", thousands, {number: trainer(build(4, 128), number) for number in ROWS})
    for what in ("classify", "train"):
        models = {layers: build(layers, 256) for layers in LAYERS}
        wide = {width: build(8, width) for width in WIDTHS}
        weights = {width: sum(p.numel() for p in wide[width].backbone.parameters()) / 1e6 for width in WIDTHS}
        for unit, built, units in (
            ("layer", models, {layers: float(layers) for layers in LAYERS}),
            ("million weights", wide, weights),
        ):
            functions: dict[int, Callable[[], object]] = {
                size: classifier(model, rows[1_000]) if what == "classify" else trainer(model, 1_000)
                for size, model in built.items()
            }
            report(what, unit, units, functions)


if __name__ == "__main__":
    main()
