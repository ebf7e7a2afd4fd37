"""Layers of a Mistral as few operators of ONNX that int8 reads well; their numbers are those of the layers they replace."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.onnx import ops
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRMSNorm, MistralRotaryEmbedding

OPSET = 23
"""From this version on ONNX has an operator for rotary embeddings, and one for attention with grouped heads."""


def replace_layers(backbone: nn.Module) -> None:
    """Replace a backbone's layers in place by those of this module; other architectures keep most of theirs."""
    replacements: dict[type[nn.Module], Any] = {
        MistralRMSNorm: Normalization,
        MistralRotaryEmbedding: RotaryAngles,
        MistralAttention: Attention,
    }
    for name, part in list(backbone.named_modules()):
        if type(part) in replacements:
            backbone.set_submodule(name, replacements[type(part)](part))
    for name, part in list(backbone.named_modules()):
        if name.endswith((".o_proj", ".down_proj")):
            backbone.set_submodule(name, RowScaled(part))


class RowScaled(nn.Module):
    """A linear layer without a bias that reads rows of like size: each is divided by its largest value, and multiplied back.

    In exact numbers it changes nothing. But int8 has one scale for all rows, and before ``down_proj`` a full stop has
    values thirty times as large as other words, which would have only some steps left. Before the other layers but
    ``o_proj`` there is a normalization.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, I] → […, O]."""
        largest = hidden.abs().amax(-1, keepdim=True) + torch.finfo(torch.float32).tiny
        return cast(torch.Tensor, self.layer(hidden / largest) * largest)


class Normalization(nn.Module):
    """RMSNorm as a quotient, which ONNX Runtime knows as one operator; it does not know Mistral's product with rsqrt."""

    def __init__(self, layer: MistralRMSNorm) -> None:
        super().__init__()
        self.weight, self.epsilon = layer.weight, layer.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, H] → […, H]."""
        return hidden / torch.sqrt(hidden.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


class RotaryAngles(nn.Module):
    """Cosines and sines of positions, [B, T, D/2] each: Mistral repeats them for the other half of a head."""

    def __init__(self, layer: MistralRotaryEmbedding) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states [B, …], which give the precision, and positions [B or 1, T] → cosines and sines."""
        angles = self.layer(hidden, position_ids)
        return tuple(part.chunk(2, -1)[0].expand(hidden.shape[0], -1, -1) for part in angles)


class Attention(nn.Module):
    """Attention of three operators; queries, keys and values are one product, so that their input is quantized once."""

    def __init__(self, layer: MistralAttention) -> None:
        super().__init__()
        parts = [layer.q_proj, layer.k_proj, layer.v_proj]
        self.sizes = [part.out_features for part in parts]
        self.heads, self.groups = (size // layer.head_dim for size in self.sizes[:2])
        self.scale = layer.scaling
        self.qkv_proj = nn.Linear(layer.q_proj.in_features, sum(self.sizes), bias=False)
        self.qkv_proj.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        self.o_proj = layer.o_proj

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Hidden states [B, T, H], cosines and sines, a mask [B, 1, T, T] to be added → [B, T, H]."""
        query, key, value = self.sizes
        queries_and_keys, values = self.qkv_proj(hidden_states).split([query + key, value], -1)
        turned = ops.rotary_embedding(queries_and_keys, *position_embeddings, num_heads=self.heads + self.groups)
        queries, keys = turned.split([query, key], -1)
        found, *_ = ops.attention(
            queries,
            keys,
            values,
            attention_mask,
            is_causal=attention_mask is None,
            q_num_heads=self.heads,
            kv_num_heads=self.groups,
            scale=self.scale,
        )
        return self.o_proj(found), None
