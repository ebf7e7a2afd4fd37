"""Score a package or a run on any labeled file: read it, map the label sets, score, and list what did not map.

Nothing is tuned here: decisions use the model's own thresholds, and 0.5.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from sklearn.metrics import roc_auc_score

from modeling.infer import EmotionClassifier, Features, LoadedEncoder, cache_folder, predict_probabilities
from modeling.infer.quiet import join_library_logs
from modeling.records import Record
from modeling.rows.label_cells import LabelReading
from modeling.rows.tables import refuse_file
from training.commands.verbs import EvaluateOptions
from training.data.encoding import encode
from training.data.label_mapping import LabelMatch, match_labels, read_mapping
from training.data.labeled_file import FileOptions, LabeledRow, read_labeled_file
from training.run_folder import RunFolder
from training.scores.plots import plot_evaluation
from training.scores.scoring import scores_with_intervals
from training.trained import load_classifier

EVALUATION = Record[dict[str, Any]]("evaluation.json")

logger = logging.getLogger(__name__)


def evaluate(options: EvaluateOptions) -> int:
    """Score a model on a file, print the tables, and write them into ``output_dir``. Returns the exit code 0.

    Raises:
        CorpusError: bad data, a bad mapping, or labels that no mapping explains.
        RunFolderError: the run is not finished.
        OSError: a folder is missing or cannot be written.
    """
    if not PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("training", "modeling"):
        logging.getLogger(name).setLevel(logging.INFO)
    join_library_logs()
    path = Path(str(options.data))
    output = Path(options.output_dir) if options.output_dir else None
    refuse_file(path)
    chosen = read_mapping(options.mapping) if options.mapping else None
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    classifier = load_classifier(options.model)
    rows = read_labeled_file(path, chosen, classifier.labels, _file_options(options))
    counts = Counter(label for row in rows for label in row.labels)
    match = match_labels(chosen, classifier.labels, counts, str(options.data))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    inputs = {"model": options.model, "data": options.data, "data_sha256": sha256, "mapping": options.mapping}
    result = inputs | score(classifier, rows, match)
    sys.stdout.write(describe(result) + "\n")
    if output is not None:
        write(result, RunFolder(output))
    return 0


def _file_options(options: EvaluateOptions) -> FileOptions:
    reading = LabelReading(options.label_format, options.label_separator)
    return FileOptions(options.text_column, options.label_column, options.ignore_columns, reading, options.dataset)


# Scores


def score(classifier: EmotionClassifier, rows: Sequence[LabeledRow], match: LabelMatch) -> dict[str, Any]:
    """The content of ``evaluation.json`` except for the names of its inputs.

    A target's probability is the highest of its labels'; it is predicted if one of them reaches its own threshold. Rows
    with at least one mapped label are scored, and so are rows without any label: every prediction is wrong for those.
    """
    left = set(match.file_left)
    scored = [row for row in rows if not row.labels or set(row.labels) - left]
    some = sum(bool(set(row.labels) & left) for row in scored)
    without = sum(not row.labels for row in rows)
    places = {target: [classifier.labels.index(label) for label in match.model[target]] for target in match.model}
    truth = np.array([[bool(set(row.labels) & set(match.file[t])) for t in places] for row in scored], dtype=np.int8)
    config, texts, vectors = classifier.config, [row.text for row in scored], None
    if config.reads_embedding:
        vectors = encode(texts, cast(LoadedEncoder, classifier.encoder), cache_folder() / "embeddings")
    features = Features(vectors, classifier.tokenize(texts))
    probabilities = predict_probabilities(classifier.model, features, classifier.batch_size)
    thresholds = config.decision_thresholds
    policies = {"package": np.array(list(thresholds.values())), "fixed": np.full(len(thresholds), 0.5)}
    results = {}
    said = dict(zip(classifier.labels, (probabilities >= policies["package"]).sum(axis=0).tolist(), strict=True))
    for policy, cutoffs in policies.items():
        reached = probabilities >= cutoffs
        predictions = np.stack([reached[:, indices].any(axis=1) for indices in places.values()], axis=1)
        results[policy] = scores_with_intervals(predictions.astype(np.int8), truth, list(places))
    highest = np.stack([probabilities[:, indices].max(axis=1) for indices in places.values()], axis=1)
    return {
        "rows": {
            "file": len(rows),
            "scored": len(scored),
            "fraction_scored": len(scored) / len(rows),
            "all_labels_mapped": len(scored) - some - without,
            "some_labels_mapped": some,
            "no_label_mapped": len(rows) - len(scored),
            "without_label": without,
        },
        "targets": {target: {"model": match.model[target], "file": match.file[target]} for target in places},
        "file_labels_not_mapped": match.file_left,
        "model_labels_not_mapped": {
            label: {"rows": said[label], "why": why} for label, why in match.model_left.items()
        },
        "targets_not_scored": match.not_scored,
        "thresholds": thresholds,
        "scores": results,
        "without_thresholds": {t: _without_thresholds(highest[:, i], truth[:, i]) for i, t in enumerate(places)},
    }


def _without_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Context for an F1: the F1 of predicting the label for every row, and the area under the ROC curve.

    Thresholds tuned on other rows may fit badly even if the model ranks well; an area of 0.5 is chance.
    """
    positives = int(truth.sum())
    area = float(roc_auc_score(truth, probabilities)) if 0 < positives < len(truth) else None
    return {"f1_always": 2 * positives / (len(truth) + positives), "roc_auc": area}


