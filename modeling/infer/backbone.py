"""The frozen language model: loaded by name, or built from its configuration."""

import logging
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, MistralConfig, MistralModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from modeling.infer.bundled import BUNDLED_BACKBONE, convert_bundled_backbone
from modeling.infer.config import EmotionConfig
from modeling.infer.errors import PackageError, as_package_error
from modeling.infer.one_token import OneTokenMistral
from modeling.infer.package import CONFIG_FILE, MAX_LAYERS, oversized
from modeling.infer.quantization import LANGUAGE_MODEL, check_quantized, quantization_options, refuse_unsupported

logger = logging.getLogger(__name__)

_SHAPE = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
"""Settings that a package records of its backbone, and that another backbone may have otherwise."""


class _LowerMistral(MistralModel):
    """The first layers of a ``MistralModel``; later layers in the checkpoint are not read."""

    _keys_to_ignore_on_load_unexpected = [r".*"]  # noqa: RUF012  # a list, as the parent declares it


def attention_kernel(device: str) -> str:
    """Transformers' name for the attention kernel of this type of device."""
    # Sentences are short: on a CPU plain products are faster than blocked attention, especially in the backward pass.
    return "eager" if device == "cpu" else "sdpa"


def load_backbone(
    name: str,
    revision: str | None = None,
    quantization: str = "none",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    one_token: bool = False,
    num_hidden_layers: int | None = None,
    expected: Mapping[str, Any] = MappingProxyType({}),
    bnb_4bit_quant_storage: str = "uint8",
) -> PreTrainedModel:
    """Load the language model ``name`` without its output layer, in ``dtype`` or quantized.

    Only the language model of a vision-language checkpoint (Mistral Small 3.1) is read. Quantized weights are checked,
    and logged with their memory.

    Args:
        name: a Hub id, a folder or ``smollm2-135m``.
        revision: branch, tag or commit of a Hub id.
        quantization: ``none``, ``nf4`` (4-bit, double quantization, bfloat16 compute) or ``8bit``. Weights that
            an already quantized checkpoint has in full precision stay so.
        dtype: precision without quantization; with it, the other weights are bfloat16.
        device: where to load it.
        one_token: load an :class:`OneTokenMistral`.
        num_hidden_layers: number of layers to load, from the first; None loads all.
        expected: settings that the checkpoint's configuration must have; compared before any weights are downloaded.
        bnb_4bit_quant_storage: type of the tensors into which 4-bit weights are packed, if they are not yet.

    Raises:
        ImportError: quantization needs bitsandbytes.
        ValueError: the quantization is unknown, not supported on the device, or not the checkpoint's; the checkpoint
            lacks weights, is not the expected one or does not fit in memory; or, with ``one_token`` or fewer layers,
            its architecture is not Mistral's.
        RuntimeError: weights are not quantized as requested.
    """
    device = torch.device(device)
    refuse_unsupported(quantization, device)
    source = str(convert_bundled_backbone()) if name == BUNDLED_BACKBONE else name
    whole = _read_backbone_config(name, source, revision, expected)
    config = whole.get_text_config()
    kind: Any = OneTokenMistral if one_token else AutoModel
    if num_hidden_layers not in (None, config.num_hidden_layers):
        config.num_hidden_layers = num_hidden_layers
        kind = OneTokenMistral if one_token else _LowerMistral
    if kind is not AutoModel and config.model_type != "mistral":
        raise ValueError(
            f"{name} has architecture {config.model_type}, not mistral. Remedy: use one_token false, and all layers"
        )
    prepare_backbone(name, kind, config, {"nf4": 4, "8bit": 8}.get(quantization, 8 * dtype.itemsize), device)
    baked = getattr(whole, "quantization_config", None) or getattr(config, "quantization_config", None)
    options: dict[str, Any] = {"dtype": dtype, "revision": revision}
    if settings := quantization_options(name, baked, quantization):
        if baked:
            config.quantization_config = settings
        else:
            options["quantization_config"] = BitsAndBytesConfig(
                **settings, bnb_4bit_quant_storage=bnb_4bit_quant_storage
            )
        options |= {"dtype": torch.bfloat16, "device_map": {"": device}}
    model, loaded = kind.from_pretrained(
        source,
        config=config,
        trust_remote_code=False,
        key_mapping={LANGUAGE_MODEL: ""},
        output_loading_info=True,
        **options,
    )
    if loaded["missing_keys"]:
        raise ValueError(f"{name} lacks the weights {', '.join(sorted(loaded['missing_keys'])[:3])} …")
    if one_token:  # an already quantized checkpoint brings its own precision
        model.apply(lambda module: module.float() if isinstance(module, MistralRMSNorm) else module)
    if quantization == "none":
        return cast(PreTrainedModel, model.to(device))
    logger.info("backbone %s: %s", name, check_quantized(model, quantization))
    return cast(PreTrainedModel, model)


