"""Time from ``import infer`` to the first label, and the memory of a classifier, in fresh processes.

    python tests/benchmarks/startup.py PACKAGE

Prints one JSON line for each precision, with medians of five processes: the seconds until ``infer`` is imported, until
the package and its backbone are loaded, and until the encoder is loaded and the first label is there; and the resident
memory after each, in MiB. A first round, which does not count, puts the files into the page cache.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
from timing import ROUNDS, emit

CHILD = """
import json, sys, time
def now(name):
    status = open("/proc/self/status").read()
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    figures[f"{name}_seconds"], figures[f"{name}_mib"] = time.perf_counter() - started, resident
figures, started = {}, time.perf_counter()
sys.path.insert(0, sys.argv[1])
import infer, torch
now("imported")
classifier = infer.EmotionClassifier(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
now("loaded")
classifier.predict(["I passed the exam!"])
now("first_label")
print(json.dumps(figures))
"""


def main() -> None:
    for dtype in ("float32", "bfloat16"):
        rounds = []
        for _ in range(ROUNDS + 1):
            command = [sys.executable, "-I", "-W", "ignore", "-c", CHILD, sys.argv[1], dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rounds.append(json.loads(done.stdout.splitlines()[-1]))
        medians = {key: round(float(np.median([line[key] for line in rounds[1:]])), 2) for key in rounds[0]}
        emit("startup", dtype=dtype, **medians)


if __name__ == "__main__":
    main()
