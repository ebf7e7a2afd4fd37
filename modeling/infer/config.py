"""Configuration of an emotion model, and how to read a package's."""

import itertools
import numbers
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import strict, type_validator
from transformers.configuration_utils import PreTrainedConfig

from modeling.infer.errors import PackageError, as_package_error
from modeling.infer.files import HUB_OPTIONS, local_folder, read_json
from modeling.infer.settings import ModelSettings, Number, setting

SCHEMA_VERSION = 1
AUTO_MAP = {"AutoConfig": "infer.EmotionConfig", "AutoModelForSequenceClassification": "infer.EmotionModel"}
CUSTOM_PIPELINES = {
    "text-classification": {"impl": "infer.EmotionPipeline", "pt": ["AutoModelForSequenceClassification"]}
}
VERSION_KEY = "goemotions_mistral_version"
"""Key in a package's configuration for the version of this project that exported it, like ``transformers_version``."""
_NOTES = ("auto_map", "custom_pipelines", VERSION_KEY)
"""Keys that are no settings: where the Auto classes find the code, and what made the package."""
_REDIRECTIONS = {
    *("configuration_files", "transformers_weights", "gguf_file", "tokenizer_file", "fast_tokenizer_files"),
    *("_name_or_path", "name_or_path", "base_model_name_or_path", "revision", "_commit_hash", "code_revision"),
    *("subfolder", "tokenizer_class", "processor_class", "feature_extractor_type", "image_processor_type"),
    *("quantization_config", "compression_config", "kernel_config", "use_kernels", "per_layer_config"),
    *("adapter_kwargs", "trust_remote_code", "attribute_map"),
}
"""Keys by which a ``config.json`` makes transformers 5 or PEFT read other files, repositories or code."""
_PRECISIONS = (None, "auto", "float32", "float16", "bfloat16", "float64")
_OTHER_NAME = "sentiment-analysis"
"""What transformers also calls text-classification."""
_MAX_LABELS = 2**14
_MAX_SIZE = 2**20
_MAX_POSITION = 2**40
"""Positions and rotary bases are only computed with; nothing has their size."""
MAX_LAYERS = 256
_MAX_VALUES = 4_096
"""Values in a ``backbone_config``; Mistral's have about 30, and one more for each layer."""


