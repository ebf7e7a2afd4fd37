"""What stops a command though nobody wrote it wrongly: Ctrl-C, SIGTERM, and what the machine refuses."""

import errno
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXHAUSTED, INTERRUPTED, TERMINATED = 4, 130, 143
"""Exit codes: the machine has too little disk or memory; Ctrl-C; SIGTERM."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# PyTorch's writer and numpy's tofile lose the error's number.
_SAYS_NO_SPACE = re.compile(
    r"No space left|disk is full|Disk quota exceeded|File too large|inline_container|PytorchStreamWriter"
    r"|\d+ requested and \d+ written"
)
_SAYS_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|out of memory", re.IGNORECASE)


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, it unwinds the stack, so that nothing is left half done."""


@contextmanager
def catch_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM; outside the main thread signals cannot be caught."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def describe_stop(error: BaseException) -> tuple[int, str] | None:
    """Exit code and reason of a stop, or None for any other error."""
    if isinstance(error, KeyboardInterrupt):
        return (TERMINATED, "terminated") if isinstance(error, Terminated) else (INTERRUPTED, "interrupted")
    cause: BaseException | None = error
    while cause is not None:
        said = "" if "Remedy: " in str(cause) else str(cause)  # our own errors may quote a row
        if isinstance(cause, MemoryError) or _SAYS_NO_MEMORY.search(said):
            return EXHAUSTED, "too little memory"
        if (isinstance(cause, OSError) and cause.errno in _NO_SPACE) or _SAYS_NO_SPACE.search(said):
            return EXHAUSTED, "the disk is full, or a limit of file sizes is reached"
        cause = cause.__cause__ or cause.__context__
    return None


def describe_local_error(error: OSError) -> str:
    """What this machine's file system refused, with the remedy."""
    return (
        f"{error.filename or 'a file'}: {error.strerror or error}. Remedy: name a place that exists, has space and can "
        "be read and written"
    )
