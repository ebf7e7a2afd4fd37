"""LoRA on an emotion model's backbone: attach it, count parameters, split trained weights into head and adapter."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.tuners import lora
from torch import nn
from torch.nn import functional

from modeling.infer import EmotionModel, OneTokenMistral
from modeling.recipe import ALL_LINEAR

logger = logging.getLogger(__name__)

IDLE = frozenset(["q_proj", "k_proj"])
"""Layers that attention over a single key never uses."""

HEAD_PARTS = ("projection", "pooling", "classifier")
"""Parts that train in full, if a model has them."""

PEFT_PREFIX = "base_model.model."
BACKBONE_PREFIX = f"{PEFT_PREFIX}backbone."


class _LoraProduct(torch.autograd.Function):
    """x Wᵀ + s (x Aᵀ) Bᵀ and its gradients, in the precision of W, each sum computed within a matrix product."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        x, a, b = (tensor.to(weight.dtype) for tensor in (x, a, b))
        inner = functional.linear(x, a).mul_(scaling)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = scaling
        return functional.linear(x, weight).addmm_(inner, b.t())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        inner_gradient = (gradient @ b).mul_(ctx.scaling)
        x_gradient = (gradient @ weight).addmm_(inner_gradient, a) if ctx.needs_input_grad[0] else None
        return x_gradient, None, inner_gradient.t() @ x, gradient.t() @ inner, None


class LoraLinear(lora.Linear):
    """PEFT's LoRA on a linear layer, without its casts to float32 and its passes over the whole output.

    PEFT computes anything other than plain LoRA on a frozen layer without bias.
    """

    @property
    def computes_plain_lora(self) -> bool:
        """Is it currently one adapter without dropout, on a frozen matrix without bias, and nothing else?"""
        base: Any = self.get_base_layer()
        return (
            len(self.active_adapters) == 1
            and isinstance(self.lora_dropout[self.active_adapters[0]], nn.Identity)
            and base.bias is None
            and not (self.disable_adapters or self.merged or self.lora_variant or base.weight.requires_grad)
        )

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Linear layer plus update, [..., in] → [..., out]."""
        if not self.computes_plain_lora or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        name = self.active_adapters[0]
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.weight.dtype
        weights = [cast(torch.Tensor, part[name].weight) for part in (self.lora_A, self.lora_B)]
        rows = x.flatten(0, -2)
        product = cast(Any, _LoraProduct).apply(rows, base.weight.to(dtype), *weights, self.scaling[name])
        return cast(torch.Tensor, product.unflatten(0, x.shape[:-1]))


class ParameterCount(NamedTuple):
    """Numbers of parameters, by what trains."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.trainable / self.total:.3%})"


def attach_lora(
    model: EmotionModel, rank: int, alpha: int, dropout: float, target_modules: Sequence[str] = ALL_LINEAR
) -> PeftModel:
    """Freeze the backbone, put LoRA on its language model, and let projection and classifier train in full.

    Args:
        model: the model; its backbone is changed in place.
        rank: rank of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: dropout on the update's input.
        target_modules: names of the linear layers.

    Raises:
        ValueError: a name that the backbone does not have.
    """
    suffixes = {name.rsplit(".", 1)[-1] for name, _ in model.backbone.named_modules()}
    if isinstance(model.backbone, OneTokenMistral) and IDLE & set(target_modules):
        logger.info("no LoRA on %s: one token's attention weights are 1 without them", ", ".join(sorted(IDLE)))
        target_modules = [name for name in target_modules if name not in IDLE]
    missing = sorted(set(target_modules) - suffixes)
    if missing:
        linear = {
            name.rsplit(".", 1)[-1] for name, part in model.backbone.named_modules() if isinstance(part, nn.Linear)
        }
        raise ValueError(
            f"lora_target_modules: the backbone has no {', '.join(missing)}. "
            f"Remedy: use some of {', '.join(sorted(linear))}"
        )
    # Match only the language model's layers: a vision tower has modules with the same names.
    names = "|".join(re.escape(name) for name in target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=rf"backbone\.layers\.\d+\.\w+\.({names})",
        modules_to_save=[part for part in HEAD_PARTS if hasattr(model, part)],
    )
    if model.config.quantization == "none":
        config._register_custom_module({nn.Linear: LoraLinear})
    peft_model = get_peft_model(model, config)
    assert not isinstance(peft_model, PeftMixedModel)
    return peft_model


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count parameters; a byte of 4-bit weights counts as two parameters."""
    trainable = total = 0
    for parameter in model.parameters():
        four_bit = type(parameter).__name__ == "Params4bit"  # packed in bytes, or in other types
        number = 2 * parameter.nbytes if four_bit else parameter.numel()
        total += number
        trainable += number if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def learning_rate_groups(
    model: nn.Module, projection: float, classifier: float, lora: float, weight_decay: float
) -> list[dict[str, object]]:
    """Optimizer parameter groups, each part with its own learning rate; biases do not decay."""
    rates = {"projection": projection, "pooling": classifier, "classifier": classifier, "lora": lora}
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((part for part in HEAD_PARTS if f".{part}." in f".{name}"), "lora")
            members.setdefault((part, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0, "part": part}
        for (part, decays), parameters in members.items()
    ]


def split_trained_weights(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Split a checkpoint of the whole model into the head's weights and the backbone's adapter.

    Args:
        state: the tensors of a checkpoint's ``adapter_model.safetensors``.

    Returns:
        ``{"projection": …, "classifier": …}`` with the :data:`HEAD_PARTS` that the model has, and the adapter under the
        keys that ``PeftModel.from_pretrained(backbone, …)`` reads.

    Raises:
        ValueError: a key that belongs to neither.
    """
    head: dict[str, dict[str, torch.Tensor]] = {part: {} for part in HEAD_PARTS}
    adapter: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        part, _, name = key.removeprefix(PEFT_PREFIX).partition(".")
        if key.startswith(BACKBONE_PREFIX):
            adapter[PEFT_PREFIX + key.removeprefix(BACKBONE_PREFIX)] = tensor
        elif part in head:
            head[part][name] = tensor
        else:
            raise ValueError(f"unexpected weight in the checkpoint: {key}")
    return {part: weights for part, weights in head.items() if weights}, adapter
