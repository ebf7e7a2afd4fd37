"""What a trained model leaves behind: calibration, thresholds, scores, plots, and the best weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from peft import PeftModel

from modeling import records
from modeling.backbones import restore_float32
from modeling.infer import (
    BUNDLED_BACKBONE,
    ENCODERS,
    TOKENIZER_FILE,
    EmotionClassifier,
    EmotionConfig,
    EmotionModel,
    load_encoder,
    predict_logits,
)
from modeling.recipe import CONTAMINATED, CROSS_FIT, Recipe
from modeling.records import (
    POLICIES,
    Context,
    FocalConfig,
    Golden,
    GoldenRow,
    Metrics,
    ThresholdTable,
    Timing,
    TrainingTime,
)
from training.data.corpus import GOEMOTIONS_HUB
from training.fit.build import holds_bfloat16
from training.fit.prepare import Prepared
from training.fit.trainer import FocalTrainer
from training.run_folder import RunFolder
from training.scores import plots
from training.scores.bag_of_words import score_bag_of_words
from training.scores.calibration import fold_into
from training.scores.held_out import HeldOut, describe, hold_out, hold_out_folds
from training.scores.published import Published, read_published, to_markdown
from training.scores.scoring import (
    DRAWS,
    LOW_SUPPORT,
    WIDE_INTERVAL,
    score_policies,
    unreliable_labels,
)

logger = logging.getLogger(__name__)

GOLDEN_TEXTS = (
    "I passed the exam!",
    "He left without a word, and I still wait for him every evening.",
    "Why was I charged twice for the same parcel? This is ridiculous.",
    "Thank you so much, you saved my weekend 😀",
    "The meeting is on Tuesday at ten.",
    "Che bella sorpresa, non me l'aspettavo!",
    "What?!",
    "I am scared of what they will say. " * 40,
)
"""Our own texts: a package is published, and its test rows may be private."""
_POLICY_NAMES = {"fixed": "at 0.5", "global": "one threshold", "per_label": "threshold per label"}


@dataclasses.dataclass(frozen=True)
class Report:
    """Scores of a run: the content of ``metrics.json``, ``per_label.csv`` and ``thresholds.json``."""

    metrics: Metrics
    per_label: pd.DataFrame
    thresholds: ThresholdTable


def finish(
    run: RunFolder,
    trainer: FocalTrainer,
    data: Prepared,
    recipe: Recipe,
    null_test: str | None,
    timing: TrainingTime,
    out_of_fold: np.ndarray | None,
) -> None:
    """Calibrate and score the best model, write the results, and log the next commands.

    Args:
        run: takes the results.
        trainer: has the model.
        data: its data.
        recipe: the recipe.
        null_test: see :func:`training.fit.prepare.prepare`.
        timing: of the training.
        out_of_fold: see :func:`calibrate`.
    """
    started = time.perf_counter()
    # The base model's own forward: the wrapped one computes under autocast, the published model does not.
    assert isinstance(trainer.model, (PeftModel, EmotionModel))
    model = trainer.model
    plain = cast(EmotionModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    if holds_bfloat16(recipe, cast(EmotionConfig, plain.config)):
        restore_float32(plain)
    held_out = calibrate(plain, data, out_of_fold, recipe.seed)
    found = build_report(held_out, data, recipe.split, null_test)
    if recipe.dataset not in ("starter", "goemotions") and recipe.split != CONTAMINATED and not null_test:
        baseline = score_bag_of_words(data.corpus, data.fold, data.left_out, recipe.seed)
        if baseline is not None:
            found.metrics["bag_of_words"], _ = score_policies(
                baseline.after["test"], baseline.cutoffs["test"], data.corpus.labels, baseline.cutoffs["validation"]
            )
    run.write(records.CALIBRATION, describe(held_out))
    run.write(records.METRICS, found.metrics)
    run.write(records.THRESHOLDS, found.thresholds)
    run.write_text(records.PER_LABEL, found.per_label.to_csv(index=False))
    published = comparable(data)
    run.write_text(records.SCORES, to_markdown(found.per_label, found.metrics, published))
    run.write(records.CONTEXT, describe_context(recipe, data, published))
    run.write_arrays(records.PREDICTIONS, predictions_of(held_out))
    run.write_text(records.SCORED_TEXTS, scored_texts(data, list(held_out.after)))
    draw(run, found, held_out, data, recipe, published)
    write_model(run, trainer, model, cast(EmotionConfig, plain.config), found, data)
    run.write(records.GOLDEN, golden_rows(plain, recipe))
    scoring = round(time.perf_counter() - started, 1)
    finished: Timing = {**timing, "seconds_of_scoring": scoring, "epochs": trainer.state.epoch or 0.0}
    run.write(records.TIMING, finished)
    print_results(run, found, timing["seconds_of_training"], recipe)


def predictions_of(found: HeldOut) -> dict[str, np.ndarray]:
    """The content of ``predictions.npz``; thresholds only where they differ between rows, [N, L]."""
    arrays = {records.LOG_LOSSES: found.log_losses}
    for split, rows in found.after.items():
        arrays |= {f"{split}_probabilities": rows.probabilities, f"{split}_references": rows.references}
        if (own := found.cutoffs[split]["per_label"]).ndim == 2:
            arrays[f"{split}_thresholds"] = own
    return arrays


def scored_texts(data: Prepared, splits: Sequence[str]) -> str:
    """The texts of splits as JSON lines: what else computes the model is scored on the same rows."""
    rows = [{"split": split, "text": text} for split in splits for text in data.corpus[split].texts]
    return "".join(json.dumps(row) + "\n" for row in rows)


def comparable(data: Prepared) -> list[Published]:
    """Published systems that were scored on the same corpus and labels; none on a corpus other than GoEmotions."""
    return read_published(data.corpus.labels) if data.corpus.name == GOEMOTIONS_HUB else []


def describe_context(recipe: Recipe, data: Prepared, published: Sequence[Published]) -> Context:
    """What a reader of the scores needs besides them, and which parts of the run are folders on this machine."""
    encoder = recipe.encoder.removeprefix("sentence-transformers/")
    local = {
        "backbone": recipe.model_name != BUNDLED_BACKBONE and Path(recipe.model_name).exists(),
        "encoder": recipe.encoder not in ENCODERS and Path(encoder).exists(),
        "dataset": recipe.dataset not in ("starter", "goemotions") and Path(recipe.dataset).exists(),
    }
    return {
        "bootstrap_draws": DRAWS,
        "unreliable": {"positives_below": LOW_SUPPORT, "f1_interval_wider_than": WIDE_INTERVAL},
        "published": [dataclasses.asdict(system) for system in published],
        "local": local,
    }


def calibrate(model: EmotionModel, data: Prepared, out_of_fold: np.ndarray | None, seed: int) -> HeldOut:
    """Fit a calibration on rows that were not trained on, and fold it into the classifier.

    Args:
        model: the finished model.
        data: its data.
        out_of_fold: logits of all rows by other models, float [N, L], if this model was trained on all rows.
        seed: seed of the folds in which a calibration is chosen.
    """
    references = {split: data.corpus[split].labels for split in ("validation", "test")}
    if out_of_fold is None:
        logits = {split: predict_logits(model, data.features(split)).astype(float) for split in references}
        found = hold_out(logits, references, seed)
    else:
        assert data.fold is not None
        found = hold_out_folds(out_of_fold.astype(float), references["test"], data.fold, seed)
    fold_into(model.classifier, found.calibration)
    return found


def golden_rows(model: EmotionModel, recipe: Recipe) -> Golden:
    """A few fixed texts and the finished model's probabilities, to be reproduced wherever it is loaded."""
    encoder = load_encoder(recipe.encoder) if cast(EmotionConfig, model.config).reads_embedding else None
    said = EmotionClassifier.from_model(model, encoder=encoder).predict_proba(GOLDEN_TEXTS).tolist()
    rows = [GoldenRow(text=text, probabilities=row) for text, row in zip(GOLDEN_TEXTS, said, strict=True)]
    return {"labels": list(model.config.emotion_labels), "rows": rows}


