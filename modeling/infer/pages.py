"""Large pages of memory for a graph's weights.

One text takes as long as reading all weights once. In pages of 4 KiB a seventh of that time goes into looking up pages,
so Linux is asked for pages of 2 MiB. Other systems, and a Linux that refuses, keep what they have.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_LARGE = 2**21
_HUGEPAGE, _COLLAPSE = 14, 25
"""Advice of madvise: give large pages to what is written later; move what is there into large pages."""

Range = tuple[int, int]


@contextlib.contextmanager
def large_pages() -> Iterator[None]:
    """Ask for large pages for the memory that is allocated inside; it is moved in a thread, which nothing waits for."""
    before = _private_memory()
    yield
    added = [part for new in _private_memory() for part in _without(new, before)]
    whole = [(-(-start // _LARGE) * _LARGE, end // _LARGE * _LARGE) for start, end in added]
    if ranges := [(start, end) for start, end in whole if start < end]:
        threading.Thread(target=_enlarge, args=(ranges,), daemon=True).start()


def _private_memory() -> list[Range]:
    """Addresses of memory that is written and that no file stands behind, in order."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for addresses, access, _, _, inode, *name in map(str.split, lines):
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append((start, end))
    return found


def _without(new: Range, old: list[Range]) -> Iterator[Range]:
    """The parts of a range that are not in the others."""
    start, end = new
    for other_start, other_end in old:
        if other_end > start and other_start < end:
            yield start, other_start
            start = other_end
    yield start, end


def _enlarge(ranges: list[Range]) -> None:
    # Advice changes no content, so it does no harm if the memory is another's by now; what Linux refuses stays as it is.
    with contextlib.suppress(AttributeError, OSError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for start, end in ranges:
            for advice in (_HUGEPAGE, _COLLAPSE):
                madvise(start, end - start, advice)
