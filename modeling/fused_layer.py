"""A layer of the one-token backbone, with LoRA, that trains as one function.

A training step with few rows is many small matrix products. The overhead around them takes longer than they do:
autograd's own nodes, casts, and laying a frozen matrix out again for every product. Here a layer's forward and backward
passes are written out. Matrices that read the same input are joined, and each is laid out once for each direction.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from modeling.adapters import LoraLinear
from modeling.infer import OneTokenLayer, OneTokenMistral, fold_groups, laid_out_linear, lay_out

FEW_ROWS = 64
"""Up to this many rows LoRA's products are in float32: a bfloat16 call takes longer than its product."""

_PROJECTIONS = ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class _Frozen:
    """A frozen matrix W, for x Wᵀ and g W; in oneDNN's own layout, if it has one."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.dtype = weight.dtype
        self.forward_weight, self.backward_weight = lay_out(weight), lay_out(weight.t().contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in] → [B, out], computed in the precision of W, returned in x's."""
        return laid_out_linear(x.to(self.dtype), self.forward_weight).to(x.dtype)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """[B, out] → [B, in], likewise."""
        return laid_out_linear(gradient.to(self.dtype), self.backward_weight).to(gradient.dtype)


class _Layer(NamedTuple):
    """The frozen parts of a layer."""

    value: _Frozen
    output: _Frozen
    gate_up: _Frozen
    down: _Frozen
    before_attention: torch.Tensor
    before_mlp: torch.Tensor
    epsilon: float
    groups: int
    head_dim: int


def _normalize(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, ...]:
    """RMSNorm [B, H]; for the backward pass also the same without its weight, and the inverse root mean square."""
    inverse = torch.rsqrt(hidden.square().mean(-1, keepdim=True).add_(epsilon))
    normalized = hidden * inverse
    return normalized * weight, normalized, inverse


def _normalize_backward(
    gradient: torch.Tensor, weight: torch.Tensor, normalized: torch.Tensor, inverse: torch.Tensor
) -> torch.Tensor:
    scaled = gradient * weight
    mean = (scaled * normalized).mean(-1, keepdim=True)
    return scaled.addcmul_(normalized, mean, value=-1).mul_(inverse)


