"""Speed of a package: the backbone against stock transformers, the whole against RoBERTa-base.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/inference_speed.py PACKAGE path/to/goemotions/test.tsv

From embedding to logits, stock is the package's heads around ``MistralModel``, with the adapter as PEFT attaches it
and with the adapter merged, on one thread and on all. Ours is ``predict_logits``. RoBERTa-base has random weights,
which are enough for timing, and the bundled backbone's tokenizer, a byte-level BPE like its own. It tokenizes, sorts
all texts by length and pads each batch to its longest text. It runs in its best setting (float32 or bfloat16, one
thread or two), which one round over 64 texts chooses for each batch size. Prints one JSON line per figure (median of
five alternating rounds), and how many decisions differ between float32 and bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from roberta import DTYPES, Roberta
from timing import alternate, emit, matrix_product
from transformers import AutoModel

from modeling import infer
from modeling.infer import EmotionClassifier, EmotionModel, Features, at_most, predict_logits

TEXTS = {1: 32, 64: 256, 512: 512}
"""Batch size → number of texts in a round."""


def stock_model(
    package: Path, model: EmotionModel, dtype: torch.dtype, merged: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Embeddings → logits with the whole ``MistralModel`` and the package's adapter, attached or merged."""
    name = model.config.model_name
    folder = infer.convert_bundled_backbone() if name == infer.BUNDLED_BACKBONE else name
    whole = AutoModel.from_pretrained(folder, dtype=dtype)
    attached: Any = PeftModel.from_pretrained(whole, str(package / "lora_adapter")).eval()
    stock = attached.merge_and_unload() if merged else attached.get_base_model()

    def answer(embeddings: torch.Tensor) -> torch.Tensor:
        tokens = model.projection(embeddings).unsqueeze(1).to(dtype)
        hidden = stock(inputs_embeds=tokens, use_cache=False).last_hidden_state[:, -1]
        return cast(torch.Tensor, model.classifier(hidden.float()))

    return answer


def in_threads(threads: int, function: Callable[[], object]) -> None:
    """Call a function with at most this many threads."""
    with at_most(threads):
        function()


@torch.inference_mode()
def main() -> None:
    package = Path(sys.argv[1])
    texts = [line.split("\t")[0] for line in Path(sys.argv[2]).read_text(encoding="utf-8").split("\n") if line][:2_000]
    classifiers = {name: EmotionClassifier(package, dtype=dtype, batch_size=512) for name, dtype in DTYPES.items()}
    compare_decisions(classifiers, texts)
    model = classifiers["float32"].model
    embeddings = classifiers["float32"].embed(texts[:512])
    product, operations = matrix_product()
    for batch_size in (1, 64, 512):
        functions: dict[str, Callable[[], object]] = {"matrix product": product}
        part = embeddings[:batch_size]
        for name, dtype in DTYPES.items():
            for adapter in ("attached", "merged"):
                answer = stock_model(package, model, dtype, merged=adapter == "merged")
                stock = partial(answer, torch.from_numpy(part))
                for threads in sorted({1, torch.get_num_threads()}):
                    functions[f"stock, adapter {adapter}, {name}, threads {threads}"] = partial(
                        in_threads, threads, stock
                    )
            ours = classifiers[name].model
            functions[f"ours, {name}"] = partial(predict_logits, ours, Features(embeddings=part), batch_size)
        seconds = alternate(functions)
        rate = operations / seconds["matrix product"]
        weights = sum(matrix.numel() for matrices in model.backbone.matrices for matrix in matrices)
        for name in functions:
            share = 2.0 * weights * batch_size / seconds[name] / rate
            line = {"milliseconds": round(1_000 * seconds[name], 2), "share_of_matrix_rate": round(share, 3)}
            emit("backbone", model=name, batch_size=batch_size, **line)
    other = Roberta()
    for batch_size, count in TEXTS.items():
        setting, best = other.best(texts[:count], batch_size)
        functions = {f"RoBERTa-base, {setting}": best}
        for name in DTYPES:
            functions[f"ours, {name}"] = partial(classify_in_batches, classifiers[name], texts[:count], batch_size)
        functions["ours, its encoder alone"] = encoder(classifiers["float32"], texts[:count], batch_size)
        seconds = alternate(functions)
        for name in functions:
            line = {"texts_per_second": round(count / seconds[name], 1)}
            if batch_size == 1:
                line["milliseconds"] = round(1_000 * seconds[name] / count, 2)
            emit("whole", model=name, batch_size=batch_size, **line)


def classify_in_batches(classifier: EmotionClassifier, texts: list[str], batch_size: int) -> None:
    """Texts → labels, ``batch_size`` texts per call."""
    for start in range(0, len(texts), batch_size):
        classifier.predict(texts[start : start + batch_size])


def encoder(classifier: EmotionClassifier, texts: list[str], batch_size: int) -> Callable[[], None]:
    """Texts → embeddings, ``batch_size`` texts per call."""

    def embed() -> None:
        for start in range(0, len(texts), batch_size):
            classifier.embed(texts[start : start + batch_size])

    return embed


def compare_decisions(classifiers: dict[str, EmotionClassifier], texts: list[str]) -> None:
    """Count the decisions that differ between float32 and bfloat16."""
    probabilities = {name: classifier.predict_proba(texts) for name, classifier in classifiers.items()}
    config = classifiers["float32"].config
    cuts = np.array([config.thresholds.get(label, config.threshold) for label in config.emotion_labels])
    differ = (probabilities["float32"] >= cuts) != (probabilities["bfloat16"] >= cuts)
    apart = float(np.abs(probabilities["float32"] - probabilities["bfloat16"]).max())
    emit("decisions", texts=len(texts), differ=int(differ.sum()), of=differ.size, greatest_difference=apart)


if __name__ == "__main__":
    main()
