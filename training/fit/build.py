"""Model and trainer of a recipe."""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed

from modeling.adapters import attach_lora, count_parameters
from modeling.backbones import compile_layers, load_frozen_backbone, load_unsloth_backbone, read_backbone_config
from modeling.focal import alpha_per_label
from modeling.fused_layer import fuse_layers
from modeling.infer import (
    BUNDLED_BACKBONE,
    CacheError,
    EmotionConfig,
    EmotionModel,
    has_onednn_layout,
    multiplies_bfloat16,
    usual_characters_per_token,
)
from modeling.memory.plan import evaluation_rows
from modeling.recipe import CROSS_FIT, Recipe, model_settings
from modeling.rows.errors import first_line
from training.fit.prepare import Prepared
from training.fit.projection import standardize_projection
from training.fit.sharding import prepare_sharding, sharded_by
from training.fit.start import take_over
from training.fit.trainer import CheckpointByTime, FeatureDataset, FocalTrainer, SealedCheckpoints
from training.recipe import RecipeError
from training.run_folder import RunFolder
from training.scores.scoring import build_compute_metrics

logger = logging.getLogger(__name__)


def build_model(recipe: Recipe, data: Prepared, state: PartialState) -> PeftModel | EmotionModel:
    """Projection, frozen backbone with LoRA, classifier; or the baseline without a backbone.

    Raises:
        RecipeError: ``model_name`` cannot be loaded, or lacks a layer of ``lora_target_modules``.
    """
    try:
        config = _build_config(recipe, data)
        backbone = _load_backbone(recipe, config, state) if recipe.head == "backbone" else None
    except CacheError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(
            f"model_name: {recipe.model_name!r} cannot be loaded ({first_line(error)}). Remedy: use "
            f"{BUNDLED_BACKBONE}, the folder of a Mistral-architecture model, or its Hub id (then check the network, "
            "model_revision and access)"
        ) from error
    set_seed(recipe.seed)
    model = EmotionModel(config, backbone)
    model.tokenizer = data.tokenizer
    if recipe.token_norm and config.reads_embedding:
        standardize_projection(model.projection, data.rows.embeddings, recipe.token_norm, recipe.seed)
    trained = _attach_lora(model, recipe) if backbone is not None else model
    if recipe.start_from and isinstance(trained, PeftModel):
        take_over(trained, recipe.start_from, data.corpus.labels)
    if recipe.torch_compile:
        _compile(model)
    elif recipe.fused_layers and sharded_by():
        logger.info("layers train as they are: one function would need whole matrices")
    elif recipe.fused_layers and holds_bfloat16(recipe, config) and state.device.type == "cpu":
        kept = "they are: one function needs one-token input and plain LoRA on all matrices"
        logger.info("layers train as %s", "one function each" if fuse_layers(model.backbone) else kept)
    logger.info("%s", count_parameters(trained))
    return trained


def _load_backbone(recipe: Recipe, config: EmotionConfig, state: PartialState) -> nn.Module:
    if recipe.loader == "unsloth":
        try:
            return load_unsloth_backbone(
                recipe.model_name,
                recipe.model_revision,
                recipe.lora_rank,
                recipe.lora_alpha,
                recipe.lora_dropout,
                recipe.lora_target_modules,
            )
        except ValueError as error:
            raise RecipeError(str(error)) from None
    return load_frozen_backbone(
        recipe.model_name,
        recipe.model_revision,
        recipe.quantization,
        state.device,
        config.reads_one_token,
        torch.bfloat16 if holds_bfloat16(recipe, config) else torch.float32,
        config.num_hidden_layers,
        recipe.bnb_4bit_quant_storage,
    )


def fit_precision(recipe: Recipe) -> Recipe:
    """The recipe, without bf16 if oneDNN has no bfloat16 products for the CPU: torch's own take several times as long.

    A quantized recipe stays as is: its matrices become bfloat16 for every product anyway.
    """
    on_onednn = has_onednn_layout() and not torch.cuda.is_available()
    if not recipe.bf16 or recipe.quantization != "none" or not on_onednn or multiplies_bfloat16():
        return recipe
    logger.info("bf16: oneDNN has no bfloat16 products for this CPU, and float32 is faster; training in float32")
    return dataclasses.replace(recipe, bf16=False)


