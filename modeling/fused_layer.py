"""A layer of the one-token backbone, with LoRA, that trains as one function.

A training step of few rows is many small matrix products, and what surrounds them takes longer than they do: autograd's
own nodes, casts, and laying a frozen matrix out for every product anew. Here a layer's forward and backward pass are
written out, its matrices that read the same input are one, and each is laid out once for either direction.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from modeling.adapters import LoraLinear
from modeling.infer import OneTokenLayer, OneTokenMistral, fold_groups, packed_linear, packs_matrices

_PROJECTIONS = ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class _Frozen:
    """A matrix W that does not train, for x Wᵀ and g W; where oneDNN has bfloat16, in its own layout."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.packs = packs_matrices(weight)
        both = (weight.contiguous(), weight.t().contiguous())
        self.forward_weight, self.backward_weight = (
            torch.ops.mkldnn._reorder_linear_weight(w) if self.packs else w for w in both
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in] → [B, out]."""
        return (packed_linear if self.packs else functional.linear)(x, self.forward_weight)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """[B, out] → [B, in]."""
        return (packed_linear if self.packs else functional.linear)(gradient, self.backward_weight)


class _Layer(NamedTuple):
    """What of a layer does not train."""

    value: _Frozen
    output: _Frozen
    gate_up: _Frozen
    down: _Frozen
    before_attention: torch.Tensor
    before_mlp: torch.Tensor
    epsilon: float
    groups: int
    head_dim: int


def _normalise(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, ...]:
    """RMSNorm [B, H]; and for the backward pass the same without its weight, and the inverse root mean square."""
    inverse = torch.rsqrt(hidden.square().mean(-1, keepdim=True).add_(epsilon))
    normalised = hidden * inverse
    return normalised * weight, normalised, inverse


def _normalise_backward(
    gradient: torch.Tensor, weight: torch.Tensor, normalised: torch.Tensor, inverse: torch.Tensor
) -> torch.Tensor:
    scaled = gradient * weight
    return (scaled - normalised * (scaled * normalised).mean(-1, keepdim=True)).mul_(inverse)


def _linear(
    x: torch.Tensor, frozen: _Frozen, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x Wᵀ + s (x Aᵀ) Bᵀ; and s x Aᵀ for the backward pass."""
    inner = functional.linear(x, a).mul_(scaling)
    return frozen.forward(x).addmm_(inner, b.t()), inner


def _linear_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    frozen: _Frozen,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, A and B."""
    inner_gradient = (gradient @ b).mul_(scaling)
    return frozen.backward(gradient).addmm_(inner_gradient, a), inner_gradient.t() @ x, gradient.t() @ inner


class _LayerFunction(torch.autograd.Function):
    """One layer [B, H] → [B, H], of its input, what is frozen, LoRA's scaling, and A and B of :data:`_PROJECTIONS`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: _Layer, scaling: float, dtype: torch.dtype, *lora: torch.Tensor
    ) -> torch.Tensor:
        value_a, value_b, output_a, output_b, gate_a, gate_b, up_a, up_b, down_a, down_b = lora
        trained = (
            *(value_a, value_b, fold_groups(output_a, layer.groups, layer.head_dim), output_b),
            *(torch.cat([gate_a, up_a]), torch.block_diag(gate_b, up_b), down_a, down_b),
        )
        value_a, value_b, output_a, output_b, gate_up_a, gate_up_b, down_a, down_b = (w.to(dtype) for w in trained)
        normalised, *first_norm = _normalise(hidden, layer.before_attention, layer.epsilon)
        read = normalised.to(dtype)
        value, value_inner = _linear(read, layer.value, value_a, value_b, scaling)
        output, output_inner = _linear(value, layer.output, output_a, output_b, scaling)
        hidden = hidden + output
        normalised, *second_norm = _normalise(hidden, layer.before_mlp, layer.epsilon)
        read_again = normalised.to(dtype)
        gate_up, gate_up_inner = _linear(read_again, layer.gate_up, gate_up_a, gate_up_b, scaling)
        gate, up = gate_up.chunk(2, dim=1)
        activated = functional.silu(gate)
        inner = activated * up
        down, down_inner = _linear(inner, layer.down, down_a, down_b, scaling)
        ctx.layer, ctx.scaling, ctx.dtype = layer, scaling, dtype
        ctx.save_for_backward(
            *(*first_norm, read, value_inner, value, output_inner, *second_norm, read_again, gate_up_inner, gate_up),
            *(activated, inner, down_inner),
            *(value_a, value_b, output_a, output_b, gate_up_a, gate_up_b, down_a, down_b),
        )
        return hidden + down

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer: _Layer = ctx.layer
        first, first_inverse, read, value_inner, value, output_inner, *rest = ctx.saved_tensors
        second, second_inverse, read_again, gate_up_inner, gate_up, activated, inner, down_inner, *trained = rest
        value_a, value_b, output_a, output_b, gate_up_a, gate_up_b, down_a, down_b = trained

        through = partial(_linear_backward, scaling=ctx.scaling)
        narrow = gradient.to(ctx.dtype)
        of_inner, of_down_a, of_down_b = through(narrow, inner, down_inner, layer.down, down_a, down_b)
        gate, up = gate_up.chunk(2, dim=1)
        of_gate_up = torch.empty_like(gate_up)
        of_gate, of_up = of_gate_up.chunk(2, dim=1)
        torch.mul(of_inner, activated, out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_inner.mul_(up), gate, grad_input=of_gate)
        of_read, of_gate_up_a, of_gate_up_b = through(
            of_gate_up, read_again, gate_up_inner, layer.gate_up, gate_up_a, gate_up_b
        )
        gradient = gradient + _normalise_backward(of_read, layer.before_mlp, second, second_inverse)
        narrow = gradient.to(ctx.dtype)
        of_value, of_output_a, of_output_b = through(narrow, value, output_inner, layer.output, output_a, output_b)
        of_read, of_value_a, of_value_b = through(of_value, read, value_inner, layer.value, value_a, value_b)
        gradient = gradient + _normalise_backward(of_read, layer.before_attention, first, first_inverse)
        of_gate_a, of_up_a = of_gate_up_a.chunk(2)
        width, rank = up.shape[1], of_gate_a.shape[0]
        of_gate_b, of_up_b = of_gate_up_b[:width, :rank], of_gate_up_b[width:, rank:]
        # A value's gradient reaches every head that repeats it.
        of_output_a = of_output_a.unflatten(1, (-1, 1, layer.head_dim)).expand(-1, -1, layer.groups, -1).flatten(1)
        return (
            *(gradient, None, None, None, of_value_a, of_value_b, of_output_a, of_output_b),
            *(of_gate_a, of_gate_b, of_up_a, of_up_b, of_down_a, of_down_b),
        )


