"""What a billion texts cost: hours on 1, 10 and 100 machines, and what would be too slow first.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/billion.py path/to/goemotions/test.tsv LINES …

LINES are files with what ``accuracy_speed.py`` and ``ray_scoring.py`` printed: the texts per second of each package on
all cores, in batches of 64, and Ray's overhead. Measured here, for each format: rows per CPU second that one task reads and
that one actor encodes with 28 probabilities, and the bytes of a row. Prints one JSON line per figure.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from timing import emit

from hub_release.serving.offline.columns import ColumnsOfFiles
from hub_release.serving.offline.read import find_sources, read_parts
from hub_release.serving.offline.write import encode
from modeling.infer import usable_cores
from modeling.machine import cpu_name

TEXTS, ROWS, PART, LABELS = 1_000_000_000, 100_000, 10_000, 28
FORMATS = {"parquet": "rows.parquet", "jsonl": "rows.jsonl", "csv": "rows.csv"}


def measure(texts: list[str], folder: Path) -> float:
    """Reading and writing, by format; the rows per CPU second that one task reads of Parquet."""
    frame = pd.DataFrame({"id": range(ROWS), "text": [texts[n % len(texts)] for n in range(ROWS)]})
    frame.to_parquet(folder / "rows.parquet")
    frame.to_json(folder / "rows.jsonl", orient="records", lines=True)
    frame.to_csv(folder / "rows.csv", index=False)
    generator, rates = np.random.default_rng(0), {}
    names = [f"p_{number}" for number in range(LABELS)]
    for form, name in FORMATS.items():
        columns = ColumnsOfFiles(form, ["emotions", *names], one_file=False)
        reading = writing = 0.0
        size = 0
        began = time.process_time()
        for part in read_parts(find_sources(str(folder / name)), "text", PART):
            columns.fit(part)
            reading += time.process_time() - began
            scores = {name: generator.random(len(part.rows), dtype=np.float32) for name in names}
            began, own = time.process_time(), columns.of(part)
            rows = [row.values for row in part.rows]
            size += len(encode(rows, own.names, [["joy"]] * len(rows), scores, form, own.schema))
            writing += time.process_time() - began
            began = time.process_time()
        rates[form] = ROWS / reading
        emit(
            "reading_and_writing",
            form=form,
            rows_read_per_cpu_second=round(ROWS / reading),
            rows_encoded_per_cpu_second=round(ROWS / writing),
            bytes_in=round((folder / name).stat().st_size / ROWS),
            bytes_out=round(size / ROWS),
        )
    return rates["parquet"]


def main() -> None:
    texts = [line.split("\t")[0] for line in Path(sys.argv[1]).read_text(encoding="utf-8").split("\n") if line]
    lines = [
        json.loads(line)
        for path in sys.argv[2:]
        for line in Path(path).read_text(encoding="utf-8").splitlines()
        if line.startswith('{"figure"')
    ]
    overhead = next(line["overhead"] for line in lines if line["figure"] == "ray")
    rates = {
        line["model"]: line["texts_per_second"]
        for line in lines
        if line["figure"] == "accuracy_speed" and (line["batch_size"], line["threads"]) == (64, usable_cores())
    }
    with tempfile.TemporaryDirectory() as temporary:
        reading = measure(texts, Path(temporary))
    for model, rate in rates.items():
        for machines in (1, 10, 100):
            scored = machines * rate / (1 + overhead * (machines > 1))
            emit(
                "billion",
                model=model,
                machines=machines,
                hours=round(TEXTS / scored / 3600, 1),
                files_to_read_at_once=int(np.ceil(scored / reading)),
                cpu=cpu_name(),
            )


if __name__ == "__main__":
    main()
