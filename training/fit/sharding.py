"""Sharded training: each process holds a part of every weight, gradient and optimizer state (FSDP2, or DeepSpeed ZeRO-3).

Accelerate shards, as its configuration says (training/accelerate_configs). Here is what a run needs besides: what cannot be
sharded is refused, the trained weights come together again, and a checkpoint of sharded processes continues in a single
one, and the reverse.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from modeling.adapters import learning_rate_groups
from modeling.infer import publish, seal, staging
from modeling.recipe import CROSS_FIT, Recipe
from modeling.records import ADAPTER_WEIGHTS
from training.fit.trainer import FocalTrainer
from training.recipe import RecipeError
from training.run_folder import RunFolder, RunFolderError

logger = logging.getLogger(__name__)

LAYERS = ("MistralDecoderLayer", "OneTokenLayer")
"""Classes of the layers that are sharded each for itself."""
SHARDED_MODEL, SHARDED_OPTIMIZER, PLAIN_OPTIMIZER = "pytorch_model_fsdp.bin", "optimizer.bin", "optimizer.pt"
"""Files of a checkpoint, as accelerate and transformers name them."""
_FSDP_SETTINGS = {
    "FSDP_VERSION": ("2", "1"),
    "FSDP_STATE_DICT_TYPE": ("full_state_dict", "sharded_state_dict"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "false"),
}
"""What accelerate tells its processes → the value that works here, and the one that it has by itself."""


def sharded_by() -> str:
    """What accelerate was asked to shard with: ``FSDP``, ``DeepSpeed``, or empty."""
    wanted = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
    return next((name for name, key in wanted.items() if os.environ.get(key, "false").lower() == "true"), "")


def refuse_unshardable(recipe: Recipe, engine: str) -> None:
    """Refuse a recipe whose weights or states would stay whole on every process, or whose steps need a whole model.

    Args:
        recipe: the recipe.
        engine: what shards, see :func:`sharded_by`; nothing is refused if it is empty.

    Raises:
        RecipeError: the message names the setting.
    """
    if not engine:
        return
    reasons = {
        "head": (recipe.head == "mlp", "a baseline without a backbone has little to shard", "train it without it"),
        "bnb_4bit_quant_storage": (
            recipe.quantization == "nf4" and recipe.bnb_4bit_quant_storage == "uint8",
            "only floating-point weights are sharded, so every process would hold all 4-bit ones",
            "use bnb_4bit_quant_storage bfloat16",
        ),
        "quantization": (recipe.quantization == "8bit", "8-bit weights cannot be sharded", "use nf4 or none"),
        "loader": (recipe.loader == "unsloth", "Unsloth's layers cannot be sharded", "use loader transformers"),
        "optim": ("bnb" in recipe.optim, "the states of an 8-bit optimizer cannot be sharded", "use optim adamw_torch"),
        "torch_compile": (recipe.torch_compile, "compiled layers have not been sharded yet", "leave it out"),
        "split": (
            recipe.split == CROSS_FIT,
            "each fold is scored by a whole model, and its backbone would be loaded anew for each",
            "use split stratified, or train without it",
        ),
    }
    for name, (refused, why, remedy) in reasons.items():
        if refused:
            raise RecipeError(f"{name}: {getattr(recipe, name)} does not go with {engine}: {why}. Remedy: {remedy}")
    for key, (wanted, default) in (_FSDP_SETTINGS if sharded_by() == "FSDP" else {}).items():
        if (found := os.environ.get(key, default).lower()) != wanted:
            raise RecipeError(
                f"accelerate's configuration: {key.lower()} is {found}, and only {wanted} works here. Remedy: use "
                "training/accelerate_configs/fsdp2.yaml, or change it"
            )


def prepare_sharding(model: nn.Module) -> None:
    """Tell accelerate the classes of the model's layers, so that a configuration need not.

    Raises:
        RecipeError: the checkpoint was quantized before, into tensors that cannot be sharded.
    """
    packed = [weight for weight in model.parameters() if type(weight).__name__ == "Params4bit"]
    if any(not weight.is_floating_point() for weight in packed):
        raise RecipeError(
            f"model_name: the checkpoint's 4-bit weights are packed in {packed[0].dtype}, which {sharded_by()} cannot "
            "shard. Remedy: use a checkpoint in full precision"
        )
    there, asked = {type(module).__name__ for module in model.modules()}, cast(Any, model)
    asked._no_split_modules = [name for name in LAYERS if name in there]
    if "OneTokenLayer" in there:  # accelerate asks for the table of tokens, and a model without one refuses
        asked.get_input_embeddings = lambda: None


def refuse_other_engine(trainer: FocalTrainer) -> None:
    """Refuse a run that was to be sharded and is not: accelerate shards on GPUs alone, and says nothing elsewhere.

    Raises:
        RecipeError: the message names the remedy.
    """
    found = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed" if trainer.is_deepspeed_enabled else ""
    if found != sharded_by():
        raise RecipeError(
            f"accelerate was asked for {sharded_by() or 'no sharding'}, and does {found or 'none'}: it needs GPUs, and more "
            "than one process. Remedy: use a configuration for several GPUs, or accelerate launch --multi_gpu"
        )


def gather_weights(trainer: FocalTrainer) -> dict[str, torch.Tensor]:
    """The trained weights, whole, on the main process's CPU; empty on the others. Every process must ask for them.

    The names are those of the model that :func:`training.fit.build.build_model` builds.
    """
    if trainer.is_deepspeed_enabled:
        return cast(dict[str, torch.Tensor], trainer.accelerator.get_state_dict(trainer.model_wrapped))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return cast(dict[str, torch.Tensor], get_model_state_dict(cast(nn.Module, trainer.model), options=options))


def release(trainer: FocalTrainer) -> None:
    """Let go of a process's part of the model and of the optimizer, before the whole model is loaded."""
    trainer.accelerator.free_memory()
    for held in ("model", "model_wrapped", "optimizer", "lr_scheduler"):
        setattr(trainer, held, None)
    gc.collect()
    torch.cuda.empty_cache()


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A whole model with trained weights, in place."""
    trained = {_saved_name(name): weights[name] for name in _trained_names(model)}
    set_peft_model_state_dict(cast(PeftModel, model), trained)
    return model


def refuse_other_checkpoints(run: RunFolder) -> None:
    """Refuse checkpoints of DeepSpeed where another engine is to go on, and the reverse: only its own tools convert them.

    Raises:
        RunFolderError: the message names the checkpoint.
    """
    wanted = sharded_by() == "DeepSpeed"
    for checkpoint in sorted(run.checkpoints.glob("checkpoint-*")):
        if any(checkpoint.glob("global_step*")) != wanted:
            raise RunFolderError(
                f"{checkpoint} is {'not ' if wanted else ''}one of DeepSpeed. Remedy: continue with the configuration that "
                "the run began with, or use --overwrite to train again"
            )


def fit_checkpoints(run: RunFolder, trainer: FocalTrainer) -> None:
    """Convert a run's checkpoints, if they are from sharded processes and these are not, or the reverse.

    The main process does it, before training resumes. What a checkpoint has stays until it also has the other form; it
    may be stopped at any time.

    Args:
        run: the run.
        trainer: has the model before it is sharded.
    """
    if sharded_by() == "DeepSpeed":
        return
    sharded, model = bool(sharded_by()), cast(PeftModel, trainer.model)
    for checkpoint in sorted(run.checkpoints.glob("checkpoint-*")):
        if (checkpoint / (SHARDED_OPTIMIZER if sharded else PLAIN_OPTIMIZER)).exists():
            _drop_other_form(checkpoint, sharded)
            continue
        if sharded:
            _write(checkpoint / SHARDED_MODEL, _sharded_model(checkpoint, model))
            _write(checkpoint / SHARDED_OPTIMIZER, _sharded_optimizer(checkpoint, model))
        else:
            _write(checkpoint / PLAIN_OPTIMIZER, _plain_optimizer(checkpoint, model))
        _drop_other_form(checkpoint, sharded)
        logger.info("%s was converted for processes with %s", checkpoint.name, "shards" if sharded else "a whole model")


def _write(path: Path, content: Any) -> None:
    """A file that is there whole or not at all."""
    with staging(path.parent.parent, ".writing-") as folder:
        torch.save(content, folder / path.name)
        publish(folder / path.name, path)


def _drop_other_form(checkpoint: Path, sharded: bool) -> None:
    """Delete what only the other form reads; the seal lists what is left before it goes."""
    others = [checkpoint / PLAIN_OPTIMIZER] if sharded else [checkpoint / SHARDED_MODEL, checkpoint / SHARDED_OPTIMIZER]
    if not any(path.exists() for path in others):
        return
    seal(checkpoint, [path.name for path in others])
    for path in others:
        path.unlink(missing_ok=True)


def _sharded_model(checkpoint: Path, model: PeftModel) -> dict[str, torch.Tensor]:
    weights = load_file(checkpoint / Path(ADAPTER_WEIGHTS).name)
    return {name: weights[_saved_name(name)] for name in _trained_names(model)}


def _sharded_optimizer(checkpoint: Path, model: PeftModel) -> dict[str, Any]:
    plain = torch.load(checkpoint / PLAIN_OPTIMIZER, weights_only=True)
    names = [name for group in _grouped_names(model) for name in group]
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in plain["param_groups"]]
    return {"state": {names[index]: values for index, values in plain["state"].items()}, "param_groups": groups}


def _plain_optimizer(checkpoint: Path, model: PeftModel) -> dict[str, Any]:
    sharded = torch.load(checkpoint / SHARDED_OPTIMIZER, weights_only=True)
    settings = {name: group for group in sharded["param_groups"] for name in group["params"]}
    grouped = _grouped_names(model)
    places = {name: index for index, name in enumerate(name for group in grouped for name in group)}
    groups = [{**settings[group[0]], "params": [places[name] for name in group]} for group in grouped]
    return {"state": {places[name]: values for name, values in sharded["state"].items()}, "param_groups": groups}


def _grouped_names(model: PeftModel) -> list[list[str]]:
    """Names of the trained weights, in the order in which the optimizer has them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = learning_rate_groups(model, 0.0, 0.0, 0.0, 0.0)
    return [[names[id(parameter)] for parameter in cast(list[nn.Parameter], group["params"])] for group in groups]


def _trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _saved_name(name: str) -> str:
    """A trained weight's name in PEFT's files."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
