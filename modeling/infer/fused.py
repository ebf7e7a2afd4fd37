"""The one-token backbone for inference: fewer and larger matrix products."""

import logging
import platform
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from modeling.infer.one_token import OneTokenLayer, OneTokenMistral
from modeling.infer.quantization import X86

logger = logging.getLogger(__name__)

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
