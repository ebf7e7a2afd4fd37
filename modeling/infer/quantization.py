"""4-bit and 8-bit weights: what is supported, how to request it, and proof that it was done."""

import platform
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling.infer.errors import import_optional

X86 = ("x86_64", "AMD64")
"""``platform.machine()`` of the only CPUs that bitsandbytes supports here and oneDNN was tested on."""

_QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "8bit": {"load_in_8bit": True},
}
LANGUAGE_MODEL = r"^(?:model\.)?(?:language_model\.)?(?:model\.)?(?=layers\.|norm\.|embed_tokens\.)"
"""Prefix of a layer's name in a checkpoint: empty, or that of a model with a head or with vision."""


def refuse_unsupported(quantization: str, device: torch.device) -> None:
    """Refuse a quantization that is unknown or that this machine cannot compute.

    Raises:
        ValueError: the message names the remedy.
        ImportError: bitsandbytes is missing.
    """
    if quantization != "none" and quantization not in _QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantization!r}. Remedy: use none, nf4 or 8bit")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"PyTorch sees no GPU for device {device}. Remedy: use device cpu, or install PyTorch built for your GPU"
        )
    if quantization == "none":
        return
    where = platform.machine() if device.type == "cpu" else device.type
    if where not in ("cuda", *X86):
        raise ValueError(
            f"quantization {quantization} is not supported on {where}. "
            "Remedy: use quantization none, an x86 CPU or a CUDA GPU"
        )
    import_optional("bitsandbytes", "bitsandbytes")


def quantization_options(name: str, baked: dict[str, Any] | None, quantization: str) -> dict[str, Any]:
    """Settings of bitsandbytes: ``baked`` from a quantized checkpoint, or those of ``quantization``."""
    if baked is None:
        return _QUANTIZATIONS.get(quantization, {})
    kind = str(baked.get("quant_method", "bitsandbytes"))
    if kind == "bitsandbytes":
        kind = "8bit" if baked.get("load_in_8bit") else str(baked.get("bnb_4bit_quant_type", "fp4"))
    if kind != quantization:
        remedy = f"use quantization {kind}, or a" if kind in _QUANTIZATIONS else "use a"
        raise ValueError(
            f"the weights of {name} are already quantized in {kind}, but quantization is {quantization}. "
            f"Remedy: {remedy} checkpoint in full precision"
        )
    # The list names modules of the whole checkpoint, but only the language model is loaded.
    skipped = [re.sub(LANGUAGE_MODEL, "", module) for module in baked.get("llm_int8_skip_modules") or ()]
    return {**baked, "llm_int8_skip_modules": skipped or None, "bnb_4bit_compute_dtype": torch.bfloat16}


def _nf4_constants(linear: Any, settings: Any) -> list[torch.Tensor] | None:
    """The constants of a 4-bit weight; None if it is not one, or does not match the settings."""
    state = getattr(linear.weight, "quant_state", None)
    if state is None or (state.quant_type, state.nested) != ("nf4", settings.bnb_4bit_use_double_quant):
        return None
    return list(state.as_dict(packed=True).values()) if linear.compute_dtype == torch.bfloat16 else None


def _8bit_constants(linear: Any) -> list[torch.Tensor] | None:
    scales = getattr(linear.weight, "SCB", None)
    return None if scales is None or linear.weight.dtype != torch.int8 else [scales]


def check_quantized(model: PreTrainedModel, quantization: str) -> str:
    """Describe what was quantized; 4-bit weights keep their layout from now on.

    On a CPU with AVX512-BF16, bitsandbytes would repack them at the first forward without gradients. After that every
    gradient is wrong, layer widths must be multiples of 32, and batches of 64 or more take 2 to 6 times as long.

    Raises:
        RuntimeError: a linear layer is not quantized as it should be.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module  # private: for quantized models alone

    settings: Any = model.config.quantization_config
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    linear: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = 0
    for name, module in linear.items():
        constants = _nf4_constants(module, settings) if quantization == "nf4" else _8bit_constants(module)
        if constants is None and should_convert_module(name, settings.llm_int8_skip_modules):
            raise RuntimeError(
                f"{name} is not in {quantization}. Remedy: use another version of bitsandbytes or checkpoint"
            )
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        quantized += constants is not None
        sizes[f"{name}.constants"] = sum(tensor.nbytes for tensor in constants or ())
    if not quantized:
        raise RuntimeError(f"no linear layer is in {quantization}. Remedy: use another checkpoint")
    doubly = " (double quantization)" if quantization == "nf4" and settings.bnb_4bit_use_double_quant else ""
    return f"{quantized} of {len(linear)} linear layers in {quantization}{doubly}, {sum(sizes.values()) / 1e6:,.2f} MB"
