"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import platform

# options of mallopt in glibc's malloc.h: one pool for all threads, arrays of any size from it, nothing given back
OPTIONS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_freed_memory() -> bool:
    """Let this process keep what it frees: long sequences on a CPU take less time, at best half.

    The C library of Linux, glibc, gives large arrays back to the system, which hands out new pages and clears them at
    the next call. JAX, and torch less so, take and free hundreds of MiB at each call of a long sequence, and on some
    machines half of its time goes there; `docs/performance.md` has figures. Call this once, early. The process then
    stays as large as it has been, and a little larger than it would be at its largest.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html.

    Returns:
        Whether glibc does so now. Elsewhere (macOS, Windows, musl) nothing is changed and the answer is False.

    Example:

    >>> import dl_mamba
    >>> dl_mamba.keep_freed_memory() in (True, False)
    True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) for option, value in OPTIONS.values())