@strict
class EmotionConfig(ModelSettings, PreTrainedConfig):
    """Configuration of an :class:`EmotionModel`: its settings, and what it was trained on and for.

    Every field has a default, so the reference's six keys load too. A value of the wrong type or out of range is
    refused when it is set.

    Args:
        model_name: backbone: a Hub id, a folder or ``smollm2-135m``.
        hidden_size: width H of the backbone.
        embed_dim: width E of the sentence embedding; 0 if the backbone reads only words.
        emotion_labels: the L label names, in the order of the classifier's outputs.
        threshold: probability from which a label without an entry in ``thresholds`` is predicted.
        thresholds: probability per label, tuned on validation rows.
        threshold_source: how ``thresholds`` were found.
        unreliable_labels: labels whose test scores rest on too few rows.
        encoder: name of the sentence encoder, see :func:`load_encoder`.
        encoder_version: version of it that made the embeddings.
        base_model_revision: revision of a Hub backbone.
        dataset: name of the training corpus.
        dataset_revision: its revision.
        backbone_config: the backbone's own configuration, to build one without its weights; its
            ``num_hidden_layers`` says how many layers of the checkpoint are used.
        schema_version: version of this list of fields.
    """

    model_type = "emotion_mistral"

    model_name: str = ""
    hidden_size: int = setting(0, "width of the backbone", least=0, most=_MAX_SIZE)
    embed_dim: int = setting(512, "width of the sentence embedding", least=0, most=_MAX_SIZE)
    emotion_labels: list[str] = setting([], "label names")
    threshold: Number = setting(0.5, "threshold of labels without their own", least=0, most=1)
    thresholds: dict[str, Any] = setting({}, "thresholds of labels")
    threshold_source: str = "fixed"
    unreliable_labels: list[str] = setting([], "labels with too few test rows")
    encoder: str = "use-v4"
    encoder_version: str = ""
    base_model_revision: str | None = None
    dataset: str = ""
    dataset_revision: str = ""
    backbone_config: dict[str, Any] | None = None
    schema_version: int = 1
    problem_type: Literal["multi_label_classification"] = "multi_label_classification"

    def __post_init__(self, **kwargs: Any) -> None:
        """Copy the labels to transformers' own fields, or take them from there."""
        if not self.emotion_labels and self.id2label:
            self.emotion_labels = list(map(str, self.id2label.values()))
        if self.emotion_labels:
            self.id2label = dict(enumerate(self.emotion_labels))
            self.label2id = {name: index for index, name in enumerate(self.emotion_labels)}
            kwargs.pop("num_labels", None)
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the parent lists every option by name
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> "EmotionConfig":
        """Read a ``config.json``, as transformers does.

        Raises:
            ValueError: it is read for a pipeline of another task.
        """
        task = kwargs.get("_from_pipeline")
        if task not in (None, _OTHER_NAME, *CUSTOM_PIPELINES):
            raise ValueError(f"a package has no pipeline {task!r:.80}. Remedy: use pipeline('text-classification', …)")
        config = cast(Any, super().from_pretrained(pretrained_model_name_or_path, **kwargs))
        if task == _OTHER_NAME:
            found = config[0] if isinstance(config, tuple) else config  # with return_unused_kwargs there are two parts
            found.custom_pipelines = {task: dict(CUSTOM_PIPELINES["text-classification"])}
        return cast(EmotionConfig, config)

    def validate_schema_version(self) -> None:
        """Refuse a package of a later version."""
        if not 1 <= self.schema_version <= SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}; this infer.py reads up to {SCHEMA_VERSION}. Remedy: use the "
                "infer.py of the package"
            )

    def validate_windows(self) -> None:
        """Refuse windows that overlap completely."""
        if self.window_overlap >= self.window_length:
            raise ValueError(
                f"window_overlap is {self.window_overlap}, not below the window_length of {self.window_length}"
            )

    def validate_head(self) -> None:
        """Refuse words without a backbone to read them."""
        if self.head == "mlp" and self.reads_words:
            raise ValueError("head mlp has no backbone to read words")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings in ``config.json`` for ``from_pretrained``, validated; and the options that it did not use.

        The parent would follow keys of the file to other files.

        Raises:
            PackageError: see :func:`read_config`.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        revision = kwargs.pop("revision", None)
        folder = local_folder(pretrained_model_name_or_path, revision, allow_patterns=["config.json"], **hub)
        return _settings(read_config(folder).to_dict()), kwargs

    @property
    def num_hidden_layers(self) -> int | None:
        """Number of backbone layers to use, from the first; None (not in ``backbone_config``) uses all."""
        return (self.backbone_config or {}).get("num_hidden_layers")


