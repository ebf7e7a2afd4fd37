"""What computes a graph: several threads at once, and large pages for its weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from modeling.infer import pages

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


ONE_SESSION = """
from modeling.infer.graph_writer import GraphWriter
from modeling.infer.runtimes import onnx_session

graph = GraphWriter()
onnx_session("graph", graph.finish(graph.add("Relu", graph.input("x", [None, 4])), [None, 4]), None)
"""


def test_onnx_runtime_leaves_no_identifier(tmp_path: Path) -> None:
    """By itself it writes a device id, and a file of events to send, into the user's cache."""
    given = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment = given | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", ONE_SESSION], check=True, env=environment)
    assert not list(tmp_path.rglob("*"))


def test_threads_that_use_openvino_first_do_not_wait_for_each_other_forever() -> None:
    """More than half of these processes did; each has one chance, before its first array."""
    for _ in range(5):
        subprocess.run([sys.executable, "-c", FIRST_ARRAYS], check=True, timeout=60)


LARGE_PAGES = """
import mmap, threading
from pathlib import Path

from modeling.infer import pages


def large_memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def given_if_asked_for():
    before = large_memory()
    with mmap.mmap(-1, 2**26, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.write(bytes(2**26))
        return large_memory() - before > 2**25


def given_in_the_block():
    before = large_memory()
    with pages.large_pages():
        values = bytes(range(256)) * 2**18  # 64 MiB; numpy would ask for large pages by itself
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
    assert values == bytes(range(256)) * 2**18
    return large_memory() - before > 2**25


print("none" if not any(given_if_asked_for() for _ in range(5)) else any(given_in_the_block() for _ in range(5)))
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="this machine gives no large pages",
)
def test_what_is_allocated_gets_large_pages() -> None:
    """And keeps its content. Other programs may have taken what is free, so a few attempts count."""
    run = subprocess.run([sys.executable, "-c", LARGE_PAGES], check=True, capture_output=True, text=True)
    if run.stdout.strip() == "none":
        pytest.skip("the kernel has no large pages free")
    assert run.stdout.strip() == "True"


def test_other_systems_keep_what_they_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pages, "_MAPS", tmp_path / "missing")
    with pages.large_pages():
        np.ones(2**22)
    monkeypatch.setattr(pages.ctypes, "CDLL", lambda name: object())
    pages._enlarge([(0, 2**21)])


@given(
    new=st.tuples(st.integers(0, 30), st.integers(1, 10)), old=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)))
)
def test_added_memory_is_what_was_not_there(new: tuple[int, int], old: list[tuple[int, int]]) -> None:
    """Against sets of addresses; ranges of a process do not overlap."""
    ranges, start = [], 0
    for gap, length in old:
        ranges.append((start + gap, start + gap + length))
        start += gap + length
    found = pages._without((new[0], sum(new)), ranges)
    addresses = [address for start, end in found for address in range(start, end)]
    there = {address for start, end in ranges for address in range(start, end)}
    assert addresses == sorted(set(range(new[0], sum(new))) - there)
