"""The C library's allocator, told to keep what is freed."""
from __future__ import annotations

import contextlib
import ctypes
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -4, -1, -2, -8          # parameters of glibc's mallopt


def keep_freed_memory() -> bool:
    """Let large freed blocks be used again instead of being given back to the system, for the whole process.

    A network frees and asks for the same large blocks in every call, and without this the system clears each of them anew: a fifth of
    the time of a large network on a CPU. All threads share what was freed, a reader's and a writer's too. Only with glibc; returns whether
    it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):                      # another C library
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 << 20), mallopt(_ARENA_MAX, 1)])


def give_back_memory() -> None:
    """Give what is free back to the system, once: before something else than a network needs a lot. Only with glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):          # another C library, or system
        ctypes.CDLL(None).malloc_trim(0)
