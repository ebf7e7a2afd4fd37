"""Backbones for training: frozen, gradient-safe, or on the meta device without weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from modeling.infer import (
    BUNDLED_BACKBONE,
    EmotionConfig,
    EmotionModel,
    OneTokenMistral,
    convert_bundled_backbone,
    load_backbone,
)

MISTRAL_SMALL_3_1 = {
    "model_type": "mistral",
    "vocab_size": 131072,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000000.0},
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The language model of Mistral-Small-3.1-24B-Instruct-2503, for building it without a network."""

SMOLLM2_135M = {
    "model_type": "mistral",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 9.999999747378752e-06,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The bundled backbone, for planning it before it is converted."""


def read_backbone_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The language model's configuration of a Hub id, a folder or ``smollm2-135m``."""
    source = str(convert_bundled_backbone()) if name == BUNDLED_BACKBONE else name
    return AutoConfig.from_pretrained(source, revision=revision).get_text_config()


def load_frozen_backbone(
    name: str,
    revision: str | None,
    quantization: str,
    device: str | torch.device,
    one_token: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Load a backbone whose weights do not train."""
    return load_backbone(name, revision, quantization, dtype, device, one_token).requires_grad_(False)


@torch.no_grad()
def restore_float32(model: EmotionModel) -> None:
    """Give a backbone that was trained on in bfloat16 its float32 weights back, in place.

    Autocast computes with bfloat16 copies of frozen weights anyway, so that training may hold the copies alone. What
    is scored and published is float32, the same on every machine.
    """
    backbone = cast(OneTokenMistral, model.backbone)
    exact = load_backbone(model.config.model_name, model.config.base_model_revision, one_token=True)
    for name, parameter in exact.named_parameters():
        module = backbone.get_submodule(name.removesuffix(".weight"))
        weight = cast(nn.Parameter, getattr(module, "base_layer", module).weight)
        weight.data = parameter.data.to(weight.device)


def build_on_meta(config: EmotionConfig) -> EmotionModel:
    """The model of a configuration on the meta device: real shapes, no memory."""
    with torch.device("meta"):
        return EmotionModel(config)
