"""The C library's memory allocator, told not to hand large buffers back to the system after every layer.

A network's activations are freed and asked for again layer by layer. glibc returns such buffers to the system and has every page
zeroed anew when they come back, which costs a CPU run a quarter of its time or more.
"""
from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3        # malloc.h


def keep_memory() -> bool:
    """Keep freed memory in this process for the next layer; True where that was possible (Linux with glibc).

    For a process of our own only (the command line, benchmarks, training): a host's memory is the host's business.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version                  # noqa: B018 (other C libraries have a mallopt without these meanings, or none)
        return bool(libc.mallopt(M_MMAP_THRESHOLD, 2**30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False
