"""A backbone of any size with random NF4 weights, made on the device matrix by matrix."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from torch import nn
from transformers import BitsAndBytesConfig

from modeling.infer import EmotionConfig, attention_kernel, check_quantized
from modeling.infer.backbone import build_backbone
from modeling.infer.quantization import quantization_options


def random_nf4_backbone(config: EmotionConfig, device: torch.device) -> tuple[Any, str]:
    """A frozen backbone as :func:`modeling.infer.load_backbone` loads it, and what was quantized.

    At no time is more than one of its matrices on the device in full precision.

    Args:
        config: with the shapes in its ``backbone_config``.
        device: where the weights are made.
    """
    with torch.device("meta"):
        backbone: Any = build_backbone(config)
    settings = quantization_options("random weights", None, "nf4")
    backbone.config._attn_implementation = attention_kernel(device.type)
    backbone.config.quantization_config = BitsAndBytesConfig(**settings)
    backbone.is_loaded_in_4bit = True
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _random_linear(child, settings, device))
    for module in list(backbone.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, _random_parameter(parameter, config.reads_one_token, device))
    if hasattr(backbone, "rotary_emb"):  # its tables are buffers, computed from the configuration
        backbone.rotary_emb = type(backbone.rotary_emb)(backbone.config).to(device)
    return backbone.requires_grad_(False), check_quantized(backbone, "nf4")


def _random_linear(like: nn.Linear, settings: dict[str, Any], device: torch.device) -> nn.Module:
    linear: Any = bitsandbytes.nn.Linear4bit(
        like.in_features,
        like.out_features,
        bias=False,
        compute_dtype=settings["bnb_4bit_compute_dtype"],
        compress_statistics=settings["bnb_4bit_use_double_quant"],
        quant_type=settings["bnb_4bit_quant_type"],
        device="meta",
    )
    weight = torch.randn(like.out_features, like.in_features, dtype=torch.bfloat16, device=device)
    linear.weight = bitsandbytes.nn.Params4bit(
        weight.mul_(like.in_features**-0.5),
        requires_grad=False,
        compress_statistics=settings["bnb_4bit_use_double_quant"],
        quant_type=settings["bnb_4bit_quant_type"],
        module=linear,
    ).to(device)
    return linear


def _random_parameter(like: nn.Parameter, one_token: bool, device: torch.device) -> nn.Parameter:
    """A norm of ones, or a table of embeddings."""
    if like.ndim == 1:
        return nn.Parameter(torch.ones(like.shape, dtype=torch.float32 if one_token else torch.bfloat16, device=device))
    return nn.Parameter(torch.randn(like.shape, dtype=torch.bfloat16, device=device).mul_(0.02))
