"""The backbone-free baseline: the projection and a linear classifier on the same embeddings, rows and loss.

    python tests/benchmarks/mlp_baseline.py --recipe goemotions --data_dir path/to/goemotions

takes the recipe's corpus, balance, loss and noise, trains without a backbone, keeps the best epoch by validation
macro F1 with tuned thresholds, and prints one JSON line a seed. A second line gives the encoder's rate.
"""

from __future__ import annotations

import copy
import json
import sys
import time

import numpy as np
import torch
from torch import nn

from modeling.focal import alpha_per_label, focal_loss
from modeling.infer import build_projection, load_encoder
from modeling.projection import standardise_projection
from training.recipe import parse_recipe
from training.run import balance_rows, encode_splits, read_corpus
from training.scoring import report, scores
from training.thresholds import tune_per_label

EPOCHS, BATCH, WIDTH = 12, 128, 576


def main() -> None:
    recipe, _ = parse_recipe(sys.argv[1:])
    corpus = read_corpus(recipe)
    embeddings, _ = encode_splits(corpus, recipe)
    for seed in range(3):
        recipe.seed = seed
        rows = balance_rows(corpus, embeddings["train"], recipe)
        alpha = alpha_per_label(recipe.alpha, corpus.labels, rows.labels.sum(axis=0).tolist(), len(rows))
        torch.manual_seed(seed)
        projection = build_projection(rows.embeddings.shape[1], WIDTH)
        standardise_projection(projection, rows.embeddings, 1.0, seed)
        model = nn.Sequential(projection, nn.Dropout(recipe.head_dropout), nn.Linear(WIDTH, len(corpus.labels)))
        rates = [{"params": projection.parameters(), "lr": 1e-2}, {"params": model[2].parameters(), "lr": 1e-3}]
        optimizer = torch.optim.AdamW(rates, weight_decay=recipe.weight_decay)
        steps = EPOCHS * -(-len(rows) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        inputs, targets = torch.from_numpy(rows.embeddings), torch.from_numpy(rows.labels)
        best, kept = -1.0, copy.deepcopy(model.state_dict())
        for _ in range(EPOCHS):
            model.train()
            for batch in torch.randperm(len(rows)).split(BATCH):
                noisy = inputs[batch] + recipe.embedding_noise * torch.randn(len(batch), inputs.shape[1])
                optimizer.zero_grad()
                focal_loss(model(noisy), targets[batch], torch.tensor(alpha), recipe.gamma).backward()
                optimizer.step()
                schedule.step()
            validation = predict(model, embeddings["validation"]), corpus["validation"].labels
            tuned = tune_per_label(*validation, fallback=0.5)
            score = scores(validation[0] >= tuned, validation[1])["macro_f1"]
            if score > best:
                best, kept = score, copy.deepcopy(model.state_dict())
        model.load_state_dict(kept)
        found = {s: (predict(model, embeddings[s]), corpus[s].labels) for s in ("validation", "test")}
        metrics, _, _ = report(found["validation"], found["test"], corpus.labels)
        test = metrics["test"]["per_label"]
        line = {"figure": "mlp_baseline", "seed": seed, "validation_macro_f1": best, "test_macro_f1": test["macro_f1"]}
        print(json.dumps({**line, "interval_95": test["intervals_95"]["macro_f1"]}), flush=True)
    encoder = load_encoder(recipe.encoder)
    texts = corpus["test"].texts
    rates_seen = []
    for _ in range(3):
        started = time.perf_counter()
        encoder(texts)
        rates_seen.append(len(texts) / (time.perf_counter() - started))
    print(json.dumps({"figure": "encoder_texts_per_second", "median_of_3": float(np.median(rates_seen))}))


@torch.no_grad()
def predict(model: nn.Module, embeddings: np.ndarray) -> np.ndarray:
    model.eval()
    return torch.sigmoid(model(torch.from_numpy(embeddings))).numpy()


if __name__ == "__main__":
    main()
