"""Cross-fitting: a model for each fold, trained on the other folds, says what a model says of rows that it does not know.

Thresholds, calibration and scores then need no rows of their own, and the model that is kept learns from every row. The
models of the folds have the recipe's settings and as many epochs, and none of their checkpoints is chosen.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from typing import cast
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel

from modeling.backbones import restore_float32
from modeling.infer import EmotionConfig, EmotionModel, predict_logits
from modeling.recipe import Recipe
from modeling.records import FOLDS
from training.fit.build import build_model, build_trainer, holds_bfloat16
from training.fit.prepare import Prepared, balance
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)

_FOLD = "fold"
"""Array with the fold of each row."""


def out_of_fold_logits(data: Prepared, recipe: Recipe, run: RunFolder, state: PartialState) -> np.ndarray:
    """Logits of every row, float32 [N, L], each by a model that was not trained on the row's fold.

    Args:
        data: with folds.
        recipe: the recipe, with its batch and epochs chosen.
        run: keeps the logits of each finished fold.
        state: the processes; all of them train, and the main one knows the logits.
    """
    assert data.fold is not None
    kept = kept_folds(run, data.fold) if state.is_main_process else {}
    [done] = broadcast_object_list([len(kept)])
    for number in range(done, recipe.folds):
        held = data.fold == number
        logger.info(
            "fold %d of %d: %d rows are scored, %d are trained on", number + 1, recipe.folds, held.sum(), sum(~held)
        )
        found = _score_fold(take_fold(data, held, recipe), recipe, run, state)
        gc.collect()
        if state.is_main_process:
            kept[str(number)] = found
            run.write_arrays(FOLDS, kept | {_FOLD: data.fold})
    logits = np.zeros(data.corpus["train"].labels.shape, dtype=np.float32)
    for name, rows in kept.items():
        logits[data.fold == int(name)] = rows
    return logits


def kept_folds(run: RunFolder, fold: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of the folds that a run has finished; none if the file is damaged, or from folds of other rows.

    Args:
        run: the run.
        fold: of each row, int [N].
    """
    if not (run.path / FOLDS).is_file():
        return {}
    try:
        kept = run.read_arrays(FOLDS)
        if np.array_equal(kept.pop(_FOLD), fold):
            return kept
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        logger.warning("%s cannot be read (%s): the folds are trained again", run.path / FOLDS, error)
        return {}
    logger.warning("%s has folds of other rows: they are trained again", run.path / FOLDS)
    return {}


def take_fold(data: Prepared, held: np.ndarray, recipe: Recipe) -> Prepared:
    """The data of one fold: its rows are validation and test, the others are train.

    Args:
        data: in which every split has all N rows.
        held: bool [N], the rows of the fold.
        recipe: how the training rows are balanced.
    """
    rows = {"train": np.flatnonzero(~held), "validation": np.flatnonzero(held), "test": np.flatnonzero(held)}
    splits = {split: data.corpus[split].take(chosen) for split, chosen in rows.items()}
    embeddings = {split: data.embeddings[split][chosen] for split, chosen in rows.items()}
    tokens = None
    if data.tokens is not None:
        tokens = {split: data.tokens[split].take(chosen) for split, chosen in rows.items()}
    corpus = dataclasses.replace(data.corpus, splits=splits)
    return dataclasses.replace(
        data,
        corpus=corpus,
        embeddings=embeddings,
        tokens=tokens,
        rows=balance(
            embeddings["train"],
            splits["train"].labels,
            corpus.labels,
            recipe,
            None if data.left_out is None else data.left_out[~held],
        ),
        copies={},
        fold=None,
    )


def _score_fold(data: Prepared, recipe: Recipe, run: RunFolder, state: PartialState) -> np.ndarray:
    model = build_model(recipe, data, state)
    build_trainer(model, recipe, data, run, keeps_checkpoints=False).train()
    plain = cast(EmotionModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    if not state.is_main_process:
        return np.zeros(0)
    if holds_bfloat16(recipe, cast(EmotionConfig, plain.config)):
        restore_float32(plain)
    with torch.no_grad():
        return predict_logits(plain, data.features("validation"))
