"""Silence library messages that nobody can act on."""

import logging
import warnings

_UNACTIONABLE = "gemm_4bit_forward from kernels-community"
"""bitsandbytes looks for this optional kernel on the Hub at every import."""


def _is_actionable(record: logging.LogRecord) -> bool:
    return _UNACTIONABLE not in str(record.msg)


def silence_libraries() -> None:
    """Hide two messages, by PEFT and bitsandbytes, that do not help a user; all others still come through."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_actionable)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
