"""Memory of the host that is free again goes back to the system.

glibc keeps what was freed below something that is still used, up to blocks of 32 MiB: it raises the size from which a
block is a mapping of its own whenever a larger one is freed. A checkpoint's reader, the compiler and each generation of
arrays leave hundreds of megabytes that way, which count against a container's limit.
"""

from __future__ import annotations

import ctypes
from typing import Any

_M_MMAP_THRESHOLD = -3
_MAPPED_FROM_BYTES = 1 << 20


def map_large_blocks() -> None:
    """Make each block from 1 MiB on a mapping of its own, which goes back when it is freed.

    Does nothing where the C library is not glibc. Blocks that are in use already stay where they are.
    """
    option = _from_c_library("mallopt")
    if option is not None:
        option(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


def give_back() -> None:
    """Return what is free among small blocks to the system; does nothing where the C library is not glibc."""
    trim = _from_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _from_c_library(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
