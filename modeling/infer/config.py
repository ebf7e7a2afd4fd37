"""Configuration of an emotion model, and how a package's is read."""

import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from transformers.configuration_utils import PreTrainedConfig

from modeling.infer.errors import PackageError
from modeling.infer.files import read_json

SCHEMA_VERSION = 1
INPUTS = ("embedding", "tokens", "hybrid")
POOLINGS = ("last", "mean", "attention")
ATTENTIONS = ("causal", "bidirectional")
WINDOWS = ("max", "mean")

AUTO_MAP = {"AutoConfig": "infer.EmotionConfig", "AutoModelForSequenceClassification": "infer.EmotionModel"}
CUSTOM_PIPELINES = {
    "text-classification": {"impl": "infer.EmotionPipeline", "pt": ["AutoModelForSequenceClassification"]}
}
_MAX_LABELS = 2**14
_MAX_SIZE = 2**20


class EmotionConfig(PreTrainedConfig):
    """Configuration of an :class:`EmotionModel`; every field has a default, so the six keys of the reference load too.

    Args:
        model_name: backbone: a Hub id, a folder or ``smollm2-135m``.
        hidden_size: width H of the backbone.
        embed_dim: width E of the sentence embedding; 0 where the backbone reads words alone.
        input: what the backbone reads: ``embedding``, the projected sentence embedding as one token; ``tokens``, the
            words; ``hybrid``, the projected embedding and after it the words.
        pooling: what the classifier reads of the hidden states of the words, and of the embedding before them where
            there is one: the ``last``, their ``mean``, or their mean by the weights that an ``attention`` layer gives.
        attention: ``causal``, as the backbone was trained, or ``bidirectional``.
        window_length: tokens of a text that are read at once; a longer one is read in windows.
        window_overlap: tokens that two neighbouring windows share.
        windows: the logits of a text in several windows: their ``mean`` (what is said throughout), or ``max`` (what one
            passage says; the more windows, the more labels that nobody meant).
        emotion_labels: the L label names, in the order of the classifier's outputs.
        threshold: probability from which a label is predicted when it has no entry in ``thresholds``.
        thresholds: probability per label, tuned on validation rows.
        threshold_source: how ``thresholds`` were found, in words.
        unreliable_labels: labels whose test scores rest on too few rows.
        encoder: name of the sentence encoder, see :func:`load_encoder`.
        prefix: ``bos`` puts the beginning-of-sequence token, which the classifier does not read, before what the
            backbone reads; ``none`` does not.
        embedding_noise: standard deviation of the Gaussian noise on each embedding dimension while training.
        head_dropout: dropout before the classifier.
        head: ``backbone``, or ``mlp``: no backbone, the classifier reads the projection; a baseline for comparison.
        quantization: ``none``, ``nf4`` or ``8bit``.
        one_token: leave out of the backbone what a lone token does not need, see :class:`OneTokenMistral`; the outputs
            are the same. Without effect where ``prefix`` or ``input`` makes it several tokens.
        backbone_config: the backbone's own configuration, to build one without its weights; of the checkpoint as many
            layers are used as its ``num_hidden_layers`` says.
    """

    model_type = "emotion_mistral"

    def __init__(
        self,
        model_name: str = "",
        hidden_size: int = 0,
        embed_dim: int = 512,
        input: str = "embedding",
        pooling: str = "last",
        attention: str = "causal",
        window_length: int = 128,
        window_overlap: int = 32,
        windows: str = "mean",
        emotion_labels: Sequence[str] | None = None,
        threshold: float = 0.5,
        thresholds: dict[str, float] | None = None,
        threshold_source: str = "fixed",
        unreliable_labels: Sequence[str] = (),
        encoder: str = "use-v4",
        encoder_version: str = "",
        prefix: str = "none",
        embedding_noise: float = 0.0,
        head_dropout: float = 0.1,
        head: str = "backbone",
        quantization: str = "none",
        one_token: bool = True,
        base_model_revision: str | None = None,
        dataset: str = "",
        dataset_revision: str = "",
        backbone_config: dict[str, Any] | None = None,
        schema_version: int = SCHEMA_VERSION,
        **kwargs: Any,
    ) -> None:
        if schema_version > SCHEMA_VERSION:
            raise ValueError(
                f"this package has schema version {schema_version}, this infer.py reads up to {SCHEMA_VERSION}: "
                "use the infer.py that lies in the package"
            )
        self.model_name = model_name
        self.hidden_size = hidden_size
        self.embed_dim = embed_dim
        self.input = input
        self.pooling = pooling
        self.attention = attention
        self.window_length = window_length
        self.window_overlap = window_overlap
        self.windows = windows
        self.emotion_labels = list(emotion_labels or kwargs.get("id2label", {}).values())
        self.threshold = threshold
        self.thresholds = dict(thresholds or {})
        self.threshold_source = threshold_source
        self.unreliable_labels = list(unreliable_labels)
        self.encoder = encoder
        self.encoder_version = encoder_version
        self.prefix = prefix
        self.embedding_noise = embedding_noise
        self.head_dropout = head_dropout
        self.head = head
        self.quantization = quantization
        self.one_token = one_token
        self.base_model_revision = base_model_revision
        self.dataset = dataset
        self.dataset_revision = dataset_revision
        self.backbone_config = backbone_config
        self.schema_version = schema_version
        if self.emotion_labels:
            kwargs["id2label"] = dict(enumerate(self.emotion_labels))
            kwargs["label2id"] = {name: index for index, name in enumerate(self.emotion_labels)}
            kwargs.pop("num_labels", None)
        kwargs.setdefault("problem_type", "multi_label_classification")
        super().__init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int | None:
        """Layers of the backbone that are used, from the first; None, where ``backbone_config`` does not say, is all."""
        return (self.backbone_config or {}).get("num_hidden_layers")

    @property
    def reads_one_token(self) -> bool:
        """Is the backbone an :class:`OneTokenMistral`?"""
        return self.one_token and self.prefix == "none" and not self.reads_words

    @property
    def reads_words(self) -> bool:
        """Does the backbone read the text's tokens?"""
        return self.input != "embedding"

    @property
    def reads_embedding(self) -> bool:
        """Does it read the sentence embedding?"""
        return self.input != "tokens"


