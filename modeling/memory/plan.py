"""Predict the memory of training and classifying from a configuration: no weights, no GPU, no run.

The model is built on the meta device with its real shapes, and with matrices packed as bitsandbytes packs them. Its
own forward and backward then run on tensors with shapes but no content. Every storage that is made and freed is
counted. So the activations are what autograd really saves, not a separate formula.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from modeling.adapters import HEAD_PARTS, IDLE, attach_lora
from modeling.backbones import build_on_meta, hold_bfloat16, holds_matrices_alone
from modeling.focal import focal_loss
from modeling.infer import EmotionConfig, EmotionModel, attention_kernel
from modeling.memory.meter import Meter, QuantizedLinear, without_content
from modeling.recipe import ALL_LINEAR

GIB = 2**30

GPUS = {8: 7.6, 12: 11.6, 16: 14.5, 24: 21.9, 40: 39.3, 48: 44.3, 80: 79.1}
"""Common GPUs: the number on the box → the GiB that PyTorch finds on the smallest of them, such as RTX 4060,
RTX 3060, T4, L4, A100, L40S, H100 (error correction and the driver take the rest)."""

RESERVE = GIB // 2
"""Memory that PyTorch does not allocate or cannot use: CUDA context and kernels (0.3 to 0.45 GiB), cuBLAS workspace
(8 MiB, 32 on Hopper), and gaps between blocks."""

INFERENCE_ROWS = 64
"""Rows that ``EmotionClassifier`` sends through the backbone at once."""

OPTIMIZERS_32BIT = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
}
"""Float32 states per trainable parameter, by the optimizer's name in transformers."""

OPTIMIZERS_8BIT = {
    "adamw_bnb_8bit": 2,
}
"""One-byte states per trainable parameter, with a float32 constant for every 256 of them."""

_COPY = "head, the frozen copy that PEFT keeps"

_LAID_OUT = "frozen matrices, laid out for each direction"

_SMALLEST_8BIT = 4_096
"""bitsandbytes keeps the states of smaller tensors in float32."""


@dataclass(frozen=True)
class Setting:
    """What determines how much memory is needed.

    Attributes:
        config: the model, with its ``backbone_config``; if it reads words, every text is ``window_length`` tokens long.
        dtype: precision of the frozen weights that are not quantized, while training.
        scoring_dtype: their precision when the trained model is scored.
        lora_rank: rank of the adapters.
        lora_dropout: dropout on the adapters' input.
        lora_target_modules: names of the linear layers with an adapter.
        batch_size: rows per micro-batch.
        gradient_accumulation_steps: micro-batches per optimizer step.
        bf16: autocast while training.
        gradient_checkpointing: recompute each layer in the backward pass.
        fused_layers: let one-token layers train as one function, if they can.
        optim: optimizer, by its name in transformers.
        output_layer: is ``lm_head`` loaded too? This project never does; loaders of a whole causal language model do.
        device: ``cuda`` or ``cpu``.
    """

    config: EmotionConfig
    dtype: torch.dtype
    scoring_dtype: torch.dtype
    lora_rank: int
    lora_dropout: float
    lora_target_modules: tuple[str, ...]
    batch_size: int
    gradient_accumulation_steps: int
    bf16: bool
    gradient_checkpointing: bool
    fused_layers: bool
    optim: str
    output_layer: bool = False
    device: str = "cuda"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, at each moment when the peak may occur.

    Attributes:
        parameters: numbers of parameters by part; a 4-bit one counts as one parameter.
        training: moment (``step``, ``optimizer``, ``scoring``) → part → bytes.
        inference: part → bytes.
        layer_activations: bytes that one layer keeps for the backward pass of a micro-batch.
    """

    parameters: dict[str, int]
    training: dict[str, dict[str, int]]
    inference: dict[str, int]
    layer_activations: int

    @property
    def training_peak(self) -> int:
        """Bytes at the worst moment of training, without :data:`RESERVE`."""
        return max(sum(parts.values()) for parts in self.training.values())

    @property
    def inference_peak(self) -> int:
        """Bytes at the worst moment of classifying, without :data:`RESERVE`."""
        return sum(self.inference.values())


def evaluation_rows(reads_words: bool) -> int:
    """Rows that the trainer evaluates at once; more if each is a single token."""
    return INFERENCE_ROWS if reads_words else 256


def smallest_gpu(peak: int) -> int | None:
    """The smallest of :data:`GPUS` that holds ``peak`` bytes and the reserve; None if none does."""
    return next((name for name, capacity in GPUS.items() if peak + RESERVE <= capacity * GIB), None)


# The model and its size


def _build(setting: Setting, dtype: torch.dtype, training: bool = False) -> tuple[nn.Module, EmotionModel]:
    """The model on the meta device as training or scoring holds it, with and without PEFT's wrapper."""
    model = build_on_meta(setting.config)
    if setting.config.head == "mlp":
        return model, model
    backbone = model.backbone.requires_grad_(False)
    backbone.config._attn_implementation = attention_kernel(setting.device)
    config = setting.config
    if training and holds_matrices_alone(dtype, config.quantization, config.reads_one_token):
        hold_bfloat16(backbone)
    else:
        backbone.to(dtype)
    with torch.device("meta"):
        if setting.output_layer:
            backbone.lm_head = nn.Linear(backbone.config.hidden_size, backbone.config.vocab_size, False, dtype=dtype)
            backbone.lm_head.requires_grad_(False)
        for module in list(backbone.layers.modules()):
            if setting.config.reads_one_token and isinstance(module, MistralRMSNorm):
                module.float()
            for name, child in module.named_children():
                if setting.config.quantization != "none" and type(child) is nn.Linear:
                    setattr(module, name, QuantizedLinear(child, setting.config.quantization))
        if setting.config.reads_one_token:
            backbone.norm.float()
        alpha = setting.lora_rank  # a factor takes no memory
        peft_model = attach_lora(model, setting.lora_rank, alpha, setting.lora_dropout, setting.lora_target_modules)
    return peft_model, model


