"""How much memory the trainer takes on this host and its devices."""

from __future__ import annotations

import jax
import psutil

_STATISTICS = {
    "memory_device_bytes": "bytes_in_use",
    "memory_device_peak_bytes": "peak_bytes_in_use",
    "memory_device_limit_bytes": "bytes_limit",
}


def used() -> dict[str, float]:
    """Metrics in bytes; those of devices only where they tell, and of the fullest one."""
    told = [statistics for device in jax.local_devices() if (statistics := device.memory_stats())]
    found = {
        name: max(statistics[key] for statistics in told)
        for name, key in _STATISTICS.items()
        if told and all(key in statistics for statistics in told)
    }
    return {"memory_rss_bytes": psutil.Process().memory_info().rss, **found}
