"""Shared by the speed benchmarks: alternating rounds, the machine's matrix rate, and a line for each figure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch

ROUNDS = 5

Name = TypeVar("Name", bound=Hashable)


def alternate(functions: Mapping[Name, Callable[[], object]], rounds: int = ROUNDS) -> dict[Name, float]:
    """Median seconds of each function; every round runs each function once, and a first round does not count.

    Alternation spreads the machine's other load over all functions.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def matrix_product(size: int = 2_048, dtype: torch.dtype = torch.bfloat16) -> tuple[Callable[[], object], float]:
    """A matrix product to time with the other functions, and its number of floating-point operations."""
    matrix = torch.randn(size, size, dtype=dtype)
    return lambda: matrix @ matrix, 2.0 * size**3


def emit(figure: str, **values: object) -> None:
    """Print one figure as a JSON line, with the number of threads."""
    threads = {"threads": torch.get_num_threads(), "wait_policy": os.environ.get("OMP_WAIT_POLICY", "")}
    print(json.dumps({"figure": figure, **values, **threads}), flush=True)
