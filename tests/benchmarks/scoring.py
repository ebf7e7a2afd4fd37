"""``hub_release score`` on many rows: memory, kills and its rate against the classifier's own.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/scoring.py PACKAGE path/to/goemotions/test.tsv [ROWS [KILLS]]

Writes ROWS (default: 1,000,000) rows of Parquet, the texts of the file again and again with a number each, and scores
them by the package's int8 graph: once in one go, with the peak of the process's resident memory at a tenth of the rows and at the end; and
once with KILLS (default: 10) kills, each a moment after a random part and followed by ``--resume``. The outputs must be equal byte for
byte. The rate of the verb is compared with that of ``predict_proba`` on the same texts, in alternating rounds of 20,000
rows. Prints one JSON line per figure.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet
from timing import alternate, emit

from hub_release.serving.offline.job import score
from hub_release.serving.offline.read import find_sources
from hub_release.serving.offline.work import Settings
from modeling.infer import EmotionClassifier
from modeling.machine import cpu_name

ROWS, KILLS, COMPARED = 1_000_000, 10, 20_000
_PART = 10_000


def write_rows(path: Path, texts: list[str], rows: int) -> None:
    """So many rows of Parquet: the texts again and again, with a number each."""
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _PART):
            numbers = range(start, min(start + _PART, rows))
            table = {"id": list(numbers), "text": [f"{texts[n % len(texts)]} {n}" for n in numbers]}
            writer.write_table(pa.table(table, schema))


def run(package: str, source: Path, target: Path, *options: str) -> subprocess.Popen[bytes]:
    """The verb in a process of its own."""
    command = [sys.executable, "-m", "hub_release.cli", "score", package, str(source), str(target)]
    return subprocess.Popen(
        [*command, "--backend", "onnx", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def watch(process: subprocess.Popen[bytes], target: Path, parts: int) -> dict[str, float]:
    """MiB that a process has at most, until a tenth of the parts is written and until it ends."""
    peak, early, watched = 0.0, 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            break
        if not early and len(list(target.glob("part-*"))) >= parts / 10:
            early = peak
        time.sleep(0.2)
    assert process.wait() == 0
    return {"peak_mib_at_a_tenth": round(early), "peak_mib": round(peak)}


def digest(folder: Path) -> str:
    """Of all files of a folder, with their names."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def main() -> None:
    package, data = sys.argv[1], Path(sys.argv[2])
    rows, kills = (int(given) for given in [*sys.argv[3:], *[str(ROWS), str(KILLS)][len(sys.argv) - 3 :]])
    texts = [line.split("\t")[0] for line in data.read_text(encoding="utf-8").split("\n") if line]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, parts = folder / "rows.parquet", rows // _PART
        write_rows(source, texts, rows)
        began = time.monotonic()
        memory = watch(run(package, source, folder / "whole"), folder / "whole", parts)
        seconds = time.monotonic() - began
        emit("scoring", rows=rows, rows_per_second=round(rows / seconds, 1), cpu=cpu_name(), **memory)

        chance = random.Random(0)
        for written in sorted(chance.sample(range(parts), kills)):
            resume = ["--resume"] if (folder / "killed" / "_score.json").exists() else []
            process = run(package, source, folder / "killed", *resume)
            while len(list((folder / "killed").glob("part-*"))) < written:
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(chance.random())
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert run(package, source, folder / "killed", "--resume").wait() == 0
        emit("killed", kills=kills, equal=digest(folder / "whole") == digest(folder / "killed"))

        classifier = EmotionClassifier(package, backend="onnx")
        some = folder / "some.parquet"
        write_rows(some, texts, COMPARED)
        compared = pyarrow.parquet.read_table(some)["text"].to_pylist()
        settings = Settings("text", "parquet", True, _PART, "onnx", None, 64, classifier.threads)
        targets = (str(folder / f"out-{number}") for number in itertools.count())

        def score_file() -> None:
            target = next(targets)
            score(Path(package), find_sources(str(some)), target, settings, classifier, False, None, lambda *_: None)

        tasks = {"classifier": partial(classifier.predict_proba, compared), "verb": score_file}
        taken = alternate(tasks, 3)
        figures = {name: round(COMPARED / value, 1) for name, value in taken.items()}
        emit("scoring_rate", **figures, ratio=round(taken["classifier"] / taken["verb"], 3))


if __name__ == "__main__":
    main()
