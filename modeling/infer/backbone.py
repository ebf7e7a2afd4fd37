"""The frozen language model: loaded by name, or built from its configuration."""

import logging
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, MistralConfig, MistralModel, PreTrainedModel
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from modeling.infer.bundled import BUNDLED_BACKBONE, convert_bundled_backbone
from modeling.infer.config import EmotionConfig
from modeling.infer.errors import CacheError, PackageError
from modeling.infer.one_token import OneTokenMistral
from modeling.infer.quantization import LANGUAGE_MODEL, check_quantized, quantization_options, refuse_unsupported

logger = logging.getLogger(__name__)


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

    Raises:
        ImportError: quantization needs bitsandbytes.
        ValueError: the quantization is unknown, not supported on the device, or not the checkpoint's; the checkpoint
            lacks weights; or, with ``one_token`` or fewer layers, its architecture is not Mistral's.
        RuntimeError: weights are not quantized as requested.
    """
    device = torch.device(device)
    refuse_unsupported(quantization, device)
    source = str(convert_bundled_backbone()) if name == BUNDLED_BACKBONE else name
    whole = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    config = whole.get_text_config()
    kind: Any = OneTokenMistral if one_token else AutoModel
    if num_hidden_layers not in (None, config.num_hidden_layers):
        config.num_hidden_layers = num_hidden_layers
        kind = OneTokenMistral if one_token else _LowerMistral
    if kind is not AutoModel and config.model_type != "mistral":
        raise ValueError(
            f"{name} has architecture {config.model_type}, not mistral. Remedy: use one_token false, and all layers"
        )
    baked = getattr(whole, "quantization_config", None) or getattr(config, "quantization_config", None)
    config._attn_implementation = attention_kernel(device.type)
    options: dict[str, Any] = {"dtype": dtype}
    if settings := quantization_options(name, baked, quantization):
        if baked:
            config.quantization_config = settings
        else:
            options["quantization_config"] = BitsAndBytesConfig(**settings)
        options |= {"dtype": torch.bfloat16, "device_map": {"": device}}
    model, loaded = kind.from_pretrained(
        source,
        config=config,
        revision=revision,
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


def fetch_backbone(config: EmotionConfig, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    """The frozen backbone that a package's configuration names.

    Raises:
        PackageError: it cannot be loaded, or has a different width.
        CacheError: the bundled backbone cannot be cached.
    """
    try:
        backbone = load_backbone(
            config.model_name,
            config.base_model_revision,
            config.quantization,
            dtype,
            device,
            config.reads_one_token,
            config.num_hidden_layers,
        )
    except CacheError:
        raise
    except (OSError, ValueError) as error:
        raise PackageError(
            "config.json",
            f"names the backbone {config.model_name}, which cannot be loaded: {error}",
            "check model_name, base_model_revision and the network",
        ) from error
    if backbone.config.hidden_size != config.hidden_size:
        raise PackageError(
            "config.json", f"has hidden_size {config.hidden_size}, but its backbone has {backbone.config.hidden_size}"
        )
    return backbone


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
