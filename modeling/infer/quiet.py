"""Library messages: silence those that nobody can act on, and show the others once."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_UNACTIONABLE = "gemm_4bit_forward from kernels-community"
"""bitsandbytes looks for this optional kernel on the Hub at every import."""


def _is_actionable(record: logging.LogRecord) -> bool:
    return _UNACTIONABLE not in str(record.msg)


def silence_libraries() -> None:
    """Hide two messages, by PEFT and bitsandbytes, that do not help a user; all others still come through."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_actionable)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def join_library_logs() -> None:
    """Leave libraries' messages to the root logger's handlers: each once, and all of the same form.

    A library with a handler of its own prints another kind of line, and the same message twice if it also passes it on.
    """
    for library in list(logging.root.manager.loggerDict.values()):
        if isinstance(library, logging.Logger) and library.handlers:
            library.handlers.clear()
            library.propagate = True


@contextmanager
def restore_logs() -> Iterator[None]:
    """Leave the loggers as they were found: a handler that outlives its command would write to a closed file."""
    loggers = [logging.root, *(it for it in logging.root.manager.loggerDict.values() if isinstance(it, logging.Logger))]
    found = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        for handler in logging.root.handlers:
            if handler not in found[0][1]:
                handler.close()
        for logger, handlers, propagate in found:
            logger.handlers, logger.propagate = handlers, propagate
