"""The LoRA adapter of a package, read as data."""

import logging
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling.infer.config import EmotionConfig
from modeling.infer.errors import PackageError, as_package_error, import_optional
from modeling.infer.files import read_bytes, read_json
from modeling.infer.one_token import OneTokenMistral
from modeling.infer.quiet import silence_libraries
from modeling.infer.weights import load_safetensors, most_bytes, refuse_other_tensors

logger = logging.getLogger(__name__)

ADAPTER_FILES = ("lora_adapter/adapter_model.safetensors", "lora_adapter/adapter_config.json")
MAX_ADAPTER_BYTES = 3 * 2**29
"""A 24B model with rank 64 has 1.5 GB in float32."""
_MAX_RANK = 2**12
_MAX_ALPHA = 2**16
_PLAIN_PATTERN = r"(?:[A-Za-z0-9_|()]|\\\.|\\[dw]\+?)+"
"""Regular expressions that always end soon: no repeated group, and (see below) few repetitions."""
_ADAPTER_FIELDS = {
    *("peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "lora_dropout", "target_modules"),
}


def _import_peft() -> Any:
    """PEFT, imported late: it takes seconds, and neither a merged package nor a baseline without a backbone needs it."""
    silence_libraries()
    return import_optional("peft", "peft")


def load_adapter(folder: Path, config: EmotionConfig, backbone: nn.Module) -> nn.Module:
    """The backbone with the package's LoRA layers, changed in place.

    Raises:
        PackageError: see :func:`read_adapter`.
    """
    model, tensors = read_adapter(folder, config, backbone)
    _import_peft().set_peft_model_state_dict(model, tensors)
    return model


def read_adapter(folder: Path, config: EmotionConfig, backbone: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The backbone with untrained LoRA layers, changed in place, and the weights for them.

    The keys of a vision-language checkpoint's adapter are mapped to its language model. Tensors for the vision tower
    are left out.

    Raises:
        PackageError: it is damaged, or its tensors do not match its configuration and this backbone.
    """
    peft, name = _import_peft(), ADAPTER_FILES[0]
    settings = _read_adapter_config(folder, config)
    # Twice what all linear layers need: an adapter may also have tensors for queries, keys and a vision tower.
    widths = sum(part.in_features + part.out_features for part in backbone.modules() if isinstance(part, nn.Linear))
    content = read_bytes(folder, name, min(most_bytes(2 * settings.r * widths), MAX_ADAPTER_BYTES))
    with as_package_error(name, "is damaged"):
        tensors = load_safetensors(content)
    # Check before layers of that rank are made: only the configuration says how large they would be.
    if {tuple(value.shape)[:1] for key, value in tensors.items() if ".lora_A." in key} != {(settings.r,)}:
        raise PackageError(name, f"has no tensors, or their rank is not r {settings.r} as in {ADAPTER_FILES[1]}")
    with as_package_error(ADAPTER_FILES[1], f"does not fit the backbone {config.model_name}"):
        on_meta = next(backbone.parameters()).is_meta  # then the layers must not take memory either
        model = peft.get_peft_model(cast(PreTrainedModel, backbone), settings, low_cpu_mem_usage=on_meta)
        expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    vision = r"base_model\.model\.(?:model\.)?(?:vision_tower|multi_modal_projector)\."
    found = {
        re.sub(r"^(base_model\.model\.)(?:model\.)?language_model\.(?:model\.)?", r"\1", key): value
        for key, value in tensors.items()
        if not re.match(vision, key)
    }
    if unused := len(tensors) - len(found):
        logger.warning("%s: left out %d tensors of the vision tower, which texts do not use", name, unused)
    if isinstance(backbone, OneTokenMistral):  # q and k get no gradient, so they change nothing
        found = {key: value for key, value in found.items() if not re.search(r"\.[qk]_proj\.", key)}
    refuse_other_tensors(name, found, {key: value.shape for key, value in expected.items()})
    return cast(nn.Module, model), found


def _read_adapter_config(folder: Path, config: EmotionConfig) -> Any:
    """LoRA's rank, scale and targets; other settings must be PEFT's defaults, since some import or run code."""
    peft, name = _import_peft(), ADAPTER_FILES[1]
    settings = read_json(folder, name)
    defaults = peft.LoraConfig().to_dict()
    for key in sorted(settings.keys() - _ADAPTER_FIELDS):
        value = settings[key]
        if key == "auto_mapping" and isinstance(value, dict):  # PEFT's note about the trained model
            value = not str(value.get("parent_library")).startswith("transformers.")
        if value and value != defaults.get(key):
            raise PackageError(name, f"sets {key}, which a package must not set")
    if settings.get("peft_type") != "LORA":
        raise PackageError(name, f"has peft_type {settings.get('peft_type')!r}, not LORA")
    own, named = (
        re.sub(r"(-unsloth)?-bnb-4bit$", "", str(model).lower())  # Unsloth trains on a 4-bit copy under another name
        for model in (config.model_name, settings.get("base_model_name_or_path") or config.model_name)
    )
    if own != named:
        raise PackageError(
            name,
            f"names a different backbone than config.json: {settings['base_model_name_or_path']}",
            "name the same backbone in both",
        )
    if settings.get("revision") not in (None, config.base_model_revision):
        raise PackageError(name, "names another revision of the backbone than config.json", "name the same one in both")
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise PackageError(name, f"has rank r {rank!r}, not between 1 and {_MAX_RANK}")
    if type(alpha) not in (int, float) or not abs(cast(float, alpha)) <= _MAX_ALPHA:
        raise PackageError(name, f"has lora_alpha {alpha!r:.80}, not between {-_MAX_ALPHA:,} and {_MAX_ALPHA:,}")
    names = [targets] if isinstance(targets, str) else targets
    if (
        not isinstance(names, list)
        or not names
        or not all(
            isinstance(x, str) and len(x) < 500 and re.fullmatch(_PLAIN_PATTERN, x) and x.count("+") <= 3 for x in names
        )
    ):
        raise PackageError(name, f"has target_modules {targets!r:.80}, neither names nor a plain pattern")
    return peft.LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        target_modules=targets,
        inference_mode=True,
    )
