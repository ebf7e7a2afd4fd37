"""``plan``: the memory that a recipe needs, what each saving is worth, which GPU is enough; minutes on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import PartialState

from modeling.memory.plan import (
    GIB,
    GPUS,
    INFERENCE_ROWS,
    OPTIMIZERS_8BIT,
    RESERVE,
    MemoryPlan,
    Setting,
    evaluation_rows,
    plan_memory,
    smallest_gpu,
)
from modeling.memory.shards import FETCHED, shard
from modeling.recipe import Recipe
from modeling.rows.errors import InputError
from training.fit.batch import free_memory, read_setting
from training.fit.sharding import refuse_unshardable
from training.fit.trial import STEPS, is_at_hand, time_steps
from training.options import override
from training.recipe import RecipeError

MIB = 2**20

REFERENCE = {
    "quantization": "nf4",
    "one_token": False,
    "gradient_checkpointing": True,
    "optim": "adamw_bnb_8bit",
    "batch_size": 8,
    "gradient_accumulation_steps": 4,
    "bf16": True,
}
"""How the reference trains; it loads ``lm_head`` too."""

_PARTS = {
    "frozen matrices": "frozen matrices",
    "quantized matrices": "frozen matrices, quantized",
    "constants of the quantized matrices": "their constants",
    "embed_tokens": "embed_tokens",
    "lm_head": "lm_head",
    "norms and buffers": "norms and buffers",
    "adapters": "adapters (LoRA)",
    "head": "projection and classifier",
    "head, the frozen copy that PEFT keeps": "their frozen copy that PEFT keeps",
    "gradients": "gradients",
    "optimizer states": "optimizer states",
    "activations": "activations kept for the backward pass",
    "workspace": "workspace: the largest temporaries",
    FETCHED: FETCHED,
}
"""Parts in the order of the table, which is for a GPU, and their names there."""


_SHARDS = (
    "/{0}: one of {0} GPUs that shard the training by FSDP2, as computed from the other columns, not measured. Before\n"
    "training each GPU loads the whole backbone, and after it the main one scores the whole model (column scoring)."
)


def savings(recipe: Recipe) -> dict[str, Setting]:
    """The recipe's setting, the same with one switch changed at a time, and the reference's; by their flags."""
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    at_once = {"batch_size": rows, "gradient_accumulation_steps": 1}
    if recipe.gradient_accumulation_steps == 1:
        at_once = {"batch_size": max(rows // 4, 1), "gradient_accumulation_steps": 4}
    changes: list[dict[str, Any]] = [at_once]
    changes.append({"optim": "adamw_torch" if recipe.optim in OPTIMIZERS_8BIT else "adamw_bnb_8bit"})
    if recipe.head == "backbone":
        changes.append({"gradient_checkpointing": not recipe.gradient_checkpointing})
        if recipe.input == "embedding":
            changes.append({"one_token": not recipe.one_token})
        else:
            half = max(recipe.window_length // 2, 1)
            changes.append({"window_length": half, "window_overlap": min(recipe.window_overlap // 2, half - 1)})
        changes.append({"quantization": "none" if recipe.quantization != "none" else "nf4"})
    found = {"the recipe as it stands": read_setting(recipe)}
    for change in changes:
        flags = " ".join(f"--{name} {str(value).lower()}" for name, value in change.items())
        found[flags] = read_setting(override(recipe, change))
    if recipe.head == "backbone" and recipe.input == "embedding":
        reference = read_setting(override(recipe, REFERENCE))
        found["the reference's way: all of it off, and lm_head loaded"] = dataclasses.replace(
            reference, output_layer=True
        )
    return found


def describe_plan(recipe: Recipe, ranks: int = 1) -> str:
    """The plan as text: its parts, and what each saving is worth.

    Args:
        recipe: the recipe.
        ranks: processes that shard the training by FSDP2; 1 for none.

    Raises:
        RecipeError: the shapes of the backbone cannot be read, the plan does not know the optimizer, or the recipe cannot
            be sharded.
    """
    if ranks < 1:
        raise RecipeError(f"--ranks is {ranks}. Remedy: use 1 (no sharding) or more")
    if ranks > 1:
        refuse_unshardable(recipe, "FSDP")
    # What :func:`fit_batch` tries first.
    recipe = dataclasses.replace(recipe, gradient_accumulation_steps=recipe.gradient_accumulation_steps or 1)
    try:
        plans = {name: plan_memory(setting) for name, setting in savings(recipe).items()}
    except ValueError as error:
        raise RecipeError(str(error)) from None
    plan = next(iter(plans.values()))
    here = _this_machine(recipe, read_setting(recipe))
    return "\n".join([*_parts_table(recipe, plan, ranks), "", *_savings_table(plans), *_references(recipe), "", *here])


def _this_machine(recipe: Recipe, setting: Setting) -> list[str]:
    """The memory that the recipe needs where the command runs, and the minutes, from a few real steps."""
    state = PartialState(cpu=not torch.cuda.is_available())
    plan, free = plan_memory(dataclasses.replace(setting, device=state.device.type)), free_memory(state)
    lines = [
        f"On this machine ({state.device.type}, {torch.get_num_threads()} CPU threads, {_gib(free - RESERVE)} GiB free): "
        f"training needs {_gib(plan.training_peak)} GiB, classifying {_gib(plan.inference_peak)} GiB, without the encoder."
    ]
    if not is_at_hand(recipe):
        return [*lines, f"Minutes: not estimated, because {recipe.model_name} is not on this machine."]
    try:
        trial = time_steps(recipe, state)
    except InputError as error:
        return [*lines, f"Minutes: not estimated: {error}"]
    return [
        *lines,
        f"A step takes {trial.seconds:.2f} s (median of {STEPS}). {trial.epochs} epochs of {trial.rows:,} rows, {trial.steps:,} "
        f"steps each{f', for {trial.models} models, {trial.models - 1} of them without a part of the rows' if trial.models > 1 else ', with their evaluations'}: about {trial.minutes:,.1f} min, and the time to encode the texts.",
    ]


def _parts_table(recipe: Recipe, plan: MemoryPlan, ranks: int) -> list[str]:
    columns, heads = [*plan.training.values(), plan.inference], ["a step", "optimizer", "scoring", "inference"]
    if ranks > 1:
        layers = (read_setting(recipe).config.backbone_config or {}).get("num_hidden_layers", 1)
        columns += shard(plan, ranks, layers).values()
        heads += [f"{head}/{ranks}" for head in ("a step", "optim.")]
    backbone = (
        f"{recipe.model_name}, quantization {recipe.quantization}" if recipe.head == "backbone" else "no backbone"
    )
    rows = f"{recipe.batch_size} rows x {recipe.gradient_accumulation_steps}"
    scored = evaluation_rows(recipe.input != "embedding")
    lines = [
        f"Memory of {backbone}, in MiB on one GPU.",
        f"Training: a step of {rows}, then the optimizer's, then scoring {scored} rows at once. Inference: a package,",
        f"{INFERENCE_ROWS} rows at once. {_what_is_read(recipe)}",
        *([_SHARDS.format(ranks)] if ranks > 1 else []),
        "",
        f"{'':<40}{'parameters':>15}" + "".join(f"{head:>11}" for head in heads),
    ]
    for part, text in _PARTS.items():
        if any(parts.get(part) for parts in columns):
            lines.append(_line(text, plan.parameters.get(part), [parts.get(part) for parts in columns]))
    peaks = [sum(parts.values()) for parts in columns]
    lines.append(_line("sum", sum(plan.parameters.values()), peaks))
    lines.append(_line("reserve: CUDA context, kernels, gaps", None, [RESERVE] * len(peaks)))
    lines.append(_line("needed", None, [peak + RESERVE for peak in peaks]))
    lines.append(f"{'smallest common GPU':<55}" + "".join(f"{_gpu(peak):>11}" for peak in peaks))
    if plan.layer_activations:
        size = plan.layer_activations / MIB
        lines += [
            "",
            f"One layer keeps {size:,.1f} MiB for the backward pass of a micro-batch of {recipe.batch_size} rows.",
        ]
    return lines


def _what_is_read(recipe: Recipe) -> str:
    words = f"Every text is assumed to be window_length {recipe.window_length} tokens long."
    encoder = "The sentence encoder stays on the CPU."
    return {"embedding": encoder, "tokens": words}.get(recipe.input, f"{words} {encoder}")


def _savings_table(plans: Mapping[str, MemoryPlan]) -> list[str]:
    lines = [f"{'needed, in GiB':<62}{'training':>9}{'GPU':>10}{'inference':>10}{'GPU':>8}"]
    for name, plan in plans.items():
        cells = [cell for peak in (plan.training_peak, plan.inference_peak) for cell in (_gib(peak), _gpu(peak))]
        lines.append(f"{name:<62}{cells[0]:>9}{cells[1]:>10}{cells[2]:>10}{cells[3]:>8}")
    sizes = ", ".join(f"{name} GB: {capacity}" for name, capacity in GPUS.items())
    return [*lines, "", f"GiB that PyTorch finds on common GPUs: {sizes}."]


def _references(recipe: Recipe) -> list[str]:
    if "Mistral-Small-3.1-24B" not in recipe.model_name:
        return []
    return ["The references ask for 48 GB (the published model, on one RTX 6000 Ada) and 24 GB (the tutorial)."]


def _line(text: str, parameters: int | None, sizes: Iterable[int | None]) -> str:
    cells = ("" if size is None else f"{size / MIB:,.{0 if size >= 10 * MIB or not size else 1}f}" for size in sizes)
    return f"{text:<40}{f'{parameters:,}' if parameters else '':>15}" + "".join(f"{cell:>11}" for cell in cells)


def _gib(peak: int) -> str:
    return f"{(peak + RESERVE) / GIB:.2f}"


def _gpu(peak: int) -> str:
    name = smallest_gpu(peak)
    return f"{name} GB" if name else f"> {max(GPUS)} GB"