class FusedOneTokenLayer(OneTokenLayer):
    """A layer that computes as one function while it trains with plain LoRA, and as its parent does otherwise."""

    frozen: _Layer | None

    def train(self, mode: bool = True) -> FusedOneTokenLayer:
        """Set the mode; the matrices that are laid out for training go when it ends."""
        if not mode:
            self.frozen = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the matrices that are laid out, which cannot be copied and are made again."""
        return {**self.__dict__, "frozen": None}

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Layer [B, H] → [B, H]."""
        projections = [cast(LoraLinear, self.get_submodule(name)) for name in _PROJECTIONS]
        if not (self.training and torch.is_grad_enabled() and _share_plain_lora(projections)):
            return super().forward(hidden)
        weights = [cast(Any, part.get_base_layer()).weight for part in projections]
        self.frozen = self.frozen or self._lay_out(*weights)
        name = projections[0].active_adapters[0]
        lora = [weight[name].weight for part in projections for weight in (part.lora_A, part.lora_B)]
        function, scaling = cast(Any, _LayerFunction), projections[0].scaling[name]
        with torch.autocast(hidden.device.type, enabled=False):
            return cast(torch.Tensor, function.apply(hidden, self.frozen, scaling, weights[0].dtype, *lora))

    @torch.no_grad()
    def _lay_out(
        self, value: torch.Tensor, output: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
    ) -> _Layer:
        attention = self.self_attn
        folded = fold_groups(output.float(), attention.groups, attention.head_dim).to(output.dtype)
        return _Layer(
            value=_Frozen(value),
            output=_Frozen(folded),
            gate_up=_Frozen(torch.cat([gate, up])),
            down=_Frozen(down),
            before_attention=self.input_layernorm.weight,
            before_mlp=self.post_attention_layernorm.weight,
            epsilon=self.input_layernorm.variance_epsilon,
            groups=attention.groups,
            head_dim=attention.head_dim,
        )


def _share_plain_lora(projections: list[LoraLinear]) -> bool:
    """Has each of them plain LoRA, of one name and one scaling?"""
    if not all(isinstance(part, LoraLinear) and part.computes_plain_lora for part in projections):
        return False
    return len({(part.active_adapters[0], part.scaling[part.active_adapters[0]]) for part in projections}) == 1


def fuse_layers(backbone: nn.Module) -> bool:
    """Let each layer of a one-token backbone train as one function, in place; names of weights stay as they are.

    Returns:
        Whether this is done: every layer must have plain LoRA on all its matrices, which are not quantised.
    """
    if not isinstance(backbone, OneTokenMistral) or backbone.config.hidden_act != "silu":
        return False
    layers = list(backbone.layers)
    if not all(_share_plain_lora([cast(LoraLinear, x.get_submodule(name)) for name in _PROJECTIONS]) for x in layers):
        return False
    for layer in layers:
        layer.__class__ = FusedOneTokenLayer
        cast(FusedOneTokenLayer, layer).frozen = None
    return True
