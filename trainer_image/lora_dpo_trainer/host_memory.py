"""Memory of the host that is free again goes back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return what is free to the system; does nothing where the C library has no `malloc_trim`.

    glibc keeps what was freed below something that is still used. A checkpoint's reader and the compiler leave hundreds
    of megabytes that way, which nothing needs again while a run trains, and which count against a container's limit.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
