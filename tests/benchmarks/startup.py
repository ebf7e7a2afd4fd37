"""Time from ``import infer`` to the first label, and the memory of a classifier, in fresh processes.

    python tests/benchmarks/startup.py PACKAGE [PYTHON]

Prints one JSON line for each precision of ``infer.py``; and one for each graph of the package, with ``infer_onnx.py``,
which PYTHON runs: the interpreter of an environment that has ``requirements_onnx.txt`` alone (by default this one). The
figures are medians of five processes: the seconds until the code is imported, until the package and its backbone are
loaded, and until the encoder is loaded and the first label is there; and the resident memory after each, in MiB. A first
round, which does not count, puts the files into the page cache. The ways alternate.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from timing import ROUNDS, emit

from hub_release.graphs.measure import GRAPHS as OPTIONS
from modeling.records import GRAPHS

CHILD = """
import json, sys, time
def now(name):
    status = open("/proc/self/status").read()
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    figures[f"{name}_seconds"], figures[f"{name}_mib"] = time.perf_counter() - started, resident
figures, started = {}, time.perf_counter()
sys.path.insert(0, sys.argv[1])
if sys.argv[2].startswith("{"):
    from infer_onnx import EmotionClassifier
    options = json.loads(sys.argv[2])
else:
    import torch
    from infer import EmotionClassifier
    options = {"dtype": getattr(torch, sys.argv[2])}
now("imported")
classifier = EmotionClassifier(sys.argv[1], **options)
now("loaded")
classifier.predict(["I passed the exam!"])
now("first_label")
print(json.dumps(figures))
"""


def main() -> None:
    package, python = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else sys.executable
    ways = {"float32": (sys.executable, "float32"), "bfloat16": (sys.executable, "bfloat16")}
    if (Path(package) / GRAPHS).is_file():
        names = json.loads((Path(package) / GRAPHS).read_text(encoding="utf-8"))["graphs"].keys() & OPTIONS
        ways |= {name: (python, json.dumps(OPTIONS[name])) for name in sorted(names)}
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(ROUNDS + 1):
        for way, (interpreter, options) in ways.items():
            command = [interpreter, "-I", "-W", "ignore", "-c", CHILD, package, options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rounds[way].append(json.loads(done.stdout.splitlines()[-1]))
    for way, lines in rounds.items():
        emit("startup", way=way, **{key: round(float(np.median([x[key] for x in lines[1:]])), 2) for key in lines[0]})


if __name__ == "__main__":
    main()
