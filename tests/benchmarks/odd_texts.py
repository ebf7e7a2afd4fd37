"""Many odd texts through one classifier: is the order kept, does one fail, does memory grow?

    python tests/benchmarks/odd_texts.py 1000000
    python tests/benchmarks/odd_texts.py 20000 PACKAGE

Without PACKAGE the model is a one-token backbone of random weights, two layers of width 16, with an encoder that hashes
each text: it costs little, so the million tests everything around the model. The texts are made from a seed: empty,
blank, emoji, other scripts, combining and control characters, half a surrogate pair, a word of thousands of letters,
markup, digits, and plain words; every 5,000th has 100,000 characters. They pass through ``predict`` 50,000 at a time.
After each call 50 of them are classified again alone: the same answer shows that order was kept. Prints one JSON line
per call, with the memory of the process.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time

import numpy as np
import psutil
from timing import emit
from transformers import MistralConfig

from modeling.infer import EmotionClassifier, EmotionConfig, EmotionModel

AT_ONCE, AGAIN, WIDTH = 50_000, 50, 12
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     ",
    "\u0430\u0431\u0432\u0433\u0434 \u4e16\u754c\u3042\u3044 \u05d0\u05d1 \u0627\u0628 \u0915\u094d\u0937 \u0e01\u0e34",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\u2764\ufe0f\U0001f1ee\U0001f1f9",
    "e\u0301\u0302\u0303\u0489 z\u0335\u0336",
    "\x00\x01\x07\x1b\x7f\u200b\u202e\ufeff\u2028",
    " \t\n\r\u00a0\u3000",
    "0123456789.,-+%",
    "<>&\"'{}[]()|;#=@\\/",
    "a\ud83d\udc00b",
)


def odd_text(number: int) -> str:
    """The text with this number."""
    generator = random.Random(number)
    if number % 5_000 == 0:
        return "".join(generator.choices(ALPHABETS[0], k=100_000))
    size = generator.choice((0, 1, 3, 20, 100)) if number % 97 else 3_000
    return "".join(generator.choices(generator.choice(ALPHABETS), k=size))


def hashed(texts: list[str]) -> np.ndarray:
    """Embeddings that depend only on each text's content."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=4 * WIDTH).digest() for text in texts)
    return (np.frombuffer(digests, np.uint32).reshape(-1, WIDTH) / 2**31 - 1).astype(np.float32)


def tiny_classifier() -> EmotionClassifier:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 4, "num_hidden_layers": 2, "vocab_size": 32}
    backbone = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    config = EmotionConfig(
        model_name="tiny",
        hidden_size=16,
        embed_dim=WIDTH,
        emotion_labels=[f"label {number}" for number in range(28)],
        backbone_config=backbone.to_diff_dict() | {"model_type": "mistral"},
    )
    return EmotionClassifier.from_model(EmotionModel(config), encoder=hashed)


def main() -> None:
    number, classifier = int(sys.argv[1]), EmotionClassifier(sys.argv[2]) if sys.argv[2:] else tiny_classifier()
    differing, process = 0, psutil.Process()
    for start in range(0, number, AT_ONCE):
        texts = [odd_text(row) for row in range(start, min(start + AT_ONCE, number))]
        started = time.perf_counter()
        results = classifier.predict(texts, threshold=0.0)
        seconds = time.perf_counter() - started
        assert len(results) == len(texts)
        for row in random.Random(start).sample(range(len(texts)), min(AGAIN, len(texts))):
            (alone,) = classifier.predict([texts[row]], threshold=0.0)
            same = alone.keys() == results[row].keys()
            differing += not same or any(abs(alone[label] - results[row][label]) > 1e-5 for label in alone)
        emit(
            "odd_texts",
            texts=start + len(texts),
            differing=differing,
            blank=sum(not result for result in results),
            texts_per_second=round(len(texts) / seconds),
            memory_mib=round(process.memory_info().rss / 2**20),
        )


if __name__ == "__main__":
    main()
