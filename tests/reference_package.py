"""The published model's package at a tiny size, as its own training code of 2025 wrote it.

It has six keys in config.json, ``focal_config.json``, a pickled head, and the adapter that PEFT 0.15 wrote for the
whole vision-language model. The adapter names seven layers, and the vision tower has layers with the same names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Mistral3Model, PixtralVisionConfig

from tests.conftest import EMBED_DIM, tiny_config
from training.data.taxonomy import TAXONOMIES

LABELS = list(TAXONOMIES["goemotions-28"].labels)
TARGETS = ["k_proj", "gate_proj", "o_proj", "up_proj", "q_proj", "down_proj", "v_proj"]
RANK, ALPHA = 16, 32
KEYS = {"transformers 4.52 and later": "model.language_model.", "transformers 4.51": "language_model.model."}
"""The part of the adapter's keys between PEFT's own prefix and ``layers.0``."""


def vision_backbone(folder: Path) -> Path:
    """A random vision-language Mistral 3 on disk."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = PixtralVisionConfig(**sizes, head_dim=8, image_size=28)
    config = Mistral3Config(text_config=tiny_config(), vision_config=vision)
    Mistral3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write_reference_package(folder: Path, backbone: str, keys: str, base_name: str) -> Path:
    """Write the package.

    Args:
        folder: the target folder.
        backbone: Hub id of a vision-language Mistral 3 in the Hub's cache.
        keys: one of the values of :data:`KEYS`.
        base_name: the backbone's name in the adapter.
    """
    torch.manual_seed(1)
    whole = Mistral3ForConditionalGeneration.from_pretrained(backbone)
    hidden_size = whole.config.text_config.hidden_size
    _write_adapter(folder / "lora_adapter", whole, keys, base_name)
    config = {
        "model_name": backbone,
        "hidden_size": hidden_size,
        "embed_dim": EMBED_DIM,
        "num_labels": len(LABELS),
        "emotion_labels": LABELS,
        "threshold": 0.5,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    focal = {"alpha": {label: 0.75 if index % 2 else 0.25 for index, label in enumerate(LABELS)}, "gamma": 2.0}
    (folder / "focal_config.json").write_text(json.dumps(focal))
    projection = nn.Sequential(
        nn.Linear(EMBED_DIM, hidden_size // 2), nn.GELU(), nn.Linear(hidden_size // 2, hidden_size)
    )
    classifier = nn.Linear(hidden_size, len(LABELS))
    head = {"projection": projection.state_dict(), "classifier": classifier.state_dict()}
    torch.save(head, folder / "head_weights.pt")
    return folder


def _write_adapter(folder: Path, whole: nn.Module, keys: str, base_name: str) -> None:
    folder.mkdir(parents=True)
    peft = get_peft_model(whole, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))  # type: ignore[arg-type]
    weights = {
        key.replace("model.language_model.", keys, 1): torch.randn_like(tensor) * 0.2
        for key, tensor in get_peft_model_state_dict(peft).items()
    }
    assert any(key.startswith(f"base_model.model.{keys}layers.1.self_attn.q_proj.lora_A") for key in weights)
    assert sum("vision_tower" in key for key in weights) == 2 * len(TARGETS)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "alpha_pattern": {},
        "auto_mapping": {
            "base_model_class": type(whole).__name__,
            "parent_library": "transformers.models.mistral3.modeling_mistral3",
            "unsloth_fixed": True,
        },
        "base_model_name_or_path": base_name,
        "bias": "none",
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": ALPHA,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": TARGETS,
        "task_type": None,
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))


@torch.no_grad()
def reference_probabilities(folder: Path, embeddings: torch.Tensor) -> torch.Tensor:
    """Expected probabilities [N, L], from transformers' own model with the adapter's products added by hand."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    head = torch.load(folder / "head_weights.pt", weights_only=True)
    model = Mistral3Model.from_pretrained(config["model_name"]).language_model
    adapter = load_file(folder / "lora_adapter" / "adapter_model.safetensors")
    merged = 0
    for name, linear in model.named_modules():
        found = [key for key in adapter if f"language_model.{name}." in key or f"language_model.model.{name}." in key]
        if isinstance(linear, nn.Linear) and found:
            a, b = (adapter[key] for key in sorted(found))
            linear.weight += ALPHA / RANK * b @ a
            merged += 1
    assert merged == 2 * len(TARGETS)
    first, second = ((head["projection"][f"{index}.weight"], head["projection"][f"{index}.bias"]) for index in (0, 2))
    token = nn.functional.linear(nn.functional.gelu(nn.functional.linear(embeddings, *first)), *second)
    hidden = model(inputs_embeds=token[:, None], use_cache=False).last_hidden_state[:, 0]
    return torch.sigmoid(hidden @ head["classifier"]["weight"].T + head["classifier"]["bias"])
