"""All weights of a package in one file, and what servers of sequence classifiers read beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer

from hub_release.package import LAYOUT, ReleaseError
from modeling.infer import (
    MAX_TOKENIZER_BYTES,
    EmotionConfig,
    EmotionModel,
    PackageError,
    PackageSettings,
    as_package_error,
    build_tokenizer,
    merged_file,
    merged_key,
    read_json,
    read_settings,
)

_TRANSFORMER, _POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
"""Names by which servers find sentence-transformers' parts; that library still reads them."""


def merged_model(package: Path, option: str) -> EmotionModel:
    """The model of an otherwise complete package, in float32 and with its adapter merged.

    Raises:
        ReleaseError: the backbone is quantized; the message names the ``option`` of export.
    """
    model = EmotionModel.from_pretrained(package)
    if model.config.quantization != "none":
        raise ReleaseError(
            f"the backbone is in {model.config.quantization}, which a model in float32 does not reproduce. Remedy: "
            f"export without {option}, or train with --quantization none"
        )
    if isinstance(model.backbone, PeftModel):  # not if the package has its merged file already
        model.backbone = model.backbone.merge_and_unload()
    return model


def write_merged(package: Path) -> None:
    """Write all weights of an otherwise complete package as one file, in float32, and what servers need with it.

    Raises:
        ReleaseError: the backbone is quantized.
    """
    model = merged_model(package, "--merged")
    config = cast(EmotionConfig, model.config)
    weights = {merged_key(key, config): value.contiguous() for key, value in model.state_dict().items()}
    target = package / merged_file(config)
    target.parent.mkdir(exist_ok=True)
    save_file(weights, target, {"format": "pt"})
    for name, text in served_files(package).items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")


def merged_files(settings: PackageSettings) -> tuple[str, ...]:
    """The files that such a package has of its merged model; none if its backbone is quantized."""
    if settings.quantization != "none":
        return ()
    if not settings.is_sequence_classifier:
        return (LAYOUT.merged,)
    pooling = () if settings.pooling == "last" else (LAYOUT.served_modules, LAYOUT.served_pooling)
    return (LAYOUT.served, LAYOUT.served_config, LAYOUT.served_tokenizer, LAYOUT.served_tokenizer_config, *pooling)


def served_files(package: Path) -> dict[str, str]:
    """What servers read beside the weights: the name and the text of each file; none for other kinds of models.

    Raises:
        PackageError: the configuration or the tokenizer is missing or damaged.
    """
    settings = read_settings(package)
    if not settings.is_sequence_classifier:
        return {}
    tokenizer = read_json(package, LAYOUT.tokenizer, MAX_TOKENIZER_BYTES)
    with as_package_error(LAYOUT.config, "cannot be written for servers"):
        contents = _contents(settings, tokenizer, build_tokenizer(tokenizer))
    return {
        name: json.dumps(contents[name], indent=2, ensure_ascii=False) + "\n"
        for name in merged_files(settings)
        if name in contents
    }


def _contents(settings: PackageSettings, tokenizer: dict[str, Any], built: Tokenizer) -> dict[str, Any]:
    """The JSON value of each file, whatever the pooling is."""
    backbone = settings.backbone_config or {}
    special = {token["id"]: token["content"] for token in tokenizer.get("added_tokens") or []}
    pad = next((key for key in (backbone.get("pad_token_id"), backbone.get("eos_token_id")) if key in special), None)
    begins = settings.prefix == "bos"
    return {
        LAYOUT.served_config: _config(settings, backbone, pad),
        LAYOUT.served_tokenizer: tokenizer | {"post_processor": _begin(built, backbone) if begins else None},
        LAYOUT.served_tokenizer_config: {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": settings.window_length + begins,
            "clean_up_tokenization_spaces": False,
            **({} if pad is None else {"pad_token": special[pad]}),
        },
        LAYOUT.served_modules: [
            {"idx": 0, "name": "0", "path": "", "type": _TRANSFORMER},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": _POOLING},
        ],
        LAYOUT.served_pooling: {
            "word_embedding_dimension": settings.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_lasttoken": False,
        },
    }


def _config(settings: PackageSettings, backbone: dict[str, Any], pad: int | None) -> dict[str, Any]:
    """The configuration of a ``MistralForSequenceClassification``."""
    labels = settings.emotion_labels
    rotary = backbone.get("rope_parameters") or {}
    # Ours sees all words of a window, so a sliding one means nothing to it.
    sees_all = {"is_causal": False, "sliding_window": None} if settings.attention == "bidirectional" else {}
    return {
        **backbone,
        "architectures": ["MistralForSequenceClassification"],
        "model_type": "mistral",
        "dtype": "float32",
        "problem_type": "multi_label_classification",
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        **({"rope_theta": rotary["rope_theta"]} if "rope_theta" in rotary else {}),  # as transformers 4 reads it
        **({} if pad is None else {"pad_token_id": pad}),
        **sees_all,
    }


def _begin(tokenizer: Tokenizer, backbone: dict[str, Any]) -> dict[str, Any]:
    """The part of a tokenizer that puts the beginning-of-sequence token first."""
    number = backbone.get("bos_token_id")
    token = tokenizer.id_to_token(number) if isinstance(number, int) else None
    if token is None:
        raise PackageError(LAYOUT.tokenizer, f"has no token {number}, with which a sequence begins")
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, two],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
