"""All weights of a package in one file, those of the backbone with the adapter in them: read as data."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling.infer.backbone import backbone_on_meta, prepare_backbone
from modeling.infer.config import EmotionConfig
from modeling.infer.errors import as_package_error
from modeling.infer.heads import build_heads
from modeling.infer.package import CONFIG_FILE
from modeling.infer.settings import ModelSettings
from modeling.infer.weights import HEAD_FILES, map_safetensors, most_bytes, refuse_different_heads, refuse_other_tensors

logger = logging.getLogger(__name__)

SEQUENCE_CLASSIFICATION = "sequence_classification"
"""Folder of a package in which servers find what ``MistralForSequenceClassification`` reads."""
MAX_MERGED_BYTES = 2**37
"""A 24B model has 96 GB in float32."""
_NAMES = (("backbone.", "model."), ("classifier.", "score."))
"""How our names of weights begin, and how they begin there."""


def merged_file(settings: ModelSettings) -> str:
    """The file with all weights of such a package, if it was exported with ``--merged``."""
    return f"{SEQUENCE_CLASSIFICATION}/model.safetensors" if settings.is_sequence_classifier else "model.safetensors"


def merged_key(key: str, settings: ModelSettings) -> str:
    """The name that one of the model's own weights has in that file."""
    for own, theirs in _NAMES if settings.is_sequence_classifier else ():
        if key.startswith(own):
            return theirs + key.removeprefix(own)
    return key


def read_merged(
    folder: Path, config: EmotionConfig, head: Mapping[str, torch.Tensor]
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """The backbone without weights, and the weights for it; they stay on the disk until they are used.

    Args:
        folder: the package.
        config: its configuration.
        head: the weights of its heads, see :func:`read_head`.

    Raises:
        PackageError: the file is missing or damaged, has other tensors than the model, or other heads than ``head``.
    """
    name, backbone = merged_file(config), backbone_on_meta(config)
    with torch.device("meta"):
        whole = nn.ModuleDict({"backbone": backbone, **build_heads(config)}).state_dict()
    shapes = {merged_key(key, config): tensor.shape for key, tensor in whole.items()}
    found = map_safetensors(folder, name, most_bytes(sum(map(math.prod, shapes.values()))))
    refuse_other_tensors(name, found, shapes)
    tensors = {key: found[merged_key(key, config)] for key in whole}
    refuse_different_heads([head, tensors], (HEAD_FILES[0], name))
    return backbone, {key.removeprefix("backbone."): tensors[key] for key in whole if key not in head}


def load_merged(
    folder: Path,
    config: EmotionConfig,
    dtype: torch.dtype,
    device: str | torch.device,
    head: Mapping[str, torch.Tensor],
) -> PreTrainedModel:
    """The backbone with the adapter merged, from the package itself: no PEFT, no download.

    Raises:
        PackageError: see :func:`read_merged`.
        ValueError: it does not fit in memory.
    """
    name, device = merged_file(config), torch.device(device)
    backbone, tensors = read_merged(folder, config, head)
    prepare_backbone(name, type(backbone), backbone.config, 8 * dtype.itemsize, device)
    logger.info("backbone from %s, which has the adapter in it", name)
    with as_package_error(CONFIG_FILE, "has a backbone_config that cannot be built"):
        loaded: Any = type(backbone).from_pretrained(None, config=backbone.config, state_dict=tensors, dtype=dtype)
    return cast(PreTrainedModel, loaded.to(device))