def _add_lora(answer: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """Add s (x Aᵀ) Bᵀ to the answer in place; return s x Aᵀ for the backward pass."""
    inner = functional.linear(x, a).mul_(scaling)
    answer.addmm_(inner, b.t())
    return inner


def _lora_backward(
    of_x: torch.Tensor,
    gradient: torch.Tensor,
    x: torch.Tensor,
    inner: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of A and B; the gradient of x is added to ``of_x`` in place."""
    of_inner = (gradient @ b).mul_(scaling)
    of_x.addmm_(of_inner, a)
    return of_inner.t() @ x, gradient.t() @ inner


class _LayerFunction(torch.autograd.Function):
    """One layer [B, H] → [B, H]: its input, the frozen parts, LoRA's scaling, and A and B of :data:`_PROJECTIONS`."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, layer: _Layer, scaling: float, *lora: torch.Tensor) -> torch.Tensor:
        dtype = hidden.dtype if len(hidden) <= FEW_ROWS else layer.value.dtype
        value_a, value_b, output_a, output_b, gate_a, gate_b, up_a, up_b, down_a, down_b = (w.to(dtype) for w in lora)
        output_a = fold_groups(output_a, layer.groups, layer.head_dim)
        normalized, *first_norm = _normalize(hidden, layer.before_attention, layer.epsilon)
        read = normalized.to(dtype)
        value = layer.value.forward(read)
        value_inner = _add_lora(value, read, value_a, value_b, scaling)
        output = layer.output.forward(value)
        output_inner = _add_lora(output, value, output_a, output_b, scaling)
        hidden = hidden + output
        normalized, *second_norm = _normalize(hidden, layer.before_mlp, layer.epsilon)
        read_again = normalized.to(dtype)
        gate_up = layer.gate_up.forward(read_again)
        gate, up = gate_up.chunk(2, dim=1)
        gate_inner = _add_lora(gate, read_again, gate_a, gate_b, scaling)
        up_inner = _add_lora(up, read_again, up_a, up_b, scaling)
        activated = functional.silu(gate)
        inner = activated * up
        down = layer.down.forward(inner)
        down_inner = _add_lora(down, inner, down_a, down_b, scaling)
        ctx.layer, ctx.scaling = layer, scaling
        ctx.save_for_backward(
            *(*first_norm, read, value_inner, value, output_inner, *second_norm, read_again, gate_inner, up_inner),
            *(gate_up, activated, inner, down_inner),
            *(value_a, value_b, output_a, output_b, gate_a, gate_b, up_a, up_b, down_a, down_b),
        )
        return hidden + down

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer: _Layer = ctx.layer
        first, first_inverse, read, value_inner, value, output_inner, *rest = ctx.saved_tensors
        second, second_inverse, read_again, gate_inner, up_inner, gate_up, activated, inner, down_inner, *trained = rest
        value_a, value_b, output_a, output_b, gate_a, gate_b, up_a, up_b, down_a, down_b = trained

        through = partial(_lora_backward, scaling=ctx.scaling)
        narrow = gradient.to(read.dtype)
        of_inner = layer.down.backward(narrow)
        of_down = through(of_inner, narrow, inner, down_inner, down_a, down_b)
        gate, up = gate_up.chunk(2, dim=1)
        of_gate_up = torch.empty_like(gate_up)
        of_gate, of_up = of_gate_up.chunk(2, dim=1)
        torch.mul(of_inner, activated, out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_inner.mul_(up), gate, grad_input=of_gate)
        of_read = layer.gate_up.backward(of_gate_up)
        of_gate_lora = through(of_read, of_gate, read_again, gate_inner, gate_a, gate_b)
        of_up_lora = through(of_read, of_up, read_again, up_inner, up_a, up_b)
        gradient = gradient + _normalize_backward(of_read, layer.before_mlp, second, second_inverse)
        narrow = gradient.to(read.dtype)
        of_value = layer.output.backward(narrow)
        of_output_a, of_output_b = through(of_value, narrow, value, output_inner, output_a, output_b)
        of_read = layer.value.backward(of_value)
        of_value_lora = through(of_read, of_value, read, value_inner, value_a, value_b)
        gradient = gradient + _normalize_backward(of_read, layer.before_attention, first, first_inverse)
        # A value's gradient reaches every head that repeats it.
        of_output_a = of_output_a.unflatten(1, (-1, 1, layer.head_dim)).expand(-1, -1, layer.groups, -1).flatten(1)
        return gradient, None, None, *of_value_lora, of_output_a, of_output_b, *of_gate_lora, *of_up_lora, *of_down


class FusedOneTokenLayer(OneTokenLayer):
    """A layer that computes as one function while it trains with plain LoRA, and as its parent otherwise."""

    frozen: _Layer | None

    def train(self, mode: bool = True) -> FusedOneTokenLayer:
        """Set the mode; when training ends, drop the matrices laid out for it."""
        if not mode:
            self.frozen = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state without laid-out matrices, which cannot be copied and are made again."""
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
            return cast(torch.Tensor, function.apply(hidden, self.frozen, scaling, *lora))

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
    """Do they all have plain LoRA, with one name and one scaling?"""
    if not all(isinstance(part, LoraLinear) and part.computes_plain_lora for part in projections):
        return False
    return len({(part.active_adapters[0], part.scaling[part.active_adapters[0]]) for part in projections}) == 1


def fuse_layers(backbone: nn.Module) -> bool:
    """Let each layer of a one-token backbone train as one function, in place; weight names do not change.

    Returns:
        Whether it was done: every layer must have plain LoRA on all its matrices, without quantization.
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
