"""Configuration of an emotion model, and how to read a package's."""

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from modeling.infer.errors import PackageError, as_package_error
from modeling.infer.files import HUB_OPTIONS, local_folder, read_json
from modeling.infer.package import MODEL_TYPE, VERSION_KEY, PackageSettings, settings_problems

AUTO_MAP = {"AutoConfig": "infer.EmotionConfig", "AutoModelForSequenceClassification": "infer.EmotionModel"}
CUSTOM_PIPELINES = {
    "text-classification": {"impl": "infer.EmotionPipeline", "pt": ["AutoModelForSequenceClassification"]}
}
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


@strict
class EmotionConfig(PackageSettings, PreTrainedConfig):
    """Configuration of an :class:`EmotionModel`: its settings, and what it was trained on and for.

    A value of the wrong type or out of range is refused when it is set.
    """

    model_type = MODEL_TYPE

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
    yield from settings_problems(config, EmotionConfig)
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