def holds_bfloat16(recipe: Recipe, config: EmotionConfig) -> bool:
    """Are the frozen weights held in bfloat16 while training? See :func:`modeling.backbones.restore_float32`."""
    short = config.reads_one_token or config.reads_words
    return recipe.bf16 and recipe.head == "backbone" and recipe.quantization == "none" and short


def _build_config(recipe: Recipe, data: Prepared) -> EmotionConfig:
    config = EmotionConfig(
        **model_settings(recipe),
        hidden_size=recipe.mlp_hidden_size,
        embed_dim=data.rows.embeddings.shape[1] if data.reads_embedding else 0,
        emotion_labels=list(data.corpus.labels),
        encoder=recipe.encoder if data.reads_embedding else "",
        encoder_version=data.encoder_version if data.reads_embedding else "",
        dataset=data.corpus.name,
        dataset_revision=data.corpus.revision,
        characters_per_token=usual_characters_per_token(data.corpus["train"].texts, data.tokens["train"])
        if data.tokens
        else [],
    )
    if recipe.head == "backbone":
        backbone = read_backbone_config(recipe.model_name, recipe.model_revision)
        config.model_name, config.base_model_revision = recipe.model_name, recipe.model_revision
        config.hidden_size = backbone.hidden_size
        config.backbone_config = use_layers(recipe, backbone.to_diff_dict() | {"model_type": backbone.model_type})
    return config


def use_layers(recipe: Recipe, backbone: dict[str, Any]) -> dict[str, Any]:
    """A backbone's configuration with as many layers as the recipe uses.

    Raises:
        RecipeError: it does not have that many.
    """
    there = AutoConfig.for_model(**backbone).num_hidden_layers
    if recipe.num_hidden_layers > there:
        raise RecipeError(
            f"num_hidden_layers: {recipe.num_hidden_layers} is too many: {recipe.model_name} has {there} layers. Remedy: "
            f"use 0 (all) to {there}"
        )
    return backbone | {"num_hidden_layers": recipe.num_hidden_layers or there}


def _attach_lora(model: EmotionModel, recipe: Recipe) -> PeftModel:
    try:
        peft_model = attach_lora(
            model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, recipe.lora_target_modules
        )
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if recipe.gradient_checkpointing:
        # The re-entrant kind trains nothing if the backbone's input needs no gradient.
        cast(Any, model.backbone).gradient_checkpointing_enable({"use_reentrant": False})
    return peft_model


def _compile(model: EmotionModel) -> None:
    try:
        compile_layers(model.backbone)
    except OSError as error:
        raise RecipeError(f"torch_compile: {error}, or use torch_compile false") from None


def build_trainer(
    model: PeftModel | EmotionModel, recipe: Recipe, data: Prepared, run: RunFolder, keeps_checkpoints: bool = True
) -> FocalTrainer:
    """The trainer of a recipe.

    With split cross-fit, no rows are left to choose a checkpoint on: the last one is the result.
    """
    chooses = recipe.split != CROSS_FIT
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=evaluation_rows(recipe.input != "embedding"),
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate_lora,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=recipe.optim,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch" if chooses else "no",
        save_strategy="epoch" if keeps_checkpoints else "no",
        load_best_model_at_end=chooses,
        metric_for_best_model=recipe.metric_for_best_model,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=recipe.early_stopping_patience > 0,
        logging_steps=50,
        report_to=recipe.report_to,
        disable_tqdm=not sys.stderr.isatty(),
        seed=recipe.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    if sharded_by():
        prepare_sharding(model)
    rows, labels, validation = data.rows, data.corpus.labels, data.features("validation")
    by_length = np.argsort(-validation.lengths, kind="stable")  # so that batches need little padding
    callbacks: list[TrainerCallback] = [SealedCheckpoints(run, recipe.save_total_limit)]
    if recipe.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    if recipe.checkpoint_minutes and keeps_checkpoints:
        callbacks.append(CheckpointByTime(recipe.checkpoint_minutes))
    positives = rows.labels.sum(axis=0).tolist()
    try:
        alpha = alpha_per_label(recipe.alpha, labels, positives, len(rows))
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
        train_dataset=FeatureDataset(
            data.training_features(), rows.labels if data.targets is None else data.targets, recipe.window_length
        ),
        eval_dataset=FeatureDataset(
            validation.take(by_length), data.corpus["validation"].labels[by_length], recipe.window_length
        ),
        compute_metrics=build_compute_metrics(),
        callbacks=callbacks,
    )
