"""How the C library hands out memory to this process."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed for the next tensor instead of giving it back to the system.

    Each large tensor otherwise comes as fresh pages, which the system clears one by one at first touch: 12 % of a
    training step of vmamba_tiny (batch 8, two cores), 15 % of its forward pass. The price is that the process stays as
    large as it once was. It changes the whole process, so only programs of our own (the command line) call it.

    Returns:
        Whether there was a glibc to tell; elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _MOST)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))
