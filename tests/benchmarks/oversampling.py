"""Time and memory of oversampling as the number of rows grows.

    python tests/benchmarks/oversampling.py

oversamples made-up rows of 512 dimensions with 28 labels, a fifth of them rare, to a tenth of the rows per label.
Prints one JSON line for each method and size, with the process's peak memory so far.
"""

from __future__ import annotations

import json
import resource
import time

import numpy as np

from modeling.recipe import choices
from training.data.balance import oversample, real_rows

LABELS = 28


def main() -> None:
    names = tuple(f"label {i}" for i in range(LABELS))
    shares = np.geomspace(0.002, 0.3, LABELS)
    for size in (10_000, 30_000, 100_000):
        generator = np.random.default_rng(0)
        embeddings = generator.standard_normal((size, 512), dtype=np.float32)
        rows = real_rows(embeddings, (generator.random((size, LABELS)) < shares).astype(np.int8))
        for method in choices("balance")[1:]:
            started = time.perf_counter()
            made = oversample(rows, names, method, 0, target=size // 10)
            line = {"figure": "oversampling", "method": method, "rows": size, "made": int(made.synthetic.sum())}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(json.dumps({**line, "seconds": time.perf_counter() - started, "peak_gib": peak}), flush=True)


if __name__ == "__main__":
    main()