# Tables


def describe(result: dict[str, Any]) -> str:
    """The scores, and what could not be mapped, as text."""
    package, fixed, free = result["scores"]["package"], result["scores"]["fixed"], result["without_thresholds"]
    lines = [
        f"{'label':<16}{'support':>8}{'precision':>11}{'recall':>8}{'F1':>8}  {'95 % of F1':<16}{'F1@0.5':>8}{'always':>8}{'ROC':>7}"
    ]
    for label, row in package["per_label"].items():
        lines.append(
            f"{label:<16}{row['support']:>8}{row['precision']:>11.3f}{row['recall']:>8.3f}{row['f1']:>8.3f}  "
            f"{_range(row['f1_95']):<16}{fixed['per_label'][label]['f1']:>8.3f}{free[label]['f1_always']:>8.3f}"
            + ("      –" if free[label]["roc_auc"] is None else f"{free[label]['roc_auc']:>7.3f}")
        )
    for scores, name in ((package, "the model's thresholds"), (fixed, "at 0.5")):
        lines.append(
            f"{name:<24}macro F1 {scores['macro_f1']:.3f} {_range(scores['intervals_95']['macro_f1'])}  "
            f"micro F1 {scores['micro_f1']:.3f} {_range(scores['intervals_95']['micro_f1'])}"
        )
    always = np.mean([values["f1_always"] for values in free.values()])
    lines.append(
        f"{'every label, every row':<24}macro F1 {always:.3f} (column always); ROC: area under the curve, 0.5 is chance"
    )
    return "\n".join([*lines, "", *_describe_mapping(result)])


def _range(ends: Sequence[float]) -> str:
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def _describe_mapping(result: dict[str, Any]) -> list[str]:
    lines = [f"mapping: {result['mapping'] or 'none, the labels are the same'}"]
    if empty := [label for label, row in result["scores"]["package"]["per_label"].items() if not row["support"]]:
        lines.append(f"no row of the file has {', '.join(empty)}: their F1 counts as 0 in macro F1, as in training")
    lines += [
        f"  {t:<16} model: {', '.join(s['model'])}; file: {', '.join(s['file'])}" for t, s in result["targets"].items()
    ]
    lines += [f"  {target:<16} not scored: {why}" for target, why in result["targets_not_scored"].items()]
    for title, key in (
        ("labels of the file that could not be mapped:", "file_labels_not_mapped"),
        (
            "labels of the model that could not be mapped, and the scored rows that it gives them:",
            "model_labels_not_mapped",
        ),
    ):
        found = [f"  {label:<16}{left['rows']:>8} rows  {left['why']}" for label, left in result[key].items()]
        lines += [title, *(found or ["  none"])]
    rows = result["rows"]
    lines.append(f"rows of the file: {rows['file']:,}")
    for key in ("all_labels_mapped", "some_labels_mapped", "no_label_mapped", "without_label"):
        lines.append(f"  {key.replace('_', ' '):<20}{rows[key]:>8,}  {rows[key] / rows['file']:>6.1%}")
    left = "rows whose labels could not be mapped are left out of every score"
    lines.append(f"scored: {rows['scored']:,} rows ({rows['fraction_scored']:.1%}); {left}")
    return lines


def write(result: dict[str, Any], folder: RunFolder) -> None:
    """Write ``evaluation.json``, ``evaluation.csv`` and ``evaluation.png``, each whole or not at all."""
    table = []
    for policy, scores in result["scores"].items():
        for label, values in scores["per_label"].items():
            row = {"thresholds": policy, "label": label, "support": values["support"]}
            for name in ("precision", "recall", "f1"):
                low, high = values[f"{name}_95"]
                row |= {name: values[name], f"{name}_low": low, f"{name}_high": high}
            table.append(row)
    with folder.replacing("evaluation.csv") as path:
        pd.DataFrame(table).to_csv(path, index=False, float_format="%.4f")
    package, fixed = (result["scores"][policy]["per_label"] for policy in ("package", "fixed"))
    with folder.replacing("evaluation.png") as path:
        plot_evaluation(path, package, fixed, f"{Path(result['model']).resolve().name} on {Path(result['data']).name}")
    folder.write(EVALUATION, result)
    logger.info("evaluation.json, .csv and .png are in %s", folder.path)
