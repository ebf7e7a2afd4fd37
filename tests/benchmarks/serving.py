"""``hub_release serve`` under load: wrk, from Debian, on loopback and the same cores.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/serving.py PACKAGE path/to/goemotions/test.tsv [MINUTES]

The package's int8 graph answers requests with one real text each, by turns with batches (as it comes) and without
(``--batch 1``): requests per second, and the 50th and 99th percentile of the milliseconds until an answer, with 1, 8 and
64 clients that each ask again at once. Then for MINUTES (default: 10) 3,072 clients ask for twice what it can answer: the
statuses, the resident memory every tenth of the time, and the milliseconds of a request right afterwards. Prints
one JSON line per figure.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from timing import emit

from modeling.machine import cpu_name

CLIENTS, ROUNDS, SECONDS, CROWD = (1, 8, 64), 3, 10, 3_072
_SCRIPT = """
local lines = {{}}
for line in io.lines("{texts}") do lines[#lines + 1] = line end
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local next_line = 0
function request()
  next_line = next_line % #lines + 1
  return wrk.format(nil, "/predict", nil, lines[next_line])
end
{delay}
local threads = {{}}
function setup(thread) threads[#threads + 1] = thread end
function init() counts = {{}} end
function response(status) counts[status] = (counts[status] or 0) + 1 end
function done(summary, latency)
  local all = {{}}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("counts")) do all[status] = (all[status] or 0) + count end
  end
  for status, count in pairs(all) do print("status", status, count) end
  print("latency", latency:percentile(50) / 1000, latency:percentile(99) / 1000)
  print("socket", summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.timeout)
  print("seconds", summary.duration / 1e6)
end
"""


@contextmanager
def server(package: str, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server, until the block ends: its address, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hub_release.cli", "serve", package, "--backend", "onnx", "--port", str(port)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def load(address: str, texts: Path, clients: int, seconds: float, pause: float = 0) -> dict[str, float]:
    """What wrk saw: answers per second by status, percentiles in milliseconds, broken connections."""
    delay = f"function delay() return math.random(0, {round(2_000 * pause)}) end" if pause else ""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.format(texts=texts, delay=delay))
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", script.name, address]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {line[0]: line[1:] for line in (line.split() for line in done.stdout.splitlines()) if line}
    lasted = float(found["seconds"][0])
    statuses = re.findall(r"^status\s+(\d+)\s+(\d+)", done.stdout, re.M)
    return {
        **{f"status_{status}_per_second": round(int(count) / lasted, 1) for status, count in statuses},
        "p50_ms": round(float(found["latency"][0]), 1),
        "p99_ms": round(float(found["latency"][1]), 1),
        **{
            f"{kind}_errors": int(n)
            for kind, n in zip(("connect", "read", "write", "timeout"), found["socket"], strict=True)
        },
    }


def compare(package: str, texts: Path) -> float:
    """With and without batches, in alternating rounds; the most answers per second."""
    ways = {"with": (), "without": ("--batch", "1")}
    with server(package, *ways["with"]) as (batched, _), server(package, *ways["without"]) as (alone, _):
        addresses = {"with": batched, "without": alone}
        best = 0.0
        for clients in CLIENTS:
            rounds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, address in addresses.items():
                    rounds[way].append(load(address, texts, clients, SECONDS))
            for way, found in rounds.items():
                median = sorted(found, key=lambda one: one["status_200_per_second"])[ROUNDS // 2]
                best = max(best, median["status_200_per_second"])
                emit("serving", batches=way, clients=clients, cpu=cpu_name(), **median)
    return best


def crowd(package: str, texts: Path, minutes: float, capacity: float) -> None:
    """Ask for twice as much as can be answered."""
    with server(package) as (address, process):
        asked = subprocess.Popen([sys.executable, __file__, address, str(texts), str(minutes), str(capacity)])
        memory = []
        for _ in range(10):
            time.sleep(6 * minutes)
            memory.append(round(process.memory_info().rss / 2**20))
        assert asked.wait() == 0
        began = time.perf_counter()
        body = json.dumps({"inputs": "Are you well?"}).encode()
        request = urllib.request.Request(f"{address}/", body, {"Content-Type": "application/json"})
        assert urllib.request.urlopen(request, timeout=30).status == 200
        milliseconds = 1000 * (time.perf_counter() - began)
        emit("after_the_crowd", mib=memory, milliseconds=round(milliseconds))


def main() -> None:
    if sys.argv[1].startswith("http"):  # beside the process that watches the server
        address, texts, minutes, capacity = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
        # A client whose text is taken waits for 1,024 others and then pauses as long; one that is refused only pauses.
        found = load(address, texts, CROWD, 60 * minutes, pause=1_024 / capacity)
        emit("crowd", minutes=minutes, capacity_per_second=capacity, clients=CROWD, **found)
        return
    package, data = sys.argv[1], Path(sys.argv[2])
    minutes = float(sys.argv[3]) if len(sys.argv) > 3 else 10
    with tempfile.TemporaryDirectory() as temporary:
        texts = Path(temporary) / "texts.jsonl"
        rows = [line.split("\t")[0] for line in data.read_text(encoding="utf-8").split("\n") if line]
        texts.write_text("\n".join(json.dumps({"inputs": row}) for row in rows), encoding="utf-8")
        crowd(package, texts, minutes, compare(package, texts))


if __name__ == "__main__":
    main()