def build_report(held_out: HeldOut, data: Prepared, protocol: str, null_test: str | None) -> Report:
    """Scores of validation, test, and test without the texts that are also in train."""
    labels, chosen, shown = data.corpus.labels, held_out.thresholds, held_out.cutoffs["validation"]
    parts, cutoffs = dict(held_out.after), dict(held_out.cutoffs)
    if data.copies["test"].any() and not data.copies["test"].all():
        parts["test_without_copies"] = held_out.after["test"].take(~data.copies["test"])
        cutoffs["test_without_copies"] = cutoffs["test"]
    found, tables = {}, []
    for split, rows in parts.items():
        found[split], table = score_policies(rows, cutoffs[split], labels, shown)
        tables.append(table.assign(split=split))
    thresholds: ThresholdTable = {
        "source": f"from {'rows out of fold' if protocol == CROSS_FIT else 'the validation split'}: one for all labels by "
        "macro F1; per label by the expected F1 of calibrated probabilities",
        "global": chosen.common,
        "per_label": dict(zip(labels, chosen.own.tolist(), strict=True)),
        "per_label_unshrunk": dict(zip(labels, chosen.best.tolist(), strict=True)),
    }
    metrics: Metrics = {
        "validation": found["validation"],
        "test": found["test"],
        "protocol": protocol,
        "null_test": null_test,
    }
    if "test_without_copies" in found:
        metrics["test_without_copies"] = found["test_without_copies"]
    return Report(metrics, pd.concat(tables, ignore_index=True), thresholds)