def _part(name: str, tensor: torch.Tensor, owner: nn.Module) -> str:
    if isinstance(owner, QuantizedLinear):
        return "quantized matrices" if name.endswith(".weight") else "constants of the quantized matrices"
    if ".original_module." in name:
        return _COPY
    if any(f"{part}." in name for part in HEAD_PARTS):
        return "head"
    if "lora_" in name:
        return "adapters"
    for part in ("embed_tokens", "lm_head"):
        if part in name:
            return part
    return "frozen matrices" if tensor.ndim > 1 else "norms and buffers"


def weigh(model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of parameters and bytes of a model's tensors, by part."""
    parameters: dict[str, int] = {}
    sizes: dict[str, int] = {}
    modules = dict(model.named_modules())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        owner = modules[name.rpartition(".")[0]]
        part = _part(f".{name}", tensor, owner)
        quantized = isinstance(owner, QuantizedLinear) and isinstance(tensor, nn.Parameter)
        count = cast(Any, owner).in_features * cast(Any, owner).out_features if quantized else tensor.numel()
        parameters[part] = parameters.get(part, 0) + (count if isinstance(tensor, nn.Parameter) else 0)
        sizes[part] = sizes.get(part, 0) + tensor.numel() * tensor.element_size()
    return parameters, sizes


def optimizer_bytes(setting: Setting, sizes: Iterable[int]) -> tuple[int, int]:
    """Bytes of an optimizer's states and of its largest temporary, over tensors with these numbers of elements.

    Raises:
        ValueError: the optimizer's states are not known here.
    """
    elements = list(sizes)
    largest, cpu = max(elements), setting.device == "cpu"
    if setting.optim in OPTIMIZERS_32BIT:
        # On a GPU torch takes the square root of all tensors at once; on a CPU, two of one tensor at a time.
        at_once = sum(elements) if setting.optim == "adamw_torch" else 0
        temporary = 2 * largest if cpu else at_once
        return 4 * OPTIMIZERS_32BIT[setting.optim] * sum(elements), 4 * temporary
    if setting.optim not in OPTIMIZERS_8BIT:
        known = ", ".join([*OPTIMIZERS_32BIT, *OPTIMIZERS_8BIT])
        raise ValueError(
            f"optim: the states of {setting.optim} are not known to the memory plan. Remedy: use one of {known}"
        )
    states = sum(4 * n if n < _SMALLEST_8BIT else n + 4 * math.ceil(n / 256) for n in elements)
    # A GPU updates 8-bit states in place; a CPU uses float32 copies of states, gradient, weight and denominator.
    return OPTIMIZERS_8BIT[setting.optim] * states, 4 * 5 * largest if cpu else 0


# The moments of the peak


def _rows(config: EmotionConfig, rows: int) -> dict[str, torch.Tensor]:
    """The largest batch that the model can get."""
    batch = {}
    if config.reads_embedding:
        batch["embeddings"] = torch.empty(rows, config.embed_dim)
    if config.reads_words:
        batch["input_ids"] = torch.zeros(rows, config.window_length, dtype=torch.long)
        batch["attention_mask"] = torch.ones(rows, config.window_length, dtype=torch.long)
    return batch


def _laid_out_bytes(setting: Setting, weights: dict[str, int]) -> int:
    """Bytes of the extra frozen matrices that :mod:`modeling.fused_layer` holds, one for each direction."""
    small = (
        setting.fused_layers
        and setting.device == "cpu"
        and setting.dtype == torch.bfloat16
        and setting.config.reads_one_token
    )
    plain = not setting.lora_dropout and set(ALL_LINEAR) - IDLE <= set(setting.lora_target_modules)
    return 2 * weights.get("frozen matrices", 0) if small and plain else 0


def _train(setting: Setting, shell: nn.Module, model: EmotionModel) -> tuple[dict[str, int], int]:
    """Bytes that a step adds to the weights, by part, and that one layer keeps for the backward pass."""
    shell.train()
    if setting.gradient_checkpointing and setting.config.head == "backbone":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers renames the call; both names work
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    labels = len(setting.config.emotion_labels)
    after_layer: list[int] = []
    with FakeTensorMode():
        meter = Meter(without_content(shell))
        for layer in getattr(model.backbone, "layers", ()):
            layer.register_forward_hook(lambda *_: after_layer.append(meter.live))
        trainable = [parameter for parameter in shell.parameters() if parameter.requires_grad]
        with meter:
            if setting.gradient_accumulation_steps > 1:  # the first micro-batch left its gradients
                for parameter in trainable:
                    parameter.grad = torch.empty_like(parameter)
            before = set(meter.blocks())
            rows = _rows(setting.config, setting.batch_size)
            with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16):
                logits = shell(**rows).logits
            targets = torch.empty(setting.batch_size, labels)
            loss = focal_loss(logits.float(), targets, torch.empty(labels), gamma=2.0)
            layers = len(after_layer)  # checkpointing runs the hooks again
            kept = [block for block in meter.blocks() if block not in before]
            loss.backward()
            gradients = meter.blocks(p.grad for p in trainable if p.grad is not None)
    parts = {"gradients": meter.at_peak(gradients), "activations": meter.at_peak(kept)}
    parts["workspace"] = meter.peak - sum(parts.values())
    return parts, after_layer[layers - 1] - after_layer[layers - 2] if layers > 1 else 0


