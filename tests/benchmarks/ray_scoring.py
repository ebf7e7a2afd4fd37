"""``hub_release score --ray`` on many rows: its cost beside one process, and what a killed machine and driver cost.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/ray_scoring.py PACKAGE path/to/goemotions/test.tsv [ROWS]

Writes ROWS (default: 200,000) rows of Parquet and scores them by the package's int8 graph: in one process with a thread
for each core, and on a Ray cluster of this machine with one actor of as many threads; from the start of the command to
its end. Then on a cluster of three machines, which are three sets of Ray's processes here, with such an actor each: after
a quarter of the parts one machine is killed, after half of them the driver, and the command with ``--resume`` goes on.
All outputs must be equal byte for byte. Prints one JSON line per figure.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster
from scoring import write_rows
from timing import emit

from modeling.infer import usable_cores
from modeling.machine import cpu_name

ROWS, PART = 200_000, 2_000


def run(package: str, source: Path, target: Path, *options: str) -> subprocess.Popen[bytes]:
    """The verb in a process of its own."""
    command = [sys.executable, "-m", "hub_release.cli", "score", package, str(source), str(target)]
    settings = ["--backend", "onnx", "--rows_per_part", str(PART)]
    return subprocess.Popen([*command, *settings, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds_of(process: subprocess.Popen[bytes]) -> float:
    """How long it took."""
    began = time.monotonic()
    assert process.wait() == 0
    return time.monotonic() - began


def wait_for(parts: float, target: Path, process: subprocess.Popen[bytes]) -> None:
    """Until so many parts are written."""
    while len(list(target.glob("part-*"))) < parts:
        assert process.poll() is None
        time.sleep(0.1)


def parts_of(folder: Path) -> dict[str, bytes]:
    """The parts by name; the record beside them says how many threads there were."""
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


def main() -> None:
    package, data = sys.argv[1], Path(sys.argv[2])
    rows = int(sys.argv[3]) if len(sys.argv) > 3 else ROWS
    texts = [line.split("\t")[0] for line in data.read_text(encoding="utf-8").split("\n") if line]
    with tempfile.TemporaryDirectory() as temporary:
        folder, number = Path(temporary), rows / PART
        source = folder / "rows.parquet"
        write_rows(source, texts, rows)
        here = seconds_of(run(package, source, folder / "here"))
        # In int8 a text is rounded by what stands beside it, so equal bytes need equal threads.
        cores = usable_cores()
        actors = ["--cpus_per_actor", str(cores)]
        there = seconds_of(run(package, source, folder / "there", "--ray", "local", *actors))
        wanted = parts_of(folder / "here")
        same = parts_of(folder / "there") == wanted
        figures = {"process_seconds": round(here, 1), "ray_seconds": round(there, 1)}
        emit("ray", rows=rows, **figures, overhead=round(there / here - 1, 3), equal=same, cpu=cpu_name())

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores})
        nodes = [cluster.add_node(num_cpus=cores) for _ in range(2)]
        cluster.wait_for_nodes()
        options = ["--ray", cluster.address, *actors]
        began = time.monotonic()
        driver = run(package, source, folder / "killed", *options)
        wait_for(number / 4, folder / "killed", driver)
        cluster.remove_node(nodes[0], allow_graceful=False)
        wait_for(number / 2, folder / "killed", driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        left = len(parts_of(folder / "killed"))
        assert run(package, source, folder / "killed", *options, "--resume").wait() == 0
        emit(
            "ray_killed",
            seconds=round(time.monotonic() - began, 1),
            parts=len(wanted),
            parts_when_the_driver_was_killed=left,
            equal=parts_of(folder / "killed") == wanted,
        )
        cluster.shutdown()


if __name__ == "__main__":
    main()
