"""Labels that look wrong: where a model that was not trained on a row says otherwise.

Confident learning (Northcutt, Jiang and Chuang, 2021) by cleanlab decides how many labels of each kind are doubtful; the
most doubtful come first. A suspicion is no proof: rare readings and hard rows look the same.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from modeling.infer import import_optional
from modeling.recipe import CROSS_FIT
from modeling.records import AUDIT, METRICS, PREDICTIONS, SCORED_TEXTS
from modeling.rows.tables import CorpusError, normal_name, read_table, refuse
from training.data.corpus import Corpus
from training.recipe import RecipeError
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)

COLUMNS = ("row", "text", "label", "given", "expected", "score")
_RAREST_SHARE = 1e-3
"""A label that this share of the rows has, or fewer, is too rare to say how often it is wrong."""


def find_suspects(run: RunFolder) -> tuple[pd.DataFrame, list[str]]:
    """The doubtful labels of a run's rows, the most doubtful first, and the labels that are too rare to judge.

    The columns are :data:`COLUMNS`; ``row`` counts from 0 in the order of the file, without rows that were dropped.

    ``given`` and ``expected`` are 0 or 1; ``score`` is the probability of what is given.

    Raises:
        RecipeError: the run is not cross-fitted, or not finished.
        ImportError: cleanlab is missing.
    """
    if not run.is_finished or run.read(METRICS)["protocol"] != CROSS_FIT:
        raise RecipeError(
            f"{run.path} is not a finished run with split cross-fit, so its model knows the labels of its rows. Remedy: "
            "train with --split cross-fit first"
        )
    arrays, labels = run.read_arrays(PREDICTIONS), run.read(AUDIT)["labels"]
    probabilities, given = arrays["test_probabilities"], arrays["test_references"]
    lines = map(json.loads, (run.path / SCORED_TEXTS).read_text(encoding="utf-8").splitlines())
    texts = [line["text"] for line in lines if line["split"] == "test"]
    found, unjudged = [], []
    for label, name in enumerate(labels):
        if not _RAREST_SHARE < given[:, label].mean() < 1 - _RAREST_SHARE:
            unjudged.append(name)
            continue
        found += [(int(row), label) for row in _doubtful(given[:, label], probabilities[:, label])]
    scores = [_of_the_given(probabilities[at], given[at]) for at in found]
    table = [
        (row, texts[row], labels[label], int(given[row, label]), 1 - int(given[row, label]), round(score, 6))
        for (row, label), score in sorted(zip(found, scores, strict=True), key=lambda pair: pair[1])
    ]
    return pd.DataFrame(table, columns=list(COLUMNS)), unjudged


def _of_the_given(probability: float, given: int) -> float:
    return float(probability if given else 1 - probability)


def _doubtful(given: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Rows whose value of one label is doubtful, int [M].

    Args:
        given: 0/1 [N].
        probabilities: float [N].
    """
    cleanlab = import_optional("cleanlab.filter", "cleanlab")
    both = np.stack([1 - probabilities, probabilities], axis=1)
    return np.asarray(cleanlab.find_label_issues(given, both, return_indices_ranked_by="self_confidence", n_jobs=1))


def read_dropped(path: Path, corpus: Corpus) -> np.ndarray:
    """Which training rows a table of suspects lists, bool [N]: the same text, with that label as given.

    Only training rows are ever left out. Delete the lines of rows that you want to keep.

    Raises:
        CorpusError: the file is not a table of suspects, or none of its rows is a training row.
    """
    table, places = read_table(path)
    missing = [name for name in ("text", "label", "given") if name not in table]
    if missing:
        raise CorpusError(f"{path}: no column {missing[0]!r}. Remedy: give the file that the verb suspects wrote")
    refuse(_bad_cells(table, places, corpus.labels))
    listed: dict[str, set[tuple[int, int]]] = {}
    for text, label, value in zip(table["text"], table["label"], table["given"], strict=True):
        listed.setdefault(text, set()).add((corpus.labels.index(normal_name(label)), int(value)))
    train = corpus["train"]
    dropped = np.array(
        [
            any(train.labels[row, label] == value for label, value in listed.get(text, ()))
            for row, text in enumerate(train.texts)
        ]
    )
    if not dropped.any():
        raise CorpusError(
            f"{path}: none of its {len(table):,} rows is a training row. Remedy: give the suspects of these rows"
        )
    if dropped.all():
        raise CorpusError(
            f"{path}: it lists every training row. Remedy: delete the lines of rows that you want to keep"
        )
    logger.info("%d of %d training rows are left out, listed in %s", dropped.sum(), len(train), path)
    lost = len(set(listed) - set(train.texts))
    if lost:
        logger.warning("%s: %d of its %d texts are in no training row, letter for letter", path, lost, len(listed))
    return dropped


def _bad_cells(table: pd.DataFrame, places: Sequence[str], labels: Sequence[str]) -> list[str]:
    problems = []
    for place, label, value in zip(places, table["label"], table["given"], strict=True):
        if normal_name(str(label)) not in labels:
            problems.append(f"{place}, column 'label': {label!r:.80} is not a label of the run. Remedy: correct it")
        if str(value) not in ("0", "1"):
            problems.append(f"{place}, column 'given': {value!r:.80} is not 0 or 1. Remedy: correct it")
    return problems


def write_suspects(table: pd.DataFrame, path: Path) -> None:
    """Write suspects as CSV; every text is quoted, since csv reads a lone carriage return as the end of a line."""
    table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