def warning_of(recipe: Recipe) -> str:
    """The warning on every plot of a contaminated run; empty for an honest one."""
    if recipe.split == CONTAMINATED:
        return "CONTAMINATED: oversampled before the split; these scores do not measure the model"
    return ""


def draw(
    run: RunFolder,
    found: Report,
    held_out: HeldOut,
    data: Prepared,
    recipe: Recipe,
    published: Sequence[Published],
) -> None:
    """Draw the plots of the scores."""
    labels, note, scored = data.corpus.labels, warning_of(recipe), held_out.after
    own = found.thresholds["per_label"]
    cutoffs = np.array([own[label] for label in labels])
    pictures: dict[str, Callable[[Path], None]] = {
        records.PER_LABEL_PLOT: lambda path: plots.plot_per_label(path, found.per_label, published, note),
        records.PRECISION_RECALL_PLOT: lambda path: plots.plot_precision_recall(
            path, scored["test"], cutoffs, labels, note
        ),
        records.THRESHOLDS_PLOT: lambda path: plots.plot_threshold_curves(
            path, scored["validation"], labels, own, note
        ),
        records.CONFUSIONS_PLOT: lambda path: plots.plot_confusions(path, scored["test"], cutoffs, labels, note),
        records.RELIABILITY_PLOT: lambda path: plots.plot_reliability(
            path, held_out.before["test"], scored["test"], note
        ),
    }
    for name, picture in pictures.items():
        with run.replacing(name) as path:
            picture(path)


def write_model(
    run: RunFolder,
    trainer: FocalTrainer,
    model: PeftModel | EmotionModel,
    config: EmotionConfig,
    found: Report,
    data: Prepared,
) -> None:
    """Write the best model (trained weights only) and its configuration with thresholds into ``model/``."""
    config.thresholds = found.thresholds["per_label"]
    config.threshold_source = found.thresholds["source"]
    config.unreliable_labels = unreliable_labels(found.per_label)
    config.architectures = ["EmotionModel"]
    with run.replacing(records.MODEL) as folder:
        model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)
        config.to_json_file(folder / "config.json", use_diff=False)
        if data.tokenizer is not None:
            data.tokenizer.save(str(folder / TOKENIZER_FILE))
    alpha = dict(zip(config.emotion_labels, trainer.alpha, strict=True))
    run.write(records.FOCAL, FocalConfig(alpha=alpha, gamma=trainer.gamma))


def print_results(run: RunFolder, found: Report, seconds: float, recipe: Recipe) -> None:
    """The per-label table, the scores, and the next commands."""
    test = found.per_label[found.per_label["split"] == "test"]
    own = test[test["thresholds"] == "per_label"].assign(
        **{"F1@0.5": test.loc[test["thresholds"] == "fixed", "f1"].to_numpy()}
    )
    columns = ["label", "support", "threshold", "precision", "recall", "f1", "f1_low", "f1_high", "F1@0.5"]
    lines = [own[columns].to_string(index=False, float_format="{:.3f}".format)]
    parts = {"test": found.metrics["test"]}
    if "test_without_copies" in found.metrics:
        parts["test without texts of train"] = found.metrics["test_without_copies"]
    if "bag_of_words" in found.metrics:
        parts["bag of words, test"] = found.metrics["bag_of_words"]
    for name, by_policy in parts.items():
        for policy in POLICIES:
            score = by_policy[policy]
            low, high = score["intervals_95"]["macro_f1"]
            lines.append(
                f"{name}, {_POLICY_NAMES[policy]:<20} macro F1 {score['macro_f1']:.3f} [{low:.3f}, {high:.3f}]  "
                f"micro F1 {score['micro_f1']:.3f}"
            )
    logger.info("trained in %.1f min; everything is in %s\n%s", seconds / 60, run.path, "\n".join(lines))
    if warning_of(recipe):
        logger.warning("%s", warning_of(recipe))
    if recipe.head == "backbone":
        package = Path("packages") / run.path.name
        commands = (
            ["hub_release", "export", run.path, package],
            ["hub_release", "check", package],
            ["python", package / "infer.py", "Thank you so much, this made my day!"],
        )
        logger.info("next:\n%s", "\n".join(f"  {shlex.join(map(str, words))}" for words in commands))