def _read_backbone_config(
    name: str, source: str, revision: str | None, expected: Mapping[str, Any]
) -> PreTrainedConfig:
    """The configuration of a checkpoint, refused before it can fill the memory, or if it is not the expected one."""
    for problem in oversized(PreTrainedConfig.get_config_dict(source, revision=revision)[0]):
        raise ValueError(f"{name} {problem}. Remedy: use another backbone")
    whole = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    for key, value in expected.items():
        if (found := getattr(whole.get_text_config(), key, None)) != value:
            raise ValueError(f"its {key} is {found!r:.80}, but the package was trained on one with {value!r:.80}")
    return whole


def prepare_backbone(name: str, kind: Any, config: PreTrainedConfig, bits: int, device: torch.device) -> None:
    """Choose the attention kernel, and refuse a backbone whose weights alone do not fit, before they are loaded.

    Args:
        name: what to call it.
        kind: its class.
        config: its configuration; the kernel is set in it.
        bits: size of one value.
        device: where it will compute.

    Raises:
        ValueError: the message has both sizes.
    """
    config._attn_implementation = attention_kernel(device.type)
    if config.num_hidden_layers > MAX_LAYERS:
        raise ValueError(
            f"{name} has {config.num_hidden_layers:,} layers, more than {MAX_LAYERS:,}. Remedy: use another backbone"
        )
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False) if kind is AutoModel else kind(config)
    needed = sum(parameter.numel() for parameter in model.parameters()) * bits // 8
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[1]
    elif hasattr(os, "sysconf"):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if needed > available:
        raise ValueError(
            f"the weights of {name} need {needed / 1e9:,.1f} GB, but {device.type} has {available / 1e9:,.1f} GB of "
            "memory. Remedy: use quantization nf4, fewer layers, or a larger machine"
        )


def fetch_backbone(config: EmotionConfig, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    """The frozen backbone that a package's configuration names.

    Raises:
        PackageError: it cannot be loaded, is too large, or is not the one that the package was trained on.
        CacheError: the bundled backbone cannot be cached.
    """
    recorded = config.backbone_config or {}
    expected = {key: recorded[key] for key in _SHAPE if recorded.get(key) is not None} | {
        "hidden_size": config.hidden_size
    }
    what = f"names the backbone {config.model_name}, which cannot be loaded"
    with as_package_error("config.json", what, "check model_name, base_model_revision and the network"):
        return load_backbone(
            config.model_name,
            config.base_model_revision,
            config.quantization,
            dtype,
            device,
            config.reads_one_token,
            config.num_hidden_layers,
            expected,
        )


def refuse_backbone(settings: Mapping[str, Any]) -> None:
    """Refuse a ``backbone_config`` that is not a Mistral's. (A run on Mistral 3 records its language model only.)

    Raises:
        PackageError: it is missing or of another architecture.
    """
    if settings.get("model_type") != "mistral":
        raise PackageError(CONFIG_FILE, "has no backbone_config of a Mistral", "train on a Mistral, then export again")


def backbone_on_meta(config: EmotionConfig) -> PreTrainedModel:
    """The backbone of a package without its weights, to compare names and shapes with.

    Raises:
        PackageError: its configuration has no backbone that can be built.
    """
    if config.head == "mlp":
        raise PackageError(CONFIG_FILE, "is for a baseline without a backbone", "train with head backbone, then export")
    settings = config.backbone_config or {}
    refuse_backbone(settings)
    with as_package_error(CONFIG_FILE, "has a backbone_config that cannot be built"), torch.device("meta"):
        backbone = build_backbone(config)
    if settings.get("hidden_size") != config.hidden_size:
        raise PackageError(CONFIG_FILE, "has a backbone_config with another hidden_size")
    return cast(PreTrainedModel, backbone)


def build_backbone(config: EmotionConfig) -> nn.Module:
    """The language model of a configuration's ``backbone_config``, with random weights."""
    if config.head == "mlp":
        return nn.Identity()
    if config.backbone_config is None:
        raise ValueError("the configuration has no backbone_config: give the backbone, or use from_pretrained")
    settings = dict(config.backbone_config)
    if config.reads_one_token:
        if settings["model_type"] != "mistral":
            raise ValueError(f"the backbone has architecture {settings['model_type']}, not mistral")
        return OneTokenMistral(MistralConfig(**settings))
    backbone = AutoModel.from_config(
        AutoConfig.for_model(settings.pop("model_type"), **settings), trust_remote_code=False
    )
    return getattr(backbone, "language_model", backbone)
