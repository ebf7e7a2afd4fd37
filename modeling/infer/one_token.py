"""A Mistral for a single token, without the parts that it never needs."""

from typing import cast

import torch
from torch import nn
from transformers import MistralConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm


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
