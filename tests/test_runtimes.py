"""What computes a graph, from several threads at once."""

from __future__ import annotations

import subprocess
import sys

FIRST_ARRAYS = """
import sys, threading
import numpy as np
from modeling.infer.graph_writer import GraphWriter
from modeling.infer.runtimes import openvino_session

graph = GraphWriter()
content = graph.finish(graph.add("Relu", graph.input("x", [None, 4])), [None, 4])
sys.setswitchinterval(1e-6)
session = openvino_session("graph", content, None)
start = threading.Barrier(8)

def run():
    start.wait()
    assert session.run({"x": np.full((3, 4), -1, np.float32)}).sum() == 0

threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_use_openvino_first_do_not_wait_for_each_other_forever() -> None:
    """More than half of these processes did; each has one chance, before its first array."""
    for _ in range(5):
        subprocess.run([sys.executable, "-c", FIRST_ARRAYS], check=True, timeout=60)
