"""What each layer of the frozen backbone says of emotions: a linear probe on its states, before any training.

    python tests/benchmarks/layers.py path/to/goemotions

Ridge regression from the mean and from the last hidden state of 6,000 training texts, with causal and with
bidirectional attention, scored on 2,000 validation texts by macro average precision. One JSON line for every second
layer, which is what a model with that ``num_hidden_layers`` starts from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timing import emit

from modeling.backbones import read_tokenizer
from modeling.infer import ATTENTIONS, BUNDLED_BACKBONE, EmotionConfig, EmotionModel, Features, load_backbone, tokenize
from training.corpus import load_corpus

POOLINGS = ("mean", "last")


@torch.inference_mode()
def pooled_states(model: EmotionModel, tokens: list[np.ndarray], batch_size: int = 128) -> dict[str, np.ndarray]:
    """Pooling → states after each layer and the final norm, float32 [layers, N, H]."""
    found = {
        pooling: np.zeros((len(model.backbone.layers), len(tokens), model.config.hidden_size), "f4")
        for pooling in POOLINGS
    }
    states: list[torch.Tensor] = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output))
    order = np.argsort([len(row) for row in tokens])
    for rows in np.split(order, range(batch_size, len(order), batch_size)):
        batch = Features(tokens=tokens).take(rows).tensors()
        states.clear()
        model(**batch)
        for layer, hidden in enumerate(states):
            for pooling in POOLINGS:
                model.config.pooling = pooling
                pooled = model._pool(model.backbone.norm(hidden), batch["attention_mask"].bool())
                found[pooling][layer, rows] = pooled.float().numpy()
    return found


def main() -> None:
    corpus = load_corpus("goemotions", ["goemotions-28"], str(Path(sys.argv[1])))
    texts = {"train": corpus["train"].texts[:6_000], "validation": corpus["validation"].texts[:2_000]}
    labels = {split: corpus[split].labels[: len(rows)] for split, rows in texts.items()}
    tokenizer = read_tokenizer(BUNDLED_BACKBONE)
    for attention in ATTENTIONS:
        backbone = load_backbone(BUNDLED_BACKBONE, dtype=torch.bfloat16)
        config = EmotionConfig(hidden_size=576, emotion_labels=corpus.labels, input="tokens", attention=attention)
        model = EmotionModel(config, backbone).eval()
        states = {split: pooled_states(model, tokenize(tokenizer, rows, 1)) for split, rows in texts.items()}
        for pooling in POOLINGS:
            for layer in range(1, len(model.backbone.layers), 2):
                probe = make_pipeline(StandardScaler(), Ridge(alpha=3_000))
                probe.fit(states["train"][pooling][layer], labels["train"])
                said = probe.predict(states["validation"][pooling][layer])
                precision = average_precision_score(labels["validation"], said, average="macro")
                emit(
                    "layer_probe",
                    attention=attention,
                    pooling=pooling,
                    layers=layer + 1,
                    macro_average_precision=round(precision, 3),
                )


if __name__ == "__main__":
    main()
