"""Cut a step into as few micro-batches as fit the free memory, by the recipe's memory plan."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from modeling.backbones import MISTRAL_SMALL_3_1, SMOLLM2_135M, read_backbone_config
from modeling.infer import BUNDLED_BACKBONE, ENCODERS, EmotionConfig
from modeling.memory.plan import GIB, RESERVE, MemoryPlan, Setting, plan_memory
from modeling.memory.shards import shard
from modeling.recipe import Recipe, model_settings, planned_epochs, rows_of_a_fold
from training.data.taxonomy import build_taxonomy
from training.fit.build import holds_bfloat16, use_layers
from training.fit.prepare import Prepared
from training.fit.sharding import sharded_by
from training.recipe import RecipeError

logger = logging.getLogger(__name__)

KNOWN_SHAPES = {BUNDLED_BACKBONE: SMOLLM2_135M, "Mistral-Small-3.1-24B": MISTRAL_SMALL_3_1}
"""Backbones whose shapes need no file and no network, by part of their names."""

FEW_STEPS = 200
"""Runs with fewer optimizer steps say so, unless they go on from a model that has learned most of it."""

_OTHER_WIDTH = 768
"""Assumed for other encoders; the width changes the sum by a few MiB at most."""


def encoder_width(name: str) -> int:
    """Width of an encoder's embeddings, without loading it."""
    return ENCODERS[name].width if name in ENCODERS else _OTHER_WIDTH


def read_setting(recipe: Recipe) -> Setting:
    """What a recipe's memory depends on, without reading its rows, encoder or weights.

    Raises:
        RecipeError: the shapes of its backbone cannot be read.
    """
    config = EmotionConfig(
        **model_settings(recipe),
        model_name=recipe.model_name,
        hidden_size=recipe.mlp_hidden_size,
        embed_dim=encoder_width(recipe.encoder),
        emotion_labels=list(build_taxonomy(recipe.labels).labels),
    )
    if recipe.head == "backbone":
        config.backbone_config = use_layers(recipe, _read_shapes(recipe))
        config.hidden_size = config.backbone_config["hidden_size"]
    half = recipe.quantization != "none" or holds_bfloat16(recipe, config)
    return Setting(
        config=config,
        dtype=torch.bfloat16 if half else torch.float32,
        scoring_dtype=torch.bfloat16 if recipe.quantization != "none" else torch.float32,
        lora_rank=recipe.lora_rank,
        lora_dropout=recipe.lora_dropout,
        lora_target_modules=tuple(recipe.lora_target_modules),
        batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        bf16=recipe.bf16,
        gradient_checkpointing=recipe.gradient_checkpointing,
        fused_layers=recipe.fused_layers and not recipe.torch_compile,
        optim=recipe.optim,
    )


def _read_shapes(recipe: Recipe) -> dict[str, Any]:
    for part, shapes in KNOWN_SHAPES.items():
        if part in recipe.model_name and not Path(recipe.model_name).is_dir():
            return dict(shapes)
    try:
        read = read_backbone_config(recipe.model_name, recipe.model_revision)
    except OSError as error:
        raise RecipeError(
            f"model_name: the shapes of {recipe.model_name} cannot be read ({type(error).__name__}). Remedy: give a "
            "folder with its config.json, or connect to the Hub; the weights are not needed"
        ) from None
    return read.to_diff_dict() | {"model_type": read.model_type, "hidden_size": read.hidden_size}


def fit_batch(recipe: Recipe, state: PartialState) -> Recipe:
    """The recipe with its accumulation chosen if it is 0: as few equal micro-batches as fit the free memory.

    A step keeps its ``batch_size`` rows per process, and how they are cut does not change what it learns.

    Raises:
        RecipeError: not even single rows fit, or the plan does not know the recipe's optimizer.
    """
    if recipe.gradient_accumulation_steps:
        return recipe
    # The minimum over all processes: they must cut their steps the same way.
    free, rows = min(gather_object([free_memory(state)])), recipe.batch_size
    needed: dict[int, int] = {}
    for steps in (number for number in range(1, rows + 1) if rows % number == 0):
        cut = dataclasses.replace(recipe, batch_size=rows // steps, gradient_accumulation_steps=steps)
        try:
            plan = plan_memory(dataclasses.replace(read_setting(cut), device=state.device.type))
        except ValueError as error:
            raise RecipeError(f"{error}; or give gradient_accumulation_steps a number") from None
        needed[steps] = _peak(plan, cut, state) + RESERVE
        if needed[steps] <= free:
            tried = "; ".join(f"{rows // n} x {n} needs {size / GIB:.2f}" for n, size in needed.items())
            logger.info("a step of %d x %d rows: %.2f GiB free; %s", cut.batch_size, steps, free / GIB, tried)
            return cut
    raise RecipeError(
        f"batch_size: one row at a time needs {needed[rows] / GIB:.2f} GiB, {free / GIB:.2f} are free. Remedy: use "
        "gradient_checkpointing true, quantization nf4 or a smaller backbone, or gradient_accumulation_steps "
        f"{rows} and batch_size 1 to try anyway"
    )


def _peak(plan: MemoryPlan, recipe: Recipe, state: PartialState) -> int:
    """Bytes that a process needs, alone or as one of those that shard the training."""
    if not sharded_by():
        return plan.training_peak
    layers = (read_setting(recipe).config.backbone_config or {}).get("num_hidden_layers", 1)
    return max(sum(parts.values()) for parts in shard(plan, state.num_processes, layers).values())


def fit_epochs(recipe: Recipe, data: Prepared, state: PartialState) -> Recipe:
    """The recipe with as many epochs as its ``min_steps`` ask for; a run of few steps says so.

    Args:
        recipe: with its batch chosen.
        data: has the training rows.
        state: the processes.
    """
    size = recipe.batch_size * recipe.gradient_accumulation_steps * state.num_processes
    epochs = planned_epochs(
        recipe.epochs, recipe.min_steps, rows_of_a_fold(len(data.rows), recipe.split, recipe.folds), size
    )
    if epochs > recipe.epochs:
        logger.info("%d epochs instead of %d: min_steps is %d", epochs, recipe.epochs, recipe.min_steps)
    steps = epochs * math.ceil(len(data.rows) / size)
    if steps < FEW_STEPS and not recipe.start_from:
        logger.warning(
            "only %d steps: the model will have learned little. Remedy: for few rows use --recipe adapt, or --min_steps %d",
            steps,
            FEW_STEPS,
        )
    return dataclasses.replace(recipe, epochs=epochs)


def free_memory(state: PartialState) -> int:
    """Bytes that this process may use: its GPU's free memory, or its share of the machine's available memory."""
    if state.device.type == "cuda":
        return torch.cuda.mem_get_info(state.device)[0]
    return psutil.virtual_memory().available // state.num_processes
