"""Memory that a step gives back is kept for the next one.

    with retained(): ...      # training

A step frees hundreds of megabytes and the next one asks for them again. The C library of Linux (glibc) returns such
blocks to the system at once, and each page of a new block costs a fault and a zeroing: 20,000 of them a step for a
17 M parameter model, 2 to 7 % of its time. Inside, freed memory stays with the process; peak memory is the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's parameters, from malloc.h
_NEVER = 2**31 - 1
_LARGEST_BLOCK = 2**30
_DEFAULT = 128 * 1024


@contextlib.contextmanager
def retained() -> Iterator[None]:
    """Inside, large blocks are taken from the heap and the heap does not shrink. Without glibc, nothing changes."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _DEFAULT)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT)
        libc.malloc_trim(0)
