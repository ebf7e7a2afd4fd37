"""The model: backbone and heads."""

import os
from dataclasses import fields
from functools import partial
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import SequenceClassifierOutput

from modeling.infer.adapter import load_adapter
from modeling.infer.backbone import build_backbone, fetch_backbone
from modeling.infer.config import EmotionConfig, read_config
from modeling.infer.decisions import read_thresholds
from modeling.infer.files import HUB_OPTIONS, local_folder, refuse_unsafe_entries
from modeling.infer.fused import FusedOneTokenMistral
from modeling.infer.heads import build_heads
from modeling.infer.inherited import COPY, LOADING_REMEDIES, REFUSED_METHODS, refusal, refuse, refuse_arguments
from modeling.infer.merged import load_merged, merged_file
from modeling.infer.quantization import refuse_unsupported
from modeling.infer.settings import Quantization
from modeling.infer.tokenizer import read_tokenizer
from modeling.infer.weights import BASELINE_FILE, read_head, read_head_file

_AUTO_MODEL_OPTIONS = ("trust_remote_code", "code_revision", "adapter_kwargs")
"""Options that the Auto classes pass on and a package does not use."""
_COPY_OF_BACKBONE = ("model_name", "base_model_revision", "one_token")
"""Fields of a configuration that say which copy of the backbone is used, and with which parts."""
_OWN_CHOICE = frozenset(
    {"architectures", "dtype", "transformers_version"}  # of no effect
    | {"threshold", "thresholds", "adapted_thresholds", "threshold_source", "unreliable_labels"}
    | {"window_length", "window_overlap", "windows", "embedding_noise", "head_dropout"}
    | {*_COPY_OF_BACKBONE, "quantization"}
)
"""Fields of a configuration that may differ from the package's; its weights were trained with all others."""


