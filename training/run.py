"""Train an emotion classifier: ``accelerate launch training/run.py --recipe NAME``. The stages in order."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

# Threads that spin while they wait make two processes on two cores ten times slower; set before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed

from modeling.adapters import attach_lora, count_parameters
from modeling.backbones import load_frozen_backbone, read_backbone_config
from modeling.focal import alpha_per_label
from modeling.infer import EmotionConfig, EmotionModel, cache_folder, load_encoder, predict_probabilities
from modeling.projection import standardise_projection
from training.audit import LeakError, audit_rows
from training.balance import BalanceError, Rows, ismote, real_rows, thin_label
from training.corpus import SPLITS, Corpus, CorpusError, load_corpus
from training.encoding import encode
from training.plots import plot_label_frequencies, plot_per_label
from training.recipe import Recipe, RecipeError, RunOptions, parse_recipe
from training.run_folder import RunFolder, RunFolderError, describe_environment
from training.scoring import PER_LABEL_HEADER, build_compute_metrics, report
from training.trainer import EmbeddingDataset, FocalTrainer

logger = logging.getLogger("training")

GOLDEN_TEXTS = 8
UNRELIABLE_BELOW = 100
"""Test positives under which a label's scores are called unreliable, as in the reference."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, and write the run folder. Returns the exit code: 2 where the input is at fault."""
    try:
        return train(*parse_recipe(sys.argv[1:] if argv is None else argv))
    except (RecipeError, CorpusError, BalanceError, RunFolderError, LeakError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def train(recipe: Recipe, options: RunOptions) -> int:
    """The stages of a run."""
    run, state = RunFolder(str(options.output_dir)), PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        if state.is_main_process:
            if options.resume and (run.path / "recipe.yaml").exists():
                run.refuse_other_recipe(dataclasses.asdict(recipe))
            run.prepare(options.resume, options.overwrite)
        log_to(run, state)
        corpus = read_corpus(recipe)
        embeddings, encoder_version = encode_splits(corpus, recipe)
    started = time.perf_counter()
    set_seed(recipe.seed)
    rows = balance_rows(corpus, embeddings["train"], recipe)
    if state.is_main_process:
        describe_run(run, recipe, corpus, embeddings["train"], rows, state)
    model = build_model(recipe, corpus, rows.embeddings, encoder_version, state)
    trainer = build_trainer(model, rows, corpus, embeddings["validation"], recipe, run)
    checkpoint = run.last_checkpoint() if options.resume else None
    if options.resume:
        logger.info("resuming from %s", checkpoint or "the start: no complete checkpoint is there")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if state.is_main_process:
        finish(run, trainer, corpus, embeddings, time.perf_counter() - started)
    return 0


def log_to(run: RunFolder, state: PartialState) -> None:
    """Plain lines on the screen and in ``train.log``, from the main process."""
    for handler in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(handler)
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if state.is_main_process:
        handlers = [logging.StreamHandler(), logging.FileHandler(run.path / "train.log", encoding="utf-8")]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
    for name in ("training", "modeling"):
        logging.getLogger(name).setLevel(logging.INFO)


def read_corpus(recipe: Recipe) -> Corpus:
    """Load and validate the rows."""
    corpus = load_corpus(
        recipe.dataset,
        recipe.labels,
        recipe.data_dir,
        recipe.dataset_revision,
        recipe.dataset_config,
        recipe.text_column,
        recipe.label_column,
        recipe.id_column,
        recipe.unlabelled,
    )
    sizes = ", ".join(f"{split} {len(corpus[split]):,}" for split in SPLITS)
    logger.info("corpus %s, %d labels: %s", corpus.name, len(corpus.labels), sizes)
    return corpus


def encode_splits(corpus: Corpus, recipe: Recipe) -> tuple[dict[str, np.ndarray], str]:
    """Sentence embeddings of every split, and the encoder's version."""
    encoder = load_encoder(recipe.encoder)
    texts = [text for split in SPLITS for text in corpus[split].texts]
    vectors = encode(texts, encoder, cache_folder() / "embeddings")
    ends = np.cumsum([len(corpus[split]) for split in SPLITS])[:-1]
    return dict(zip(SPLITS, np.split(vectors, ends), strict=True)), encoder.version


def balance_rows(corpus: Corpus, embeddings: np.ndarray, recipe: Recipe) -> Rows:
    """Thin neutral and oversample rare labels, training rows only."""
    rows = real_rows(embeddings, corpus["train"].labels)
    if recipe.neutral_keep < 1 and "neutral" in corpus.labels:
        rows = thin_label(rows, corpus.labels.index("neutral"), recipe.neutral_keep, recipe.seed)
    if recipe.balance == "ismote" and recipe.balance_target:
        rows = ismote(
            rows, corpus.labels, recipe.balance_target, recipe.seed, recipe.balance_neighbours, skip=("neutral",)
        )
    logger.info("training rows: %d real, %d synthetic", (~rows.synthetic).sum(), rows.synthetic.sum())
    return rows


def describe_run(
    run: RunFolder, recipe: Recipe, corpus: Corpus, embeddings: np.ndarray, rows: Rows, state: PartialState
) -> None:
    """Write what is known before training: recipe, environment, audit, label frequencies."""
    run.write_recipe(dataclasses.asdict(recipe))
    run.write_json("environment.json", describe_environment(recipe.seed, state.num_processes))
    run.write_json("audit.json", audit_rows(corpus, embeddings, rows))
    before, after = corpus["train"].labels.sum(axis=0), rows.labels.sum(axis=0)
    with run.replacing("label_frequencies.png") as path:
        plot_label_frequencies(before, after, corpus.labels, path)


def build_model(
    recipe: Recipe, corpus: Corpus, embeddings: np.ndarray, encoder_version: str, state: PartialState
) -> PeftModel:
    """Projection, frozen backbone with LoRA, classifier."""
    backbone_config = read_backbone_config(recipe.model_name, recipe.model_revision)
    config = EmotionConfig(
        model_name=recipe.model_name,
        base_model_revision=recipe.model_revision,
        hidden_size=backbone_config.hidden_size,
        embed_dim=embeddings.shape[1],
        emotion_labels=corpus.labels,
        encoder=recipe.encoder,
        encoder_version=encoder_version,
        prefix=recipe.prefix,
        embedding_noise=recipe.embedding_noise,
        head_dropout=recipe.head_dropout,
        quantization=recipe.quantization,
        dataset=corpus.name,
        dataset_revision=corpus.revision,
        backbone_config=backbone_config.to_diff_dict() | {"model_type": backbone_config.model_type},
    )
    backbone = load_frozen_backbone(recipe.model_name, recipe.model_revision, recipe.quantization, state.device)
    set_seed(recipe.seed)
    model = EmotionModel(config, backbone)
    if recipe.token_norm:
        standardise_projection(model.projection, embeddings, recipe.token_norm, recipe.seed)
    try:
        peft_model = attach_lora(
            model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, recipe.lora_target_modules
        )
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if recipe.gradient_checkpointing:
        # The re-entrant kind trains nothing where the backbone's input needs no gradient.
        cast(Any, backbone).gradient_checkpointing_enable({"use_reentrant": False})
    logger.info("%s", count_parameters(peft_model))
    return peft_model


def build_trainer(
    model: PeftModel, rows: Rows, corpus: Corpus, validation: np.ndarray, recipe: Recipe, run: RunFolder
) -> FocalTrainer:
    """The trainer of a recipe."""
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=256,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate_lora,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=recipe.optim,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=recipe.metric_for_best_model,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=recipe.early_stopping_patience > 0,
        save_total_limit=recipe.save_total_limit,
        logging_steps=50,
        report_to=recipe.report_to,
        seed=recipe.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    positives = rows.labels.sum(axis=0).tolist()
    try:
        alpha = alpha_per_label(recipe.alpha, corpus.labels, positives, len(rows))
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return FocalTrainer(
        model=model,
        args=arguments,
        alpha=alpha,
        gamma=recipe.gamma,
        learning_rates={
            "projection": recipe.learning_rate_projection,
            "classifier": recipe.learning_rate_classifier,
            "lora": recipe.learning_rate_lora,
        },
        train_dataset=EmbeddingDataset(rows.embeddings, rows.labels),
        eval_dataset=EmbeddingDataset(validation, corpus["validation"].labels),
        compute_metrics=build_compute_metrics(),
        callbacks=[EarlyStoppingCallback(recipe.early_stopping_patience)] if recipe.early_stopping_patience else [],
    )


def finish(
    run: RunFolder,
    trainer: FocalTrainer,
    corpus: Corpus,
    embeddings: dict[str, np.ndarray],
    seconds: float,
) -> None:
    """Score the best model, write the results, and say what to type next."""
    # The base model's own forward: the wrapped one computes under autocast, what is published does not.
    assert isinstance(trainer.model, PeftModel)
    model = cast(EmotionModel, trainer.model.get_base_model())
    probabilities = {split: predict_probabilities(model, embeddings[split]) for split in ("validation", "test")}
    validation, test = ((probabilities[split], corpus[split].labels) for split in ("validation", "test"))
    metrics, thresholds, per_label = report(validation, test, corpus.labels)
    run.write_json("metrics.json", metrics)
    run.write_json("thresholds.json", thresholds)
    run.write_table("per_label.csv", PER_LABEL_HEADER, per_label)
    with run.replacing("per_label.png") as path:
        plot_per_label(per_label, path)
    write_model(run, trainer, trainer.model, cast(EmotionConfig, model.config), thresholds, per_label)
    golden = [
        {"text": text, "probabilities": [float(value) for value in row]}
        for text, row in zip(corpus["test"].texts[:GOLDEN_TEXTS], probabilities["test"], strict=False)
    ]
    run.write_json("golden.json", {"labels": list(corpus.labels), "rows": golden})
    run.write_json("timing.json", {"seconds_of_training": round(seconds, 1), "epochs": trainer.state.epoch})
    print_results(run, metrics, per_label, seconds)


def write_model(
    run: RunFolder,
    trainer: FocalTrainer,
    model: PeftModel,
    config: EmotionConfig,
    thresholds: dict[str, Any],
    per_label: list[list[Any]],
) -> None:
    """Write the best model (trained weights only) and its configuration with thresholds into ``model/``."""
    config.thresholds = thresholds["per_label"]
    config.threshold_source = thresholds["source"]
    config.unreliable_labels = [row[0] for row in per_label if row[1] < UNRELIABLE_BELOW]
    config.architectures = ["EmotionModel"]
    with run.replacing("model") as folder:
        model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)
        config.to_json_file(folder / "config.json", use_diff=False)
    alpha = dict(zip(config.emotion_labels, trainer.alpha, strict=True))
    run.write_json("focal_config.json", {"alpha": alpha, "gamma": trainer.gamma})


