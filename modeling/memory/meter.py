"""Count the memory of a computation on tensors with shapes but no content; quantized layers of that kind."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(eq=False)
class Block:
    """A storage: its bytes, and when it was made and freed."""

    size: int
    born: int
    died: float = math.inf


class Meter(TorchDispatchMode):
    """Counts the bytes of the storages that are made and freed while it is active.

    Args:
        known: tensors that exist already, which are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peak_time = 0
        self._time = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, Block] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._alive:
            return
        self._time += 1
        self._alive[key] = Block(storage.nbytes(), self._time)
        weakref.finalize(storage, self._forget, key)
        self.live += storage.nbytes()
        if self.live > self.peak:
            self.peak, self.peak_time = self.live, self._time

    def _forget(self, key: int) -> None:
        self._time += 1
        block = self._alive.pop(key)
        block.died = self._time
        self.live -= block.size

    def blocks(self, tensors: Iterable[torch.Tensor] | None = None) -> list[Block]:
        """The storages of these tensors, or all live ones."""
        if tensors is None:
            return list(self._alive.values())
        return [self._alive[tensor.untyped_storage()._cdata] for tensor in tensors]

    def at_peak(self, blocks: Iterable[Block]) -> int:
        """Bytes of the blocks that were alive at the peak."""
        return sum(block.size for block in blocks if block.born <= self.peak_time < block.died)


def without_content(model: nn.Module) -> list[torch.Tensor]:
    """Replace a model's meta tensors with fake CPU tensors, so that autocast sees a device; return them."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return [*model.parameters(), *model.buffers()]


def constants_nf4(parameters: int) -> int:
    """Bytes of the constants of one NF4 matrix with double quantization.

    Each block of 64 weights stores its largest magnitude in 8 bits. Each 256 of these magnitudes store theirs in
    float32. Their mean, the 256 values of the 8-bit code and the 16 of NF4 are also stored (Dettmers et al., QLoRA,
    2023, section 3).
    """
    blocks = math.ceil(parameters / 64)
    return blocks + 4 * math.ceil(blocks / 256) + 4 * (1 + 256 + 16)


class _QuantizedProduct(torch.autograd.Function):
    """What bitsandbytes allocates: one dequantized matrix per direction; it keeps only the packed one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        ctx.shape = shape
        ctx.save_for_backward(packed)
        return functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradient @ gradient.new_empty(ctx.shape), None, None


class QuantizedLinear(nn.Linear):
    """The shapes and allocations of ``bitsandbytes.nn.Linear4bit`` or ``Linear8bitLt``, without content."""

    def __init__(self, linear: nn.Linear, quantization: str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        parameters = linear.in_features * linear.out_features
        packed, constants = (
            ((parameters + 1) // 2, constants_nf4(parameters))
            if quantization == "nf4"
            else (parameters, 4 * linear.out_features)
        )
        self.weight = nn.Parameter(torch.empty(packed, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("constants", torch.empty(constants, dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Linear layer in bfloat16, [B, in] → [B, out]."""
        shape = (self.out_features, self.in_features)
        product = cast(Any, _QuantizedProduct).apply(x.to(torch.bfloat16), self.weight, shape)
        return cast(torch.Tensor, product.to(x.dtype))
