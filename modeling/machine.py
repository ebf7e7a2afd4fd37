"""What this machine is."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_FLAGS = {"amx_int8": "AMX", "avx512_bf16": "AVX512-BF16", "avx512_vnni": "AVX512-VNNI", "avx2": "AVX2"}
"""Instructions for products of matrices, by their names on Linux; the fastest first."""


def cpu_name() -> str:
    """The processor's own name, which ``platform`` does not know on Linux, and its fastest instructions for products."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    fastest = next((said for flag, said in _FLAGS.items() if flags and flag in flags[1].split()), "")
    model = name[1].strip() if name else platform.processor() or platform.machine()
    return f"{model} ({fastest})" if fastest else model