@refuse(REFUSED_METHODS)
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

        self.main_input_name = "embeddings" if config.reads_embedding else "input_ids"
        self.loss_type = "ForSequenceClassification"

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Three rows of zeros that :meth:`forward` accepts."""
        words = {name: torch.zeros(3, 5, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        found = words if self.config.reads_words else {}
        return found | ({"embeddings": torch.zeros(3, self.config.embed_dim)} if self.config.reads_embedding else {})

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's table of tokens; one that reads a single projected embedding has none."""
        try:
            return cast(nn.Module, self.backbone.get_input_embeddings())
        except (AttributeError, NotImplementedError):
            raise refusal("get_input_embeddings", "give the model embeddings: it reads no tokens") from None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights, those of fused layers included."""
        own = super().num_parameters(only_trainable, exclude_embeddings)
        return own if only_trainable else own + sum(matrix.numel() for matrix in self._fused_matrices())

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, those of fused layers included."""
        fused = sum(matrix.numel() * matrix.element_size() for matrix in self._fused_matrices())
        return super().get_memory_footprint(return_buffers) + fused

    def _fused_matrices(self) -> list[torch.Tensor]:
        """Matrices that are neither parameters nor buffers."""
        layers = self.backbone.matrices if isinstance(self.backbone, FusedOneTokenMistral) else []
        return [matrix for layer in layers for matrix in layer]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:  # type: ignore[override]
        """Save a baseline without a backbone; a package is its folder, and is copied."""
        if self.config.head != "mlp":
            raise refusal("save_pretrained", COPY)
        super().save_pretrained(save_directory, **options)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(
        self,
        embeddings: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify ``embeddings``, ``input_ids`` or both, as the configuration's ``input`` says.

        Args:
            embeddings: sentence embeddings, float [B, E].
            labels: multi-hot [B, L]; if given, the output has the mean binary cross-entropy as ``loss``.
            input_ids: tokens without special ones, int [B, T], padded on either side.
            attention_mask: 1 where ``input_ids`` has a token, 0 where it is padded, [B, T].
            inputs_embeds: what the backbone's table has for ``input_ids``, float [B, T, H], in place of them.
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
            if (input_ids is None and inputs_embeds is None) or attention_mask is None:
                raise ValueError(f"input {self.config.input} reads input_ids and attention_mask, got none")
            words = self.backbone.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            hidden = self._read_words(projected, words, attention_mask.bool())
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
            tokens = torch.cat([self._embed_bos(tokens.shape[0]), tokens], dim=1)
        return cast(torch.Tensor, self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state[:, -1])

    def _embed_bos(self, rows: int) -> torch.Tensor:
        table = self.backbone.get_input_embeddings()
        bos = torch.full((rows, 1), self.backbone.config.bos_token_id, device=table.weight.device)
        return cast(torch.Tensor, table(bos))

    def _read_words(self, projected: torch.Tensor | None, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The backbone's hidden states of a text, pooled, [B, H], from its embedded tokens, [B, T, H]."""
        before = [self._embed_bos(words.shape[0])] if self.config.prefix == "bos" else []
        special = len(before)
        if projected is not None:
            before.append(projected.unsqueeze(1).to(words.dtype))
        mask = torch.cat([mask.new_ones(mask.shape[0], len(before)), mask], dim=1)
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
            return hidden[torch.arange(hidden.shape[0], device=mask.device), (places * mask).argmax(dim=1)]
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
        """Load a package: its heads, its adapter, and the frozen backbone that it names, or all in one file.

        A package that was exported with ``--merged`` has that file. It is used unless the configuration or
        ``quantization`` asks for another copy or form of the backbone.

        ``fuse`` makes it faster if possible, only for inference, see :class:`EmotionClassifier`. ``quantization``
        replaces the package's own, see :func:`load_backbone`. A baseline (``head`` is ``mlp``) is loaded from the
        folder that ``save_pretrained`` wrote: it has no backbone and no adapter.

        Raises:
            PackageError: a file is broken, hostile or does not fit the others; nothing in it was executed.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        odd = sorted(key for key in kwargs if not key.startswith("_") and key not in _AUTO_MODEL_OPTIONS)
        refuse_arguments(
            ["a second positional argument"] * bool(model_args) + odd,
            LOADING_REMEDIES,
            f"config, dtype, device, revision, fuse, quantization, {', '.join(HUB_OPTIONS)}",
        )
        if quantization is not None:
            refuse_unsupported(quantization, torch.device(device))
        folder = local_folder(pretrained_model_name_or_path, revision, **hub)
        refuse_unsafe_entries(folder)
        found = read_config(folder)
        own_copy = [getattr(found, name) for name in _COPY_OF_BACKBONE]
        config = found if config is None else _accept(config, found)
        config.quantization = quantization or config.quantization
        dtype = _read_dtype(dtype)
        if config.head == "mlp":
            weights = read_head_file(folder, BASELINE_FILE, config)
            baseline = cast(Any, cls(config)).to(device)
            baseline.load_state_dict(weights)
            return cast(EmotionModel, baseline.eval())
        head = read_head(folder, config)
        merged = (folder / merged_file(config)).exists() and config.quantization == "none"
        merged = merged and own_copy == [getattr(config, name) for name in _COPY_OF_BACKBONE]
        load = partial(load_merged, folder, head=head) if merged else fetch_backbone
        backbone = load(config, dtype=dtype, device=device)
        model = cast(Any, cls(config, backbone)).to(device)
        for part, module in build_heads(config).items():
            getattr(model, part).load_state_dict({key: head[f"{part}.{key}"] for key in module.state_dict()})
        if config.reads_words:
            model.tokenizer = read_tokenizer(folder, config)
        if not merged:
            model.backbone = load_adapter(folder, config, backbone)
        if fuse and config.quantization == "none":
            if config.reads_one_token:
                model.backbone = FusedOneTokenMistral(model.backbone)
            elif not merged:
                model.backbone = model.backbone.merge_and_unload()
        return model.eval()


def _accept(config: EmotionConfig, found: EmotionConfig) -> EmotionConfig:
    """The configuration that a caller gives instead of the package's own.

    Raises:
        TypeError: it is not an :class:`EmotionConfig`.
        ValueError: it differs in a field with which the weights were trained, or has a wrong threshold.
    """
    if not isinstance(found, type(config)):
        raise TypeError(f"config is {config!r:.80}. Remedy: leave it out, or give an EmotionConfig")
    names = [field.name for field in fields(cast(Any, EmotionConfig)) if field.name not in _OWN_CHOICE]
    for name in [*names, "num_labels", "_attn_implementation"]:
        asked, own = getattr(config, name), getattr(found, name)
        if asked != own:
            raise ValueError(
                f"{name} is {asked!r:.80}, but the package has {own!r:.80}. Remedy: leave {name.strip('_')} out; other "
                "labels or another form need a new training"
            )
    read_thresholds(found, {**config.thresholds, **config.adapted_thresholds})
    return config


def _read_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None or dtype == "auto":
        return torch.float32
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype is {dtype!r:.80}. Remedy: use float32, bfloat16 or float16")
    return cast(torch.dtype, found)