def read_config(folder: Path) -> EmotionConfig:
    """The configuration of a package.

    Raises:
        PackageError: the message names every field that does not fit :class:`EmotionConfig`.
    """
    content = read_json(folder, "config.json")
    problems = list(_config_problems(content))
    if problems:
        raise PackageError("config.json", f"is not valid: {'; '.join(problems)}")
    with as_package_error("config.json", "is not valid"):  # transformers raises many kinds for its own fields
        return EmotionConfig(**_settings(content))


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says of the model. Transformers would take any other key for an attribute or a method."""
    known = {field.name for field in fields(cast(Any, EmotionConfig))}
    return {key: value for key, value in content.items() if key in known or key in _NOTES}


def _config_problems(config: dict[str, Any]) -> Iterator[str]:
    for field in fields(cast(Any, EmotionConfig)):
        if field.name in config:
            try:
                type_validator(field.name, config[field.name], field.type)
                field.metadata.get("validator", lambda value: None)(config[field.name])
            except (TypeError, ValueError) as error:
                yield f"{field.name}: {error!s:.200}"
    if config.get("model_type", EmotionConfig.model_type) != EmotionConfig.model_type:
        yield f"model_type is {config['model_type']!r:.80}, not {EmotionConfig.model_type}"
    for key in ("embed_dim", "hidden_size"):
        unused = key == "embed_dim" and config.get("input") == "tokens"
        if not unused and (type(config.get(key)) is not int or config[key] < 2):
            yield f"{key} is {config.get(key)!r:.80}, not a valid width"
    if config.get("head") != "mlp" and not config.get("model_name"):
        yield "model_name is missing or empty"
    # The Auto classes would follow other references to code, into other repositories too.
    for key, own in (("auto_map", AUTO_MAP), ("custom_pipelines", CUSTOM_PIPELINES)):
        used = config.get(key, {})
        if not isinstance(used, dict) or not used.items() <= own.items():
            yield f"{key} names code other than the package's infer.py"
    if config.get("dtype") not in _PRECISIONS:
        yield f"dtype is {config['dtype']!r:.80}"
    backbone = config.get("backbone_config")
    for part in (config, backbone if isinstance(backbone, dict) else {}):
        # An attention implementation may be a repository of compiled code.
        yield from (f"{key} is {part[key]!r:.80}" for key in part if "implementation" in key and part[key])
    yield from (f"{key} leads to other files or code" for key in sorted(_REDIRECTIONS & set(config)) if config[key])
    yield from (f"{key} is not a setting" for key in config if callable(getattr(EmotionConfig, key, None)))
    if isinstance(backbone, dict):
        yield from _backbone_problems(backbone)
    yield from _label_problems(config)


def _backbone_problems(backbone: dict[str, Any]) -> Iterator[str]:
    yield from (f"backbone_config {problem}" for problem in oversized(backbone))
    for key, most in (("num_hidden_layers", MAX_LAYERS), ("vocab_size", _MAX_SIZE)):
        if type(backbone.get(key)) is not int or not 0 < backbone[key] <= most:
            yield f"backbone_config has {key} {backbone.get(key)!r:.80}, not from 1 to {most:,}"


def oversized(backbone: dict[str, Any]) -> Iterator[str]:
    """What would make a backbone build endlessly or fill the memory, even without its weights."""
    values = list(itertools.islice(_leaves("", backbone), _MAX_VALUES + 1))
    if len(values) > _MAX_VALUES:
        yield f"has more than {_MAX_VALUES:,} values"
    for key, value in values:
        most = _MAX_POSITION if re.search(r"theta|position|length|window", key) else _MAX_SIZE
        if isinstance(value, int) and abs(value) > most:
            yield f"has {key} {value!r:.80}, more than {most:,}"


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in nested lists and mappings, each with the nearest key; an empty one counts as a value."""
    if isinstance(value, dict) and value:
        for inner, part in value.items():
            yield from _leaves(inner, part)
    elif isinstance(value, list) and value:
        for part in value:
            yield from _leaves(key, part)
    else:
        yield key, value


def _label_problems(config: dict[str, Any]) -> Iterator[str]:
    labels = config.get("emotion_labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) and x.strip() for x in labels):
        yield "emotion_labels is not a list of names"
        return
    if len(labels) > _MAX_LABELS:
        yield f"emotion_labels has {len(labels):,} names, more than {_MAX_LABELS:,}"
        return
    known = set(labels)
    if len(known) < len(labels):
        yield "emotion_labels names a label twice"
    expected = {
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            yield f"{key} and emotion_labels differ"
    thresholds, unreliable = config.get("thresholds", {}), config.get("unreliable_labels", [])
    if isinstance(thresholds, dict) and not all(is_probability(value) for value in thresholds.values()):
        yield "thresholds has values that are not between 0 and 1"
    if isinstance(thresholds, dict) and not set(thresholds) <= known:
        yield "thresholds names labels that emotion_labels does not"
    if isinstance(unreliable, list) and not all(isinstance(x, str) and x in known for x in unreliable):
        yield "unreliable_labels names labels that emotion_labels does not"


def is_probability(value: Any) -> bool:
    """Is it a Python or numpy number from 0 to 1? Booleans and nan are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= cast(float, value) <= 1
