"""The model: backbone and heads."""

import os
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
from modeling.infer.files import HUB_OPTIONS, local_folder, refuse_unsafe_entries
from modeling.infer.fused import FusedOneTokenMistral
from modeling.infer.heads import build_heads
from modeling.infer.settings import Quantization
from modeling.infer.tokenizer import read_tokenizer
from modeling.infer.weights import BASELINE_FILE, read_head, read_head_file

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
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
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
