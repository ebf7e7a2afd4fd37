"""The null test: a recipe that finds a signal where there is none measures itself, not a model.

The recipe is run twice: once with noise in place of the embeddings, once with the training labels shuffled. Either way
train says nothing about a test row, so a score above chance can only come from a leak.

Chance is the score of readouts that were never trained: the test embeddings times random directions, one per label,
calibrated and with thresholds from validation in the same way. (A random direction of real embeddings correlates with some labels
by accident, and the thresholds use that. Assigning predictions to rows at random would set chance too low.)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from modeling.recipe import Recipe
from modeling.records import METRICS, Record
from modeling.thresholds import choose_thresholds
from training.commands.train import train
from training.commands.verbs import NullTestOptions, TrainOptions
from training.corpora import Corpora
from training.fit.prepare import NULL_TESTS, Prepared, prepare
from training.recipe import RecipeError
from training.run_folder import RunFolder
from training.scores.calibration import fit_platt
from training.scores.scoring import weighted_scores

logger = logging.getLogger(__name__)

NULL_TEST = Record[dict[str, Any]]("null_test.json")
READOUTS = 100
DEVIATIONS = 4
"""A score counts as chance up to this many standard deviations above the mean of the readouts."""


def chance_scores(data: Prepared, seed: int, readouts: int = READOUTS) -> np.ndarray:
    """Test macro F1 of untrained readouts, [readouts].

    Platt scaling and thresholds by expected F1 come from validation or, after cross-fitting, from the other folds.
    """
    generator = np.random.default_rng(seed)
    mean, deviation = data.embeddings["train"].mean(axis=0), data.embeddings["train"].std(axis=0) + 1e-9
    inputs = {split: (data.embeddings[split] - mean) / deviation for split in ("validation", "test")}
    references = {split: data.corpus[split].labels for split in inputs}
    parts: list[tuple[Any, Any]] = [(slice(None), slice(None))]
    if data.fold is not None:
        parts = [(data.fold != number, data.fold == number) for number in np.unique(data.fold)]
    once = np.ones((1, len(references["test"])), dtype=np.float32)
    found = []
    for _ in range(readouts):
        directions = generator.standard_normal((len(mean), len(data.corpus.labels))) / np.sqrt(len(mean))
        logits = {split: values @ directions for split, values in inputs.items()}
        decided = np.zeros(references["test"].shape, dtype=bool)
        for tuned, held in parts:
            calibration = fit_platt(logits["validation"][tuned], references["validation"][tuned])
            said = calibration(logits["validation"][tuned])
            cutoffs = choose_thresholds(said, references["validation"][tuned]).own
            decided[held] = calibration(logits["test"][held]) >= cutoffs
        whole, _ = weighted_scores(decided, references["test"])(once)
        found.append(float(whole["macro_f1"][0]))
    return np.array(found)


def run_null_tests(recipe: Recipe, options: NullTestOptions) -> int:
    """Run the recipe on noise and on shuffled training labels; return 1 if a score is above chance.

    The two runs and ``null_test.json`` go to ``null_test/`` in the run folder.

    Raises:
        RecipeError: there are several processes, or an earlier null test that ``overwrite`` does not allow to replace.
    """
    if PartialState(cpu=not torch.cuda.is_available()).num_processes > 1:
        raise RecipeError("a null test is two single-process runs. Remedy: launch one process")
    folder, corpora = Path(str(options.output_dir)) / "null_test", Corpora()
    if (folder / NULL_TEST).exists() and not options.overwrite:
        raise RecipeError(
            f"{folder} already holds a null test. Remedy: use --overwrite to replace it, or another --output_dir"
        )
    with RunFolder(folder).locked():
        return _run(recipe, options, folder, corpora)


def _run(recipe: Recipe, options: NullTestOptions, folder: Path, corpora: Corpora) -> int:
    outcome: dict[str, Any] = {"protocol": recipe.split, "chance": describe_chance()}
    for name in NULL_TESTS:
        run = RunFolder(folder / name)
        train(
            recipe,
            TrainOptions(
                output_dir=str(run.path), overwrite=True, remove_checkpoints=True, co2_country=options.co2_country
            ),
            corpora,
            name,
        )
        score = run.read(METRICS)["test"]["per_label"]["macro_f1"]
        chance = chance_scores(prepare(recipe, corpora, name), recipe.seed)
        limit = float(chance.mean() + DEVIATIONS * chance.std())
        outcome[name] = {
            "macro_f1": score,
            "chance_mean": float(chance.mean()),
            "chance_limit": limit,
            "passed": bool(score <= limit),
        }
    RunFolder(folder).write(NULL_TEST, outcome)
    failed = [name for name in NULL_TESTS if not outcome[name]["passed"]]
    for name in NULL_TESTS:
        result = outcome[name]
        line = "null test %s: macro F1 %.3f, chance %.3f, limit %.3f: %s"
        verdict = "FAILED, evaluation rows leak into training" if name in failed else "passed"
        figures = (result["macro_f1"], result["chance_mean"], result["chance_limit"])
        logger.log(logging.ERROR if name in failed else logging.INFO, line, name, *figures, verdict)
    return 1 if failed else 0


def describe_chance() -> str:
    """How chance is computed."""
    return (
        f"{READOUTS} untrained random readouts of the test inputs, calibrated, with thresholds by expected F1 in the same way; the "
        f"limit is {DEVIATIONS} standard deviations above their mean"
    )