def read_config(folder: Path) -> EmotionConfig:
    """The configuration of a package.

    Raises:
        PackageError: the message names every field that is not as :class:`EmotionConfig` says.
    """
    content = read_json(folder, "config.json")
    problems = list(_config_problems(content))
    if problems:
        raise PackageError("config.json", f"is not valid: {'; '.join(problems)}")
    try:
        return EmotionConfig.from_pretrained(folder)
    except Exception as error:  # transformers checks the fields that are its own with many kinds of exception
        raise PackageError("config.json", f"is not valid: {error}") from error


def _config_problems(config: dict[str, Any]) -> Iterator[str]:
    version = config.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        yield f"schema_version is {version!r}, this infer.py reads up to {SCHEMA_VERSION} (use the package's own infer.py)"
    for key in ("embed_dim", "hidden_size"):
        unused = key == "embed_dim" and config.get("input") == "tokens"
        if type(config.get(key)) is not int or not (0 if unused else 2) <= config[key] <= _MAX_SIZE:
            yield f"{key} is {config.get(key)!r}, not a width"
    longest, overlap = config.get("window_length", 128), config.get("window_overlap", 32)
    if type(longest) is not int or type(overlap) is not int or not 0 <= overlap < longest <= _MAX_SIZE:
        yield f"window_length {longest!r} and window_overlap {overlap!r} are no windows: 0 ≤ overlap < length"
    if config.get("head") == "mlp" and config.get("input", "embedding") != "embedding":
        yield "head mlp reads no words"
    for key in ("threshold", "head_dropout"):
        if key in config and not is_probability(config[key]):
            yield f"{key} is {config[key]!r}, not between 0 and 1"
    for key, allowed in (
        ("model_type", (EmotionConfig.model_type,)),
        ("head", ("backbone", "mlp")),
        ("prefix", ("none", "bos")),
        ("input", INPUTS),
        ("pooling", POOLINGS),
        ("attention", ATTENTIONS),
        ("windows", WINDOWS),
        ("one_token", (True, False)),
        ("problem_type", ("multi_label_classification",)),
        ("quantization", ("none", "nf4", "8bit")),
    ):
        if key in config and config[key] not in allowed:
            yield f"{key} is {config[key]!r}, not one of {', '.join(map(str, allowed))}"
    texts = ("encoder", "encoder_version", "threshold_source", "dataset", "dataset_revision")
    for key, kind in {
        **dict.fromkeys(texts, str),
        "base_model_revision": str | None,
        "backbone_config": dict | None,
    }.items():
        if key in config and not isinstance(config[key], kind):
            yield f"{key} is {config[key]!r:.80}"
    if config.get("head") != "mlp" and not (isinstance(config.get("model_name"), str) and config["model_name"]):
        yield "model_name names no backbone"
    # Other references to code would be followed by the Auto classes, into other repositories too.
    for key, own in (("auto_map", AUTO_MAP), ("custom_pipelines", CUSTOM_PIPELINES)):
        used = config.get(key, {})
        if not isinstance(used, dict) or not used.items() <= own.items():
            yield f"{key} names code other than the package's infer.py"
    backbone = config.get("backbone_config")
    for part in (config, backbone if isinstance(backbone, dict) else {}):
        # An attention implementation may be a repository of compiled code.
        yield from (f"{key} is {part[key]!r:.80}" for key in part if "implementation" in key and part[key])
    yield from _label_problems(config)


def _label_problems(config: dict[str, Any]) -> Iterator[str]:
    labels = config.get("emotion_labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) and x.strip() for x in labels):
        yield "emotion_labels is no list of names"
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
    if not isinstance(thresholds, dict) or not all(is_probability(value) for value in thresholds.values()):
        yield "thresholds is no object of numbers between 0 and 1"
    elif not set(thresholds) <= known:
        yield "thresholds names labels that emotion_labels does not"
    if not isinstance(unreliable, list) or not all(isinstance(x, str) and x in known for x in unreliable):
        yield "unreliable_labels names labels that emotion_labels does not"


def is_probability(value: Any) -> bool:
    """Also of numpy; True and False are no numbers here, and what is no number (nan) is in no range."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= cast(float, value) <= 1
