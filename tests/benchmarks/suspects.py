"""Planted wrong labels: are they among the first that the verb suspects lists?

    python tests/benchmarks/suspects.py folder starter
    python tests/benchmarks/suspects.py folder path/to/goemotions

So many of the training rows, drawn with a seed, get another label in place of one of theirs. The baseline without a
backbone is cross-fitted on all rows of the file (GoEmotions: train.tsv alone), and precision is the share of planted rows
among the rows of the first lines. Chance is their share among all rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from modeling.machine import cpu_name
from training.audit.suspects import find_suspects
from training.data.corpus import STARTER_FOLDER
from training.data.taxonomy import GOEMOTIONS_28
from training.run import main as run
from training.run_folder import RunFolder

SHARES, SEED = (0.0, 0.05, 0.1), 0


def read(place: str) -> list[tuple[str, list[str]]]:
    """Texts and their labels."""
    if place == "starter":
        lines = (STARTER_FOLDER / "train.jsonl").read_text(encoding="utf-8").splitlines()
        return [(row["text"], row["labels"]) for row in map(json.loads, lines)]
    lines = (Path(place) / "train.tsv").read_text(encoding="utf-8").split("\n")
    cells = [line.split("\t") for line in lines if line]
    return [(text, [GOEMOTIONS_28[int(number)] for number in ids.split(",")]) for text, ids, _ in cells]


def plant(rows: list[tuple[str, list[str]]], share: float) -> tuple[list[tuple[str, list[str]]], set[int]]:
    """Rows of which so many have a wrong label, and which those are."""
    generator = np.random.default_rng(SEED)
    wrong = set(generator.choice(len(rows), round(share * len(rows)), replace=False).tolist())
    planted = []
    for row, (text, labels) in enumerate(rows):
        if row in wrong:
            place = int(generator.integers(len(labels)))
            other = str(generator.choice([name for name in GOEMOTIONS_28 if name not in labels]))
            labels = [*labels[:place], other, *labels[place + 1 :]]
        planted.append((text, labels))
    return planted, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("corpus")
    options = parser.parse_args()
    rows, name = read(options.corpus), Path(options.corpus).name
    for share in SHARES:
        planted, wrong = plant(rows, share)
        folder = options.folder / f"{name}-{share:g}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text, "labels": labels}) + "\n" for text, labels in planted)
        if not RunFolder(folder / "run").is_finished:
            flags = f"--recipe goemotions_mlp --dataset files --data_dir {folder / 'rows.jsonl'} --split cross-fit --overwrite "
            flags += (
                f"--balance none --neutral_keep 1 --min_steps 400 --remove_checkpoints --output_dir {folder / 'run'}"
            )
            run([*flags.split(), "--labels", *GOEMOTIONS_28])
        found, _ = find_suspects(RunFolder(folder / "run"))
        first = found["row"].drop_duplicates().tolist()
        precision = {
            f"precision_at_{size}": round(float(np.mean([row in wrong for row in first[:size]])), 3)
            for size in (50, 100, len(wrong))
            if 0 < size <= len(first) and wrong
        }
        line = {"corpus": name, "rows": len(rows), "planted": len(wrong), "chance": share, "listed_rows": len(first)}
        sys.stdout.write(json.dumps({**line, **precision, "cpu": cpu_name()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
