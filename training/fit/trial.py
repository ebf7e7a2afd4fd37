"""How long would a run take on this machine? A few real steps, timed."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from huggingface_hub import try_to_load_from_cache
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from modeling.infer import BUNDLED_BACKBONE, staging
from modeling.recipe import CROSS_FIT, Recipe, planned_epochs, rows_of_a_fold
from training.corpora import Corpora
from training.data.balance import real_rows
from training.data.corpus import Corpus
from training.data.splits import stratified, without_splits
from training.fit.batch import encoder_width, fit_batch
from training.fit.build import build_model, build_trainer, fit_precision
from training.fit.prepare import Prepared, balance, read_words
from training.run_folder import RunFolder

STEPS = 8
"""Steps that are timed, after two that warm up."""
_WARM_UP = 2
_EVALUATION = 1 / 3
"""Scoring a row against training on it: one forward pass of three."""


@dataclass(frozen=True)
class Trial:
    """Seconds of a step, and what a run has of them.

    Attributes:
        seconds: median of a step.
        rows: training rows after balancing.
        steps: steps of an epoch.
        epochs: how many.
        models: that are trained; those of folds have fewer rows.
        minutes: of all of it with the evaluations, without encoding the texts.
    """

    seconds: float
    rows: int
    steps: int
    epochs: int
    models: int
    minutes: float


def is_at_hand(recipe: Recipe) -> bool:
    """Can the recipe's model be built without a download?"""
    if recipe.head == "mlp" or recipe.model_name == BUNDLED_BACKBONE or Path(recipe.model_name).is_dir():
        return True
    weights = ("model.safetensors", "model.safetensors.index.json")
    found = (try_to_load_from_cache(recipe.model_name, name, revision=recipe.model_revision) for name in weights)
    return any(isinstance(path, str) for path in found)


def time_steps(recipe: Recipe, state: PartialState) -> Trial:
    """Train a few steps on texts of the recipe's corpus, with made-up embeddings, and time them.

    Raises:
        CorpusError: the corpus cannot be read.
        RecipeError: the model cannot be built, or the memory is too small.
    """
    corpus = Corpora().rows(recipe)
    if recipe.split == CROSS_FIT:
        corpus = without_splits(corpus)
    elif len(corpus.splits) == 1:
        corpus = stratified(corpus, recipe.split_seed)
    train = corpus["train"]
    # How many rows are made hardly depends on where the embeddings are; those of one dimension are quickly searched.
    generator = np.random.default_rng(recipe.seed)
    rows = len(balance(generator.standard_normal((len(train), 1)), train.labels, corpus.labels, recipe))
    fitted = fit_batch(fit_precision(recipe), state)
    size = fitted.batch_size * fitted.gradient_accumulation_steps
    steps, evaluated = math.ceil(rows / size), len(corpus["validation"]) / size
    with staging(Path(tempfile.gettempdir()), "goemotions-mistral-plan-") as folder, _quiet():
        data = _make_up(fitted, corpus, size, generator)
        trainer = build_trainer(build_model(fitted, data, state), fitted, data, RunFolder(folder))
        trainer.args.max_steps = STEPS + _WARM_UP
        trainer.args.eval_strategy = trainer.args.save_strategy = IntervalStrategy.NO
        trainer.args.load_best_model_at_end = False
        clock = _Clock()
        trainer.add_callback(clock)
        trainer.train()
    seconds = float(np.median(np.diff(clock.times)[_WARM_UP - 1 :]))
    own = rows_of_a_fold(rows, recipe.split, recipe.folds)
    epochs = planned_epochs(recipe.epochs, recipe.min_steps, own, size)
    # Of the other folds' rows, as many models as there are folds, and one of all rows.
    models, evaluated = (recipe.folds, 0) if recipe.split == CROSS_FIT else (1, evaluated)
    minutes = models * epochs * (steps + evaluated * _EVALUATION) * seconds / 60
    return Trial(seconds, rows, steps, epochs, recipe.folds + 1 if recipe.split == CROSS_FIT else 1, minutes)


def _make_up(recipe: Recipe, corpus: Corpus, size: int, generator: np.random.Generator) -> Prepared:
    """Rows for the trial's steps: texts of every length, in the shares that the corpus has."""
    train = corpus["train"]
    by_length = np.argsort([len(text) for text in train.texts], kind="stable")
    chosen = train.take(by_length[np.linspace(0, len(train) - 1, size * STEPS).astype(int)])
    one = chosen.take(np.zeros(1, dtype=np.int64))
    trial = replace(corpus, splits={"train": chosen, "validation": one, "test": one})
    tokenizer, tokens = read_words(recipe, trial) if recipe.input != "embedding" else (None, None)
    shape = (len(chosen), encoder_width(recipe.encoder))
    rows = real_rows(generator.standard_normal(shape, dtype=np.float32), chosen.labels)
    embeddings = {"train": rows.embeddings, "validation": rows.embeddings[:1], "test": rows.embeddings[:1]}
    audit: Any = {}
    return Prepared(trial, embeddings, rows, audit, {}, "", tokenizer, tokens, recipe.input != "tokens")


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
