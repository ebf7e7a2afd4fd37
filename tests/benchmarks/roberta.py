"""RoBERTa-base as a sequence classifier for comparison, with random weights, which are enough for timing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from timing import alternate
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

from modeling.infer import bundled

THREADS = torch.get_num_threads()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Roberta:
    """RoBERTa-base with 28 labels and random weights: texts in, labels out."""

    def __init__(self) -> None:
        gguf = bundled._find_gguf()
        self.tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        config = RobertaConfig(vocab_size=50_265, num_labels=28, max_position_embeddings=514)
        config._attn_implementation = "sdpa"
        model = RobertaForSequenceClassification(config).eval()
        self.models = {name: copy.deepcopy(model).to(dtype) for name, dtype in DTYPES.items()}

    def classify(self, texts: list[str], batch_size: int, dtype: str, threads: int) -> list[list[int]]:
        """The labels of each text, in the order of the texts."""
        torch.set_num_threads(threads)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        labels: list[list[int]] = [[] for _ in texts]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer([texts[index] for index in chosen], padding=True, truncation=True, max_length=512)
            inputs = {name: torch.tensor(batch[name]) for name in ("input_ids", "attention_mask")}
            reached = self.models[dtype](**inputs).logits.float().sigmoid().numpy() >= 0.5
            for index, row in zip(chosen, reached, strict=True):
                labels[index] = np.flatnonzero(row).tolist()
        torch.set_num_threads(THREADS)
        return labels

    def best(self, texts: list[str], batch_size: int) -> tuple[str, Callable[[], object]]:
        """Its fastest setting in one round over 64 of the texts: its name, and a function over all texts."""
        settings = {
            f"{dtype}, {threads} threads": (batch_size, dtype, threads)
            for dtype, threads in itertools.product(DTYPES, sorted({1, THREADS}))
        }
        some = texts[:64]
        seconds = alternate({name: partial(self.classify, some, *setting) for name, setting in settings.items()}, 1)
        fastest = min(seconds, key=lambda name: seconds[name])
        return fastest, partial(self.classify, texts, *settings[fastest])
