"""The device, its clock, its memory and the rate of its matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tests.gpu import TINY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finish() -> None:
    """Wait until the device has computed all that it was asked for."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], rounds: int = 5) -> float:
    """Median seconds of a call, after one that does not count."""
    taken = []
    for _ in range(rounds + 1):
        finish()
        started = time.perf_counter()
        function()
        finish()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def matrix_rate() -> float:
    """Floating-point operations per second of a large product in bfloat16."""
    size, products = (256, 1) if TINY else (8_192, 10)
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))

    def multiply() -> None:
        for _ in range(products):
            torch.mm(left, right)

    return 2.0 * size**3 * products / seconds(multiply)


def forget_peak() -> None:
    """Start a new peak of the GPU's memory."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> int | None:
    """The most bytes that tensors took on the GPU since :func:`forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None
