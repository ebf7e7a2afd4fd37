"""Backbones for training: frozen, gradient-safe, or on the meta device without weights."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Sequence
from typing import cast

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig

from modeling.infer import (
    BUNDLED_BACKBONE,
    EmotionConfig,
    EmotionModel,
    build_tokenizer,
    bundled_tokenizer,
    check_quantized,
    convert_bundled_backbone,
    load_backbone,
)

logger = logging.getLogger(__name__)

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
"""The language model of Mistral-Small-3.1-24B-Instruct-2503, to build it without a network."""

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
"""The bundled backbone, to plan it before it is converted."""


def read_backbone_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The language model's configuration, from a Hub id, a folder or ``smollm2-135m``."""
    source = str(convert_bundled_backbone()) if name == BUNDLED_BACKBONE else name
    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False).get_text_config()


def read_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a backbone, as a package will build it.

    Raises:
        PackageError: a package could not have it, see :func:`modeling.infer.build_tokenizer`.
    """
    if name == BUNDLED_BACKBONE:
        return bundled_tokenizer()
    # Mistral Small 3.1 was published with a pattern that splits numbers and words differently than in training.
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, fix_mistral_regex=True)
    return build_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()))


def load_frozen_backbone(
    name: str,
    revision: str | None,
    quantization: str,
    device: str | torch.device,
    one_token: bool = False,
    dtype: torch.dtype = torch.float32,
    num_hidden_layers: int | None = None,
    bnb_4bit_quant_storage: str = "uint8",
) -> nn.Module:
    """Load a frozen backbone; see :func:`holds_matrices_alone` for what is bfloat16.

    Raises:
        RuntimeError: Unsloth was imported in this process. See also :func:`modeling.infer.load_backbone`.
    """
    if "unsloth" in sys.modules:
        raise RuntimeError("Unsloth has patched transformers in this process. Remedy: use a process for each loader")
    held = holds_matrices_alone(dtype, quantization, one_token)
    loaded = torch.float32 if held else dtype
    backbone = load_backbone(
        name,
        revision,
        quantization,
        loaded,
        device,
        one_token,
        num_hidden_layers,
        bnb_4bit_quant_storage=bnb_4bit_quant_storage,
    )
    if held:
        hold_bfloat16(backbone)
    return backbone.requires_grad_(False)


def load_unsloth_backbone(
    name: str, revision: str | None, rank: int, alpha: int, dropout: float, target_modules: Sequence[str]
) -> nn.Module:
    """Load a language model in NF4 through Unsloth, with its LoRA layers and gradient checkpointing, by R2's calls.

    Unsloth patches transformers for the whole process: do not load another backbone in it.

    Args:
        name: a Hub id or a folder, with a tokenizer, which Unsloth requires.
        revision: branch, tag or commit of a Hub id.
        rank: rank of LoRA's update.
        alpha: the update is scaled by alpha / rank.
        dropout: dropout on the update's input.
        target_modules: names of the linear layers.

    Raises:
        ImportError: Unsloth is not installed.
        ValueError: ``name`` is the bundled backbone, which Unsloth cannot read.
        RuntimeError: the weights are not NF4.
    """
    if name == BUNDLED_BACKBONE:
        raise ValueError(f"loader unsloth cannot read {name}, which has no tokenizer. Remedy: use loader transformers")
    if importlib.util.find_spec("unsloth") is None:
        raise ImportError(
            "Unsloth is not installed; it needs older versions of transformers and datasets, in its own environment. "
            "Remedy: run tests/unsloth_environment.sh FOLDER to make one for a CPU, or use loader transformers"
        )
    fast = importlib.import_module("unsloth").FastLanguageModel
    model, _ = fast.from_pretrained(name, revision=revision, max_seq_length=2, load_in_4bit=True, dtype=None)
    inner = getattr(model.model, "language_model", model.model)
    logger.info("backbone %s, by Unsloth: %s", name, check_quantized(inner, "nf4"))
    fast.get_peft_model(
        model,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=list(target_modules),
        use_gradient_checkpointing="unsloth",
        random_state=3407,
        use_rslora=False,
    )
    return inner.requires_grad_(False)  # attaching LoRA to the whole model reuses the layers made here


def holds_matrices_alone(dtype: torch.dtype, quantization: str, one_token: bool) -> bool:
    """Does training hold only the matrices in bfloat16? It loads one-token and quantized backbones wholly in it."""
    return dtype == torch.bfloat16 and quantization == "none" and not one_token


def hold_bfloat16(backbone: nn.Module) -> None:
    """Hold the matrices of a float32 backbone in bfloat16, in place; norms and embeddings do not change.

    Under autocast every product uses bfloat16 copies of its matrices. This way they are not made again each time.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)


def compile_layers(backbone: nn.Module) -> None:
    """Compile each layer of a backbone, in place, for batches of any size; weight names do not change.

    The layers are alike, so one compilation serves them all. The whole model would be unrolled into one graph.

    Raises:
        OSError: there is no C++ compiler.
    """
    from torch._inductor import cpp_builder, exc  # imports a quarter of torch, only for this

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise OSError("torch.compile finds no C++ compiler. Remedy: install g++, or set CXX=/path/to/one") from error
    for layer in cast(nn.ModuleList, backbone.layers):
        layer.compile(dynamic=True)


@torch.no_grad()
def restore_float32(model: EmotionModel) -> None:
    """Restore the float32 weights of a backbone that training held in bfloat16, in place.

    Autocast uses bfloat16 copies of frozen weights anyway, so training may hold only the copies. Scoring and
    publishing use float32, the same on every machine.
    """
    config = model.config
    exact = load_backbone(
        config.model_name,
        config.base_model_revision,
        one_token=config.reads_one_token,
        num_hidden_layers=config.num_hidden_layers,
    )
    for name, parameter in exact.named_parameters():
        module = model.backbone.get_submodule(name.removesuffix(".weight"))
        weight = cast(nn.Parameter, getattr(module, "base_layer", module).weight)
        weight.data = parameter.data.to(weight.device)


def build_on_meta(config: EmotionConfig) -> EmotionModel:
    """The model of a configuration on the meta device: real shapes, no memory."""
    with torch.device("meta"):
        return EmotionModel(config)
