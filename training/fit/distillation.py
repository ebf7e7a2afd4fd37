"""Knowledge distillation: half of each training target comes from finished models.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015; here per label on sigmoid outputs, at
temperature 1. A teacher is given texts, so it may read words, an embedding or both, whatever its student reads.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from functools import cache

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from scipy.special import expit

from modeling.infer import CacheError, LoadedEncoder, cache_folder, predict_logits
from modeling.recipe import Recipe
from modeling.records import AUDIT, METRICS
from modeling.rows.errors import first_line
from training.corpora import share_of
from training.data.encoding import encode
from training.data.reading import SPLITS
from training.fit.prepare import Prepared
from training.recipe import RecipeError
from training.run_folder import RunFolder, RunFolderError
from training.trained import fingerprint, load_classifier, model_of

logger = logging.getLogger(__name__)


def distill(data: Prepared, recipe: Recipe, state: PartialState) -> Prepared:
    """The data with soft targets: half the labels, half the sigmoid of the mean logits of ``recipe.teachers``.

    A teacher's logits are cached on disk, so that resumed runs, grids and other processes reuse them; several processes
    ask it for a share each.

    Args:
        data: the data.
        recipe: names the teachers.
        state: the processes.

    Raises:
        RecipeError: a teacher cannot be loaded, or was not trained on the same splits and labels.
    """
    if not recipe.teachers:
        return data
    for teacher in recipe.teachers:
        _refuse_other_data(teacher, data)
    known, dtype = fingerprints(recipe.teachers), torch.bfloat16 if recipe.bf16 else torch.float32
    texts, logits = data.training_texts(), []
    for teacher, sha256 in zip(recipe.teachers, known.values(), strict=True):
        version = f"{sha256}-{str(dtype).removeprefix('torch.')}"
        if state.num_processes > 1:
            _read(teacher, version, dtype, share_of(list(dict.fromkeys(texts)), state))
            state.wait_for_everyone()
        logits.append(_read(teacher, version, dtype, texts))
        gc.collect()
        torch.cuda.empty_cache()  # or the plan of the student's step would count it as taken
    targets = (data.rows.labels + expit(np.mean(logits, axis=0))) / 2
    logger.info("half of each training target comes from %d teachers: the sigmoid of their mean logits", len(logits))
    return dataclasses.replace(data, targets=targets, audit={**data.audit, "teachers": known})


def fingerprints(teachers: list[str]) -> dict[str, str]:
    """SHA-256 of each teacher's files, by the teacher's number.

    Raises:
        RecipeError: a teacher is missing.
    """
    return {f"teacher {n}": fingerprint(model_of(folder), "teachers") for n, folder in enumerate(teachers, start=1)}


def _refuse_other_data(teacher: str, data: Prepared) -> None:
    """Refuse a teacher not trained on the same rows: it may have learned the labels of this run's evaluation rows."""
    try:
        run = RunFolder(teacher)
        audit, metrics = run.read(AUDIT), run.read(METRICS)
        labels, protocol = audit["labels"], audit["protocol"]
        rows = {split: audit["splits"][split]["sha256"] for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"teachers: {teacher} has no audit.json and metrics.json of a finished run ({first_line(error)}). Remedy: "
            "train it to the end, or use another teacher"
        ) from None
    if metrics.get("null_test"):
        raise RecipeError(
            f"teachers: {teacher} is a null test: it was trained on nothing. Remedy: use the run that it tests"
        )
    if labels != list(data.corpus.labels):
        raise RecipeError(
            f"teachers: {teacher} has other labels: {', '.join(labels)}. Remedy: use a teacher with this run's labels, "
            "in this run's order"
        )
    other = [split for split in SPLITS if rows[split] != data.audit["splits"][split]["sha256"]]
    if other or protocol != data.audit["protocol"]:
        raise RecipeError(
            f"teachers: {teacher} was trained with other rows in {', '.join(other) or 'another order'}, and may "
            "know the labels of this run's evaluation rows. Remedy: train both with the same data, split, split "
            "seed (if it is drawn) and audit_policy"
        )


def _read(teacher: str, version: str, dtype: torch.dtype, texts: list[str]) -> np.ndarray:
    """Logits of a teacher, float32 [N, L]; it is loaded only if some are not cached."""
    load = cache(load_classifier)

    def ask(batch: list[str]) -> np.ndarray:
        classifier = load(teacher, dtype)
        return predict_logits(classifier.model, classifier.features(batch), classifier.batch_size)

    try:
        return encode(texts, LoadedEncoder("teacher", version, ask), cache_folder() / "teachers")
    except CacheError:
        raise
    except (OSError, ValueError, SafetensorError, RunFolderError) as error:
        raise RecipeError(
            f"teachers: {teacher} cannot be run ({first_line(error)}). Remedy: use another teacher, or export or "
            "download this one again"
        ) from error
