"""Texts per second of the sentence encoder.

    python tests/benchmarks/encoder.py path/to/goemotions/test.tsv

prints one JSON line: the median of five rounds over the file's texts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from modeling.infer import load_encoder


def main() -> None:
    texts = [line.split("\t")[0] for line in Path(sys.argv[1]).read_text(encoding="utf-8").split("\n") if line]
    encoder = load_encoder("use-multilingual-v3")
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        encoder(texts)
        rates.append(len(texts) / (time.perf_counter() - started))
    line = {"figure": "encoder_texts_per_second", "median_of_5": float(np.median(rates)), "cores": os.cpu_count()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