def _classify(setting: Setting, dtype: torch.dtype, rows: int) -> int:
    """Bytes that a forward pass without gradients adds to the weights.

    Two layers are enough: without gradients a layer leaves nothing behind.
    """
    config = copy.copy(setting.config)
    if config.backbone_config is not None:
        config.backbone_config = config.backbone_config | {"num_hidden_layers": 2}
    model = _build(dataclasses.replace(setting, config=config), dtype)[1].eval()
    with FakeTensorMode(), torch.no_grad():
        meter = Meter(without_content(model))
        with meter:
            model(**_rows(config, rows))
    return meter.peak


def plan_memory(setting: Setting) -> MemoryPlan:
    """The memory plan of a setting. Takes seconds, and memory only for shapes.

    Raises:
        ValueError: the optimizer's states are not known here, or the backbone does not have a LoRA target.
    """
    shell, model = _build(setting, setting.dtype, training=True)
    parameters, weights = weigh(shell)
    trainable = [parameter.numel() for parameter in shell.parameters() if parameter.requires_grad]
    states, temporary = optimizer_bytes(setting, trainable)
    held = weights | {"optimizer states": states, _LAID_OUT: _laid_out_bytes(setting, weights)}
    step, layer_activations = _train(setting, shell, model)
    same = setting.dtype == setting.scoring_dtype
    scored = weights if same else weigh(_build(setting, setting.scoring_dtype)[0])[1]
    training = {
        "step": held | step,
        "optimizer": held | {"gradients": 4 * sum(trainable), "workspace": temporary},
        "scoring": scored
        | {
            "optimizer states": states,
            "workspace": _classify(setting, setting.scoring_dtype, evaluation_rows(setting.config.reads_words)),
        },
    }
    dtype = torch.bfloat16 if setting.device == "cuda" else setting.scoring_dtype
    classifier = weigh(_build(setting, dtype)[1])[1]
    # A package's heads are not held twice.
    classifier.pop(_COPY, None)
    return MemoryPlan(
        parameters,
        training,
        inference=classifier | {"workspace": _classify(setting, dtype, INFERENCE_ROWS)},
        layer_activations=layer_activations,
    )
