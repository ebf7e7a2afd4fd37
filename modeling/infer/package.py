"""Settings of a package: its ``config.json``, read as data, without transformers."""

import itertools
import numbers
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from huggingface_hub.dataclasses import strict, type_validator

from modeling.infer.errors import PackageError, as_package_error
from modeling.infer.files import read_json
from modeling.infer.settings import ModelSettings, Number, setting

CONFIG_FILE = "config.json"
VERSION_KEY = "goemotions_mistral_version"
"""Key in a package's configuration for the version of this project that exported it, like ``transformers_version``."""
SCHEMA_VERSION = 1
MODEL_TYPE = "emotion_mistral"
_MAX_LABELS = 2**14
_MAX_SIZE = 2**20
_MAX_POSITION = 2**40
"""Positions and rotary bases are only computed with; nothing has their size."""
MAX_LAYERS = 256
_MAX_VALUES = 4_096
"""Values in a ``backbone_config``; Mistral's have about 30, and one more for each layer."""


@dataclass
class PackageSettings(ModelSettings):
    """Settings of a packaged model: its own, and what it was trained on and for.

    Every field has a default, so the reference's six keys load too.

    Args:
        model_name: backbone: a Hub id, a folder or ``smollm2-135m``.
        hidden_size: width H of the backbone.
        embed_dim: width E of the sentence embedding; 0 if the backbone reads only words.
        emotion_labels: the L label names, in the order of the classifier's outputs.
        threshold: probability from which a label without an entry in ``thresholds`` is predicted.
        thresholds: probability per label, tuned on validation rows.
        threshold_source: how ``thresholds`` were found.
        adapted_thresholds: thresholds for other texts, see :meth:`TextClassifier.adapt`; they come before all others.
        unreliable_labels: labels whose test scores rest on too few rows.
        encoder: name of the sentence encoder, see :func:`load_encoder`.
        encoder_version: version of it that made the embeddings.
        base_model_revision: revision of a Hub backbone.
        dataset: name of the training corpus.
        dataset_revision: its revision.
        characters_per_token: ``[low, high]``, what at least 90 % of the training rows have, by the package's tokenizer; empty if
            that is unknown or the backbone does not read words.
        backbone_config: the backbone's own configuration, to build one without its weights; its
            ``num_hidden_layers`` says how many layers of the checkpoint are used.
        schema_version: version of this list of fields.
    """

    model_name: str = ""
    hidden_size: int = setting(0, "width of the backbone", least=0, most=_MAX_SIZE)
    embed_dim: int = setting(512, "width of the sentence embedding", least=0, most=_MAX_SIZE)
    emotion_labels: list[str] = setting([], "label names")
    threshold: Number = setting(0.5, "threshold of labels without their own", least=0, most=1)
    thresholds: dict[str, Any] = setting({}, "thresholds of labels")
    threshold_source: str = "fixed"
    adapted_thresholds: dict[str, Any] = setting({}, "thresholds of labels for other texts")
    unreliable_labels: list[str] = setting([], "labels with too few test rows")
    encoder: str = "use-v4"
    encoder_version: str = ""
    base_model_revision: str | None = None
    dataset: str = ""
    dataset_revision: str = ""
    characters_per_token: list[Number] = setting([], "characters per token that 90 % of the training rows have")
    backbone_config: dict[str, Any] | None = None
    schema_version: int = 1

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

    def validate_characters_per_token(self) -> None:
        """Refuse what is not a range, and a range of a model without a tokenizer."""
        if not self.characters_per_token:
            return
        ends = self.characters_per_token
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= _MAX_SIZE:
            raise ValueError(f"characters_per_token is {ends!r:.80}, not two numbers above 0, the lower first")
        if not self.reads_words:
            raise ValueError("characters_per_token has numbers, but the backbone reads no words")

    @property
    def decision_thresholds(self) -> dict[str, float]:
        """The threshold of each label."""
        of_labels = {**self.thresholds, **self.adapted_thresholds}
        return {label: of_labels.get(label, self.threshold) for label in self.emotion_labels}

    @property
    def num_hidden_layers(self) -> int | None:
        """Number of backbone layers to use, from the first; None (not in ``backbone_config``) uses all."""
        return (self.backbone_config or {}).get("num_hidden_layers")


@strict
@dataclass
class PlainSettings(PackageSettings):
    """The same where transformers is not installed. A value of the wrong type or out of range is refused when set."""


def read_settings(folder: Path) -> PlainSettings:
    """The settings of a package; what only transformers reads is left out.

    Raises:
        PackageError: the message names every field that does not fit :class:`PackageSettings`.
    """
    content = read_json(folder, CONFIG_FILE)
    if problems := list(settings_problems(content, PlainSettings)):
        raise PackageError(CONFIG_FILE, f"is not valid: {'; '.join(problems)}")
    known = {field.name for field in fields(PlainSettings)}
    with as_package_error(CONFIG_FILE, "is not valid"):
        return PlainSettings(**{key: value for key, value in content.items() if key in known})


def settings_problems(config: dict[str, Any], kind: type[PackageSettings]) -> Iterator[str]:
    """What does not fit the fields of ``kind``, or contradicts itself."""
    for field in fields(kind):
        if field.name in config:
            try:
                type_validator(field.name, config[field.name], cast(Any, field.type))
                field.metadata.get("validator", lambda value: None)(config[field.name])
            except (TypeError, ValueError) as error:
                yield f"{field.name}: {error!s:.200}"
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        yield f"model_type is {config['model_type']!r:.80}, not {MODEL_TYPE}"
    for key in ("embed_dim", "hidden_size"):
        unused = key == "embed_dim" and config.get("input") == "tokens"
        if not unused and (type(config.get(key)) is not int or config[key] < 2):
            yield f"{key} is {config.get(key)!r:.80}, not a valid width"
    if config.get("head") != "mlp" and not config.get("model_name"):
        yield "model_name is missing or empty"
    if isinstance(config.get("backbone_config"), dict):
        yield from _backbone_problems(config["backbone_config"])
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
    for key in ("thresholds", "adapted_thresholds"):
        thresholds = config.get(key, {})
        if isinstance(thresholds, dict) and not all(is_probability(value) for value in thresholds.values()):
            yield f"{key} has values that are not between 0 and 1"
        if isinstance(thresholds, dict) and not set(thresholds) <= known:
            yield f"{key} names labels that emotion_labels does not"
    unreliable = config.get("unreliable_labels", [])
    if isinstance(unreliable, list) and not all(isinstance(x, str) and x in known for x in unreliable):
        yield "unreliable_labels names labels that emotion_labels does not"


def is_probability(value: Any) -> bool:
    """Is it a Python or numpy number from 0 to 1? Booleans and nan are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= cast(float, value) <= 1