def print_results(run: RunFolder, metrics: dict[str, Any], per_label: list[list[Any]], seconds: float) -> None:
    """The per-label table, the scores, and the next commands."""
    lines = [f"{'label':<16}{'support':>8}{'threshold':>11}{'precision':>11}{'recall':>8}{'F1':>8}{'F1@0.5':>8}"]
    lines += [f"{r[0]:<16}{r[1]:>8}{r[2]:>11.3f}{r[3]:>11.3f}{r[4]:>8.3f}{r[5]:>8.3f}{r[6]:>8.3f}" for r in per_label]
    for policy, name in (("fixed", "at 0.5"), ("global", "one threshold"), ("per_label", "threshold per label")):
        score = metrics["test"][policy]
        low, high = score["intervals_95"]["macro_f1"]
        lines.append(
            f"test, {name:<20} macro F1 {score['macro_f1']:.3f} [{low:.3f}, {high:.3f}]  micro F1 {score['micro_f1']:.3f}"
        )
    package = Path("packages") / run.path.name
    logger.info("trained in %.1f min; everything is in %s\n%s", seconds / 60, run.path, "\n".join(lines))
    logger.info(
        'next:\n  hub_release export %s %s\n  hub_release check %s\n  python %s/infer.py "I passed the exam!"',
        run.path,
        package,
        package,
        package,
    )


if __name__ == "__main__":
    raise SystemExit(main())
